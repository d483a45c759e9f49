"""The README's own code blocks and commands, and what it says of the constants."""

import ast
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import QUICK, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_model_reads_an_image_file_and_a_photo(settings, capsys):
    settings(TRAINING_ITERS=20000)
    assert rnn_mnist.main() == 0
    _, (images, labels), _ = rnn_mnist.load_data()
    probabilities = keras.models.load_model("rnn_mnist.keras").predict(images / 255, verbose=0)
    clearest = probabilities[np.arange(len(labels)), labels].argmax()
    large = tf.image.resize(images[clearest][..., np.newaxis], [280, 280], method="nearest")
    light = np.linspace(150, 210, 280)  # from the left to the right of the paper
    photo = np.random.default_rng(0).normal(light[:, np.newaxis] - 0.5 * large.numpy(), 5)
    uncommented, changed = re.subn("^# rows = ", "rows = ", BLOCKS[0], flags=re.MULTILINE)
    assert changed == 1
    for picture, block in [(large, BLOCKS[0]), (photo, uncommented)]:
        tf.io.write_file("digit.png", tf.io.encode_png(tf.cast(picture, tf.uint8)))
        capsys.readouterr()
        exec(block, {})
        digit, probability = re.fullmatch(r"(\d), with probability (\d\.\d\d)\n", capsys.readouterr().out).groups()
        assert int(digit) == labels[clearest] and float(probability) > 0.5


def test_an_older_keras_can_take_the_weights(settings):
    settings(TRAINING_ITERS=2000)
    assert rnn_mnist.main() == 0
    variables = {}
    exec(BLOCKS[1], variables)  # all in the Keras at hand; the weights were also taken to Keras 3.5, 3.8 and 3.12
    saved = keras.models.load_model("rnn_mnist.keras")
    for ours, theirs in zip(variables["model"].get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_training_goes_on(settings, capsys):
    settings(TRAINING_ITERS=20000)
    assert rnn_mnist.main() == 0
    (images, labels), _, _ = rnn_mnist.load_data()
    models = [keras.models.load_model("rnn_mnist.keras")]
    exec(BLOCKS[3], {})
    models.append(keras.models.load_model("rnn_mnist.keras"))
    updates = [int(model.optimizer.iterations.numpy()) for model in models]
    assert updates == [156, 156 + -(-len(images) // 128)]
    before, after = [model.evaluate(images / 255, labels, verbose=0)[0] for model in models]
    assert after < before


def test_a_notebook_can_call_main_twice(settings, cpu, small_data_dir, monkeypatch, capsys):
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    edited, changed = re.subn(r"20000", "2000", BLOCKS[2])
    assert changed == 1
    exec(edited, {})
    first = capsys.readouterr().out
    exec(edited, {})
    assert first.startswith("Iter 1000, ") and capsys.readouterr().out == first


def test_the_network_can_be_asked_after_every_row(settings, capsys):
    settings(TRAINING_ITERS=20000)
    assert rnn_mnist.main() == 0
    _, (images, _), _ = rnn_mnist.load_data()
    probabilities = keras.models.load_model("rnn_mnist.keras")(images[:1] / np.float32(255))[0].numpy()
    capsys.readouterr()
    exec(BLOCKS[4], {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 28 and all(re.fullmatch(r"[ \-+#]{28} \d [01]\.\d\d", line) for line in lines)
    assert lines[-1].endswith(f" {probabilities.argmax()} {probabilities.max():.2f}")
    assert len({line.split()[-2] for line in lines}) > 1  # it changes its mind on the way


def test_curves_are_event_files_of_their_own_for_each_run(settings, small_data_dir, tmp_path, capsys):
    settings(**QUICK, DATA_DIR=str(small_data_dir), LOG_DIR=str(tmp_path / "logs"))
    for _ in range(2):
        assert rnn_mnist.main() == 0
    log = capsys.readouterr().out
    folders = list((tmp_path / "logs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        path, = folder.iterdir()
        points = {}
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
        shown = re.findall(r"Iter (\d+), Minibatch Loss= (\S+), Training Accuracy= (\S+)", log)[:2]
        assert [step for step, _ in points["minibatch loss"]] == [int(step) for step, _, _ in shown] == [1000, 2000]
        for tag, column, rounding in [("minibatch loss", 1, 1e-6), ("minibatch accuracy", 2, 1e-5)]:
            expected = [float(row[column]) for row in shown]
            assert [value for _, value in points[tag]] == pytest.approx(expected, abs=rounding)
        (step, accuracy), = points["test accuracy"]
        assert step == 2900 and f"all 300 images: {np.float32(accuracy)!s}\n" in log


def test_the_constants_are_those_of_the_script():
    table = dict.fromkeys(name for row in re.findall(r"^\| (`[A-Z_`, ]+`) \|", README, re.MULTILINE)
                          for name in re.findall(r"[A-Z_]+", row))
    tree = ast.parse((ROOT / "rnn_mnist.py").read_text(encoding="utf-8"))
    constants = [node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)]
    assert set(table) == set(constants) - {"CORES"}


def test_the_gpu_version_is_the_required_one():
    required = re.search(r"^tensorflow(==[\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert set(re.findall(r"tensorflow\[and-cuda\](==[\d.]+)", README)) == {required}


def test_next_years_releases_of_what_the_script_imports_are_kept_out():
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    tree = ast.parse((ROOT / "rnn_mnist.py").read_text(encoding="utf-8"))
    modules = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    imported = {module.partition(".")[0] for module in modules}
    for name in imported - sys.stdlib_module_names:
        lines = [line for line in requirements if re.match(name.replace("_", "-") + r"\b(?!-)", line)]
        assert lines and all(re.match(r"[\w-]+(==|>=.*,<)\d", line) for line in lines), name


def test_the_files_of_the_commands_are_there():
    for path in re.findall(r"(?:-r |python |\()((?:\w+/)*\w+\.(?:txt|py|png))\b", README):
        assert pathlib.Path(ROOT, path).exists(), path
