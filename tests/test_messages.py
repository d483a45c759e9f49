"""The exact words of what the script says to people; other tests ask messages for their facts."""

import re

import keras
import numpy as np
import pytest
from conftest import QUICK

import rnn_mnist

INTEGER = "an integer from 1 to 10**12"
SCHEDULE = "one of keras.optimizers.schedules"
SETTINGS = {  # a wrong constant, and what it must be
    ("TRAINING_ITERS", 1e5): INTEGER,
    ("TRAINING_ITERS", 100): "greater than BATCH_SIZE = 100",
    ("LEARNING_RATE", 0): f"a number from 1e-37 to 1e37, or {SCHEDULE}",
    ("SEED", -1): "an integer from 0 to 2**32 - 1, or None",
    ("OFFLINE_SAMPLE", 1): "True or False",
    ("DATA_DIR", "gs://data"): "a local folder, or None",
    ("LOG_DIR", 5): "a local folder, or None",
    ("MODEL_PATH", "model.h5"): "a local file whose name ends in .keras, or None",
    ("TFDS_DATA_DIR", "gs://data"): "a local folder",
}


@pytest.mark.parametrize("name, value", SETTINGS)
def test_constants(settings, monkeypatch, refusal, name, value):
    settings(**QUICK)
    if name == "TFDS_DATA_DIR":
        monkeypatch.setenv(name, value)
    else:
        settings(**{name: value})
    assert refusal() == f"{name} = {value!r} must be {SETTINGS[name, value]}."


def test_a_backend(settings, monkeypatch, refusal):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")  # a mock: it need not be there
    assert refusal() == ("Keras already uses the jax backend: restart Python, and run or import "
                         "this script first.")


def data(n=100, shape=(2, 392), labels=None, value=0.0):
    """Returns a load_data of equal sequences."""
    labels = np.zeros(n, int) if labels is None else np.array(labels)
    return lambda: 2 * [(np.full([n, *shape], value), labels)] + ["zeros"]


def logits():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(
        10, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-2.5))])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def sequence_output():
    return keras.Sequential([keras.layers.Dense(10)])


REFUSALS = [  # what is changed, and the message; {folder} is the test's
    (dict(N_STEPS=5),
     "N_STEPS = 5 times N_INPUT = 392 must be 784, the pixels in an image."),
    (dict(load_data=data(99)),
     "BATCH_SIZE = 100 must not exceed the number of training sequences, 99."),
    (dict(load_data=data(100, (4, 5))),
     "The training sequences have shape (100, 4, 5), but it must be (n, N_STEPS, N_INPUT) = "
     "(n, 2, 392) with n >= 1."),
    (dict(load_data=data(100, value=np.nan)),
     "The training sequences contain nan or values too large for float32. Replace or remove them."),
    (dict(load_data=data(100, labels=[1.5] * 100)),
     "The training labels have shape (100,) and dtype float64, but must be integers of shape "
     "(100,)."),
    (dict(load_data=data(100, labels=[3, 10] * 50)),
     "The training labels range from 3 to 10, but must be between 0 and N_CLASSES - 1 = 9."),
    (dict(load_data=data(), build_model=logits),
     "The model's outputs range from -2.5 to -2.5, so they are not probabilities. End the model "
     "with a softmax, or compile it with "
     "loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)."),
    (dict(load_data=data(), build_model=sequence_output),
     "The model's outputs have shape (100, 2, 10), but for 100 sequences it must be "
     "(n, N_CLASSES) = (100, 10)."),
    (dict(load_data=data(), MODEL_PATH="folder.keras"),
     "The model can't be saved to {folder}/folder.keras (IsADirectoryError: "
     "{folder}/folder.keras is a folder). Change MODEL_PATH, or set it to None to save no model."),
]


@pytest.mark.parametrize("changed, message", REFUSALS, ids=lambda value: "")
def test_refusals(settings, refusal, tmp_path, changed, message):
    (tmp_path / "folder.keras").mkdir()
    settings(**{**QUICK, **changed})
    assert refusal().replace("\\", "/") == message.replace("{folder}", tmp_path.as_posix())


SEE = "See 'Without a network' in README.md."


def failing(*arguments, **more):
    raise OSError("this\n\nfails. And more") from None


def test_mnist_that_cannot_be_fetched(settings, refusal):
    settings(OFFLINE_SAMPLE=False, read_mnist=failing)
    assert refusal() == f"MNIST can't be fetched (OSError: this fails). {SEE}"


def test_mnist_that_cannot_be_read(settings, monkeypatch, refusal, tmp_path):
    settings(DATA_DIR=tmp_path)
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    monkeypatch.setattr(rnn_mnist.tfds, "builder", failing)
    assert refusal() == (f"MNIST in {tmp_path} can't be prepared or read (OSError: this fails). "
                         f"{SEE}")


def test_a_sample_that_cannot_be_read(settings, monkeypatch, refusal, tmp_path):
    settings(read_mnist=failing, __file__=str(tmp_path / "rnn_mnist.py"))
    monkeypatch.setattr(np, "load", failing)
    path = tmp_path.resolve() / "uci_digits.npz"
    assert refusal() == (f"The UCI digits can't be read from {path} "
                         "(OSError: this fails). Copy uci_digits.npz from the repository there.")


def test_curves(settings, refusal, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    settings(**QUICK, load_data=data(), LOG_DIR="file")
    assert re.fullmatch(r"The curves can't be written to file.\S+-seed0 \(\w+Error: .+\)\. "
                        r"Change LOG_DIR; on Windows its path must be ASCII\.", refusal())


def test_endings(quick, untraced, capsys, tmp_path):
    rnn_mnist.main()
    assert re.fullmatch(
        r"MNIST: 600 training and 300 test sequences, 7 updates with minibatches of 100\.\n"
        r"Training ended at Iter 700 after \d+\.\d s\.\n"
        rf"Saved the model, trained on MNIST, to {re.escape(str(tmp_path.resolve()))}."
        r"rnn_mnist\.keras\.\n", capsys.readouterr().err)
    quick(LEARNING_RATE=1e30)
    with pytest.raises(rnn_mnist.TrainingError) as diverged:
        rnn_mnist.main()
    assert str(diverged.value) == ("The training diverged: the loss or a parameter is not finite "
                                   "at Iter 300. Try a smaller learning rate.")
    assert rnn_mnist.failure_of(rnn_mnist.build_model(), 100, 0.0) == (
        "The training ended at Iter 100, before its second update: nothing is saved.")
