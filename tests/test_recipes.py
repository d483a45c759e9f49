"""docs/recipes.md: each block runs as it stands, on small data, and does what the page says."""

import functools
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

import rnn_mnist
import small_mnist
from conftest import ROOT, TIMEOUT

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = {section.partition("\n")[0]: code  # by the heading of the page's section
           for section in PAGE.split("\n## ")[1:] for code in BLOCK.findall(section)}


@pytest.fixture
def recipe(settings, monkeypatch, capsys):
    """Runs a block, some of its text replaced to be quick; returns its variables and output."""
    monkeypatch.setenv("MPLBACKEND", "Agg")  # draws without a screen
    # whatever a block sets on the module is put back at the end
    names = [name for name in vars(rnn_mnist) if name.isupper()] + ["load_data", "build_model"]
    settings(**{name: getattr(rnn_mnist, name) for name in names})
    settings(TRAINING_ITERS=2000, N_HIDDEN=32)

    def run(title, **replaced):
        code = RECIPES[title]
        for old, new in replaced.items():
            assert code.count(old) == 1
            code = code.replace(old, new)
        variables = {}
        exec(code, variables)
        return variables, capsys.readouterr().out

    return run


@pytest.fixture
def trained(recipe, trained_file):
    """A trained model, as rnn_mnist.keras; returns it, and what it takes the test images for."""
    shutil.copy(trained_file, "rnn_mnist.keras")
    _, (images, labels), _ = rnn_mnist.load_data()
    model = keras.models.load_model("rnn_mnist.keras")
    return model, labels, model.predict(images, verbose=0).argmax(axis=1)


def accuracies(out):
    return [float(text) for text in re.findall(r"^Testing Accuracy, all .*?: (\S+)", out, re.M)]


def test_every_block_of_the_page_has_a_heading_of_its_own():
    assert len(RECIPES) == PAGE.count("```python\n") >= 11


def test_read_one_image(trained, recipe):
    _, labels, predicted = trained
    _, out = recipe("Read one image")
    assert out.endswith(f"read as {predicted[0]} and labelled {labels[0]}\n")


def test_the_images_that_are_read_wrong(trained, recipe, tmp_path):
    pytest.importorskip("matplotlib")
    _, labels, predicted = trained
    variables, out = recipe("The images that are read wrong")
    wrong = np.count_nonzero(predicted != labels)
    assert 0 < wrong < 256 and out.endswith(f"{wrong} of 256 are read wrong\n")
    assert (tmp_path / "read_wrong.png").stat().st_size > 1000


def test_the_confusion_matrix(trained, recipe):
    _, labels, predicted = trained
    _, out = recipe("The confusion matrix")
    matrix = np.array([row.split() for row in re.findall(r"[\d ]+(?=\])", out)], int)
    assert matrix.shape == (10, 10)
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(labels, minlength=10))
    assert np.trace(matrix) == np.count_nonzero(predicted == labels)


def test_the_loss_curve_of_your_run(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, ROOT / "docs" / "loss_curves.py"]
    for log, drawn in [("Iter 1280, Minibatch Loss= 1.869862, Training Accuracy= 0.39062\n", True),
                       ("nothing of a log", False)]:
        process = subprocess.run(command, input=log, cwd=tmp_path, text=True, capture_output=True,
                                 timeout=TIMEOUT)
        assert (process.returncode == 0) == drawn and "Traceback" not in process.stderr
        assert (tmp_path / "loss_curves.png").exists() == drawn
        (tmp_path / "loss_curves.png").unlink(missing_ok=True)


@pytest.fixture
def quicker(recipe, settings):
    """For recipes of several runs: few timesteps, which are traced sooner."""
    settings(N_STEPS=4, N_INPUT=196)
    return recipe


def test_several_seeds_and_their_mean(quicker):
    _, out = quicker("Several seeds and their mean")
    assert len(set(accuracies(out))) == 3
    mean, deviation = map(float, re.search(r"mean (\S+), standard deviation (\S+)", out).groups())
    assert mean == pytest.approx(np.mean(accuracies(out)), abs=1e-4)  # which has four decimals
    assert deviation == pytest.approx(np.std(accuracies(out), ddof=1), abs=1e-4)


def test_a_search_for_constants(quicker, tmp_path):
    variables, out = quicker("A search for constants", **{"-4, -1": "-4, 2"})  # some diverge or not
    results = variables["results"]
    assert len(set(results)) == len(results) >= 3 and out.endswith(f"{max(results)}\n")
    assert max(results)[0] == pytest.approx(max(accuracies(out)))
    assert not list(tmp_path.glob("*.keras"))


def test_a_learning_rate_that_falls(quicker):
    quicker("A learning rate that falls")
    model = keras.models.load_model("falling_rate-uci_digits.keras")
    steps = 2000 // 128
    expected = 0.0015 * (1 + np.cos(np.pi * steps / 781))  # half of 0.003 and a cosine
    assert float(model.optimizer.learning_rate) == pytest.approx(expected, rel=1e-5)  # float32


def test_a_training_that_goes_on(trained, recipe):
    recipe("A training that goes on")
    models = trained[0], keras.models.load_model("rnn_mnist-uci_digits.keras")
    before, after = [int(model.optimizer.iterations) for model in models]
    assert after == before + 2000 // 128


def test_a_validation_set_and_early_stopping(recipe):
    variables, out = recipe("A validation set and early stopping", **{"epochs=50": "epochs=2"})
    assert variables["held_out"] == 140 and "val_loss" in out
    model = keras.models.load_model("early_stopping.keras")
    images, labels = variables["test_images"], variables["test_labels"]
    assert model.evaluate(images, labels, verbose=0)[1] == variables["accuracy"]


def test_fashion_mnist(recipe, monkeypatch, tmp_path):
    """Small files in its format stand for Fashion-MNIST's, prepared and read by TFDS itself."""
    undo = small_mnist.adapt_tfds(name="fashion_mnist")
    for name, content in small_mnist.files().items():
        (tmp_path / name).write_bytes(content)
    # TFDS reads $TFDS_DATA_DIR as it is imported, which is too early for a test
    monkeypatch.setattr(tfds, "load", functools.partial(
        tfds.load, data_dir=tmp_path / "data", download_and_prepare_kwargs=dict(
            download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))))
    _, out = recipe("Fashion-MNIST in MNIST's place")
    undo()
    assert "Testing Accuracy, all 300 sequences: " in out
    assert keras.models.load_model("fashion_mnist.keras").input_shape == (None, 28, 28)


def test_sequences_of_unequal_lengths(recipe):
    variables, out = recipe("Sequences of unequal lengths")
    model = keras.models.load_model("unequal_lengths.keras")
    _, (padded, labels), _ = variables["load_data"]()
    shortest = np.argmin((padded[..., 0] != -2).sum(axis=1))
    sequence = padded[shortest][padded[shortest, :, 0] != -2]
    assert 5 <= len(sequence) < 12
    hidden, lstm, out_layer = model.layers[-3:]
    unpadded = out_layer(lstm(hidden(sequence[np.newaxis])))
    # the same but for float32's rounding: the padding is skipped
    np.testing.assert_allclose(model(padded[[shortest]]), unpadded, atol=1e-5)


@pytest.fixture
def digits_file(tmp_path):
    """Writes the digits, halved, as sequences.csv; returns the README's program that reads it."""
    def write(delimiter=",", mark=".", names="", encoding="utf-8"):
        with np.load(ROOT / "uci_digits.npz") as digits:
            rows = np.c_[digits["labels"], digits["images"].reshape(-1, 64) / 2]
        lines = [delimiter.join(f"{value:g}".replace(".", mark) for value in row) for row in rows]
        text = "\r\n".join([*([names] if names else []), *lines, ""])
        (tmp_path / "sequences.csv").write_bytes(text.encode(encoding))
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        program, = [code for code in BLOCK.findall(readme) if "np.loadtxt(" in code]
        return program

    return write


def test_a_new_sequence_is_classified(recipe, digits_file, capsys):
    exec(digits_file(), {})
    capsys.readouterr()
    variables, out = recipe("Classify a new sequence")
    (x, _), (test_x, _), _ = rnn_mnist.load_data()
    sequence = variables["sequence"]
    assert np.any(np.all(np.isclose(np.r_[x, test_x], sequence), axis=(1, 2)))  # scaled as they are
    outputs = keras.models.load_model("sequences.keras")(sequence[np.newaxis])
    assert out == f"class {np.argmax(outputs)}, with probability {np.max(outputs):.2f}\n"


def test_a_csv_file_as_excel_writes_it(recipe, digits_file, capsys):
    exec(digits_file(), {})
    from_plain = rnn_mnist.load_data()
    names = ";".join(["label", *(f"value {n}" for n in range(64))])
    program = digits_file(";", ",", names, "utf-8-sig")
    line = re.search(r"^    table = np.loadtxt.*\n", program, re.M)[0]
    exec(program.replace(line, RECIPES["A CSV file as Excel writes it"]), {})
    assert "Testing Accuracy, all 359 sequences: " in capsys.readouterr().out
    for ours, theirs in zip(rnn_mnist.load_data()[:2], from_plain[:2]):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
