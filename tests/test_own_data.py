"""Custom data in MNIST's place, handed over as `load_data`: `check_split`, and training on it."""

import re

import keras
import numpy as np
import pytest
from conftest import ROOT

import rnn_mnist

# 3 classes, 40 sequences to train on, of 6 timesteps and 2 values
SMALL = dict(N_STEPS=6, N_INPUT=2, N_CLASSES=3, N_HIDDEN=8, BATCH_SIZE=16, TRAINING_ITERS=2000,
             DISPLAY_STEP=20, LEARNING_RATE=0.02)


def waves(n, seed=0):
    """Returns `n` noisy waves of three frequencies, float64 [n, 6, 2], and which they have."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    phases = (1 + labels[:, np.newaxis]) * np.arange(6)
    waves = np.stack([np.sin(phases), np.cos(phases)], axis=2)
    return waves + generator.normal(scale=0.1, size=waves.shape), labels


def hand_over(settings, train, test, name="waves", **constants):
    settings(**{**SMALL, **constants}, load_data=lambda: (train, test, name))


def accuracies(out):
    return [float(text) for text in re.findall(r"^Testing Accuracy.*: (\S+)$", out, re.MULTILINE)]


# it trains on them


def test_three_classes_and_forty_sequences_will_do(settings, capsys):
    hand_over(settings, waves(40), waves(30, seed=1), TEST_LEN=10)
    assert 0 <= rnn_mnist.main() <= 1
    out, err = capsys.readouterr()
    assert len(accuracies(out)) == 2 and min(accuracies(out)) > 0.9  # 0.33 by guessing
    assert "\nTesting Accuracy, all 30 sequences: " in out  # not images
    assert re.search(r"\bwaves\b.*\b40\b.*\b30\b", err) and "MNIST" not in out + err
    sequences, labels = waves(30, seed=1)
    probabilities = keras.models.load_model("rnn_mnist.keras").predict(sequences, verbose=0)
    assert probabilities.shape == (30, 3)
    assert accuracies(out)[1] == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))


@pytest.mark.slow
def test_uci_digits_train_as_they_are(settings, tmp_path, capsys):
    """Eight timesteps of eight values, from a CSV file as people have them, never scaled."""
    with np.load(ROOT / "uci_digits.npz") as digits:
        rows = np.column_stack([digits["images"].reshape(-1, 64), digits["labels"]])
    np.savetxt(tmp_path / "digits.csv", rows, "%d", ",")

    def load_data():
        table = np.loadtxt(tmp_path / "digits.csv", delimiter=",")
        sequences, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64].astype(int)
        return (sequences[300:], labels[300:]), (sequences[:300], labels[:300]), "UCI digits"

    settings(load_data=load_data, N_STEPS=8, N_INPUT=8, N_HIDDEN=32, TRAINING_ITERS=20000,
             LEARNING_RATE=0.005)
    assert 0 <= rnn_mnist.main() <= 1
    assert min(accuracies(capsys.readouterr().out)) > 0.5  # 0.7 here; 0.1 by guessing
    sequences, labels = load_data()[1]
    model = keras.models.load_model("rnn_mnist.keras")
    assert model.evaluate(sequences, labels, verbose=0)[1] > 0.5  # on what was handed over


def test_sequences_reach_the_network_unscaled(settings, monkeypatch):
    sequences, labels = waves(40)
    seen = []
    monkeypatch.setattr(rnn_mnist, "train", lambda model, x, y, name, signals: (
        seen.append((x, y))))
    hand_over(settings, (sequences * 1000, labels), waves(30))
    rnn_mnist.main()
    (x, y), = seen
    np.testing.assert_array_equal(x, np.float32(sequences * 1000))
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("convert", [
    np.float64, np.float16, np.int32, np.uint8, lambda x: np.asfortranarray(np.float32(x)),
    np.ndarray.tolist, lambda x: tuple(map(tuple, x.tolist()))],
    ids=["float64", "float16", "int32", "uint8", "Fortran order", "lists", "tuples"])
@pytest.mark.parametrize("label", [np.int64, np.uint8, np.int32, np.int8, np.uint64, list],
                         ids=lambda label: label.__name__)
def test_any_numbers_and_any_whole_labels_will_do(settings, convert, label):
    settings(**SMALL)
    sequences, labels = np.round(50 * (waves(40)[0] + 2)), waves(40)[1]
    x, y = rnn_mnist.check_split(convert(sequences), label(labels), "training")
    assert x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_array_equal(x, sequences)
    np.testing.assert_array_equal(y, labels)


def test_the_accuracy_lines_have_a_name_behind_them_for_the_sample_only(settings, capsys):
    settings(**SMALL)
    sequences, labels = rnn_mnist.check_split(*waves(10), "test")
    model = rnn_mnist.build_model()
    for name, noun, note in [("MNIST", "images", ""), ("waves", "sequences", ""),
                             ("UCI digits, not MNIST", "images", " (UCI digits, not MNIST)")]:
        rnn_mnist.test(model, sequences, labels, name)
        first, of_all = capsys.readouterr().out.splitlines()
        assert re.fullmatch(rf"Testing Accuracy: [01]\.\d+{re.escape(note)}", first)
        assert re.fullmatch(rf"Testing Accuracy, all 10 {noun}: [01]\.\d+{re.escape(note)}",
                            of_all)


# what is wrong is told


def with_value(value, split):
    """Returns the data with one of the values replaced."""
    data = [waves(40), waves(10, seed=1)]
    data[split][0][3, 2, 1] = value
    return *data, "waves"


TRAIN, TEST = waves(40), waves(10)
WRONG = {  # what load_data returns, and the facts that the message names
    "two dimensions": ((TRAIN[0].reshape(40, 12), TRAIN[1]), TEST, ["training", (40, 12), (6, 2)]),
    "other timesteps": ((TRAIN[0][:, :5], TRAIN[1]), TEST, ["training", (40, 5, 2), 6]),
    "other values": (TRAIN, (TEST[0][..., :1], TEST[1]), ["test", (10, 6, 1), 2]),
    "no minibatch": ((TRAIN[0][:15], TRAIN[1][:15]), TEST, ["BATCH_SIZE", 16, "training", 15]),
    "nothing to test": (TRAIN, (TEST[0][:0], TEST[1][:0]), ["test", (0, 6, 2), 1]),
    "labels from 1": ((TRAIN[0], TRAIN[1] + 1), TEST, ["training", "labels", 1, 3, 0]),
    "labels too high": ((TRAIN[0], TRAIN[1] + 1001), TEST, [1001, 1003, "N_CLASSES"]),
    "one class more": ((TRAIN[0], np.arange(40) % 4), TEST, [3, "N_CLASSES", 2]),
    "a label too low": (TRAIN, (TEST[0], TEST[1] - 1), ["test", "labels", -1, 0]),
    "a label far too high": ((TRAIN[0], np.uint64(TRAIN[1]) + np.uint64(2**63)), TEST,
                             ["training", "labels", 2**63 + 2]),
    "float labels": ((TRAIN[0], TRAIN[1] * 1.0), TEST,
                     ["training", "labels", "float64", "integers"]),
    "labels as text": ((TRAIN[0], TRAIN[1].astype(str)), TEST, ["labels", "<U", "integers"]),
    "one-hot labels": ((TRAIN[0], np.eye(3, dtype=int)[TRAIN[1]]), TEST,
                       ["training", "labels", (40, 3), (40,)]),
    "labels in a column": ((TRAIN[0], TRAIN[1][:, np.newaxis]), TEST, ["labels", (40, 1), (40,)]),
    "labels of others": ((TRAIN[0], TRAIN[1][:39]), TEST, ["training", "labels", (39,), (40,)]),
    "labels with a mark": ((TRAIN[0], np.uint8([255, 1] * 20)), TEST, [255, "N_CLASSES"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_is_told_with_its_facts(settings, refusal, kind):
    train, test, facts = WRONG[kind]
    hand_over(settings, train, test)
    message = refusal()
    assert all(str(fact).strip("()").lower() in message.lower() for fact in facts), message
    assert len(message.splitlines()) == 1 and "image" not in message


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300], ids=str)
@pytest.mark.parametrize("split, part", [(0, "training"), (1, "test")])
def test_a_value_that_is_not_finite_is_told(settings, refusal, value, split, part):
    settings(**SMALL, load_data=lambda: with_value(value, split))
    message = refusal().lower()
    assert all(fact in message for fact in (part, "sequences", "nan", "float32"))


def test_mnist_itself_is_checked_against_the_classes(settings, refusal, small_data_dir):
    settings(DATA_DIR=small_data_dir, N_CLASSES=9)
    message = refusal().lower()
    assert all(fact in message for fact in ("training", "labels", " 9", "n_classes"))


def test_mnist_itself_is_checked_against_the_batch_size(settings, refusal, small_data_dir):
    settings(DATA_DIR=small_data_dir, BATCH_SIZE=601)
    message = refusal()
    assert all(fact in message for fact in ("BATCH_SIZE", "601", "600"))


def test_a_bug_in_load_data_keeps_its_traceback(settings):
    settings(load_data=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rnn_mnist.main()
