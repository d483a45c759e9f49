"""Guards: `save`, `write_whole`, `failure_of`, `check_outputs`: nothing good is replaced by less.

What can't be saved or measured is refused before the training; what replaces the earlier model is
whole; whatever ends a training later, a bug or too little memory, the model is saved first.
"""

import os
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, environment, full_disk, link, posix, run, script, updates_of

import rnn_mnist

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture
def earlier_model_stays(quick, tmp_path):
    yield
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.glob("*.keras")] == ["rnn_mnist.keras"]  # no litter


# refused before the training


@pytest.mark.parametrize("path", [
    "file/model.keras", f"{'too long ' * 30}.keras", "folder.keras"],
    ids=["no folder", "too long", "a folder"])
def test_a_place_where_no_model_can_be_is_told(quick, refusal, tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.keras").mkdir()
    quick(MODEL_PATH=path)
    assert os.path.normpath(path) in refusal()
    assert not list((tmp_path / "folder.keras").iterdir())


class Applied(keras.layers.Layer):
    """A layer that Keras can't save: it is made of a function and has no config."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, rows):
        return self.function(rows)


def network(*layers, loss="sparse_categorical_crossentropy"):
    model = keras.Sequential([keras.Input([2, 392]), *layers])
    model.compile("adam", loss)
    return model


def test_a_network_that_keras_cannot_save_is_told(quick, refusal, earlier_model_stays):
    quick(build_model=lambda: network(Applied(lambda rows: 2 * rows), keras.layers.LSTM(5),
                                      keras.layers.Dense(10, "softmax")))
    assert "get_config" in refusal()  # Keras's words for what is missing


def test_warnings_as_errors_are_told(quick, refusal, earlier_model_stays):
    """As python -W error has them: Keras's own save is the cause of one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert "Warning: " in refusal()


logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
probabilities = keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("loss", [
    "sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy,
    "SparseCategoricalCrossentropy", probabilities], ids=["name", "function", "class", "object"])
def test_outputs_that_are_no_probabilities_are_told(quick, refusal, earlier_model_stays, activation,
                                                    loss):
    """As without the softmax, which the original's network had not."""
    quick(build_model=lambda: network(keras.layers.LSTM(5), keras.layers.Dense(
        10, activation, kernel_initializer=keras.initializers.RandomNormal(stddev=10)), loss=loss))
    message = refusal()
    assert "softmax" in message and "from_logits=True" in message


@pytest.mark.parametrize("activation, loss", [
    ("sigmoid", "sparse_categorical_crossentropy"), (None, logits),
    (None, lambda labels, outputs: logits(labels, outputs))], ids=["sigmoid", "logits", "custom"])
def test_a_loss_that_suits_the_outputs_will_do(quick, activation, loss):
    model = network(keras.layers.LSTM(5), keras.layers.Dense(10, activation), loss=loss)
    rnn_mnist.check_outputs(model, np.random.default_rng(0).random([7, 2, 392], np.float32))


# in its place


def save(name="MNIST"):
    rnn_mnist.save(rnn_mnist.build_model(), name)


def test_an_earlier_model_is_replaced_not_overwritten(quick, tmp_path):
    os.link("rnn_mnist.keras", "another name")
    save()
    assert (tmp_path / "another name").read_bytes() == b"earlier"
    assert zipfile.is_zipfile("rnn_mnist.keras")
    assert sorted(os.listdir(tmp_path)) == ["another name", "rnn_mnist.keras"]  # no litter


@posix
def test_a_saved_file_can_be_read_by_whom_the_folder_lets(quick, tmp_path):
    earlier = os.umask(0o022)
    save()
    os.umask(earlier)
    assert (tmp_path / "rnn_mnist.keras").stat().st_mode & 0o777 == 0o644


@posix
@pytest.mark.slow
def test_a_full_disk_at_the_end_leaves_the_earlier_model(tmp_path, small_data_dir):
    """In a process, since HDF5 has ended one there. It is full once the training has begun."""
    fill = ("import resource\nrehearse = save\ndef save(*arguments, **more):\n"
            "    rehearse(*arguments, **more)\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))")
    path = script(tmp_path, fill, **QUICK, DATA_DIR=small_data_dir)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    status, out, err = run(path, environment(TMPDIR=str(tmp_path.parent)))
    assert status == 1 and "Traceback" not in err and str(tmp_path / "rnn_mnist.keras") in err
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert sorted(os.listdir(tmp_path)) == [  # no litter
        "rnn_mnist.keras", "rnn_mnist.py", "uci_digits.npz"]


def test_a_rehearsal_needs_as_much_room_as_the_model(quick, monkeypatch):
    """With Adam's state, which is two thirds of the file."""
    sizes, save = [], rnn_mnist.write_whole

    def note_size(path, write, *rehearsal):
        save(path, lambda temporary: (write(temporary), sizes.append(temporary.stat().st_size)),
             *rehearsal)

    monkeypatch.setattr(rnn_mnist, "write_whole", note_size)
    rnn_mnist.main()
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # names and numbers of a header


@posix
@pytest.mark.slow
def test_a_full_disk_under_the_curves_costs_no_model(quick, monkeypatch):
    pytest.importorskip("tensorboard")
    quick(LOG_DIR="logs")
    write_whole = rnn_mnist.write_whole

    def with_room(*arguments):  # there is room for the model: another disk
        with full_disk(10**9):
            write_whole(*arguments)

    monkeypatch.setattr(rnn_mnist, "write_whole", with_room)
    with full_disk(200), pytest.raises(tf.errors.OpError):
        rnn_mnist.main()
    assert updates_of() > 1


def test_a_folder_for_curves_that_can_not_be_is_told_before_training(quick, refusal, tmp_path,
                                                                     earlier_model_stays):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    quick(LOG_DIR="file/logs")
    assert "LOG_DIR" in (message := refusal()) and "file" in message


def test_a_tilde_is_the_home_folder(settings, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    settings(**QUICK, MODEL_PATH="~/models/model.keras")
    save()
    assert (tmp_path / "home" / "models" / "model.keras").exists()


def test_a_link_to_the_model_stays_a_link(settings, tmp_path):
    settings(**QUICK)
    (tmp_path / "elsewhere").mkdir()
    link(tmp_path / "elsewhere" / "model.keras", "rnn_mnist.keras")
    save()
    assert os.path.islink("rnn_mnist.keras")
    assert zipfile.is_zipfile(tmp_path / "elsewhere" / "model.keras")


def test_no_path_means_no_file(settings, tmp_path):
    settings(**QUICK, MODEL_PATH=None)
    save()
    assert os.listdir(tmp_path) == []


def test_the_samples_model_leaves_mnists_in_its_place(settings, tmp_path, capsys):
    (tmp_path / "digits.keras").write_bytes(b"trained on MNIST")
    settings(**QUICK, MODEL_PATH="digits.keras")
    assert 0 <= rnn_mnist.main() <= 1
    assert (tmp_path / "digits.keras").read_bytes() == b"trained on MNIST"
    assert updates_of("digits-uci_digits.keras") == 7
    assert str(tmp_path / "digits-uci_digits.keras") in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["digits-uci_digits.keras", "digits.keras"]


# what it holds


def test_saved_model_stands_alone(quick, capsys):
    accuracy = rnn_mnist.main()
    model = keras.models.load_model("rnn_mnist.keras")
    hidden, lstm, out = model.layers
    assert (hidden.name, type(lstm), out.name) == ("hidden", keras.layers.LSTM, "out")
    assert int(model.optimizer.iterations) == 7  # Adam's state is there to go on from
    _, (sequences, labels), _ = rnn_mnist.load_data()
    # by the loss and metric that are saved with it; one near-tie of 300 may round otherwise
    assert model.evaluate(sequences, labels, verbose=0)[1] == pytest.approx(accuracy, abs=0.0034)


def test_a_network_without_an_input_is_saved_for_any_batch_size(quick):
    def build_model():
        model = keras.Sequential([keras.layers.LSTM(8), keras.layers.Dense(10, "softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    quick(build_model=build_model)
    rnn_mnist.main()
    saved = keras.models.load_model("rnn_mnist.keras")
    assert saved.input_shape == (None, 2, 392)
    assert saved(np.zeros([3, 2, 392], np.float32)).shape == (3, 10)


# save first, then speak


def test_the_model_is_saved_before_anything_is_tested(quick, monkeypatch, capsys):
    test, seen = rnn_mnist.test, []

    def check(model, *arguments):
        seen.append((updates_of(), "Testing" in capsys.readouterr().out))
        return test(model, *arguments)

    monkeypatch.setattr(rnn_mnist, "test", check)
    rnn_mnist.main()
    assert seen == [(7, False)]


@pytest.mark.parametrize("line, updates, error", [
    ("Iter 600", 6, NameError("a bug")), ("Optimization Finished!", 7, OSError("no space")),
    ("Iter 300", 3, tf.errors.ResourceExhaustedError(None, None, "no memory"))],
    ids=lambda value: str(value)[:9])
def test_an_error_keeps_its_traceback_and_costs_no_model(quick, when_printed, line, updates, error):
    def fail():
        raise error

    when_printed(line, fail)
    with pytest.raises(type(error)) as raised:
        rnn_mnist.main()
    assert raised.value is error and raised.traceback[-1].name == "fail"
    assert updates_of() == updates


def test_a_bug_before_anything_is_learned_leaves_the_earlier_model(quick, monkeypatch,
                                                                   earlier_model_stays):
    monkeypatch.setattr(rnn_mnist, "faster", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rnn_mnist.main()
