"""The task: `minibatches`, `train`, `measure`, `test`, `main`: the loop and its log, seeds,
testing, divergence, curves, whole runs.
"""

import json
import os
import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import MNIST_DIR, QUICK, VERSION_DIR, environment, run, script, updates_of

import rnn_mnist

MNIST = pathlib.Path(MNIST_DIR, VERSION_DIR, "dataset_info.json")
LOG_LINE = re.compile(r"Iter (\d+), Minibatch Loss= (\d+\.\d{6}), Training Accuracy= (\d\.\d{5})")


# the loop and its log


@pytest.mark.parametrize("iters, batch_size, display_step, shown, seen", [
    (100000, 128, 10, [*range(1280, 99841, 1280)], 99968),  # the original: 781 updates, 78 lines
    (1280, 128, 10, [], 1152),  # strictly below
    (1281, 128, 10, [1280], 1280),
    (101, 100, 1, [100], 100),
    (301, 100, 2, [200], 300),
])
def test_loop_counts_as_the_original(settings, capsys, iters, batch_size, display_step, shown,
                                     seen):
    settings(TRAINING_ITERS=iters, BATCH_SIZE=batch_size, DISPLAY_STEP=display_step, N_STEPS=1,
             N_INPUT=1, N_HIDDEN=1)
    zeros = np.zeros([200, 1, 1], np.float32), np.zeros(200, int)
    settings(load_data=lambda: (zeros, zeros, "zeros"))
    rnn_mnist.main()
    assert updates_of() * batch_size == seen
    lines = capsys.readouterr().out.splitlines()
    assert [int(LOG_LINE.fullmatch(line)[1]) for line in lines[:-3]] == shown


def test_log_shows_the_minibatch_with_the_updated_weights(settings, capsys):
    settings(TRAINING_ITERS=401, BATCH_SIZE=200, DISPLAY_STEP=2, N_STEPS=3, N_INPUT=5, N_HIDDEN=8)
    generator = np.random.default_rng(0)
    sequences = generator.random([400, 3, 5], np.float32)
    labels = generator.integers(0, 10, 400)
    batches = [(sequences[:200], labels[:200]), (sequences[200:], labels[200:])]
    settings(minibatches=lambda *data: iter(batches),
             load_data=lambda: 2 * [(sequences, labels)] + ["random"])
    rnn_mnist.main()
    probabilities = keras.models.load_model("rnn_mnist.keras")(batches[1][0]).numpy()
    loss = -np.log(probabilities[np.arange(200), batches[1][1]]).mean()
    line = LOG_LINE.match(capsys.readouterr().out)
    assert float(line[2]) == pytest.approx(loss, abs=1e-5)  # six decimals of a float32 near 3
    # of 200: five decimals hold it
    assert float(line[3]) == np.mean(probabilities.argmax(1) == batches[1][1])


def test_a_line_of_the_log_is_there_when_it_is_printed(settings, monkeypatch, tmp_path):
    zeros = np.zeros([200, 1, 1]), np.zeros(200, int)
    settings(N_STEPS=1, N_INPUT=1, N_HIDDEN=1, TRAINING_ITERS=500, DISPLAY_STEP=1,
             load_data=lambda: (zeros, zeros, "zeros"))
    there, measure = [], rnn_mnist.measure

    def count_lines(*arguments):
        there.append(len((tmp_path / "log").read_text().splitlines()))
        return measure(*arguments)

    settings(measure=count_lines)
    with open(tmp_path / "log", "w", buffering=10**6) as log:  # which would hold a thousand lines
        monkeypatch.setattr(sys, "stdout", log)
        rnn_mnist.main()
        assert len((tmp_path / "log").read_text().splitlines()) == 6
    assert there == [0, 1, 2]  # before each line of the log


def test_standard_output_is_the_log_alone(settings, monkeypatch, small_data_dir, capfd):
    monkeypatch.delattr(tf.summary, "scalar")  # which without TensorBoard raises an error
    settings(**QUICK, DATA_DIR=small_data_dir, TEST_LEN=200)
    assert 0 <= rnn_mnist.main() <= 1
    out, err = capfd.readouterr()
    *lines, finished, of_first, of_all = out.splitlines()
    assert [int(LOG_LINE.fullmatch(line)[1]) for line in lines] == [300, 600]
    assert finished == "Optimization Finished!"
    assert re.fullmatch(r"Testing Accuracy: 0\.\d+", of_first)
    assert re.fullmatch(r"Testing Accuracy, all 300 images: 0\.\d+", of_all)
    for fact in ("MNIST", 600, 300, 7, 100, "Iter 700"):
        assert re.search(rf"\b{fact}\b", err), fact


# seeds


@pytest.mark.slow
def test_a_seed_gives_the_same_log_and_another_one_another(settings, untraced, small_data_dir,
                                                           capsys):
    logs = []
    for seed in (0, np.int64(0), 1, None, None):  # in one process, as in a notebook
        settings(**{**QUICK, "TRAINING_ITERS": 401}, SEED=seed, MODEL_PATH=None,
                 DATA_DIR=small_data_dir)
        assert 0 <= rnn_mnist.main() <= 1
        logs.append(capsys.readouterr().out)
    assert logs[0] == logs[1]
    assert len({log.splitlines()[0] for log in logs}) == 4


def test_a_seed_gives_the_same_split_to_data_drawn_at_random(settings, untraced):
    seen = []

    def load_data():
        order = np.random.permutation(200)  # without a generator of its own, as people write it
        seen.append(order.tolist())
        return 2 * [(np.zeros([200, 2, 392]), order % 10)] + ["zeros"]

    for seed in (0, 0, 1):
        settings(**{**QUICK, "TRAINING_ITERS": 101}, SEED=seed, MODEL_PATH=None,
                 load_data=load_data)
        rnn_mnist.main()
    assert seen[0] == seen[1] != seen[2]


def test_the_initial_weights_and_the_order_each_depend_on_the_seed(settings, untraced):
    """SEED = None gives others each time, also to a program that has seeded all generators."""
    def note_first(x, y):
        order = next(minibatches(x, y))[1].tobytes()
        model = keras.models.load_model("rnn_mnist.keras")  # of a rehearsal
        first.append([order, *(weight.tobytes() for weight in model.get_weights()
                               if weight.ndim == 2)])
        return minibatches(x, y)

    def keep_rehearsal(model, name, rehearsal=False):
        model.save("rnn_mnist.keras")

    first, minibatches = [], rnn_mnist.minibatches
    settings(**{**QUICK, "TRAINING_ITERS": 101}, minibatches=note_first, save=keep_rehearsal,
             load_data=lambda: 2 * [(np.zeros([100, 2, 392]), np.arange(100) % 10)] + ["zeros"])
    for seed in (0, 0, 1, None, None):
        keras.utils.set_random_seed(5)
        settings(SEED=seed)
        rnn_mnist.main()
    assert first[0] == first[1]
    for values in zip(*first, strict=True):
        assert len(set(values)) == 4


# testing


def test_the_tested_sequences_are_the_first_and_all(settings, capsys):
    settings(**QUICK, LEARNING_RATE=0.01, TEST_LEN=100)
    train, (sequences, labels), name = rnn_mnist.load_data()
    # more than are tested at a time, the last of them no whole minibatch
    sequences, labels = np.tile(sequences, [10, 1, 1])[:2530], np.tile(labels, 10)[:2530]
    settings(load_data=lambda: (train, (sequences, labels), name), MODEL_PATH="m.keras")
    assert 0 <= rnn_mnist.main() <= 1
    saved = keras.models.load_model("m-uci_digits.keras")
    right = np.float32(saved.predict(sequences, verbose=0).argmax(axis=1) == labels)
    # else the test could not tell them apart
    assert len({right[:100].mean(), right[-100:].mean(), right.mean()}) == 3
    accuracies = re.findall(r"^Testing Accuracy.*: (\S+) ", capsys.readouterr().out, re.MULTILINE)
    # float32 outputs of other batch sizes may put a near-tie on the other side
    assert float(accuracies[0]) == pytest.approx(right[:100].mean(), abs=0.011)
    assert float(accuracies[1]) == pytest.approx(right.mean(), abs=0.0005)


def test_a_test_set_below_test_len_is_tested_whole(settings, capsys):
    settings(N_STEPS=1, N_INPUT=1, N_HIDDEN=1, TEST_LEN=256)
    model, zeros = rnn_mnist.build_model(), np.zeros([3, 1, 1], np.float32)
    labels = np.argmax(model(zeros), axis=1)
    assert rnn_mnist.test(model, zeros, labels, "zeros") == 1
    assert capsys.readouterr().out == "Testing Accuracy: 1.0\n" \
                                      "Testing Accuracy, all 3 sequences: 1.0\n"


def test_minibatches_of_one_image_do_not_slow_the_test(settings, capsys):
    """One image at a time, the 10,000 of MNIST took half a minute."""
    settings(BATCH_SIZE=1)
    model, asked = keras.Sequential([keras.layers.Flatten(), keras.layers.Softmax()]), []
    predict = model.predict
    model.predict = lambda x, batch_size, **more: asked.append(batch_size) or predict(x, **more)
    rnn_mnist.test(model, np.zeros([300, 2, 2], np.float32), np.zeros(300, int), "zeros")
    assert asked == [128]


# divergence


@pytest.mark.parametrize("display_step, seen", [(1, 100), (3, 300), (1000, 700)],
                         ids=["at the first line", "seen in the log", "between its lines"])
def test_a_diverged_training_stops_and_saves_nothing(settings, untraced, small_data_dir, tmp_path,
                                                     capsys, display_step, seen):
    """At Iter 100 the loss alone is nan: the weights are near 1e30, and still finite."""
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    settings(**{**QUICK, "DISPLAY_STEP": display_step}, LEARNING_RATE=1e30,
             DATA_DIR=small_data_dir)
    with pytest.raises(rnn_mnist.TrainingError) as error:
        rnn_mnist.main()
    message = str(error.value)
    assert f"Iter {seen}" in message and "learning rate" in message
    assert capsys.readouterr().out == ""  # neither the loss nor an accuracy
    assert (tmp_path / "rnn_mnist.keras").read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["rnn_mnist.keras"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_alone_that_is_not_finite_is_found(settings, tmp_path, value):
    """Without a line of the log: all else stays finite."""
    class Spoiler(keras.optimizers.SGD):
        def apply(self, gradients, variables):
            variables[-1].assign([value] + [0] * 9)

    def build_model():
        model = keras.Sequential([keras.Input([1, 1]), keras.layers.Flatten(),
                                  keras.layers.Dense(10, "softmax")])
        model.compile(Spoiler(), "sparse_categorical_crossentropy")
        return model

    settings(build_model=build_model, N_STEPS=1, N_INPUT=1, BATCH_SIZE=5, TRAINING_ITERS=30,
             load_data=lambda: 2 * [(np.ones([10, 1, 1]), [0, 1] * 5)] + ["ones"])
    with pytest.raises(rnn_mnist.TrainingError, match="Iter 25"):
        rnn_mnist.main()
    assert os.listdir(tmp_path) == []


# curves


def points_of(path):
    """Returns {name: [(step, value)]} of TensorBoard's curves in a file."""
    points = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            point = event.step, float(tf.make_ndarray(value.tensor))
            points.setdefault(value.tag, []).append(point)
    return points


@pytest.mark.slow
def test_curves_are_event_files_of_their_own_for_each_run(settings, small_data_dir, tmp_path,
                                                          capsys):
    pytest.importorskip("tensorboard")
    settings(**QUICK, DATA_DIR=small_data_dir, LOG_DIR=str(tmp_path / "logs"))
    for _ in range(2):
        assert 0 <= rnn_mnist.main() <= 1
    log = capsys.readouterr().out
    settings(LOG_DIR=None)
    assert 0 <= rnn_mnist.main() <= 1  # draws nothing
    folders = list((tmp_path / "logs").iterdir())
    assert len(folders) == 2 and all(folder.name.endswith("-seed0") for folder in folders)
    shown = [LOG_LINE.fullmatch(line).groups() for line in log.splitlines()[:2]]
    for folder in folders:
        path, = folder.iterdir()
        points = points_of(path)
        # as many decimals as the log has
        for name, column, rounding in [
                ("minibatch loss", 1, 1e-6), ("minibatch accuracy", 2, 1e-5)]:
            assert [step for step, _ in points[name]] == [300, 600]
            expected = [float(row[column]) for row in shown]
            assert [value for _, value in points[name]] == pytest.approx(expected, abs=rounding)
        (step, accuracy), = points["test accuracy"]
        assert step == 700 and f"all 300 images: {np.float32(accuracy)!s}\n" in log


# whole runs, each a process


@pytest.mark.slow
def test_whole_run_offline(tmp_path):
    """An empty home, no network, the default constants but for their number of images."""
    path = script(tmp_path, TRAINING_ITERS=16000)
    home = tmp_path / "home"
    home.mkdir()
    status, out, err = run(path, environment(HOME=str(home), USERPROFILE=str(home)))
    assert status == 0 and "Traceback" not in err
    *lines, finished, of_256, of_all = out.splitlines()
    assert [int(LOG_LINE.fullmatch(line)[1]) for line in lines] == [*range(1280, 16000, 1280)]
    assert finished == "Optimization Finished!"
    note = r" \(UCI digits, not MNIST\)"
    accuracy = re.fullmatch(rf"Testing Accuracy: (0\.\d+){note}", of_256)[1]
    assert re.fullmatch(rf"Testing Accuracy, all 256 images: {accuracy}{note}", of_all)
    assert float(accuracy) > 0.8  # 0.9 here; 0.1 by guessing
    for fact in ["storage.googleapis.com", "README.md", "UCI digits",
                 str(home / "tensorflow_datasets" / "downloads" / "mnist")]:
        assert fact in err
    assert not (home / "tensorflow_datasets").exists()  # no litter
    assert (tmp_path / "rnn_mnist-uci_digits.keras").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="TFDS has no MNIST prepared for this user")
def test_whole_run_on_mnist(tmp_path):
    """All constants at their defaults, as `python rnn_mnist.py` runs: what the script is for."""
    status, out, err = run(script(tmp_path), environment(TFDS_DATA_DIR=MNIST_DIR))
    assert status == 0 and "Traceback" not in err, err
    *lines, finished, of_256, of_all = out.splitlines()
    assert [int(LOG_LINE.fullmatch(line)[1]) for line in lines] == [*range(1280, 99841, 1280)]
    assert finished == "Optimization Finished!"
    accuracy = float(re.fullmatch(r"Testing Accuracy, all 10000 images: (0\.\d+)", of_all)[1])
    assert 0.93 < accuracy < 0.965  # the range the README gives
    first = float(re.fullmatch(r"Testing Accuracy: (0\.\d+)", of_256)[1])
    assert abs(first - accuracy) < 0.06  # four standard errors of 256 images
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras").count_params() == 136586


@pytest.mark.slow
def test_unusual_surroundings_change_nothing(tmp_path, small_data_dir, usual_log):
    """Spaces and Chinese in paths, ASCII in the terminal, settings of Keras's own, no sample."""
    pytest.importorskip("tensorboard")
    folder = tmp_path / "数字 识别"
    shutil.copytree(small_data_dir, folder / "数据 目录")
    path = script(folder, **QUICK, DATA_DIR=str(folder / "数据 目录"), MODEL_PATH="模 型.keras",
                  LOG_DIR="曲线 1")
    (folder / "uci_digits.npz").unlink()
    keras_json = dict(backend="torch", floatx="float16", epsilon=0.1,
                      image_data_format="channels_first")
    (tmp_path / "keras.json").write_text(json.dumps(keras_json))
    status, out, err = run(path, environment(
        LC_ALL="C", PYTHONIOENCODING="ascii", KERAS_HOME=str(tmp_path), KERAS_BACKEND="jax",
        TF_USE_LEGACY_KERAS="1"))
    assert (status, out) == (0, usual_log), err  # the same bytes as of another run
    assert (folder / "模 型.keras").exists()
    assert len(list((folder / "曲线 1").glob("*/*tfevents*"))) == 1
