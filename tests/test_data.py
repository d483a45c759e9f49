"""The data: `read_mnist`, `fetch_file`, `read_uci_digits`; of the task, `load_data`, `rows_of`.

TFDS really prepares and reads, from a small MNIST in MNIST's format; a proxy on this machine stands
for storage.googleapis.com. Not tested, since a test machine can't have it: packets that are
dropped. A proxy that never answers stands for them.
"""

import os
import pathlib
import re
import shutil
import signal
import struct
import tempfile

import numpy as np
import pytest
import requests
import small_mnist
import tensorflow_datasets as tfds
from conftest import (
    FILES_DIR,
    QUICK,
    ROOT,
    VERSION_DIR,
    environment,
    full_disk,
    imported,
    link,
    posix,
    run,
    script,
    write_files,
)
from misbehaving_proxy import misbehaving_proxy

import rnn_mnist

TRAIN, TEST = (f"mnist-{split}.tfrecord-00000-of-00001" for split in ("train", "test"))


def pixels(sequences):
    """Returns the bytes, uint8 [n, 784], that were scaled to 0 to 1; fails if they were not."""
    bytes_of = np.round(sequences * 255).astype(np.uint8)
    # float32 products with float32's nearest to 1 / 255, as the original's loader made them
    np.testing.assert_array_equal(sequences, np.float32(bytes_of) * np.float32(1 / 255))
    return bytes_of.reshape(len(sequences), -1)


def sorted_rows(images, labels):
    """Returns the examples as rows, in an order that does not depend on theirs."""
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, np.newaxis]], axis=1)
    return rows[np.lexsort(rows.T)].astype(np.int64)


def assert_small_mnist(data):
    (sequences, labels), (test_sequences, test_labels), name = data
    assert name == "MNIST" and sequences.shape == (small_mnist.TRAIN_SIZE, 28, 28)
    assert sequences.dtype == np.float32 and labels.dtype == np.int64
    # TFDS shuffles on preparing, so contents are compared as sets: the test split whole, the
    # training images as members
    np.testing.assert_array_equal(sorted_rows(pixels(test_sequences), test_labels),
                                  sorted_rows(*small_mnist.examples("test")))
    members = {row.tobytes() for row in sorted_rows(*small_mnist.examples("train"))}
    assert {row.tobytes() for row in sorted_rows(pixels(sequences), labels)} <= members


# MNIST


def test_prepared_mnist_is_read_whole_but_for_the_first_5000(settings, small_data_dir):
    settings(DATA_DIR=small_data_dir)
    data = rnn_mnist.load_data()
    assert_small_mnist(data)
    mnist = tfds.builder_from_directory(pathlib.Path(small_data_dir, VERSION_DIR))
    images, _ = tfds.as_numpy(mnist.as_dataset("train", batch_size=-1, as_supervised=True))
    np.testing.assert_array_equal(pixels(data[0][0]), images[5000:].reshape(-1, 784))


@pytest.mark.parametrize("n_steps, n_input", [(56, 14), (784, 1)])
def test_images_are_cut_into_timesteps(settings, n_steps, n_input):
    images = np.random.default_rng(0).integers(0, 256, [3, 28, 28, 1]).astype(np.uint8)
    settings(N_STEPS=n_steps, N_INPUT=n_input)
    sequences = rnn_mnist.rows_of(images)
    assert sequences.shape == (3, n_steps, n_input)
    np.testing.assert_array_equal(pixels(sequences), images.reshape(3, 784))


@pytest.mark.parametrize("prepared", [True, False], ids=["MNIST", "the sample"])
def test_timesteps_that_do_not_cut_an_image_are_told(settings, refusal, small_data_dir, prepared):
    settings(N_STEPS=27, N_INPUT=29, **{"DATA_DIR": small_data_dir} if prepared else {})
    message = refusal()
    assert all(fact in message for fact in ("N_STEPS", "27", "N_INPUT", "29", "784"))


def test_four_files_are_prepared_without_a_network(settings, small_files, tmp_path, capfd):
    folder = write_files(tmp_path / "data")
    settings(DATA_DIR=tmp_path / "data")
    assert_small_mnist(rnn_mnist.load_data())
    assert capfd.readouterr().out == ""  # TFDS would announce itself there, where the log belongs
    assert sorted(os.listdir(tmp_path / "data")) == ["downloads", "mnist"]  # no leftovers
    assert sorted(os.listdir(folder)) == sorted(small_mnist.files())  # those by hand are kept


@pytest.mark.parametrize("setting, variable, data_dir", [
    (None, None, "home/tensorflow_datasets"), (None, "variable", "variable"),
    ("setting", "variable", "setting"), ("~/setting", None, "home/setting")])
def test_the_data_directory_is_tfds_own(settings, monkeypatch, tmp_path, small_data_dir, setting,
                                        variable, data_dir):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / variable) if variable else "")
    settings(DATA_DIR=setting)
    shutil.copytree(small_data_dir, tmp_path / data_dir)
    assert rnn_mnist.load_data()[2] == "MNIST"


@pytest.mark.slow
def test_a_read_only_data_directory_will_do(settings, small_data_dir, tmp_path):
    shutil.copytree(small_data_dir, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    folders = tmp_path / "data" / VERSION_DIR, tmp_path / "data"
    for path in folders:
        path.chmod(0o555)
    settings(DATA_DIR=tmp_path / "data")
    assert rnn_mnist.load_data()[2] == "MNIST"
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert after == before  # root, too, has written nothing there
    for path in folders:
        path.chmod(0o755)


# damaged data


@pytest.mark.parametrize("damage", [
    lambda content: content[:-100], lambda content: b"Fashion-MNIST's"],
    ids=["cut short", "another dataset's"])
def test_a_wrong_file_by_hand_is_named(settings, refusal, small_files, tmp_path, damage):
    path = write_files(tmp_path / "data") / "t10k-images-idx3-ubyte.gz"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    settings(DATA_DIR=tmp_path / "data")
    assert str(path) in refusal(rnn_mnist.load_data)
    assert path.read_bytes() == damaged and not (tmp_path / "data" / VERSION_DIR).exists()


def cut_last_record(path):
    """Takes the last record off a TFRecord file, which stays valid.

    A record is its length, a checksum, the data and another checksum.
    """
    content, start = path.read_bytes(), 0
    while (end := start + 16 + struct.unpack_from("<Q", content, start)[0]) < len(content):
        start = end
    path.write_bytes(content[:start])


@pytest.mark.parametrize("damage", [
    lambda folder: cut_last_record(folder / TEST),
    lambda folder: (folder / "dataset_info.json").write_text("{"),
    lambda folder: [path.unlink() for path in folder.iterdir()]],
    ids=["cut at a record", "broken metadata", "all missing"])
def test_damaged_prepared_data_is_named(settings, refusal, small_data_dir, tmp_path, damage):
    shutil.copytree(small_data_dir, tmp_path / "data")
    damage(tmp_path / "data" / VERSION_DIR)
    settings(DATA_DIR=tmp_path / "data")
    assert str(tmp_path / "data") in refusal(rnn_mnist.load_data)


# preparing, disturbed


@pytest.mark.slow
def test_a_run_that_another_one_overtakes_reads_what_that_one_prepared(settings, tmp_path):
    """Both have the same SEED, by which TFDS would name both runs' folders alike."""
    def other_run():
        if not prepared:  # it comes here, too
            prepared.append(None)
            folders.extend((tmp_path / "mnist").iterdir())
            with rnn_mnist.seeded():
                prepared.append(rnn_mnist.load_data())

    write_files(tmp_path)
    settings(DATA_DIR=tmp_path)
    prepared, folders = [], []
    with rnn_mnist.seeded(), small_mnist.in_tfds(halfway=other_run):
        assert_small_mnist(rnn_mnist.load_data())
    assert_small_mnist(prepared[1])
    assert len(folders) == 1 and os.listdir(tmp_path / "mnist") == [VERSION_DIR.name]  # no litter


@pytest.mark.slow
def test_an_interrupt_while_preparing_leaves_no_litter(settings, tmp_path):
    write_files(tmp_path)
    settings(DATA_DIR=tmp_path)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    with small_mnist.in_tfds(halfway=lambda: signal.raise_signal(signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt):
            rnn_mnist.load_data()
    signal.signal(signal.SIGINT, earlier)
    assert not list((tmp_path / "mnist").iterdir())


@posix
@pytest.mark.slow
def test_a_full_disk_while_preparing_is_told(settings, refusal, small_files, tmp_path):
    write_files(tmp_path)
    settings(DATA_DIR=tmp_path)
    with full_disk(500000):
        assert str(tmp_path) in refusal(rnn_mnist.load_data)
    assert not list((tmp_path / "mnist").iterdir())  # no litter


# fetching


@pytest.fixture
def behind(settings, monkeypatch, small_files, tmp_path):
    """Loads data behind a proxy that misbehaves, with an empty data directory.

    Returns the name of the data and the files asked for.
    """
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    settings(DATA_DIR=tmp_path / "data")
    requests_get = requests.get

    def load(behaviour, pace=100):  # times what the script waits for the network
        def get(url, timeout, **more):
            assert sum(timeout) <= 20  # s, which the README promises
            return requests_get(url, timeout=tuple(pace * each for each in timeout), **more)

        monkeypatch.setattr(requests, "get", get)
        files = small_mnist.files()
        with misbehaving_proxy(behaviour, files, tmp_path / "authority.pem") as (proxy, served):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            monkeypatch.setenv("https_proxy", proxy)
            return rnn_mnist.load_data()[2], served

    yield load
    # no litter, but for the empty folder that TFDS forgets whenever it prepares
    litter = (tmp_path / "temporary").rglob("*")
    assert [path for path in litter if not path.name.endswith("tfds")] == []


@pytest.mark.slow
@pytest.mark.parametrize("behaviour, reason, pace", [
    ("never answers", "imed out", 1 / 9), ("stalls", "imed out", 1 / 9), ("404", "404", 100),
    ("login page", "-ubyte.gz", 100), ("breaks off", "IncompleteRead", 100)])
def test_a_network_that_fails_leads_to_the_sample(behind, tmp_path, capsys, behaviour, reason,
                                                  pace):
    assert behind(behaviour, pace)[0] == rnn_mnist.SAMPLE
    fetching, *_, notice = capsys.readouterr().err.splitlines()
    assert "https://storage.googleapis.com/" in fetching
    assert str(tmp_path / "data" / FILES_DIR) in fetching
    assert reason in notice and "README.md" in notice
    assert not (tmp_path / "data").exists()  # no litter


@pytest.mark.parametrize("sample", [True, False], ids=["the sample will do", "MNIST or nothing"])
def test_no_way_to_the_network_is_asked_for_once(settings, monkeypatch, refusal, sample):
    asked, requests_get = [], requests.get
    monkeypatch.setattr(requests, "get",
                        lambda url, **more: asked.append(url) or requests_get(url, **more))
    settings(OFFLINE_SAMPLE=sample)
    if sample:
        assert rnn_mnist.load_data()[2] == rnn_mnist.SAMPLE
    else:
        assert "README.md" in refusal(rnn_mnist.load_data)
    assert len(asked) == 1


@pytest.mark.slow
def test_a_first_run_fetches_and_prepares(tmp_path, usual_log):
    adapt = "import small_mnist; main = small_mnist.in_tfds()(main)"
    path = script(tmp_path, adapt, **QUICK, DATA_DIR=str(tmp_path / "data"))
    ca_file = tmp_path / "authority.pem"
    with misbehaving_proxy("is right", small_mnist.files(), ca_file) as (proxy, served):
        env = environment(HTTPS_PROXY=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=str(ca_file))
        status, out, err = run(path, env)
    assert (status, out, "Traceback" in err) == (0, usual_log, False), err
    assert sorted(served) == sorted(small_mnist.files()) and "kB" in err
    assert re.search(r" (\d+)/\1 \[[^]]*kB/s", err)  # the progress bar is full at the end
    folder = tmp_path / "data" / FILES_DIR
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == small_mnist.files()


@pytest.mark.slow
def test_a_slow_download_is_left_to_finish(behind):
    name, served = behind("is slow", pace=1 / 6)  # one file takes 3 s; a stall of 2 s would end it
    assert name == "MNIST" and len(served) == 4


@pytest.mark.slow
def test_what_has_arrived_or_was_put_there_is_not_fetched_again(behind, tmp_path):
    assert behind("breaks off after one file")[0] == rnn_mnist.SAMPLE
    kept, = (tmp_path / "data" / FILES_DIR).iterdir()
    assert kept.read_bytes() == small_mnist.files()[kept.name]
    name, served = behind("is right")
    assert name == "MNIST" and len(served) == 3 and kept.name not in served


# the sample


def test_uci_digits_have_mnists_geometry_and_a_fixed_split(settings):
    (sequences, labels), (test_sequences, test_labels), name = rnn_mnist.load_data()
    assert name == "UCI digits, not MNIST"
    assert sequences.shape == (1541, 28, 28) and sequences.dtype == np.float32
    assert labels.shape == (1541,) and labels.dtype.kind in "iu"
    everything = pixels(np.concatenate([sequences, test_sequences])).reshape(-1, 28, 28)
    # the original's trajectory was recorded on the same digits, resized the same way
    with np.load(ROOT / "tests" / "trajectories" / "original_trajectory.npz") as trajectory:
        recorded = {image.tobytes() for image in trajectory["images"].reshape(-1, 28, 28)}
    assert recorded <= {image.tobytes() for image in everything}
    assert everything[:, 4:24, 4:24].max() == 255
    everything[:, 4:24, 4:24] = 0
    assert not everything.any()  # the frame
    assert test_labels[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]  # the split never changes
    settings(SEED=1)
    np.testing.assert_array_equal(rnn_mnist.load_data()[1][1], test_labels)  # with no seed
    assert len(test_labels) == 256 and set(test_labels) == set(range(10))


def test_a_symlinked_script_finds_its_sample(settings, tmp_path):
    link(script(tmp_path / "repository"), tmp_path / "link.py")
    assert imported(tmp_path / "link.py").load_data()[2] == rnn_mnist.SAMPLE


@pytest.mark.parametrize("sample", [None, b"", b"PK\x03\x04 broken"])
def test_without_mnist_and_sample_both_are_told(settings, refusal, tmp_path, capsys, sample):
    settings(__file__=str(tmp_path / "rnn_mnist.py"))
    if sample is not None:
        (tmp_path / "uci_digits.npz").write_bytes(sample)
    assert str(tmp_path / "uci_digits.npz") in refusal()
