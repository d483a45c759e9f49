"""Guards: `deferred_signals`, `seeded`, `say` and the `__main__` part: how a run ends.

Whatever ends a training but a kill saves first; then things take their usual course. What belongs
to the program around main, its handlers and generators, stays as it was.
Not tested, since a test machine can't have it: Windows' consoles.
"""

import contextlib
import errno
import os
import pickle
import random
import re
import runpy
import signal
import sys
import threading

import keras
import numpy as np
import pytest
from conftest import (
    ENDLESS,
    ROOT,
    TIMEOUT,
    environment,
    posix,
    script,
    start,
    updates_of,
    usual_signals,
)

import rnn_mnist

TESTED = re.compile(r"Testing Accuracy: 0\.\d+\nTesting Accuracy, all 300 images: 0\.\d+\n$")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("untraced")]


def end_of_main():
    """Runs main; returns the exception that ends it, KeyboardInterrupt among them, or None."""
    try:
        rnn_mnist.main()
    except BaseException as error:  # which would otherwise end pytest
        return error


def quiet(err):
    """Returns True if standard error holds messages only."""
    return not re.search("Traceback|Exception|roken pipe|Error", err)


@pytest.fixture
def handlers():
    """Sets handlers of signals, by default Python's own; puts the earlier ones back."""
    earlier = {}

    def set_handlers(handler, *numbers):
        for number in numbers:
            earlier.setdefault(number, signal.getsignal(number))
            signal.signal(number, handler)

    set_handlers(signal.default_int_handler, signal.SIGINT)  # which a background job ignores
    yield set_handlers
    for number, handler in earlier.items():
        signal.signal(number, handler)


def send(*numbers):
    """Returns a function that sends signals to this process."""
    return lambda: [signal.raise_signal(number) for number in numbers]


# signals


@posix
def test_signals_that_ask_a_run_to_end_are_collected_and_handlers_put_back(handlers):
    sent = [signal.Signals[name] for name in (
        "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM")]
    handlers(signal.SIG_DFL, *sent, signal.SIGQUIT)
    with rnn_mnist.deferred_signals() as signals:
        send(*sent, signal.SIGHUP)()  # a terminal that closes sends two
        assert signals == [*sent, signal.SIGHUP]
        assert signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL  # which ends at once
        signals.clear()  # so that none of them ends pytest
    assert {signal.getsignal(number) for number in sent} == {signal.SIG_DFL}


@pytest.mark.parametrize("line, times, updates", [
    ("Iter 300", 1, 3), ("Iter 300", 2, 3), ("Optimization Finished!", 1, 7)])
def test_ctrl_c_is_raised_once_all_is_saved_and_tested(quick, handlers, when_printed, capsys, line,
                                                       times, updates):
    when_printed(line, send(*times * [signal.SIGINT]))
    assert type(end_of_main()) is KeyboardInterrupt  # which also ends a loop of such calls
    out, err = capsys.readouterr()
    assert TESTED.search(out) and ("Optimization Finished!" in out) == (updates == 7)
    assert ("SIGINT" in err) == (updates == 3) and re.search(rf"Iter {updates * 100}\b", err)
    assert updates_of() == updates and signal.getsignal(2) is signal.default_int_handler


@pytest.mark.parametrize("moment", ["minibatches", "measure"])
def test_a_signal_before_the_second_update_leaves_the_earlier_model(
        quick, handlers, monkeypatch, tmp_path, capsys, moment):
    function = getattr(rnn_mnist, moment)
    monkeypatch.setattr(rnn_mnist, moment,
                        lambda *arguments: send(signal.SIGINT)() and function(*arguments))
    quick(DISPLAY_STEP=1)
    assert type(end_of_main()) is KeyboardInterrupt
    out, err = capsys.readouterr()
    seen = 0 if moment == "minibatches" else 100
    assert "Testing" not in out and re.search(rf"Iter {seen}\b", err)
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


def test_a_finished_run_of_one_update_is_saved(quick):
    quick(TRAINING_ITERS=200)
    assert end_of_main() is None and updates_of() == 1


def test_signals_that_are_ignored_stay_ignored(quick, handlers, when_printed):
    ignored = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
               if hasattr(signal, name)]
    handlers(signal.SIG_IGN, *ignored)  # as nohup and trap '' do
    when_printed("Iter 300", send(*ignored))
    assert end_of_main() is None and updates_of() == 7


def test_a_custom_handler_acts_at_once(quick, handlers, when_printed):
    notes = []
    handlers(lambda number, frame: notes.append(number), signal.SIGTERM)
    when_printed("Iter 300", send(signal.SIGTERM))
    assert end_of_main() is None and notes == [signal.SIGTERM] and updates_of() == 7


@pytest.mark.parametrize("error", [SystemExit(99), TimeoutError("too slow")], ids=repr)
def test_what_a_custom_handler_raises_costs_no_model(quick, handlers, when_printed, error):
    def handler(number, frame):
        raise error

    handlers(handler, signal.SIGTERM)
    when_printed("Iter 300", send(signal.SIGTERM))
    assert end_of_main() is error and updates_of() == 3
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("line, error", [
    ("Iter 600", NameError("a bug")), ("Testing", OSError("no space"))], ids=["bug", "disk"])
@pytest.mark.parametrize("sent", [False, True], ids=["alone", "after a signal"])
def test_no_error_is_swallowed(quick, handlers, when_printed, capsys, sent, line, error):
    """But what reads or holds the log may go with a signal, and then the signal counts."""
    def fail():
        if sent:
            signal.raise_signal(signal.SIGINT)
        raise error

    when_printed(line, fail)
    end = end_of_main()
    if sent and isinstance(error, OSError):
        assert type(end) is KeyboardInterrupt and str(error) in capsys.readouterr().err
    else:
        assert end is error


def test_a_reader_that_goes_with_the_signal_is_not_mentioned(quick, handlers, when_printed, capsys):
    """As `| tee log` goes: the run meets both, and which one first is chance."""
    def fail():
        signal.raise_signal(signal.SIGINT)
        raise BrokenPipeError(errno.EPIPE, "no reader")

    when_printed("Iter 300", fail)
    assert type(end_of_main()) is KeyboardInterrupt and updates_of() == 3
    assert "no reader" not in capsys.readouterr().err


def test_a_divergence_is_told_and_the_signal_ends_a_sweep_all_the_same(quick, handlers, monkeypatch,
                                                                       capsys):
    quick(LEARNING_RATE=1e30)
    measure = rnn_mnist.measure
    monkeypatch.setattr(rnn_mnist, "measure",
                        lambda *arguments: send(signal.SIGINT)() and measure(*arguments))
    assert type(end_of_main()) is KeyboardInterrupt
    assert "learning rate" in capsys.readouterr().err


def test_averages_are_taken_over_at_a_ctrl_c(quick, handlers, when_printed):
    """As Keras's fit does at the end of a training with use_ema=True."""
    def build_model():
        model = original()
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)
        model.compile(optimizer, loss=model.loss, metrics=["accuracy"])
        built.append(model)
        return model

    built, original = [], rnn_mnist.build_model
    quick(build_model=build_model)
    when_printed("Iter 300", send(signal.SIGINT))
    assert type(end_of_main()) is KeyboardInterrupt
    averages = [variable for variable in built[0].optimizer.variables
                if variable.path.endswith("_average")]
    for weight, average in zip(built[0].trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(weight, average)


def test_process_1_of_a_container_ends_by_a_status_that_says_which_signal(
        quick, handlers, when_printed, monkeypatch):
    """There, and only there, a signal that is raised has no effect: hence a mock."""
    def raise_signal(number):
        pass

    def deliver():
        signal.getsignal(signal.SIGINT)(signal.SIGINT, None)

    monkeypatch.setattr(signal, "raise_signal", raise_signal)
    when_printed("Iter 300", deliver)
    end = end_of_main()
    assert type(end) is SystemExit and end.code == 130 and updates_of() == 3


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # only a program around Python
    monkeypatch.delattr(signal, "signal")  # can set one: hence a mock
    with rnn_mnist.deferred_signals() as signals:
        assert not signals


def test_main_runs_in_another_thread_which_may_not_handle_signals(quick):
    ends = []
    thread = threading.Thread(target=lambda: ends.append(end_of_main()))
    thread.start()
    thread.join()
    assert ends == [None] and updates_of() == 7


# the program around main


@pytest.mark.parametrize("seed", [0, None])
def test_a_random_search_draws_on_as_if_nothing_had_been(quick, seed):
    def draws():
        return [random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()]

    quick(SEED=seed, TRAINING_ITERS=301)
    keras.utils.set_random_seed(5)
    expected = [draws() for _ in range(4)]
    keras.utils.set_random_seed(5)
    for trial, constants in enumerate([{}, {}, dict(N_CLASSES=9), {}]):  # the third is refused
        assert draws() == expected[trial]
        quick(**constants)
        end_of_main()


def test_a_sweep_goes_on_after_a_trial_that_fails(quick, capsys):
    ends = {}
    for learning_rate in (1e30, -1, 0.01):  # diverges, is refused, learns
        quick(LEARNING_RATE=learning_rate)
        ends[learning_rate] = end_of_main()
    assert [type(end) for end in ends.values()] == [rnn_mnist.TrainingError] * 2 + [type(None)]
    assert "Iter 300" in str(ends[1e30]) and "-1" in str(ends[-1])
    # and a worker of a pool can hand it over
    assert str(pickle.loads(pickle.dumps(ends[-1]))) == str(ends[-1])


def test_main_returns_the_accuracy_that_it_prints(quick, capsys):
    accuracy = rnn_mnist.main()
    printed = re.search(r"all 300 images: (\S+)", capsys.readouterr().out)[1]
    assert type(accuracy) is float and str(np.float32(accuracy)) == printed


# the script itself: `__main__`, in this process


@pytest.fixture
def as_script(settings, monkeypatch, tmp_path):
    """Runs a copy, its main replaced by code, as `python rnn_mnist.py arguments` would.

    Returns what it gives to sys.exit, or None.
    """
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back at the end
    monkeypatch.delattr(sys, "ps1", raising=False)

    def as_script(before_main, *arguments):
        path = script(tmp_path, before_main)
        monkeypatch.setattr(sys, "argv", [path.name, *arguments])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as error:
            return error.code

    return as_script


@pytest.mark.parametrize("arguments", [["--help"], ["--batch_size", "64"], ["train"], [""]])
def test_an_argument_starts_no_training(as_script, capfd, arguments):
    message = as_script("main = None", *arguments)  # a call of it would be a TypeError
    assert "constants" in message and len(message.splitlines()) == 1  # sys.exit makes it status 1
    assert capfd.readouterr().out == ""


def test_a_training_error_is_a_message_and_a_bug_a_traceback(as_script):
    assert as_script("def main(): raise TrainingError('so it is')") == "so it is"
    assert as_script("main = lambda: 0.5") is None  # no SystemExit, as in a notebook
    with pytest.raises(NameError):
        as_script("def main(): bug")


def test_importing_it_runs_nothing(settings, tmp_path, capfd):
    runpy.run_path(str(ROOT / "rnn_mnist.py"), run_name="rnn_mnist")
    assert capfd.readouterr() == ("", "") and os.listdir(tmp_path) == []


# processes


@posix
def test_a_process_ends_by_the_signal(tmp_path, small_data_dir):
    process = start(script(tmp_path, **ENDLESS, DATA_DIR=small_data_dir))
    assert process.stdout.readline().startswith("Iter 300, ")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGTERM and TESTED.search(out) and quiet(err)
    assert updates_of(tmp_path / "rnn_mnist.keras") >= 3


def test_a_closed_pipe_ends_the_run_quietly(tmp_path, small_data_dir):
    """As `| head -3` does."""
    process = start(script(tmp_path, **ENDLESS, DATA_DIR=small_data_dir))
    for _ in range(3):
        process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=TIMEOUT) == 1 and quiet(err)
    assert updates_of(tmp_path / "rnn_mnist.keras") >= 9


@pytest.fixture
def at_a_terminal(settings, tmp_path, small_data_dir):
    """Starts a command that runs {python} {script} at a terminal, up to the log's first line."""
    import pexpect

    path = script(tmp_path, **ENDLESS, DATA_DIR=small_data_dir)

    def at_a_terminal(command):
        command = command.format(python=sys.executable, script=path.name)
        terminal = pexpect.spawn("bash", ["-c", command], cwd=tmp_path, env=environment(),
                                 timeout=TIMEOUT, encoding="utf-8", preexec_fn=usual_signals)
        terminal.expect("Iter 300, ")
        return terminal

    return at_a_terminal


@posix
def test_ctrl_c_at_a_terminal_ends_a_loop_of_the_shell(at_a_terminal):
    terminal = at_a_terminal("for n in 1 2; do echo run $n; {python} {script}; done; echo went on")
    terminal.sendintr()
    shown = terminal.read()
    assert "all 300 images: " in shown and quiet(shown)
    assert "run 2" not in shown and "went on" not in shown and updates_of() >= 3


@posix
def test_a_terminal_that_closes_loses_nothing(at_a_terminal):
    terminal = at_a_terminal("exec {python} {script}")
    terminal.ptyproc.fileobj.close()  # sends SIGHUP; from now on nothing can be written
    _, status = os.waitpid(terminal.pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGHUP and updates_of() >= 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the full disk of Linux")
def test_messages_that_nobody_can_read_cost_nothing(quick, monkeypatch, capsys):
    messages = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stderr", messages)
    assert end_of_main() is None and updates_of() == 7
    assert TESTED.search(capsys.readouterr().out)
    with contextlib.suppress(OSError):  # what was not taken is tried again
        messages.close()
