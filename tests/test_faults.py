"""Whatever goes wrong: one plain sentence, no traceback, a non-zero exit status, and nothing good is lost.

Not tested, since an ordinary test machine can't have it: a GPU; Windows' consoles and signals; a full disk (a limit on
the size of files stands for it, and /dev/full); packets that are dropped (a proxy that never answers stands for them).
"""

import os
import pathlib
import re
import shutil
import signal
import struct
import sys
import tempfile
import time

import keras
import numpy as np
import pytest
import requests

import rnn_mnist
import small_mnist
from conftest import (LONG, PATIENT, QUICK, TIMEOUT, end, environment, go_on, run, script, start, usual_signals,
                      wait_for_pause, write_files)
from misbehaving_proxy import misbehaving_proxy

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
VERSION_DIR = pathlib.Path("mnist", "3.0.1")


def refusal(capsys, function=rnn_mnist.main):
    """Returns the message with which `function` ends the program; an exit status above 0 comes with it."""
    with pytest.raises(SystemExit) as exit:
        function()
    assert isinstance(exit.value.code, str)  # which Python prints to standard error, with exit status 1
    assert "Testing Accuracy" not in capsys.readouterr().out
    return exit.value.code


# settings


@pytest.mark.parametrize("name, value", [
    ("TRAINING_ITERS", "100000"), ("TRAINING_ITERS", 1e5), ("TRAINING_ITERS", 0), ("TRAINING_ITERS", None),
    ("BATCH_SIZE", "128"), ("BATCH_SIZE", 12.5), ("BATCH_SIZE", True), ("BATCH_SIZE", 0), ("BATCH_SIZE", 55001),
    ("DISPLAY_STEP", 0), ("DISPLAY_STEP", -10), ("DISPLAY_STEP", None),
    ("LEARNING_RATE", 0), ("LEARNING_RATE", -0.1), ("LEARNING_RATE", float("inf")), ("LEARNING_RATE", float("nan")),
    ("LEARNING_RATE", "0.001"), ("LEARNING_RATE", True), ("LEARNING_RATE", 1e-60), ("LEARNING_RATE", 10**400),
    ("SEED", -1), ("SEED", 2**32), ("SEED", 0.5), ("SEED", "0"),
    ("N_HIDDEN", 0), ("N_HIDDEN", 12.5), ("N_HIDDEN", 10**30), ("N_CLASSES", 9), ("N_CLASSES", 10**30),
    ("N_STEPS", 28.0), ("N_INPUT", None), ("N_STEPS", 27),
    ("TEST_LEN", 0), ("TEST_LEN", 10001), ("OFFLINE_SAMPLE", 1), ("OFFLINE_SAMPLE", None),
    ("DATA_DIR", 5), ("DATA_DIR", ""), ("DATA_DIR", os.path.join(__file__, "data")), ("DATA_DIR", "gs://tfds-data/"),
    ("MODEL_PATH", "model.h5"), ("MODEL_PATH", ""), ("MODEL_PATH", 5), ("MODEL_PATH", "gs://bucket/model.keras"),
    ("MODEL_PATH", os.path.join(__file__, "model.keras")),
    ("LOG_DIR", 5), ("LOG_DIR", os.path.join(__file__, "logs")), ("LOG_DIR", "s3://bucket/logs"),
], ids=str)
def test_a_wrong_constant_is_named_with_its_value(settings, monkeypatch, capsys, name, value):
    settings(**{name: value})
    monkeypatch.delattr(rnn_mnist, "load_data")  # before data is touched
    message = refusal(capsys)
    assert message.startswith(f"{name} = {value!r} ") and len(message.splitlines()) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder where even root can't make files")
@pytest.mark.parametrize("name, value", [
    ("DATA_DIR", "/proc"), ("MODEL_PATH", "/proc/model.keras"), ("LOG_DIR", "/proc")])
def test_a_folder_is_tried_before_it_is_needed(settings, monkeypatch, capsys, name, value):
    settings(**{name: value})
    monkeypatch.delattr(rnn_mnist, "load_data")
    assert refusal(capsys).startswith(f"{name} = {value!r} ")


def test_trying_a_folder_leaves_nothing_there(settings, tmp_path):
    settings(DATA_DIR="data", MODEL_PATH="models/today/model.keras", LOG_DIR=str(tmp_path))
    rnn_mnist.check_settings()
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_no_local_folder(settings, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data/datasets")
    monkeypatch.delattr(rnn_mnist, "load_data")
    assert refusal(capsys) == "TFDS_DATA_DIR = 'gs://tfds-data/datasets' must be a local folder."
    settings(DATA_DIR="here")
    rnn_mnist.check_settings()  # which does not need the variable


def test_a_folder_is_no_model_file(settings, tmp_path, capsys):
    (tmp_path / "folder.keras").mkdir()
    settings(MODEL_PATH="folder.keras")
    assert refusal(capsys).startswith("MODEL_PATH = 'folder.keras' must be a file ending in .keras")


def test_curves_need_tensorboard(settings, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # which makes Python take it for not installed
    settings(LOG_DIR="logs")
    monkeypatch.delattr(rnn_mnist, "load_data")
    assert "pip install tensorboard" in refusal(capsys)


def test_all_wrong_constants_are_named_at_once(settings, capsys):
    settings(BATCH_SIZE="128", DISPLAY_STEP=0, MODEL_PATH="model")
    assert [line.split()[0] for line in refusal(capsys).splitlines()] == ["BATCH_SIZE", "DISPLAY_STEP", "MODEL_PATH"]


def test_the_sample_is_smaller_than_mnist(settings, capsys):
    settings(BATCH_SIZE=1542, TEST_LEN=257)
    assert [line.split()[0] for line in refusal(capsys).splitlines()] == ["BATCH_SIZE", "TEST_LEN"]


def test_no_update_is_legal(settings, small_data_dir, capsys):
    settings(**{**QUICK, "TRAINING_ITERS": 1}, DATA_DIR=str(small_data_dir))
    assert rnn_mnist.main() == 0
    assert capsys.readouterr().out.startswith("Optimization Finished!\nTesting Accuracy: 0.")
    assert keras.models.load_model("rnn_mnist.keras")


# network


@pytest.fixture
def behind(settings, monkeypatch, small_files, tmp_path):
    """Loads data behind a proxy that misbehaves, with an empty data directory and the small files for MNIST's."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    settings(DATA_DIR=str(tmp_path / "data"))

    requests_get = requests.get

    def load(behaviour):
        pace = 1 / 6 if FAILURES.get(behaviour) == "timed out" else 100  # where it must time out, that is waited for

        def get(url, timeout, **arguments):
            assert sum(timeout) <= 20  # s, which the README promises
            return requests_get(url, timeout=tuple(pace * seconds for seconds in timeout), **arguments)

        monkeypatch.setattr(requests, "get", get)
        with misbehaving_proxy(behaviour, small_mnist.files(), tmp_path / "authority.pem") as (proxy, served):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            monkeypatch.setenv("https_proxy", proxy)
            return rnn_mnist.load_data()[2], served

    yield load
    # no litter, but for the empty folder that TFDS forgets whenever it prepares
    assert [path for path in (tmp_path / "temporary").rglob("*") if not path.name.endswith("tfds")] == []


FAILURES = {
    "never answers": "timed out",
    "refuses to connect": "403 Forbidden",
    "shakes no hands": "timed out",
    "is no TLS server": "SSL",
    "404": "404 Client Error",
    "403": "403 Client Error",
    "login page": "is not MNIST's file",
    "breaks off": "IncompleteRead",
    "stalls": "timed out",
}


@pytest.mark.parametrize("behaviour, reason", FAILURES.items())
def test_a_network_that_fails_leads_to_the_sample(behind, tmp_path, capfd, behaviour, reason):
    assert behind(behaviour)[0] == "UCI digits, not MNIST"
    fetching, *_, notice = capfd.readouterr().err.splitlines()
    manual_dir = tmp_path / "data" / "downloads" / "manual"
    assert fetching.startswith("Fetching https://storage.googleapis.com/") and fetching.endswith(f" to {manual_dir}.")
    assert notice.startswith("MNIST is not in ") and reason in notice
    assert "Caused by" not in notice and "HTTPSConnectionPool(" not in notice  # but what went wrong first
    assert all(name in notice for name in [str(manual_dir), *small_mnist.files()])
    assert not (tmp_path / "data").exists()  # no litter


@pytest.mark.parametrize("proxy, reason", [
    ("http://127.0.0.1:9", "refused"), ("http://no-such-host.invalid:80", "Name or service not known")])
def test_no_way_to_the_network_is_asked_for_once(settings, monkeypatch, capsys, proxy, reason):
    asked = []
    requests_get = requests.get
    monkeypatch.setattr(requests, "get", lambda *arguments, **more: asked.append(1) or requests_get(*arguments, **more))
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    settings(OFFLINE_SAMPLE=False)
    message = refusal(capsys, rnn_mnist.load_data)
    assert len(asked) == 1
    assert "train-labels-idx1-ubyte.gz" in message
    assert reason in message or os.name != "posix"  # other systems have other words


@pytest.fixture(scope="module", autouse=True)
def slow_download(tmp_path_factory):
    """A run behind a slow network, started ahead of its test: one file takes 14 s, longer than a stall may."""
    folder = tmp_path_factory.mktemp("slow")
    with misbehaving_proxy("is slow", small_mnist.files(), folder / "authority.pem") as (proxy, served):
        path = script(folder, small=True, **QUICK, DATA_DIR=str(folder / "data"))
        ca_bundle = str(folder / "authority.pem")
        with start(path, environment(HTTPS_PROXY=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=ca_bundle)) as process:
            yield process, served
            process.kill()


def test_a_slow_download_is_left_to_finish(slow_download):
    process, served = slow_download
    status, out, err = end(process)
    assert status == 0 and "all 300 images" in out and "UCI" not in out, err
    assert len(served) == 4 and "kB/s" in err  # the progress bar


def test_what_arrived_before_the_connection_broke_is_kept(behind, tmp_path):
    assert behind("breaks off after one file")[0] == "UCI digits, not MNIST"
    manual_dir = tmp_path / "data" / "downloads" / "manual"
    kept, = manual_dir.iterdir()
    assert kept.read_bytes() == small_mnist.files()[kept.name]
    name, served = behind("is right")
    assert name == "MNIST" and len(served) == 3 and kept.name not in served
    assert sorted(path.name for path in manual_dir.iterdir()) == sorted(small_mnist.files())


def test_files_put_there_by_hand_are_not_fetched(behind, tmp_path):
    manual_dir = write_files(tmp_path / "data")
    for path in manual_dir.glob("*-labels-*"):
        path.unlink()
    name, served = behind("is right")
    assert name == "MNIST" and all("-labels-" in name for name in served) and len(served) == 2


# data


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content[:50] + b"?" + content[51:],
                                    lambda content: b""], ids=["truncated", "flipped", "empty"])
def test_a_damaged_file_of_mnist_is_named(settings, small_files, tmp_path, capsys, damage):
    path = write_files(tmp_path / "data") / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    settings(DATA_DIR=str(tmp_path / "data"))
    message = refusal(capsys, rnn_mnist.load_data)
    assert str(path) in message and "checksum" in message and len(message.splitlines()) == 1
    assert path.exists() and not (tmp_path / "data" / VERSION_DIR).exists()


def cut_last_record(path):
    """Takes the last record off a TFRecord file, which stays valid: length, checksum, data and checksum a record."""
    content, start = path.read_bytes(), 0
    while (end := start + 16 + struct.unpack_from("<Q", content, start)[0]) < len(content):
        start = end
    path.write_bytes(content[:start])


def flip(path, position=1000):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "cut short": lambda folder: os.truncate(folder / "mnist-train.tfrecord-00000-of-00001", 100000),
    "cut at a record": lambda folder: cut_last_record(folder / "mnist-train.tfrecord-00000-of-00001"),
    "cut in the test set": lambda folder: cut_last_record(folder / "mnist-test.tfrecord-00000-of-00001"),
    "empty": lambda folder: os.truncate(folder / "mnist-test.tfrecord-00000-of-00001", 0),
    "flipped": lambda folder: flip(folder / "mnist-train.tfrecord-00000-of-00001"),
    "flipped at the end": lambda folder: flip(folder / "mnist-train.tfrecord-00000-of-00001", -1000),
    "flipped metadata": lambda folder: flip(folder / "dataset_info.json", 300),
    "file missing": lambda folder: (folder / "mnist-test.tfrecord-00000-of-00001").unlink(),
    "metadata missing": lambda folder: (folder / "dataset_info.json").unlink(),
    "all missing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_data_is_named(settings, small_data_dir, tmp_path, capsys, damage):
    shutil.copytree(small_data_dir, tmp_path / "data")
    DAMAGES[damage](tmp_path / "data" / VERSION_DIR)
    settings(DATA_DIR=str(tmp_path / "data"))
    message = refusal(capsys, rnn_mnist.load_data)
    assert message.startswith(f"MNIST in {tmp_path / 'data' / VERSION_DIR} can't be read: ")
    assert len(message.splitlines()) == 1


def test_a_read_only_data_directory_will_do(settings, small_data_dir, tmp_path):
    shutil.copytree(small_data_dir, tmp_path / "data")
    folder = tmp_path / "data" / VERSION_DIR
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    for path in (folder, tmp_path / "data"):
        path.chmod(0o555)
    settings(DATA_DIR=str(tmp_path / "data"))
    rnn_mnist.check_settings()
    assert rnn_mnist.load_data()[2] == "MNIST"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before  # root may write
    for path in (folder, tmp_path / "data"):
        path.chmod(0o755)


def preparing(tmp_path, name, small=True):
    """Returns a copy of the script that prepares the small MNIST in tmp_path / "data"."""
    (tmp_path / name).mkdir()
    return script(tmp_path / name, small=small, **QUICK, DATA_DIR=str(tmp_path / "data"))


def start_preparing(tmp_path):
    """Starts such a copy on the small files; returns the process while TFDS is at it."""
    write_files(tmp_path / "data")
    process = start(preparing(tmp_path, "paused", small="pause"))
    wait_for_pause(process)
    assert list((tmp_path / "data").glob("mnist/*incomplete*"))
    return process


@posix
def test_killed_while_preparing_the_next_run_starts_clean(tmp_path):
    process = start_preparing(tmp_path)
    process.kill()
    process.communicate()
    assert not (tmp_path / "data" / VERSION_DIR).exists()
    status, out, err = run(preparing(tmp_path, "next"))
    assert status == 0 and "UCI" not in out and "all 300 images" in out, err


def test_two_runs_at_once_prepare_one_data_set(tmp_path):
    write_files(tmp_path / "data")
    processes = [start(preparing(tmp_path, name)) for name in ("one", "other")]
    for process in processes:
        status, out, err = end(process)
        assert status == 0 and "all 300 images" in out, err
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


def limit_files_to(size):
    """For a new process: files can't grow beyond `size` bytes, which stands for a full disk."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@posix
def test_a_full_disk_while_preparing(tmp_path):
    write_files(tmp_path / "data")
    status, out, err = run(preparing(tmp_path, "run"), preexec_fn=limit_files_to(500000))
    assert status == 1 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"MNIST in {tmp_path / 'data' / VERSION_DIR} can't be read: ")
    assert not list((tmp_path / "data" / "mnist").iterdir())  # no litter


@posix
def test_a_full_disk_while_saving_leaves_the_earlier_model(tmp_path, small_data_dir):
    (tmp_path / "run").mkdir()
    path = script(tmp_path / "run", **{**QUICK, "TRAINING_ITERS": 1}, DATA_DIR=str(small_data_dir))
    (tmp_path / "run" / "rnn_mnist.keras").write_bytes(b"earlier")
    status, out, err = run(path, environment(TMPDIR=str(tmp_path)), preexec_fn=limit_files_to(20000))
    assert status == 1 and "Traceback" not in err and "all 300 images" in out
    assert f"The model can't be saved to {tmp_path / 'run' / 'rnn_mnist.keras'}" in err
    assert (tmp_path / "run" / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert len(list((tmp_path / "run").iterdir())) == 3  # no litter


@pytest.mark.parametrize("name", ["file/model.keras", f"{'too long ' * 30}.keras"], ids=["no folder", "no name"])
def test_a_model_that_cannot_be_saved_in_its_place_is_saved_elsewhere(settings, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").touch()
    settings(**QUICK, MODEL_PATH=str(tmp_path / name))
    assert not rnn_mnist.save(rnn_mnist.build_model())  # which main turns into a status above 0
    saved, = (tmp_path / "temporary").iterdir()
    failed, rescued = capsys.readouterr().err.splitlines()
    assert failed.startswith(f"The model can't be saved to {tmp_path / name}. ") and str(saved) in rescued
    assert keras.models.load_model(saved)


def test_whatever_keeps_a_model_from_its_place_it_is_saved_elsewhere(settings, tmp_path, monkeypatch, capsys):
    write_whole, places = rnn_mnist.write_whole, []

    def fail_once(path, write):
        places.append(path)
        if len(places) == 1:
            raise RuntimeError("unable to close file")  # not an OSError: so says h5py of a full disk
        write_whole(path, write)

    monkeypatch.setattr(rnn_mnist, "write_whole", fail_once)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings(**QUICK)
    assert not rnn_mnist.save(rnn_mnist.build_model())
    assert keras.models.load_model(places[1]) and "(RuntimeError: unable to close file)" in capsys.readouterr().err


def test_an_earlier_model_is_replaced_not_overwritten(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    os.link("rnn_mnist.keras", "another name")
    assert rnn_mnist.save(rnn_mnist.build_model())
    assert (tmp_path / "another name").read_bytes() == b"earlier"


def test_a_tilde_is_the_home_folder(settings, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    settings(**QUICK, MODEL_PATH="~/model.keras", DATA_DIR="~/data")
    assert rnn_mnist.save(rnn_mnist.build_model()) and (tmp_path / "home" / "model.keras").exists()
    assert rnn_mnist.mnist_dir() == tmp_path / "home" / "data" / VERSION_DIR


def test_a_link_to_the_model_stays_a_link(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere" / "model.keras", "rnn_mnist.keras")
    rnn_mnist.save(rnn_mnist.build_model())
    assert os.path.islink("rnn_mnist.keras") and keras.models.load_model(tmp_path / "elsewhere" / "model.keras")


@posix
def test_a_full_disk_ends_the_curves_not_the_training(tmp_path, small_data_dir):
    path = script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir), LOG_DIR="logs", MODEL_PATH=None)
    status, out, err = run(path, preexec_fn=limit_files_to(200))
    assert status == 0 and "all 300 images" in out and "Traceback" not in err
    assert "The curves can't be written to logs. (OutOfRangeError: " in err and "memory" not in err


# training


def test_a_diverged_training_stops_and_saves_nothing(settings, small_data_dir, tmp_path, capsys):
    settings(DATA_DIR=str(small_data_dir))
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    settings(**QUICK, LEARNING_RATE=1e30)
    assert refusal(capsys).startswith("The loss is nan at Iter 1000: LEARNING_RATE = 1e+30 is probably too high.")
    settings(DISPLAY_STEP=1000)  # no log line: found when testing
    assert "nan at Iter 2900" in refusal(capsys)
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


def test_an_infinite_loss_is_a_divergence_too():
    with pytest.raises(SystemExit, match="^The loss is inf at Iter 100: LEARNING_RATE = 0.001 is probably too high"):
        rnn_mnist.watch(100, np.float32(np.inf), {})


# what ends a training


TESTED = re.compile(r"Testing Accuracy: 0\.\d+\nTesting Accuracy, all 300 images: 0\.\d+\n$")


def saved_in(folder, updates=None):
    """Returns the model that a run has left, which has made more than one update, or as many as told."""
    model = keras.models.load_model(folder / "rnn_mnist.keras")
    made = int(model.optimizer.iterations.numpy())
    assert made > 1 if updates is None else made == updates
    return model


@posix
def test_a_signal_ends_the_training_and_keeps_what_was_learned(tmp_path, small_data_dir):
    processes = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # at once: it saves time
        (tmp_path / number.name).mkdir()
        path = script(tmp_path / number.name, **LONG, DATA_DIR=str(small_data_dir))
        processes[number] = start(path)
    for number, process in processes.items():
        assert process.stdout.readline().startswith("Iter 1000, ")
        process.send_signal(number)
        status, out, err = end(process)
        assert status == 128 + number and "Traceback" not in err
        assert f"Stopped by {number.name} at Iter " in err
        assert "Optimization Finished!" not in out and TESTED.search(out)
        assert saved_in(tmp_path / number.name)


@posix
def test_a_line_of_the_log_is_there_when_it_is_printed(tmp_path, small_data_dir):
    path = script(tmp_path, **LONG, DISPLAY_STEP=1, DATA_DIR=str(small_data_dir), pause_before="step += 1")
    process = start(path)
    wait_for_pause(process)
    os.set_blocking(process.stdout.fileno(), False)
    assert os.read(process.stdout.fileno(), 1000).startswith(b"Iter 100, ")  # a pipe would hold a hundred lines
    process.kill()
    process.communicate()


@posix
def test_signals_while_testing_lose_nothing(tmp_path, small_data_dir):
    process = start(script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir), pause_before="logits = tf.concat"))
    wait_for_pause(process)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):  # so systemd ends a session, and timeout a command
        process.send_signal(number)
    status, out, err = go_on(process)
    assert status in (143, 129)  # Python meets those that come at once in the order of their numbers
    assert TESTED.search(out) and "Traceback" not in err and saved_in(tmp_path, updates=29)


@posix
def test_signals_that_are_ignored_stay_ignored(tmp_path, small_data_dir):
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    path = script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir), pause_before="step += 1")
    process = start(path, preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])
    wait_for_pause(process)
    for number in numbers:
        process.send_signal(number)
    status, out, err = go_on(process)
    assert status == 0 and "Optimization Finished!\n" in out and TESTED.search(out), err


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # a mock: only a program around Python can set one
    monkeypatch.delattr(signal, "signal")
    with rnn_mnist.noted([]):
        pass


def start_at_a_terminal(path, ignored=()):
    """Starts a run on a new terminal of its own; returns the process and the terminal's other end."""
    import fcntl, termios

    def own_terminal():
        usual_signals()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    ours, theirs = os.openpty()
    process = start(path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=own_terminal)
    os.close(theirs)
    return process, ours


@posix
def test_a_terminal_that_closes_loses_nothing(tmp_path, small_data_dir):
    terminals = {}
    for name, ignored in [("hangup", []), ("disowned", [signal.SIGHUP])]:
        (tmp_path / name).mkdir()
        terminals[name] = start_at_a_terminal(script(tmp_path / name, **LONG, DATA_DIR=str(small_data_dir)), ignored)
    for name, (process, terminal) in terminals.items():
        shown = b""
        while b"Iter 1000, " not in shown:
            shown += os.read(terminal, 1000)
        os.close(terminal)  # sends SIGHUP; from now on nothing can be written
        assert process.wait(timeout=TIMEOUT) == (1 if name == "disowned" else 129)
        assert saved_in(tmp_path / name)


@posix
def test_a_closed_pipe_ends_the_run_quietly(tmp_path, small_data_dir):
    process = start(script(tmp_path, **LONG, DATA_DIR=str(small_data_dir)))
    for _ in range(3):
        process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=TIMEOUT) == 1
    assert "Traceback" not in err and "Exception" not in err and "roken" not in err
    assert re.search(r"Stopped at Iter \d+\. .*\nThe model is saved to .*\n$", err) and saved_in(tmp_path)


@posix
def test_ctrl_c_that_also_ends_what_reads_the_log_is_a_ctrl_c(tmp_path, small_data_dir):
    path = script(tmp_path, **LONG, DATA_DIR=str(small_data_dir), DISPLAY_STEP=7, pause_before='print(f"Iter')
    process = start(path)
    wait_for_pause(process)
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    process.stdout = None
    status, _, err = go_on(process)
    assert status == 130 and "Stopped by SIGINT at Iter 700. " in err
    assert "Traceback" not in err and "Exception" not in err and "roken" not in err
    assert saved_in(tmp_path, updates=7)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the full disk of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_log_or_the_messages_costs_only_those(tmp_path, small_data_dir, unbuffered):
    processes = {}
    for stream in ("stdout", "stderr"):
        (tmp_path / stream).mkdir()
        path = script(tmp_path / stream, **QUICK, DATA_DIR=str(small_data_dir))
        processes[stream] = start(path, environment(PYTHONUNBUFFERED=unbuffered), **{stream: open("/dev/full", "w")})
    status, _, err = end(processes["stdout"])
    assert status == 1 and "Stopped at Iter 1000. " in err and "Traceback" not in err and "Exception" not in err
    assert err.splitlines()[-1] == "A file can't be read or written: [Errno 28] No space left on device."
    assert saved_in(tmp_path / "stdout", updates=10)
    status, out, _ = end(processes["stderr"])
    assert status == 1 and out.count("Iter") == 2 and "\nOptimization Finished!\n" in out and TESTED.search(out)
    assert saved_in(tmp_path / "stderr", updates=29)


def test_a_bug_keeps_its_traceback_and_costs_no_model(tmp_path, small_data_dir):
    processes = {}
    for name, edit in [("training", ("        step += 1\n", "        step += 1 if step < 20 else bug\n")),
                       ("testing", ("    loss, accuracy = loss_and_accuracy(logits, labels)\n", "    bug\n"))]:
        (tmp_path / name).mkdir()
        processes[name] = start(script(tmp_path / name, **QUICK, DATA_DIR=str(small_data_dir), edits=[edit]))
    for name, process in processes.items():
        status, out, err = end(process)
        assert status == 1 and err.splitlines()[-1] == "NameError: name 'bug' is not defined"
        assert ("Stopped at Iter 2000. " in err and TESTED.search(out) if name == "training"
                else out.endswith("\nOptimization Finished!\n"))
        assert saved_in(tmp_path / name, updates=20 if name == "training" else 29)


@posix
@pytest.mark.parametrize("moment", ["minibatches", "train_step"], ids=["before training", "while it is traced"])
def test_a_signal_before_anything_is_learned_leaves_the_earlier_model(settings, tmp_path, monkeypatch, capsys, moment):
    settings(**QUICK)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    function = getattr(rnn_mnist, moment)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    monkeypatch.setattr(rnn_mnist, moment, interrupted)  # which gives the real signal its moment
    earlier_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert rnn_mnist.main() == 130
    signal.signal(signal.SIGINT, earlier_handler)
    assert capsys.readouterr().out == "" and (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


@posix
def test_a_signal_while_libraries_load_ends_that(tmp_path):
    process = start(script(tmp_path, pause_before="import tensorflow_datasets as tfds"))
    wait_for_pause(process)
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert status == -signal.SIGINT and out == "" and "UCI" not in err  # Python's own end of a script


def test_libraries_are_loaded_once_also_if_that_fails(tmp_path):
    path = script(tmp_path)
    stand_in = "import sys; print('loading with', *sys.modules, file=sys.stderr); raise ImportError"
    (tmp_path / "keras.py").write_text(stand_in)
    status, _, err = run(path)
    assert status == 1 and err.count("loading with sys ") == 1
    assert " datetime " in err  # loaded before NumPy, which would turn a Ctrl-C in there into a page about ImportError


@posix
def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path, small_data_dir):
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    process = start(script(tmp_path, **LONG, DATA_DIR=str(small_data_dir), pause_before="os.replace("))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    wait_for_pause(process)  # the model is written, but not in its place
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert status == 130 and "Testing Accuracy" not in out and "Traceback" not in err
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 3  # no litter


@posix
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_during_the_download_ends_it(tmp_path, number, status):
    path = script(tmp_path, **QUICK, DATA_DIR=str(tmp_path / "data"), edits=PATIENT)
    with misbehaving_proxy("stalls", small_mnist.files(), tmp_path / "authority.pem") as (proxy, served):
        process = start(path, environment(HTTPS_PROXY=proxy, https_proxy=proxy,
                                          REQUESTS_CA_BUNDLE=str(tmp_path / "authority.pem")))
        while not served:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        ended, out, err = end(process)
    assert ended == status and out == "" and "Traceback" not in err and "UCI" not in err
    assert not (tmp_path / "data").exists()


@posix
def test_an_interrupt_while_preparing_leaves_no_litter(tmp_path):
    process = start_preparing(tmp_path)
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert status == 130 and out == "" and "Traceback" not in err
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_spaces_and_chinese_in_paths_and_ascii_in_the_terminal(tmp_path, small_data_dir):
    folder = tmp_path / "数字 识别"
    shutil.copytree(small_data_dir, folder / "数据 目录")
    path = script(folder, **QUICK, DATA_DIR=str(folder / "数据 目录"), MODEL_PATH="模 型.keras", LOG_DIR="曲线 1")
    status, out, err = run(path, environment(LC_ALL="C", PYTHONIOENCODING="ascii"))
    assert status == 0 and "all 300 images" in out and out.isascii(), err
    assert (folder / "模 型.keras").exists() and len(list((folder / "曲线 1").glob("*/*tfevents*"))) == 1


@pytest.fixture(scope="module", autouse=True)
def too_large(tmp_path_factory, small_data_dir):
    """A run whose kernels need 16 TB, started ahead of its test: TensorFlow waits ten seconds for memory."""
    huge = {**QUICK, "N_STEPS": 784, "N_INPUT": 1, "N_HIDDEN": 10**6}
    with start(script(tmp_path_factory.mktemp("huge"), **huge, DATA_DIR=str(small_data_dir))) as process:
        yield process
        process.kill()


def test_too_little_memory_is_said(too_large):
    status, out, err = end(too_large)
    assert status == 1 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("BATCH_SIZE = 100 and N_HIDDEN = 1000000 need more memory")
