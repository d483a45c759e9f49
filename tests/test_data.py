"""MNIST as TFDS prepares and reads it, damaged data, the sample, and minibatches."""

import gzip
import os
import pathlib
import shutil
import signal
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

import rnn_mnist
import small_mnist
from conftest import (FILES_DIR, QUICK, VERSION_DIR, full_disk, go_on, imported, posix, script,
                      start, wait_for_pause, write_files)

TRAIN, TEST = (f"mnist-{split}.tfrecord-00000-of-00001" for split in ("train", "test"))


def pixels(sequences):
    """Returns the bytes, uint8 [n, 784], that were scaled to 0 to 1; fails if they were not."""
    bytes_of = np.round(sequences * 255).astype(np.uint8)
    # float32 products with float32's nearest to 1 / 255, as the original's loader made them
    np.testing.assert_array_equal(sequences, np.float32(bytes_of) * np.float32(1 / 255))
    return bytes_of.reshape(len(sequences), -1)


def sorted_rows(images, labels):
    """The examples as rows, in an order that does not depend on theirs."""
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, np.newaxis]], axis=1)
    return rows[np.lexsort(rows.T)].astype(np.int64)


# MNIST


def test_prepared_mnist_is_read_whole_but_for_the_first_5000(settings, small_data_dir):
    settings(DATA_DIR=str(small_data_dir))
    (sequences, labels), (test_sequences, test_labels), name = rnn_mnist.load_data()
    assert name == "MNIST"
    assert sequences.shape == (small_mnist.TRAIN_SIZE, 28, 28) and sequences.dtype == np.float32
    assert labels.shape == (small_mnist.TRAIN_SIZE,) and labels.dtype == np.int64
    # TFDS shuffles on preparing, so contents are compared as sets: the test split whole, the
    # training images as members
    np.testing.assert_array_equal(sorted_rows(pixels(test_sequences), test_labels),
                                  sorted_rows(*small_mnist.examples("test")))
    members = {row.tobytes() for row in sorted_rows(*small_mnist.examples("train"))}
    assert {row.tobytes() for row in sorted_rows(pixels(sequences), labels)} <= members
    mnist = tfds.builder_from_directory(small_data_dir / VERSION_DIR)
    images, _ = tfds.as_numpy(mnist.as_dataset("train", batch_size=-1, as_supervised=True))
    np.testing.assert_array_equal(pixels(sequences), images[5000:].reshape(-1, 784))


@pytest.mark.parametrize("n_steps, n_input", [(28, 28), (56, 14), (784, 1)])
def test_images_are_cut_into_timesteps(settings, small_data_dir, n_steps, n_input):
    settings(N_STEPS=n_steps, N_INPUT=n_input, DATA_DIR=str(small_data_dir))
    (sequences, _), (test_sequences, _), _ = rnn_mnist.load_data()
    assert sequences.shape == (600, n_steps, n_input)
    assert test_sequences.shape == (300, n_steps, n_input)
    settings(N_STEPS=28, N_INPUT=28)
    (whole, _), _, _ = rnn_mnist.load_data()
    np.testing.assert_array_equal(sequences.reshape(-1, 784), whole.reshape(-1, 784))


@pytest.mark.parametrize("prepared", [True, False], ids=["MNIST", "the sample"])
def test_timesteps_that_do_not_cut_an_image_are_told(settings, refusal, small_data_dir, prepared):
    settings(N_STEPS=27, N_INPUT=29, **{"DATA_DIR": str(small_data_dir)} if prepared else {})
    message = refusal()
    assert all(part in message for part in ("N_STEPS = 27", "N_INPUT = 29", "784"))


def test_four_files_are_prepared_without_a_network(settings, small_files, tmp_path, capfd):
    folder = write_files(tmp_path / "data")
    settings(DATA_DIR=str(tmp_path / "data"))
    (sequences, _), (test_sequences, test_labels), name = rnn_mnist.load_data()
    assert name == "MNIST" and len(sequences) == small_mnist.TRAIN_SIZE
    np.testing.assert_array_equal(sorted_rows(pixels(test_sequences), test_labels),
                                  sorted_rows(*small_mnist.examples("test")))
    assert capfd.readouterr().out == ""  # TFDS would announce itself there, where the log belongs
    assert sorted(os.listdir(tmp_path / "data")) == ["downloads", "mnist"]
    assert sorted(os.listdir(folder)) == sorted(small_mnist.files())


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


def test_a_read_only_data_directory_will_do(settings, small_data_dir, tmp_path):
    shutil.copytree(small_data_dir, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    folders = tmp_path / "data" / VERSION_DIR, tmp_path / "data"
    for path in folders:
        path.chmod(0o555)
    settings(DATA_DIR=str(tmp_path / "data"))
    rnn_mnist.check_settings()
    assert rnn_mnist.load_data()[2] == "MNIST"
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert after == before  # root, too, has written nothing there
    for path in folders:
        path.chmod(0o755)


# damaged data


@pytest.mark.slow
@pytest.mark.parametrize("damage", [
    lambda content: content[:-100], lambda content: content[:50] + b"?" + content[51:],
    lambda content: b"", lambda content: b"Fashion-MNIST's"],
    ids=["truncated", "flipped", "empty", "another data set's"])
def test_a_damaged_or_another_file_by_hand_is_named(settings, refusal, small_files, tmp_path,
                                                    damage):
    path = write_files(tmp_path / "data") / "t10k-images-idx3-ubyte.gz"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    settings(DATA_DIR=str(tmp_path / "data"))
    message = refusal(rnn_mnist.load_data)
    assert str(path) in message and len(message.splitlines()) == 1
    assert path.read_bytes() == damaged and not (tmp_path / "data" / VERSION_DIR).exists()


def cut_last_record(path):
    """Takes the last record off a TFRecord file, which stays valid.

    A record is its length, a checksum, the data and another checksum.
    """
    content, start = path.read_bytes(), 0
    while (end := start + 16 + struct.unpack_from("<Q", content, start)[0]) < len(content):
        start = end
    path.write_bytes(content[:start])


def flip(path, position=1000):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "cut short": lambda folder: os.truncate(folder / TRAIN, 100000),
    "cut at a record": lambda folder: cut_last_record(folder / TRAIN),
    "cut in the test set": lambda folder: cut_last_record(folder / TEST),
    "empty": lambda folder: os.truncate(folder / TEST, 0),
    "flipped": lambda folder: flip(folder / TEST),
    "flipped at the end": lambda folder: flip(folder / TRAIN, -1000),
    "flipped metadata": lambda folder: flip(folder / "dataset_info.json", 300),
    "file missing": lambda folder: (folder / TEST).unlink(),
    "metadata missing": lambda folder: (folder / "dataset_info.json").unlink(),
    "all missing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_data_is_named(settings, refusal, small_data_dir, tmp_path, damage):
    shutil.copytree(small_data_dir, tmp_path / "data")
    DAMAGES[damage](tmp_path / "data" / VERSION_DIR)
    settings(DATA_DIR=str(tmp_path / "data"))
    message = refusal(rnn_mnist.load_data)
    assert str(tmp_path / "data") in message and len(message.splitlines()) == 1


# preparing, disturbed


@pytest.mark.slow
def test_a_run_that_another_one_overtakes_reads_what_that_one_prepared(settings, tmp_path):
    """So may a run after one that was killed, of which its folder is left."""
    write_files(tmp_path / "data")
    pausing = "import small_mnist; small_mnist.pause_while_preparing()"
    process = start(script(tmp_path / "run", pausing, **QUICK, DATA_DIR=str(tmp_path / "data")))
    wait_for_pause(process)
    shutil.copytree(tmp_path / "data", tmp_path / "killed")  # as a kill would leave it now
    for data_dir in (tmp_path / "data", tmp_path / "killed"):
        folders = []  # in which it is prepared
        undo = small_mnist.adapt_tfds(lambda: folders.extend(data_dir.glob("mnist/*incomplete*")))
        settings(DATA_DIR=str(data_dir))
        (sequences, _), _, name = rnn_mnist.load_data()
        undo()
        assert name == "MNIST" and len(sequences) == small_mnist.TRAIN_SIZE
        assert len(set(folders)) == 2  # one of its own
    status, out, err = go_on(process)
    assert status == 0 and "all 300 images" in out and "UCI" not in out, err
    assert os.listdir(tmp_path / "data" / "mnist") == [VERSION_DIR.name]  # nothing is left over
    assert sorted(os.listdir(tmp_path / "data" / FILES_DIR)) == sorted(small_mnist.files())


@posix
@pytest.mark.slow
def test_an_interrupt_while_preparing_leaves_no_litter(settings, tmp_path):
    write_files(tmp_path / "data")
    settings(DATA_DIR=str(tmp_path / "data"))
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    undo = small_mnist.adapt_tfds(halfway=lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        rnn_mnist.load_data()
    undo()
    signal.signal(signal.SIGINT, earlier)
    assert not list((tmp_path / "data" / "mnist").iterdir())


@posix
@pytest.mark.slow
def test_a_full_disk_while_preparing_is_told(settings, refusal, small_files, tmp_path):
    write_files(tmp_path / "data")
    settings(DATA_DIR=str(tmp_path / "data"))
    with full_disk(500000):
        message = refusal(rnn_mnist.load_data)
    assert str(tmp_path / "data") in message and len(message.splitlines()) == 1
    assert not list((tmp_path / "data" / "mnist").iterdir())  # no litter


# the sample


def test_uci_digits_have_mnists_geometry_and_a_fixed_split(settings):
    (sequences, labels), (test_sequences, test_labels), name = rnn_mnist.load_data()
    assert name == "UCI digits, not MNIST"
    assert sequences.shape == (1541, 28, 28) and sequences.dtype == np.float32
    assert labels.shape == (1541,) and labels.dtype.kind in "iu"
    everything = pixels(np.concatenate([sequences, test_sequences])).reshape(-1, 28, 28)
    # the original's trajectory was recorded on the same digits, resized the same way
    folder = pathlib.Path(__file__).parent / "trajectories"
    with np.load(folder / "original_trajectory.npz") as trajectory:
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
    try:
        os.symlink(script(tmp_path / "repository"), tmp_path / "link.py")
    except OSError:
        pytest.skip("Windows lets only administrators and developers make links")
    assert imported(tmp_path / "link.py").load_data()[2] == rnn_mnist.SAMPLE


@pytest.mark.parametrize("sample", [None, b"", b"no archive", b"PK\x03\x04 broken"])
def test_without_mnist_and_sample_it_says_how_to_get_both(settings, monkeypatch, tmp_path, capsys,
                                                          sample):
    monkeypatch.setattr(rnn_mnist, "__file__", str(tmp_path / "rnn_mnist.py"))
    if sample is not None:
        (tmp_path / "uci_digits.npz").write_bytes(sample)
    with pytest.raises(rnn_mnist.TrainingError) as error:
        rnn_mnist.main()
    message = str(error.value)
    assert "UCI digits" in message and str(tmp_path / "uci_digits.npz") in message
    assert len(message.splitlines()) == 1
    out, err = capsys.readouterr()
    assert out == "" and "README.md" in err.splitlines()[-1]  # on MNIST


# minibatches


def test_the_order_of_the_minibatches_depends_on_the_seed(settings):
    orders = []
    for seed in (0, 0, 1, None, None):
        settings(BATCH_SIZE=100, SEED=seed)
        batches = rnn_mnist.minibatches(np.arange(100), np.arange(100))
        orders.append(next(batches)[0].tolist())
    assert orders[0] == orders[1] and len(set(map(tuple, orders))) == 4


def test_minibatches_pass_through_each_epoch_once_and_drop_its_tail(settings):
    settings(BATCH_SIZE=3, SEED=1)
    batches = rnn_mnist.minibatches(np.arange(10) * 2, np.arange(10))
    epochs = [[next(batches) for _ in range(3)] for _ in range(20)]
    for epoch in epochs:
        labels = np.concatenate([labels for _, labels in epoch])
        assert len(set(labels)) == 9  # without replacement
        np.testing.assert_array_equal(np.concatenate([each for each, _ in epoch]), labels * 2)
    orders = {tuple(np.concatenate([labels for _, labels in epoch])) for epoch in epochs}
    assert len(orders) == 20  # two of 20 orders out of 10!/1! agree once in 19,000 seeds
    dropped = {(set(range(10)) - set(order)).pop() for order in orders}
    assert len(dropped) > 1
