"""Whatever goes wrong: one plain sentence, no traceback, a non-zero exit status, and nothing good is lost.

Not tested, since an ordinary test machine can't have it: a GPU; Windows' consoles and signals; a full disk (a limit on
the size of files stands for it); a folder that root may not write (root runs many test machines; below, a folder
beneath a file stands for it); packets that are dropped (a proxy that never answers stands for them).
"""

import functools
import os
import pathlib
import shutil
import signal
import struct
import tempfile
import time

import pytest
import tensorflow as tf

import rnn_mnist
import small_mnist
from conftest import QUICK, environment, run, script, start, write_files
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
    ("DATA_DIR", 5), ("DATA_DIR", ""), ("DATA_DIR", os.path.join(__file__, "data")),
    ("MODEL_PATH", "model.h5"), ("MODEL_PATH", ""), ("MODEL_PATH", 5),
    ("MODEL_PATH", os.path.join(__file__, "model.keras")),
    ("LOG_DIR", 5), ("LOG_DIR", os.path.join(__file__, "logs")),
], ids=str)
def test_a_wrong_constant_is_named_with_its_value(settings, monkeypatch, capsys, name, value):
    settings(**{name: value})
    monkeypatch.delattr(rnn_mnist, "load_data")  # before data is touched
    message = refusal(capsys)
    assert message.startswith(f"{name} = {value!r} ") and len(message.splitlines()) == 1


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
    assert tf.keras.models.load_model("rnn_mnist.keras")


# network


@pytest.fixture
def behind(settings, monkeypatch, tmp_path):
    """Puts rnn_mnist behind a proxy that misbehaves, with an empty data directory and TFDS adapted to small files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    adapted = "import small_mnist; small_mnist.adapt_tfds()"
    settings(DATA_DIR=str(tmp_path / "data"),
             DOWNLOAD=rnn_mnist.DOWNLOAD.replace("from tensorflow_datasets", f"{adapted}\nfrom tensorflow_datasets"))

    def load(behaviour):
        with misbehaving_proxy(behaviour, small_mnist.files(), tmp_path / "authority.pem") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            monkeypatch.setenv("https_proxy", proxy)
            return rnn_mnist.load_data()[2]

    yield load
    # no litter, but for the empty folder that TFDS forgets whenever it prepares
    assert [path for path in (tmp_path / "temporary").rglob("*") if not path.name.endswith("tfds")] == []


FAILURES = {
    "never answers": "nothing arrived for 12 s",
    "refuses to connect": "403 Forbidden",
    "is no TLS server": "SSL",
    "404": "HTTP code: 404",
    "403": "HTTP code: 403",
    "login page": "wrong checksum",
    "breaks off": "IncompleteRead",
    "stalls": "nothing arrived for 4 s",
}


@pytest.mark.parametrize("behaviour, reason", FAILURES.items())
def test_a_network_that_fails_leads_to_the_sample_within_20_s(behind, settings, tmp_path, capfd, behaviour, reason):
    if behaviour == "stalls":  # to save time; "never answers" shows the patience as it is
        settings(download=functools.partial(rnn_mnist.download, patience=4))
    start = time.monotonic()
    assert behind(behaviour) == "UCI digits, not MNIST"
    assert time.monotonic() - start < 20
    notice = capfd.readouterr().err.splitlines()[-1]
    assert notice.startswith("MNIST is not in ") and reason in notice and "UCI digits" in notice
    assert str(tmp_path / "data" / "downloads" / "manual") in notice
    assert not (tmp_path / "data").exists()  # no litter


@pytest.mark.parametrize("proxy, reason", [
    ("http://127.0.0.1:9", "refused"), ("http://no-such-host.invalid:80", "Name or service not known")])
def test_no_way_to_the_network_is_known_at_once(settings, monkeypatch, capsys, proxy, reason):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    settings(OFFLINE_SAMPLE=False)
    start = time.monotonic()
    message = refusal(capsys, rnn_mnist.load_data)
    assert time.monotonic() - start < 10  # half of what is promised; 1 s here
    assert "train-labels-idx1-ubyte.gz" in message
    assert reason in message or os.name != "posix"  # other systems have other words


def test_a_slow_download_is_left_to_finish(behind, small_files, settings, capfd):
    settings(download=functools.partial(rnn_mnist.download, patience=4))
    start = time.monotonic()
    assert behind("is slow") == "MNIST"
    assert time.monotonic() - start > 5.6  # longer than the patience: 8 pauses of 0.7 s
    out, err = capfd.readouterr()
    assert out == "" and "Dl Completed" in err  # TFDS's progress bar


# data


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content[:50] + b"?" + content[51:],
                                    lambda content: b""], ids=["truncated", "flipped", "empty"])
def test_a_damaged_file_of_mnist_is_named(settings, small_files, tmp_path, capsys, damage):
    path = write_files(tmp_path / "data") / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    settings(DATA_DIR=str(tmp_path / "data"))
    assert refusal(capsys, rnn_mnist.load_data).startswith(f"{path} is damaged or not MNIST's")


def test_another_data_sets_file_is_named_even_when_the_others_are_missing(settings, tmp_path, capsys):
    manual_dir = write_files(tmp_path / "data")  # the small files, with TFDS as it is: not MNIST's
    for path in manual_dir.glob("t*-labels-*"):
        path.unlink()
    settings(DATA_DIR=str(tmp_path / "data"))
    assert "-images-idx3-ubyte.gz is damaged or not MNIST's" in refusal(capsys, rnn_mnist.load_data)


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
    assert message.startswith(f"MNIST in {tmp_path / 'data' / VERSION_DIR} is damaged: delete that folder")
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


def preparing(tmp_path, name):
    """Returns a copy of the script that prepares the small MNIST in tmp_path / "data"."""
    (tmp_path / name).mkdir()
    return script(tmp_path / name, small=True, **QUICK, DATA_DIR=str(tmp_path / "data"))


@posix
def test_killed_while_preparing_the_next_run_starts_clean(tmp_path):
    write_files(tmp_path / "data")
    process = start(preparing(tmp_path, "killed"))
    while not list((tmp_path / "data").glob("mnist/*incomplete*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "data" / VERSION_DIR).exists()
    status, out, err = run(preparing(tmp_path, "next"))
    assert status == 0 and "UCI" not in out and "all 300 images" in out, err


def test_two_runs_at_once_prepare_one_data_set(tmp_path):
    write_files(tmp_path / "data")
    processes = [start(preparing(tmp_path, name)) for name in ("one", "other")]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "all 300 images" in out, err
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
    assert err.splitlines()[-1].startswith(f"MNIST can't be prepared in {tmp_path / 'data'}")
    assert not list((tmp_path / "data" / "mnist").iterdir())  # no litter


@posix
def test_a_full_disk_while_saving_leaves_the_earlier_model(tmp_path, small_data_dir):
    (tmp_path / "run").mkdir()
    path = script(tmp_path / "run", **{**QUICK, "TRAINING_ITERS": 1}, DATA_DIR=str(small_data_dir))
    (tmp_path / "run" / "rnn_mnist.keras").write_bytes(b"earlier")
    status, out, err = run(path, environment(TMPDIR=str(tmp_path)), preexec_fn=limit_files_to(20000))
    assert status == 1 and "Traceback" not in err
    assert f"The model can't be saved to {tmp_path / 'run' / 'rnn_mnist.keras'}" in err
    assert (tmp_path / "run" / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert len(list((tmp_path / "run").iterdir())) == 3  # no litter


@pytest.mark.parametrize("name", ["file/model.keras", f"{'too long ' * 30}.keras"], ids=["no folder", "no name"])
def test_a_model_that_cannot_be_saved_in_its_place_is_saved_elsewhere(settings, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").touch()
    settings(**QUICK, MODEL_PATH=str(tmp_path / name))
    assert not rnn_mnist.save(rnn_mnist.build_model())
    saved, = (tmp_path / "temporary").iterdir()
    assert str(saved) in capsys.readouterr().err
    assert tf.keras.models.load_model(saved)


@posix
def test_a_full_disk_ends_the_curves_not_the_training(tmp_path, small_data_dir):
    path = script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir), LOG_DIR="logs", MODEL_PATH=None)
    status, out, err = run(path, preexec_fn=limit_files_to(200))
    assert status == 0 and "all 300 images" in out and "Traceback" not in err
    assert "The curves can't be written to logs: " in err and "memory" not in err


# training


def test_a_diverged_training_stops_and_saves_nothing(settings, small_data_dir, tmp_path, capsys):
    settings(DATA_DIR=str(small_data_dir))
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    settings(**QUICK, LEARNING_RATE=1e30)
    assert refusal(capsys).startswith("The loss is nan at Iter 1000: LEARNING_RATE = 1e+30 is probably too high.")
    settings(DISPLAY_STEP=1000)  # no log line: found when testing
    assert "nan at Iter 2900" in refusal(capsys)
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


LONG = {**QUICK, "TRAINING_ITERS": 10**9}


@posix
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_training_and_keeps_what_was_learned(tmp_path, small_data_dir, number, status):
    process = start(script(tmp_path, **LONG, DATA_DIR=str(small_data_dir)))
    first = process.stdout.readline()  # as it happens, also through a pipe: the training would go on for hours
    assert first.startswith("Iter 1000, ")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err
    assert f"Stopped by {number.name} at Iter " in err
    assert "Optimization Finished!" not in out and "\nTesting Accuracy, all 300 images: 0." in out
    assert tf.keras.models.load_model(tmp_path / "rnn_mnist.keras")


@posix
def test_a_signal_while_testing_loses_nothing(tmp_path, small_data_dir):
    process = start(script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir)))
    while process.stdout.readline() != "Optimization Finished!\n":
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "all 300 images" in out and "Traceback" not in err
    assert tf.keras.models.load_model(tmp_path / "rnn_mnist.keras")


@posix
def test_a_signal_before_the_first_update_leaves_the_earlier_model(tmp_path, small_data_dir):
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    process = start(script(tmp_path, BATCH_SIZE=100, DATA_DIR=str(small_data_dir)))
    while not process.stderr.readline().startswith("MNIST: "):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)  # the first update waits for TensorFlow to trace it, half a second at the least
    out, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # the latter between that line and the training
    assert out == "" and "Traceback" not in err
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


@posix
def test_a_signal_while_tensorflow_loads_ends_that(tmp_path):
    path = script(tmp_path)
    source = path.read_text(encoding="utf-8")
    imports = "import numpy as np\nimport tensorflow as tf\n"
    assert source.count(imports) == 1
    announced = f"print('loading', file=sys.stderr, flush=True)\n{imports}"
    path.write_text(source.replace(imports, announced), encoding="utf-8")
    process = start(path)
    assert process.stderr.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and out == "" and "Traceback" not in err and "UCI" not in err


@posix
def test_a_second_signal_ends_the_run_at_once(tmp_path, small_data_dir):
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    process = start(script(tmp_path, **LONG, DATA_DIR=str(small_data_dir)))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    while not process.stderr.readline().startswith("Stopped by SIGINT"):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "Testing Accuracy" not in out and "Traceback" not in err
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 3  # no litter


@posix
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_during_the_download_ends_it_too(tmp_path, number, status):
    (tmp_path / "temporary").mkdir()
    path = script(tmp_path, **QUICK, DATA_DIR=str(tmp_path / "data"))
    with misbehaving_proxy("never answers", {}, tmp_path / "authority.pem") as proxy:
        process = start(path, environment(HTTPS_PROXY=proxy, https_proxy=proxy, TMPDIR=str(tmp_path / "temporary")))
        while not list((tmp_path / "temporary").glob("*/mnist/*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)  # which waits for the downloading process too: it holds the pipe
    assert process.returncode == status and out == "" and "Traceback" not in err
    assert list((tmp_path / "temporary").iterdir()) == [] and not (tmp_path / "data").exists()


@posix
def test_a_closed_pipe_ends_the_run_quietly(tmp_path, small_data_dir):
    process = start(script(tmp_path, **LONG, DATA_DIR=str(small_data_dir)))
    for _ in range(3):
        process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    err = process.stderr.read()
    assert "Traceback" not in err and "Broken" not in err


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
    out, err = too_large.communicate(timeout=60)
    assert too_large.returncode == 1 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("BATCH_SIZE = 100 and N_HIDDEN = 1000000 need more memory")
