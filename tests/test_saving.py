"""The saved model: what it holds, where it goes, and that nothing good is replaced by less."""

import os
import re
import sys
import tempfile
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import QUICK, end, environment, full_disk, posix, script, start

pytestmark = pytest.mark.usefixtures("untraced")


# whatever keeps a model from its place, it is saved elsewhere


@pytest.fixture
def elsewhere(settings, monkeypatch, tmp_path):
    """The folder where what can't go to MODEL_PATH goes."""
    settings(**QUICK)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def save(model=None, name="MNIST"):
    """Saves a model, in the end of a training; returns why it is not in its place, if it isn't."""
    return rnn_mnist.save(model or rnn_mnist.build_model(), name, seen=1000, loss=1.0)


class Written(keras.Model):
    """A model as people write them, which Keras can't write down for want of a config."""

    def __init__(self, units):
        super().__init__()
        self.lstm, self.out = keras.layers.LSTM(units), keras.layers.Dense(10, "softmax")

    def call(self, sequences):
        return self.out(self.lstm(sequences))


def test_the_sentence_about_rescued_weights_helps_with_any_model(settings, elsewhere, capsys):
    def build_model():
        model = Written(5)
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    settings(build_model=build_model, TRAINING_ITERS=300)
    with pytest.raises(rnn_mnist.TrainingError, match="but its weights are in "):
        rnn_mnist.main()
    call = re.search(r": (model\.set_weights\(.*\)) gives them ", capsys.readouterr().err)[1]
    model = build_model()
    model(keras.Input([4, 196]))
    before = model.get_weights()
    exec(call, {"model": model, "np": np})
    assert not np.array_equal(before[0], model.get_weights()[0])


def assert_rescued(model, folder):
    """Fails if the weights in a folder, alone there, are not those of the model; their path."""
    weights, = folder.iterdir()
    assert weights.name.endswith(".npz")
    with np.load(weights) as rescued:
        for loaded, weight in zip(rescued.values(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(loaded, weight)
    return weights


@pytest.mark.parametrize("path", [
    "file/model.keras", f"{'too long ' * 30}.keras", "folder.keras", "a\0b.keras"],
    ids=["no folder", "too long", "a folder", "no name"])
def test_the_weights_of_a_model_that_can_not_be_saved_are_rescued(settings, tmp_path, capsys,
                                                                  elsewhere, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.keras").mkdir()
    settings(MODEL_PATH=path)
    model = rnn_mnist.build_model()
    misplaced = save(model)
    weights = assert_rescued(model, elsewhere)
    assert capsys.readouterr().err == f"{misplaced}\n"  # at once, whatever comes later
    assert misplaced.startswith(f"The model can't be saved to {path} (")
    assert f"model.set_weights([*np.load({str(weights)!r}).values()])" in misplaced


def test_two_models_without_a_place_are_both_rescued(settings, elsewhere):
    settings(MODEL_PATH=os.path.join(__file__, "model.keras"))
    assert save() and save()
    assert len(list(elsewhere.iterdir())) == 2


def test_runs_at_once_have_names_of_their_own():
    names = [rnn_mnist.run_name() for _ in range(2)]
    assert names[0] != names[1] and str(os.getpid()) in names[0]


@posix
def test_a_folder_that_goes_away_costs_no_model(settings, tmp_path, monkeypatch, elsewhere):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    os.rmdir(tmp_path / "here")
    model = rnn_mnist.build_model()
    assert save(model)
    assert_rescued(model, elsewhere)


def test_main_tests_and_then_says_that_the_model_is_not_in_its_place(settings, elsewhere, capsys):
    settings(MODEL_PATH=os.path.join(__file__, "model.keras"), TRAINING_ITERS=300, load_data=lambda:
             2 * [(np.ones([100, 4, 196]), np.ones(100, int))] + ["ones"])
    with pytest.raises(rnn_mnist.TrainingError) as error:  # status 1, of a script
        rnn_mnist.main()
    assert "Testing Accuracy, all 100 sequences" in capsys.readouterr().out
    weights, = elsewhere.iterdir()
    assert str(weights) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_error_of_any_kind_is_met(monkeypatch, capsys, elsewhere):
    write_whole, places = rnn_mnist.write_whole, []

    def fail_once(path, write):
        places.append(path)
        if len(places) == 1:
            raise RuntimeError("unable to close file")  # no OSError: so says h5py of a full disk
        write_whole(path, write)

    monkeypatch.setattr(rnn_mnist, "write_whole", fail_once)
    model = rnn_mnist.build_model()
    assert save(model)
    assert_rescued(model, elsewhere)
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
    with pytest.raises(rnn_mnist.TrainingError, match="but its weights are in "):
        rnn_mnist.main()
    out, err = capsys.readouterr()
    assert "Testing Accuracy, all 256 images" in out
    assert re.search(r"can't be saved to \S+ \(\w+Error: \w", err)  # Keras's words
    assert_rescued(made[0], elsewhere)


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
def test_a_full_disk_under_the_curves_costs_no_model(settings, small_data_dir, monkeypatch,
                                                     tmp_path):
    pytest.importorskip("tensorboard")
    settings(**QUICK, DATA_DIR=str(small_data_dir), LOG_DIR="logs")
    write_whole = rnn_mnist.write_whole

    def with_room(path, write):  # there is room for the model: another disk
        with full_disk(10**9):
            write_whole(path, write)

    monkeypatch.setattr(rnn_mnist, "write_whole", with_room)
    with full_disk(200), pytest.raises(tf.errors.OpError):
        rnn_mnist.main()
    assert int(keras.models.load_model("rnn_mnist.keras").optimizer.iterations) > 1


def test_a_folder_for_curves_that_can_not_be_is_told_before_training(settings, capsys, tmp_path,
                                                                     small_data_dir):
    (tmp_path / "file").touch()
    settings(**QUICK, DATA_DIR=str(small_data_dir), LOG_DIR="file/logs")
    with pytest.raises(OSError, match="file"):
        rnn_mnist.main()
    assert capsys.readouterr().out == "" and os.listdir(tmp_path) == ["file"]


# a place of its own


def test_an_earlier_model_is_replaced_not_overwritten(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    os.link("rnn_mnist.keras", "another name")
    assert not save()
    assert (tmp_path / "another name").read_bytes() == b"earlier"
    assert zipfile.is_zipfile("rnn_mnist.keras")
    assert len(os.listdir(tmp_path)) == 2  # no litter


def test_a_tilde_is_the_home_folder(settings, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    settings(**QUICK, MODEL_PATH="~/models/model.keras")
    assert not save()
    assert (tmp_path / "home" / "models" / "model.keras").exists()


def test_a_link_to_the_model_stays_a_link(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "elsewhere").mkdir()
    try:
        os.symlink(tmp_path / "elsewhere" / "model.keras", "rnn_mnist.keras")
    except OSError:
        pytest.skip("Windows lets only administrators and developers make links")
    assert not save()
    assert os.path.islink("rnn_mnist.keras")
    assert zipfile.is_zipfile(tmp_path / "elsewhere" / "model.keras")


@pytest.mark.parametrize("path", ["model.keras", "folder.keras"], ids=["saved", "rescued"])
def test_warnings_as_errors_cost_no_model(elsewhere, settings, tmp_path, path):
    """As python -W error has them: Keras's own save is the cause of one."""
    (tmp_path / "folder.keras").mkdir()
    settings(MODEL_PATH=path)
    model = rnn_mnist.build_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(model)
    assert zipfile.is_zipfile(path) if path == "model.keras" else assert_rescued(model, elsewhere)


def test_no_path_means_no_file(settings, tmp_path):
    settings(**QUICK, MODEL_PATH=None)
    assert not save()
    assert os.listdir(tmp_path) == []


def test_the_samples_model_leaves_mnists_in_its_place(settings, tmp_path, capsys):
    (tmp_path / "digits.keras").write_bytes(b"trained on MNIST")
    settings(**QUICK, MODEL_PATH="digits.keras")
    assert 0 <= rnn_mnist.main() <= 1
    assert (tmp_path / "digits.keras").read_bytes() == b"trained on MNIST"
    assert keras.models.load_model("digits-uci_digits.keras")
    err, path = capsys.readouterr().err, tmp_path / "digits-uci_digits.keras"
    assert re.search(rf"UCI digits.* saved to {re.escape(str(path))}", err)
    assert sorted(os.listdir(tmp_path)) == ["digits-uci_digits.keras", "digits.keras"]


# what it holds


def test_saved_model_stands_alone(settings):
    settings(**QUICK, MODEL_PATH="digits.keras")
    assert 0 <= rnn_mnist.main() <= 1
    model = keras.models.load_model("digits-uci_digits.keras")
    hidden, lstm, out = model.layers
    assert (hidden.name, type(lstm), out.name) == ("hidden", keras.layers.LSTM, "out")
    assert int(model.optimizer.iterations) == 21  # Adam's state is there to go on from
    _, (sequences, labels), _ = rnn_mnist.load_data()
    probabilities = model.predict(sequences, verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)  # float32 sums of ten
    loss, accuracy = model.evaluate(sequences, labels, verbose=0)  # by what is saved with it
    network = rnn_mnist.faster(model)
    expected = map(float, rnn_mnist.measure(model, network, sequences, labels.astype(np.int64)))
    assert [loss, accuracy] == pytest.approx([*expected], rel=1e-5)  # Keras adds up parts of 32


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


# save first, then speak


def test_the_model_is_saved_before_anything_is_tested_or_said(settings, monkeypatch, small_data_dir,
                                                              tmp_path, capsys):
    test = rnn_mnist.test

    def check(model, *arguments):
        out, err = capsys.readouterr()
        assert "Testing" not in out and str(tmp_path / "rnn_mnist.keras") in err
        saved = keras.models.load_model("rnn_mnist.keras")
        assert int(saved.optimizer.iterations) == 21
        return test(model, *arguments)

    monkeypatch.setattr(rnn_mnist, "test", check)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    assert 0 <= rnn_mnist.main() <= 1
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
    assert int(keras.models.load_model("rnn_mnist.keras").optimizer.iterations) == 21


@pytest.mark.parametrize("place", ["training", "testing"])
def test_a_bug_keeps_its_traceback_and_costs_no_model(settings, monkeypatch, small_data_dir,
                                                      capsys, place):
    def bug(*arguments):
        raise NameError("a bug")

    if place == "training":
        monkeypatch.setattr(rnn_mnist, "print", lambda line, **more: (
            bug() if line.startswith("Iter 2000") else print(line)), raising=False)
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
    assert made == (20 if place == "training" else 21)
    assert f"Training ended at Iter {made * 100} " in err


def test_a_bug_before_anything_is_learned_leaves_the_earlier_model(settings, monkeypatch, tmp_path,
                                                                   small_data_dir):
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    monkeypatch.setattr(rnn_mnist, "faster", lambda model: 1 / 0)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    with pytest.raises(ZeroDivisionError):
        rnn_mnist.main()
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"


@pytest.mark.slow
def test_too_little_memory_in_training_costs_no_model(settings, monkeypatch, small_data_dir):
    def too_little(line, **more):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")  # as TensorFlow does

    monkeypatch.setattr(rnn_mnist, "print", too_little, raising=False)
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    with pytest.raises(tf.errors.ResourceExhaustedError):
        rnn_mnist.main()
    assert int(keras.models.load_model("rnn_mnist.keras").optimizer.iterations) == 10
