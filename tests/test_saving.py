"""The saved model: what it holds, where it goes, and that nothing good is replaced by less."""

import os
import pathlib
import re
import sys
import tempfile
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import QUICK, end, environment, full_disk, posix, script, start

# whatever keeps a model from its place, it is saved elsewhere


@pytest.fixture
def elsewhere(settings, monkeypatch, tmp_path):
    """The folder where what can't go to MODEL_PATH goes."""
    settings(**QUICK)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("name", ["file/model.keras", f"{'too long ' * 30}.keras"],
                         ids=["no folder", "no name"])
def test_a_model_that_cannot_be_saved_in_its_place_is_saved_elsewhere(settings, tmp_path, capsys,
                                                                      elsewhere, name):
    (tmp_path / "file").touch()
    settings(MODEL_PATH=str(tmp_path / name))
    assert not rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    saved, = elsewhere.iterdir()
    failed, rescued = capsys.readouterr().err.splitlines()
    assert str(tmp_path / name) in failed and "can't be saved" in failed
    assert str(saved) in rescued and keras.models.load_model(saved, compile=False)


@pytest.mark.parametrize("path", ["~no such user/model.keras", "a\0b.keras"])
def test_a_path_that_leads_nowhere_costs_no_model(settings, capsys, elsewhere, path):
    settings(MODEL_PATH=path)
    rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    saved, = [*elsewhere.iterdir(), *pathlib.Path().rglob("model.keras")]
    assert keras.models.load_model(saved, compile=False)


@posix
def test_a_folder_that_goes_away_costs_no_model(settings, tmp_path, monkeypatch, elsewhere):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    os.rmdir(tmp_path / "here")
    assert not rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    saved, = elsewhere.iterdir()
    assert keras.models.load_model(saved, compile=False)


def test_main_tells_by_its_status_that_the_model_is_not_in_its_place(settings, elsewhere, capsys):
    def load_data():
        os.mkdir(rnn_mnist.MODEL_PATH)  # once the settings are checked, something takes the place
        return 2 * [(np.ones([100, 4, 196]), np.ones(100, int))] + ["ones"]

    settings(MODEL_PATH="first.keras", TRAINING_ITERS=300, load_data=load_data)
    assert rnn_mnist.main() == 1
    assert "Testing Accuracy, all 100 sequences" in capsys.readouterr().out
    saved, = elsewhere.iterdir()
    assert int(keras.models.load_model(saved).optimizer.iterations) == 2
    os.rmdir("first.keras")
    settings(load_data=lambda: (load_data(), os.rmdir("first.keras"))[0])
    assert rnn_mnist.main() == 0


def test_an_error_of_any_kind_is_met(monkeypatch, capsys, elsewhere):
    write_whole, places = rnn_mnist.write_whole, []

    def fail_once(path, write):
        places.append(path)
        if len(places) == 1:
            raise RuntimeError("unable to close file")  # no OSError: so says h5py of a full disk
        write_whole(path, write)

    monkeypatch.setattr(rnn_mnist, "write_whole", fail_once)
    assert not rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    assert keras.models.load_model(places[1], compile=False)
    assert "(RuntimeError: unable to close file)" in capsys.readouterr().err


class Applied(keras.layers.Layer):
    """A layer that Keras can't write down: it is made of a function, and has no config."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, rows):
        return self.function(rows)


def test_a_network_that_keras_cannot_write_down_is_saved_as_weights(settings, capsys, elsewhere):
    def build_model():
        model = keras.Sequential([keras.Input([4, 196]), Applied(lambda rows: 2 * rows),
                                  keras.layers.LSTM(5), keras.layers.Dense(10, "softmax")])
        model.compile(loss="sparse_categorical_crossentropy")
        made.append(model)
        return model

    made = []
    settings(build_model=build_model, TRAINING_ITERS=300)
    assert rnn_mnist.main() == 1  # it is not where it should be
    out, err = capsys.readouterr()
    assert "Testing Accuracy, all 256 images" in out
    saved, = elsewhere.iterdir()
    assert saved.suffix == ".npz" and str(saved) in err
    with np.load(saved) as weights:
        for loaded, weight in zip(weights.values(), made[0].get_weights(), strict=True):
            np.testing.assert_array_equal(loaded, weight)


@posix
@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_model_and_the_accuracies(tmp_path, small_data_dir):
    """For all places, the last too. In a process, since HDF5 has ended one there."""
    path = script(tmp_path / "run", **QUICK, DATA_DIR=str(small_data_dir))
    (tmp_path / "run" / "rnn_mnist.keras").write_bytes(b"earlier")
    (tmp_path / "temporary").mkdir()
    with full_disk(20000):  # a limit that the new process inherits
        process = start(path, environment(TMPDIR=str(tmp_path / "temporary")))
    status, out, err = end(process)
    assert status == 1 and "Traceback" not in err and "all 300 images" in out, (status, err)
    assert "can't be saved to rnn_mnist.keras" in err
    assert (tmp_path / "run" / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert len(os.listdir(tmp_path / "run")) == 3  # no litter
    # nor there, but for empty folders that Keras forgets where a save of its fails
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


@posix
@pytest.mark.slow
def test_a_full_disk_ends_the_curves_not_the_training(settings, small_data_dir, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    settings(**QUICK, DATA_DIR=str(small_data_dir), LOG_DIR="logs", MODEL_PATH=None)
    with full_disk(200):
        assert rnn_mnist.main() == 0
    out, err = capsys.readouterr()
    assert "all 300 images" in out and "The curves can't be written to logs. (" in err


# a place of its own


def test_an_earlier_model_is_replaced_not_overwritten(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    os.link("rnn_mnist.keras", "another name")
    assert rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    assert (tmp_path / "another name").read_bytes() == b"earlier"
    assert zipfile.is_zipfile("rnn_mnist.keras")
    assert len(os.listdir(tmp_path)) == 2  # no litter


def test_a_tilde_is_the_home_folder(settings, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    settings(**QUICK, MODEL_PATH="~/models/model.keras")
    assert rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    assert (tmp_path / "home" / "models" / "model.keras").exists()


def test_a_link_to_the_model_stays_a_link(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere" / "model.keras", "rnn_mnist.keras")
    assert rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    assert os.path.islink("rnn_mnist.keras")
    assert zipfile.is_zipfile(tmp_path / "elsewhere" / "model.keras")


def test_no_path_means_no_file(settings, tmp_path):
    settings(**QUICK, MODEL_PATH=None)
    assert rnn_mnist.save(rnn_mnist.build_model(), 100, "MNIST")
    assert os.listdir(tmp_path) == []


def test_the_samples_model_leaves_mnists_in_its_place(settings, tmp_path, capsys):
    (tmp_path / "digits.keras").write_bytes(b"trained on MNIST")
    settings(**QUICK, MODEL_PATH="digits.keras")
    assert rnn_mnist.main() == 0
    assert (tmp_path / "digits.keras").read_bytes() == b"trained on MNIST"
    assert keras.models.load_model("digits-uci_digits.keras")
    err = capsys.readouterr().err
    assert re.search(rf"UCI digits.* saved to {tmp_path / 'digits-uci_digits.keras'}", err)
    assert sorted(os.listdir(tmp_path)) == ["digits-uci_digits.keras", "digits.keras"]


# what it holds


def test_saved_model_stands_alone(settings):
    settings(**QUICK, MODEL_PATH="digits.keras")
    assert rnn_mnist.main() == 0
    model = keras.models.load_model("digits-uci_digits.keras")
    hidden, lstm, out = model.layers
    assert (hidden.name, type(lstm), out.name) == ("hidden", keras.layers.LSTM, "out")
    assert int(model.optimizer.iterations) == 29  # Adam's state is there to go on from
    _, (sequences, labels), _ = rnn_mnist.load_data()
    probabilities = model.predict(sequences, verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)  # float32 sums of ten
    loss, accuracy = model.evaluate(sequences, labels, verbose=0)  # by what is saved with it
    expected = map(float, rnn_mnist.evaluate(model, sequences, labels.astype(np.int64)))
    assert [loss, accuracy] == pytest.approx([*expected], rel=1e-5)  # Keras adds up parts of 32


# save first, then speak


def test_the_model_is_saved_before_anything_is_tested_or_said(settings, monkeypatch, small_data_dir,
                                                              tmp_path, capsys):
    test = rnn_mnist.test

    def check(model, *arguments):
        out, err = capsys.readouterr()
        assert "Testing" not in out and str(tmp_path / "rnn_mnist.keras") in err
        saved = keras.models.load_model("rnn_mnist.keras")
        assert int(saved.optimizer.iterations) == 29
        return test(model, *arguments)

    monkeypatch.setattr(rnn_mnist, "test", check)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    assert rnn_mnist.main() == 0
    assert "Testing Accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_what_fails_while_speaking_costs_no_model(settings, monkeypatch, small_data_dir):
    class Broken:
        """Standard output on a disk that is full by the end."""

        def write(self, text):
            if "Finished" in text:
                raise OSError("no space")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Broken())
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    with pytest.raises(OSError, match="no space"):
        rnn_mnist.main()
    assert int(keras.models.load_model("rnn_mnist.keras").optimizer.iterations) == 29


@pytest.mark.parametrize("place", ["training", "testing"])
def test_a_bug_keeps_its_traceback_and_costs_no_model(settings, monkeypatch, small_data_dir,
                                                      capsys, place):
    def bug(*arguments):
        raise NameError("a bug")

    if place == "training":
        monkeypatch.setattr(rnn_mnist, "draw", lambda run, curves: run.seen < 2000 or bug())
    else:
        monkeypatch.setattr(rnn_mnist, "test", bug)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    with pytest.raises(NameError, match="^a bug$") as raised:
        rnn_mnist.main()
    assert raised.traceback[-1].name == "bug"
    out, err = capsys.readouterr()
    assert "Testing Accuracy" not in out
    assert ("Optimization Finished!" in out) == (place == "testing")
    made = int(keras.models.load_model("rnn_mnist.keras").optimizer.iterations)
    assert made == (20 if place == "training" else 29)
    assert f"Training ended at Iter {made * 100} " in err


def test_a_bug_before_anything_is_learned_leaves_the_earlier_model(settings, monkeypatch, tmp_path,
                                                                   small_data_dir):
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    monkeypatch.setattr(rnn_mnist, "train_step", lambda *arguments: 1 / 0)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    with pytest.raises(ZeroDivisionError):
        rnn_mnist.main()
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


@pytest.mark.slow
def test_too_little_memory_in_training_costs_no_model(settings, monkeypatch, small_data_dir):
    def too_little(run, curves):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")  # as TensorFlow does

    monkeypatch.setattr(rnn_mnist, "draw", too_little)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    with pytest.raises(tf.errors.ResourceExhaustedError):
        rnn_mnist.main()
    assert int(keras.models.load_model("rnn_mnist.keras").optimizer.iterations) == 10
