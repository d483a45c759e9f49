"""In other people's hands: pools, threads, sweeps, schedulers, containers, runs at once.

What belongs to the program that calls main stays as it was, and gets an answer in every case.
Not tested, since a test machine can't have it: Windows' Ctrl-Break.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import rnn_mnist
import small_mnist
from conftest import (FILES_DIR, LONG, QUICK, VERSION_DIR, end, environment, go_on, posix, run,
                      script, start, wait_for_pause, write_files)
from misbehaving_proxy import misbehaving_proxy


@pytest.fixture
def quick(settings, small_data_dir):
    settings(**QUICK, DATA_DIR=str(small_data_dir), MODEL_PATH=None)
    return settings


# an answer in every case


PROGRAM = """
import multiprocessing
import rnn_mnist

def work(n_steps):
    rnn_mnist.N_STEPS = n_steps
    return rnn_mnist.main()

if __name__ == "__main__":
    {body}
"""
POOL = """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for result in [pool.apply_async(work, [n_steps]) for n_steps in (5, 4)]:
            try:
                print("answer", result.get())
            except rnn_mnist.TrainingError as error:
                print("answer", error)
"""


def program(tmp_path, small_data_dir, body):
    """Writes a program that imports a copy of the script, and runs it."""
    script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir))
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body.strip()))
    return run(tmp_path / "program.py", environment(PYTHONPATH=str(tmp_path)))


@pytest.mark.slow
def test_a_pool_gets_an_answer_for_each_of_its_points(tmp_path, small_data_dir):
    status, out, err = program(tmp_path, small_data_dir, POOL)
    refused, accuracy = re.findall("^answer (.*)$", out, re.MULTILINE)
    assert status == 0 and refused.startswith("N_STEPS = 5 times N_INPUT = 196 must be 784, "), err
    assert 0 < float(accuracy) < 1


def test_a_sweep_goes_on_after_a_point_that_can_not_be_trained(quick, capsys):
    accuracies = {}
    for learning_rate in (1e30, -1, 0.01):  # diverges, is refused, learns
        quick(LEARNING_RATE=learning_rate)
        try:
            accuracies[learning_rate] = rnn_mnist.main()
        except Exception as error:  # as people write it
            assert str(learning_rate)[:4] in str(error)
    printed = re.search(r"all 300 images: (\S+)", capsys.readouterr().out)[1]
    assert [*accuracies] == [0.01] and type(accuracies[0.01]) is float
    assert np.float32(accuracies[0.01]) == np.float32(printed)


# what belongs to the caller


def python_and_numpy():
    return [random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()]


@pytest.mark.parametrize("seed", [0, None])
def test_a_random_search_draws_on_as_if_nothing_had_been(quick, seed):
    quick(SEED=seed, TRAINING_ITERS=301)
    keras.utils.set_random_seed(5)
    expected = [python_and_numpy() for _ in range(3)]
    keras.utils.set_random_seed(5)
    for trial in range(3):
        assert python_and_numpy() == expected[trial]
        rnn_mnist.main()


def test_a_training_that_is_refused_leaves_the_generators_too(quick, refusal):
    keras.utils.set_random_seed(5)
    expected = python_and_numpy()
    keras.utils.set_random_seed(5)
    quick(N_CLASSES=9)
    assert "training labels" in refusal()
    assert python_and_numpy() == expected


def test_without_a_seed_a_caller_who_has_seeded_gets_other_runs(quick, capsys):
    quick(SEED=None, TRAINING_ITERS=301, DISPLAY_STEP=1)
    for _ in range(2):
        keras.utils.set_random_seed(5)
        rnn_mnist.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Iter 100, ") and lines.count(lines[0]) == 1


# runs that start together


def test_two_first_runs_prepare_in_folders_of_their_own(tmp_path):
    write_files(tmp_path / "data")
    runs = [start(script(tmp_path / name, PAUSES, **QUICK, DATA_DIR=str(tmp_path / "data")))
            for name in ("first", "second")]
    for process in runs:
        wait_for_pause(process)
    assert len(list((tmp_path / "data").glob("mnist/*incomplete*"))) == 2
    logs = []
    for process in runs:
        status, out, err = go_on(process)
        assert status == 0 and "UCI" not in out, err
        logs.append(out)
    assert logs[0] == logs[1]
    assert os.listdir(tmp_path / "data" / "mnist") == [VERSION_DIR.name]  # nothing is left over
    assert sorted(os.listdir(tmp_path / "data" / FILES_DIR)) == sorted(small_mnist.files())


PAUSES = "import small_mnist; small_mnist.pause_while_preparing()"


def test_runs_at_once_have_names_of_their_own(monkeypatch):
    names = [rnn_mnist.run_name() for _ in range(2)]
    assert names[0] != names[1] and str(os.getpid()) in names[0]


# programs without streams


@posix
@pytest.mark.slow
def test_a_first_run_without_standard_error_fetches_and_prepares(tmp_path, usual_log):
    path = script(tmp_path, "import small_mnist; small_mnist.adapt_tfds()", **QUICK,
                  DATA_DIR=str(tmp_path / "data"))
    ca_file = tmp_path / "authority.pem"
    with misbehaving_proxy("is right", small_mnist.files(), ca_file) as (proxy, served):
        env = environment(HTTPS_PROXY=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=str(ca_file))
        status, out, err = run(path, env, command=[
            "sh", "-c", f'"{sys.executable}" {path.name} 2>&-'])
    assert (status, out, err) == (0, usual_log, "") and len(served) == 4


# schedulers


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
@pytest.mark.slow
def test_a_limit_of_processor_time_loses_nothing(tmp_path, small_data_dir):
    path = script(tmp_path, NEAR_LIMIT, **LONG, DATA_DIR=str(small_data_dir))
    status, out, err = run(path)
    assert status == -signal.SIGXCPU and "Training ended by SIGXCPU at Iter " in err
    assert "all 300 images: " in out
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras")


@pytest.mark.parametrize("error", [SystemExit(99), TimeoutError("too slow")], ids=repr)
def test_what_a_handler_of_somebodys_own_raises_saves_too(settings, monkeypatch, small_data_dir,
                                                          tmp_path, error):
    def handler(number, frame):
        raise error

    def line(*arguments, **more):
        print(*arguments, **more)
        signal.raise_signal(number)

    number = getattr(signal, "SIGUSR1", signal.SIGINT)
    earlier = signal.signal(number, handler)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    monkeypatch.setattr(rnn_mnist, "print", line, raising=False)
    try:
        with pytest.raises(type(error)) as raised:
            rnn_mnist.main()
        assert raised.value is error and signal.getsignal(number) is handler
    finally:
        signal.signal(number, earlier)
    saved = keras.models.load_model(tmp_path / "rnn_mnist.keras")
    assert int(saved.optimizer.iterations) == 10


# process 1 of a container


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
containers = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0,
    reason="a process 1 of one's own needs Linux and the right to it")
LOOP = """
import rnn_mnist

for run in range(3):
    print("run", run, flush=True)
    rnn_mnist.main()
"""


@containers
@pytest.mark.slow
@pytest.mark.parametrize("program, name", [
    ("rnn_mnist.py", "SIGINT"), ("loop.py", "SIGTERM")], ids=["SIGINT", "SIGTERM to a loop"])
def test_process_1_ends_by_a_status_that_says_which_signal(tmp_path, small_data_dir, program,
                                                           name):
    number = signal.Signals[name]
    path = script(tmp_path, **LONG, DATA_DIR=str(small_data_dir))
    (tmp_path / "loop.py").write_text(LOOP)
    process = start(path, command=[*UNSHARE, sys.executable, program])
    while not (line := process.stdout.readline()).startswith("Iter 1000, "):
        assert line, process.communicate()
    child = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True,
                           capture_output=True, check=True).stdout
    os.kill(int(child), number)
    status, out, err = end(process)
    assert status == 128 + number and "all 300 images: " in out and "run 1" not in out, err
    assert "Traceback" not in err
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras")


# networks as people make them


STRATEGY = """
tf.config.experimental.enable_op_determinism()  # which no process can switch off again
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], 2 * [tf.config.LogicalDeviceConfiguration()])
original = build_model

def build_model():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        return original()
"""


@pytest.mark.slow
def test_a_strategy_of_tf_distribute_trains_on_two_devices(quick, tmp_path, small_data_dir,
                                                           usual_log):
    """With deterministic operations switched on as well."""
    status, out, err = run(script(tmp_path, STRATEGY, **QUICK, DATA_DIR=str(small_data_dir)))
    assert status == 0, err
    lines, usual = out.splitlines(), usual_log.splitlines()
    loss, other = (float(line.split()[4].rstrip(",")) for line in (lines[0], usual[0]))
    assert loss == pytest.approx(other, rel=1e-3)  # the same weights; the mean of two means rounds
    saved = keras.models.load_model(tmp_path / "rnn_mnist.keras")
    quick()
    _, (sequences, labels), _ = rnn_mnist.load_data()
    right = saved.predict(sequences, verbose=0).argmax(axis=1) == labels
    assert lines[-1] == f"Testing Accuracy, all 300 images: {right.mean(dtype=np.float32)!s}"


def test_a_network_without_an_input_is_saved_for_any_batch_size(settings):
    def build_model():
        model = keras.Sequential([keras.layers.LSTM(8), keras.layers.Dense(10, "softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    settings(**QUICK, build_model=build_model)
    rnn_mnist.main()
    saved = keras.models.load_model("rnn_mnist-uci_digits.keras")
    assert saved.input_shape == (None, 4, 196)
    assert saved(np.zeros([3, 4, 196], np.float32)).shape == (3, 10)
