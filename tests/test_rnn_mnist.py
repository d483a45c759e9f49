"""What the script does when all goes well: data, log, initial weights, the saved model, whole runs."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
import small_mnist
from conftest import QUICK, end, environment, run, script, start, write_files

LOG_LINE = re.compile(r"Iter (\d+), Minibatch Loss= (\d+\.\d{6}), Training Accuracy= (\d\.\d{5})")


def sorted_rows(images, labels):
    """The examples as rows, in an order that does not depend on theirs."""
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, np.newaxis]], axis=1)
    return rows[np.lexsort(rows.T)]


def test_prepared_mnist_is_read_whole_but_for_the_first_5000(settings, small_data_dir):
    settings(DATA_DIR=str(small_data_dir))
    (images, labels), (test_images, test_labels), name = rnn_mnist.load_data()
    assert name == "MNIST"
    assert images.shape == (small_mnist.TRAIN_SIZE, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (small_mnist.TRAIN_SIZE,) and labels.dtype == np.int64
    # TFDS shuffles on preparing, so contents are compared as sets: the test split whole, the training images as members
    np.testing.assert_array_equal(sorted_rows(test_images, test_labels), sorted_rows(*small_mnist.examples("test")))
    all_rows = {row.tobytes() for row in sorted_rows(*small_mnist.examples("train")).astype(np.int64)}
    assert {row.tobytes() for row in sorted_rows(images, labels).astype(np.int64)} <= all_rows


def test_four_files_in_downloads_manual_are_prepared_without_a_network(settings, small_files, tmp_path, capfd):
    write_files(tmp_path / "data")
    settings(DATA_DIR=str(tmp_path / "data"))
    (images, _), (test_images, test_labels), name = rnn_mnist.load_data()
    assert name == "MNIST" and len(images) == small_mnist.TRAIN_SIZE
    np.testing.assert_array_equal(sorted_rows(test_images, test_labels), sorted_rows(*small_mnist.examples("test")))
    assert capfd.readouterr().out == ""  # TFDS would announce itself there, where the log belongs
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["downloads", "mnist"]


@pytest.mark.parametrize("n_steps, n_input", [(28, 28), (56, 14), (14, 56), (784, 1)])
def test_images_are_cut_into_timesteps(settings, small_data_dir, n_steps, n_input):
    settings(N_STEPS=n_steps, N_INPUT=n_input, DATA_DIR=str(small_data_dir))
    (images, _), (test_images, _), _ = rnn_mnist.load_data()
    assert images.shape == (600, n_steps, n_input) and test_images.shape == (300, n_steps, n_input)
    settings(N_STEPS=28, N_INPUT=28)
    np.testing.assert_array_equal(images.reshape(-1, 784), rnn_mnist.load_data()[0][0].reshape(-1, 784))


def test_uci_digits_have_mnists_geometry_and_a_fixed_split(settings):
    (images, labels), (test_images, test_labels), name = rnn_mnist.load_data()
    assert name == "UCI digits, not MNIST"
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    everything = np.concatenate([images, test_images])
    assert everything[:, 4:24, 4:24].max() == 255
    everything[:, 4:24, 4:24] = 0
    assert not everything.any()  # the frame
    # the original's trajectory was recorded on the same digits, resized the same way
    with np.load(pathlib.Path(__file__).parent / "trajectories" / "original_trajectory.npz") as trajectory:
        recorded = {image.tobytes() for image in trajectory["images"].reshape(-1, 28, 28)}
    assert recorded <= {image.tobytes() for image in np.concatenate([images, test_images])}
    assert test_labels[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]  # the split never changes
    settings(SEED=1)
    np.testing.assert_array_equal(rnn_mnist.load_data()[1][1], test_labels)  # with no seed
    assert len(test_labels) == 256 and set(test_labels) == set(range(10))


def test_the_order_of_the_minibatches_depends_on_the_seed(settings):
    orders = []
    for seed in (0, 0, 1, None, None):
        settings(BATCH_SIZE=100, SEED=seed)
        orders.append(next(rnn_mnist.minibatches(np.arange(100), np.arange(100)))[0].tolist())
    assert orders[0] == orders[1] and len(set(map(tuple, orders))) == 4


def test_minibatches_pass_through_each_epoch_once_and_drop_its_tail(settings):
    settings(BATCH_SIZE=3, SEED=1)
    batches = rnn_mnist.minibatches(np.arange(10) * 2, np.arange(10))
    epochs = [[next(batches) for _ in range(3)] for _ in range(20)]
    for epoch in epochs:
        labels = np.concatenate([labels for _, labels in epoch])
        assert len(set(labels)) == 9  # without replacement
        np.testing.assert_array_equal(np.concatenate([images for images, _ in epoch]), labels * 2)
    orders = {tuple(np.concatenate([labels for _, labels in epoch])) for epoch in epochs}
    assert len(orders) == 20  # reshuffled: two of 20 orders out of 10!/1! agree by chance once in 19,000 seeds
    dropped = {(set(range(10)) - set(order)).pop() for order in orders}
    assert len(dropped) > 1


@pytest.mark.parametrize("iters, batch_size, display_step, shown, seen", [
    (100000, 128, 10, [*range(1280, 99841, 1280)], 99968),  # the original: 781 updates, 78 lines
    (1280, 128, 10, [], 1152),  # strictly below
    (1281, 128, 10, [1280], 1280),
    (100, 100, 1, [], 0),
    (50, 100, 1, [], 0),
    (301, 100, 2, [200], 300),
])
def test_loop_counts_as_the_original(settings, monkeypatch, capsys, iters, batch_size, display_step, shown, seen):
    settings(TRAINING_ITERS=iters, BATCH_SIZE=batch_size, DISPLAY_STEP=display_step, N_STEPS=1, N_INPUT=784, N_HIDDEN=1)
    images = np.zeros([200, 1, 784], np.uint8)
    model = rnn_mnist.build_model()
    rnn_mnist.train(model, images, np.zeros(200, np.int64), signals=[])
    assert model.optimizer.iterations * batch_size == seen
    lines = capsys.readouterr().out.splitlines()
    assert [int(LOG_LINE.fullmatch(line)[1]) for line in lines] == shown


def test_log_shows_the_minibatch_with_the_updated_weights(settings, monkeypatch, capsys):
    settings(TRAINING_ITERS=401, BATCH_SIZE=200, DISPLAY_STEP=2, N_HIDDEN=8)
    (images, labels), _, _ = rnn_mnist.load_data()
    model = rnn_mnist.build_model()
    batches = [(images[:200], labels[:200]), (images[200:400], labels[200:400])]
    monkeypatch.setattr(rnn_mnist, "minibatches", lambda images, labels: iter(batches))
    rnn_mnist.train(model, images, labels, signals=[])
    probabilities = model(batches[1][0] / np.float32(255)).numpy()
    loss = -np.log(probabilities[np.arange(200), batches[1][1]]).mean()
    _, shown_loss, shown_accuracy = LOG_LINE.fullmatch(capsys.readouterr().out.strip()).groups()
    assert float(shown_loss) == pytest.approx(loss, abs=1e-5)  # six decimals of a float32 near 3
    assert float(shown_accuracy) == np.mean(probabilities.argmax(1) == batches[1][1])  # of 200: five decimals hold it


def test_whole_run_offline(tmp_path):
    """An empty home, no network, the default constants but for their number of images: log, notice and model."""
    path = script(tmp_path, TRAINING_ITERS=16000)
    (tmp_path / "home").mkdir()
    status, out, err = run(path, environment(HOME=str(tmp_path / "home"), USERPROFILE=str(tmp_path / "home")))
    assert status == 0
    *lines, finished, test_256, test_all = out.splitlines()
    assert [int(LOG_LINE.fullmatch(line)[1]) for line in lines] == [*range(1280, 16000, 1280)]
    assert finished == "Optimization Finished!"
    accuracy = re.fullmatch(r"Testing Accuracy: (0\.\d+) \(UCI digits, not MNIST\)", test_256)[1]
    assert test_all == f"Testing Accuracy, all 256 images: {accuracy} (UCI digits, not MNIST)"
    assert float(accuracy) > 0.8  # 0.9 here; 0.1 by guessing
    for part in ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "UCI digits",
                 str(tmp_path / "home" / "tensorflow_datasets" / "downloads" / "manual")]:
        assert part in err
    assert "Traceback" not in err
    assert not (tmp_path / "home" / "tensorflow_datasets").exists()  # no litter
    assert (tmp_path / "rnn_mnist.keras").stat().st_size > 0


def test_whole_run_on_mnist_twice_gives_the_same_bytes(tmp_path, small_data_dir):
    path = script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir), TEST_LEN=200)
    runs = [start(path) for _ in range(2)]  # at once: it saves time, and they even write the same file
    (status, out, err), second = map(end, runs)
    assert status == 0 and second[:2] == (0, out)
    assert re.search(r"^Testing Accuracy: 0\.\d+\nTesting Accuracy, all 300 images: 0\.\d+\n$", out, re.MULTILINE)
    assert "UCI" not in out + err and keras.models.load_model(tmp_path / "rnn_mnist.keras")


def test_another_seed_is_another_run(settings, small_data_dir, capsys):
    logs = []
    for seed in (0, 1, None, None):  # one after the other in a process, as in a notebook
        settings(**QUICK, SEED=seed, MODEL_PATH=None, DATA_DIR=str(small_data_dir))
        assert rnn_mnist.main() == 0
        logs.append(capsys.readouterr().out.splitlines()[0])
    assert len(set(logs)) == 4


def test_the_initial_weights_depend_on_the_seed(settings):
    initial = []
    for seed in (0, np.int64(0), 1, None, None):
        settings(**{**QUICK, "TRAINING_ITERS": 1}, SEED=seed)  # no update
        assert rnn_mnist.main() == 0
        initial.append(keras.models.load_model("rnn_mnist.keras").get_weights()[0])
    np.testing.assert_array_equal(initial[0], initial[1])
    assert len({weights.tobytes() for weights in initial}) == 4


def test_the_tested_images_are_the_first_and_all(settings, capsys):
    settings(**QUICK, LEARNING_RATE=0.01, TEST_LEN=100)
    train, (images, labels), name = rnn_mnist.load_data()
    images, labels = np.tile(images, [10, 1, 1])[:2500], np.tile(labels, 10)[:2500]  # more than are tested at a time
    settings(load_data=lambda: (train, (images, labels), name))
    assert rnn_mnist.main() == 0
    predicted = keras.models.load_model("rnn_mnist.keras").predict(images / 255, verbose=0).argmax(axis=1)
    right = (predicted == labels).astype(np.float32)
    assert len({right[:100].mean(), right[-100:].mean(), right.mean()}) == 3  # else the test could not tell them apart
    of_first, of_all = re.findall(r"^Testing Accuracy.*: (\S+) ", capsys.readouterr().out, re.MULTILINE)
    assert (float(of_first), float(of_all)) == pytest.approx((right[:100].mean(), right.mean()), abs=1e-6)


def test_saved_model_stands_alone(settings, tmp_path):
    settings(**QUICK, MODEL_PATH="digits.keras")
    assert rnn_mnist.main() == 0
    model = keras.models.load_model("digits.keras")
    assert [layer.name for layer in model.layers] == ["hidden", "lstm", "out"]
    _, (images, labels), _ = rnn_mnist.load_data()
    probabilities = model.predict(images / 255, verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)  # float32 sums of ten
    loss, accuracy = model.evaluate(images / 255, labels, verbose=0)  # by the loss and the metrics saved with it
    expected = [each.numpy() for each in rnn_mnist.loss_and_accuracy(rnn_mnist.logits_of(model, images), labels)]
    assert [loss, accuracy] == pytest.approx(expected, rel=1e-5)  # float32; Keras adds up parts of 32
    logits = rnn_mnist.logits_of(model, images)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), atol=1e-5)  # float32 through the network
