"""How a run ends: by signals, pipes, terminals, full disks, limits, in pools and containers.

Whatever ends a training but a kill saves first; then things take their usual course.
Not tested, since a test machine can't have it: Windows' consoles and signals.
"""

import contextlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import (LONG, QUICK, ROOT, TIMEOUT, end, environment, posix, run, script, start,
                      usual_signals, wait_for_pause)

pytestmark = pytest.mark.slow
TESTED = re.compile(r"Testing Accuracy: 0\.\d+\nTesting Accuracy, all 300 images: 0\.\d+\n$")


def saved_in(folder, updates=None):
    """Fails if a run has not left a model of more than one update, or of as many as told."""
    model = keras.models.load_model(folder / "rnn_mnist.keras")
    made = int(model.optimizer.iterations)
    return made > 1 if updates is None else made == updates


def quiet(err):
    """Returns whether standard error has nothing but sentences."""
    return not re.search("Traceback|Exception|roken pipe|Error", err)


# signals, in this process


@pytest.fixture
def usual_ctrl_c():
    """Python's own handler of Ctrl-C, though tests that run in the background may ignore it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # put back
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture
def at(settings, monkeypatch, small_data_dir, untraced):
    """Has signals sent, for real, when a function of the script's is called for the first time."""
    settings(**QUICK, DATA_DIR=str(small_data_dir))

    def at(name, *numbers):
        function = getattr(rnn_mnist, name, print)
        to_come = list(numbers)

        def interrupted(*arguments, **more):
            while to_come:
                signal.raise_signal(to_come.pop(0))
            return function(*arguments, **more)

        monkeypatch.setattr(rnn_mnist, name, interrupted, raising=False)

    return at


@posix
def test_each_signal_that_asks_a_run_to_end_is_held():
    names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM"]
    sent = [signal.Signals[name] for name in names]
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in sent}
    quit_handler = signal.getsignal(signal.SIGQUIT)
    try:
        with rnn_mnist.deferred_signals() as signals:
            for number in sent + [signal.SIGHUP]:  # which a terminal that closes sends twice
                signal.raise_signal(number)
            assert signals == sent + [signal.SIGHUP]
            assert signal.getsignal(signal.SIGQUIT) is quit_handler  # which ends at once
            signals.clear()  # so that none of them ends pytest
        assert {signal.getsignal(number) for number in sent} == {signal.SIG_DFL}
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@posix
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_ctrl_c_is_raised_out_of_main_once_all_is_saved_and_tested(at, usual_ctrl_c, tmp_path,
                                                                   capsys, times):
    at("print", *[signal.SIGINT] * times)
    with pytest.raises(KeyboardInterrupt):  # which ends a loop of such calls, too
        rnn_mnist.main()
    out, err = capsys.readouterr()
    assert TESTED.search(out) and "Optimization Finished!" not in out
    assert "Training ended by SIGINT at Iter 1000 after " in err
    assert saved_in(tmp_path, updates=10)


@posix
def test_a_handler_of_somebody_else_acts_at_once(at, tmp_path, capsys):
    notes = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: notes.append(number))
    try:
        at("print", signal.SIGTERM)
        assert 0 <= rnn_mnist.main() <= 1  # since that handler lets it go on
        assert notes == [signal.SIGTERM] and saved_in(tmp_path, updates=21)
    finally:
        signal.signal(signal.SIGTERM, earlier)


@pytest.mark.parametrize("error", [SystemExit(99), TimeoutError("too slow")], ids=repr)
def test_what_a_handler_of_somebody_else_raises_saves_too(at, tmp_path, error):
    def handler(number, frame):
        raise error

    number = getattr(signal, "SIGUSR1", signal.SIGINT)
    earlier = signal.signal(number, handler)
    at("print", number)
    try:
        with pytest.raises(type(error)) as raised:
            rnn_mnist.main()
        assert raised.value is error and signal.getsignal(number) is handler
    finally:
        signal.signal(number, earlier)
    assert saved_in(tmp_path, updates=10)


@posix
def test_signals_while_testing_lose_nothing(at, usual_ctrl_c, tmp_path, capsys):
    at("test", signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        rnn_mnist.main()
    out = capsys.readouterr().out
    assert "Optimization Finished!\n" in out and TESTED.search(out)
    assert saved_in(tmp_path, updates=21)


@posix
def test_signals_that_are_ignored_stay_ignored(at, usual_ctrl_c, tmp_path, capsys):
    earlier = {number: signal.signal(number, signal.SIG_IGN)  # so nohup and trap '' do
               for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    at("print", signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        assert 0 <= rnn_mnist.main() <= 1
    except KeyboardInterrupt:  # which would end pytest, too
        pytest.fail("Ctrl-C was not ignored")
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    out = capsys.readouterr().out
    assert "Optimization Finished!\n" in out and TESTED.search(out)
    assert saved_in(tmp_path, updates=21)


@posix
@pytest.mark.parametrize("moment", ["minibatches", "fast_path"],
                         ids=["before training", "while it is traced"])
def test_a_signal_before_anything_is_learned_leaves_the_earlier_model(
        at, usual_ctrl_c, cpu, tmp_path, capsys, moment):
    tf.config.run_functions_eagerly(False)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    at(moment, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        rnn_mnist.main()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Iter 0 " in err or "Iter 100 " in err
    assert "before its second update" in err and "Saved" not in err
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


@posix
def test_averages_are_taken_over_at_a_ctrl_c(at, usual_ctrl_c, settings):
    """As Keras's fit does in the end of a training with use_ema=True."""
    def build_model():
        model = original()
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)
        model.compile(optimizer, loss=model.loss, metrics=["accuracy"])
        made.append(model)
        return model

    made, original = [], rnn_mnist.build_model
    settings(build_model=build_model)
    at("print", signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        rnn_mnist.main()
    averages = [variable for variable in made[0].optimizer.variables
                if variable.path.endswith("_average")]
    for weight, average in zip(made[0].trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(weight, average)


@posix
def test_ctrl_c_that_also_ends_what_reads_the_log_is_a_ctrl_c(at, usual_ctrl_c, monkeypatch,
                                                              tmp_path, capsys):
    """As it does with `| tee log`: the run meets both, and which one first is chance."""
    reader, writer = os.pipe()
    os.close(reader)
    log = open(writer, "w")
    monkeypatch.setattr(sys, "stdout", log)
    at("print", signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        rnn_mnist.main()
    assert "Training ended by SIGINT at Iter 1000 " in capsys.readouterr().err
    assert saved_in(tmp_path, updates=10)
    with pytest.raises(BrokenPipeError):  # so it was one
        log.close()


@posix
def test_a_bug_after_a_signal_is_told_all_the_same(at, usual_ctrl_c, monkeypatch, tmp_path):
    at("print", signal.SIGINT)
    monkeypatch.setattr(rnn_mnist, "test", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rnn_mnist.main()
    assert saved_in(tmp_path, updates=10)


@posix
def test_a_signal_to_a_point_that_diverges_ends_a_sweep_too(at, usual_ctrl_c, settings, capsys):
    settings(LEARNING_RATE=1e30)
    at("failure_of", signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        try:
            rnn_mnist.main()
        except rnn_mnist.TrainingError:
            pytest.fail("the sweep would go on")
    assert "1e+30" in capsys.readouterr().err  # what has diverged is told all the same


def test_a_finished_run_of_one_update_is_saved(at, settings, tmp_path):
    settings(TRAINING_ITERS=200)
    assert 0 <= rnn_mnist.main() <= 1
    assert saved_in(tmp_path, updates=1)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # only a program around Python
    monkeypatch.delattr(signal, "signal")  # can set one: hence a mock
    with rnn_mnist.deferred_signals() as signals:
        assert not signals


def test_main_runs_in_another_thread_which_may_not_handle_signals(at, tmp_path):
    accuracies = []
    thread = threading.Thread(target=lambda: accuracies.append(rnn_mnist.main()))
    thread.start()
    thread.join()
    assert accuracies[0] > 0 and saved_in(tmp_path, updates=21)


# signals to processes


def start_at_a_terminal(path, **more):
    """Starts a run on a new terminal of its own; returns the process and the other end."""
    import fcntl
    import termios

    def own_terminal():
        usual_signals()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    ours, theirs = os.openpty()
    process = start(path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                    preexec_fn=own_terminal, **more)
    os.close(theirs)
    return process, ours


def read_until(terminal, text):
    """Returns what a terminal shows up to `text`, or up to the end of all that write to it."""
    shown = b""
    while text is None or text not in shown:
        try:
            received = os.read(terminal, 1000)
        except OSError:  # so Linux says that nobody is there any more, and a Mac by no bytes
            received = b""
        if not received:
            assert text is None, shown
            return shown.decode()
        shown += received
    return shown.decode()


@posix
def test_ctrl_c_at_a_terminal_ends_a_loop_of_the_shell(tmp_path, small_data_dir):
    path = script(tmp_path, **LONG, DATA_DIR=str(small_data_dir))
    loop = f"for n in 1 2 3; do echo run $n; {sys.executable} {path.name}; done; echo went on"
    process, terminal = start_at_a_terminal(path, command=["bash", "-c", loop])
    read_until(terminal, b"Iter 1000, ")
    os.write(terminal, b"\x03")
    shown = read_until(terminal, None)
    assert process.wait(timeout=TIMEOUT) == -signal.SIGINT
    assert "all 300 images: " in shown and "run 2" not in shown and "went on" not in shown
    assert quiet(shown) and saved_in(tmp_path)


@posix
def test_a_terminal_that_closes_loses_nothing(tmp_path, small_data_dir):
    path = script(tmp_path, **LONG, DATA_DIR=str(small_data_dir))
    process, terminal = start_at_a_terminal(path)
    read_until(terminal, b"Iter 1000, ")
    os.close(terminal)  # sends SIGHUP, twice; from now on nothing can be written
    assert process.wait(timeout=TIMEOUT) == -signal.SIGHUP
    assert saved_in(tmp_path)


def read_log(process, last):
    """Returns what a process prints up to a line that begins with `last`."""
    lines = [process.stdout.readline()]
    while not lines[-1].startswith(last):
        assert lines[-1], process.communicate()
        lines.append(process.stdout.readline())
    return lines


POOL = """
import concurrent.futures, multiprocessing, os
import rnn_mnist

def work(n_steps, iters):
    print("worker", os.getpid(), "trains on", iters, flush=True)
    rnn_mnist.N_STEPS, rnn_mnist.TRAINING_ITERS = n_steps, iters
    return rnn_mnist.main()

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for future in [pool.submit(work, *point) for point in ((5, 301), (4, 301), (4, 10**9))]:
            print("answer", repr(future.exception() or future.result()), flush=True)
"""


@posix
def test_a_pool_gets_an_answer_for_each_of_its_points(tmp_path, small_data_dir):
    """Also where SIGTERM ends its worker: else the pool's other end would wait for ever."""
    script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir))
    (tmp_path / "pool.py").write_text(POOL)
    process = start(tmp_path / "pool.py", environment(PYTHONPATH=str(tmp_path)))
    shown = read_log(process, "Iter 1000, ")  # of the last, which only a signal ends
    _, _, worker = [line for line in shown if line.startswith("worker ")]
    os.kill(int(worker.split()[1]), signal.SIGTERM)
    status, out, err = end(process)
    refused, accuracy, broken = re.findall("^answer (.*)$", "".join(shown) + out, re.MULTILINE)
    assert status == 0 and "BrokenProcessPool" in broken and "all 300 images" in out, err
    assert refused.startswith("TrainingError('N_STEPS = 5 times N_INPUT = 196 must be 784, ")
    assert 0 < float(accuracy) < 1 and saved_in(tmp_path)


NEAR_LIMIT = """
import builtins, resource
to_come = [True]

def print(*arguments, **more):
    builtins.print(*arguments, **more)
    if to_come:  # this is the first line: something is learned
        to_come.pop()
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1, hard))
"""  # as by ulimit -S -t


@posix
def test_a_limit_of_processor_time_loses_nothing(tmp_path, small_data_dir):
    """As with any signal, the process ends by it, and so shows which one it was."""
    status, out, err = run(script(tmp_path, NEAR_LIMIT, **LONG, DATA_DIR=str(small_data_dir)))
    assert status == -signal.SIGXCPU and quiet(err)
    assert "Training ended by SIGXCPU at Iter " in err
    assert "Optimization Finished!" not in out and TESTED.search(out) and saved_in(tmp_path)


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
LOOP = """
import rnn_mnist

for run in range(3):
    print("run", run, flush=True)
    rnn_mnist.main()
"""


@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0,
    reason="a process 1 of one's own needs Linux and the right to it")
def test_process_1_of_a_container_ends_by_a_status_that_says_which_signal(tmp_path, small_data_dir):
    script(tmp_path, **LONG, DATA_DIR=str(small_data_dir))
    (tmp_path / "loop.py").write_text(LOOP)
    process = start(tmp_path / "loop.py", command=[*UNSHARE, sys.executable, "loop.py"])
    read_log(process, "Iter 1000, ")
    child = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True,
                           capture_output=True, check=True).stdout
    os.kill(int(child), signal.SIGTERM)
    status, out, err = end(process)
    assert status == 128 + signal.SIGTERM and TESTED.search(out) and "run 1" not in out, err
    assert "Traceback" not in err and saved_in(tmp_path)


@posix
def test_a_signal_while_libraries_load_ends_that(tmp_path):
    path = script(tmp_path)
    (tmp_path / "keras.py").write_text("import pauses; pauses.pause()")  # the first of them
    process = start(path)
    wait_for_pause(process)
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert status == -signal.SIGINT and out == "" and "UCI" not in err  # Python's own end


def test_libraries_are_loaded_once_also_if_that_fails(tmp_path):
    path = script(tmp_path)
    (tmp_path / "keras.py").write_text(
        "import sys; print('loading with', *sys.modules, file=sys.stderr); raise ImportError")
    status, _, err = run(path)
    assert status == 1 and err.count("loading with sys ") == 1
    # before NumPy, which would turn a Ctrl-C in there into a page about ImportError
    assert " datetime " in err


# pipes and full disks


@posix
def test_a_closed_pipe_ends_the_run_quietly(tmp_path, small_data_dir):
    """As `| head -3` does."""
    process = start(script(tmp_path, **LONG, DATA_DIR=str(small_data_dir)))
    for _ in range(3):
        process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=TIMEOUT) == 1 and quiet(err)
    assert re.search(r"Training ended at Iter \d+ ", err) and "Saved" in err
    assert saved_in(tmp_path)


full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the full disk of Linux")


@full
def test_a_full_disk_under_the_log_is_said_and_costs_only_that(at, monkeypatch, tmp_path, capsys):
    with contextlib.suppress(OSError), open("/dev/full", "w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        with pytest.raises(OSError):
            rnn_mnist.main()
    assert "Training ended at Iter 1000 " in capsys.readouterr().err
    assert saved_in(tmp_path, updates=10)


@pytest.mark.parametrize("path", [None, pytest.param("/dev/full", marks=full)])
def test_messages_that_nobody_can_read_leave_the_log_as_it_is(at, monkeypatch, tmp_path, capsys,
                                                              path):
    messages = open(path, "w") if path else None  # so Python has it after `2>&-`
    monkeypatch.setattr(sys, "stderr", messages)
    assert 0 <= rnn_mnist.main() <= 1
    with contextlib.suppress(OSError):  # what was not taken is tried again
        path and messages.close()
    out = capsys.readouterr().out
    assert out.startswith("Iter 1000, ") and TESTED.search(out) and len(out.splitlines()) == 5
    assert saved_in(tmp_path, updates=21)


# arguments, and what else ends the script itself: `__main__`, in this process


@pytest.fixture
def as_script(settings, monkeypatch, tmp_path):
    """Runs a copy as `python rnn_mnist.py arguments`; returns what it gives to sys.exit."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back at the end
    monkeypatch.delattr(sys, "ps1", raising=False)

    def as_script(*arguments, before_main="", **constants):
        path = script(tmp_path, before_main, **{**QUICK, **constants})
        monkeypatch.setattr(sys, "argv", [path.name, *arguments])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as error:
            return error.code

    return as_script


@pytest.mark.parametrize("arguments", [["--help"], ["--batch_size", "64"], ["train"], ["-h"], [""]])
def test_an_argument_starts_no_training(as_script, capfd, arguments):
    message = as_script(*arguments, before_main="main = None")
    assert isinstance(message, str) and len(message.splitlines()) == 1  # so the status is 1
    assert "constants" in message
    assert capfd.readouterr().out == ""


def test_what_can_not_be_trained_is_a_sentence_and_status_1(as_script):
    assert as_script(before_main="def main(): raise TrainingError('so it is')") == "so it is"
    assert as_script(before_main="main = lambda: 0.5") is None  # no SystemExit, as in a notebook


def test_a_bug_is_no_sentence(as_script):
    with pytest.raises(NameError):
        as_script(before_main="def main(): bug")


def test_importing_it_runs_nothing(settings, tmp_path, capfd):
    runpy.run_path(str(ROOT / "rnn_mnist.py"), run_name="rnn_mnist")
    assert capfd.readouterr() == ("", "") and os.listdir(tmp_path) == []
