"""Reads MNIST's digits row by row with an LSTM: a TensorFlow 0.8 script, ported to Keras 3.

The constants are its settings; README.md explains it. Standard output is the original's log and,
as its last line, the accuracy on the whole test set. The original is recurrent_network.py,
copyright 2015 Aymeric Damien, MIT licence; docs/original.md has its notice.
"""

# The task, first of four parts: the one to read, and to change as you like. The functions that it
# calls are defined here or, if they read data, save time or guard your work, in the parts below.

import contextlib
import datetime
import functools
import hashlib
import numbers
import os
import pathlib
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
import types
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow starts with a page of messages
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else it takes all of a GPU's memory
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm

# data
DATA_DIR = None  # folder for TFDS's data; None: $TFDS_DATA_DIR or ~/tensorflow_datasets
OFFLINE_SAMPLE = True  # where MNIST can't be had: True trains on bundled UCI digits, False stops

# training
LEARNING_RATE = 0.001  # Adam's step size, or one of keras.optimizers.schedules
TRAINING_ITERS = 100000  # training images, counted each time they are seen
BATCH_SIZE = 128  # images in a minibatch
DISPLAY_STEP = 10  # minibatches from one log line to the next
SEED = 0  # a number gives a log of its own, the same every time; None: another one each time

# network
N_INPUT = 28  # values read at a timestep: the pixels of a row
N_STEPS = 28  # timesteps: the rows of an image
N_HIDDEN = 128  # LSTM units, and the width of the input projection
N_CLASSES = 10  # digits

# output
TEST_LEN = 256  # test images behind the first testing line, as in the original
MODEL_PATH = "rnn_mnist.keras"  # file for the trained model; None: not saved
LOG_DIR = None  # folder for TensorBoard's curves, with a subfolder for each run; None: no curves


def load_data():
    """Returns (train_x, train_y), (test_x, test_y) and the name of the data.

    x are sequences, float32 [n, N_STEPS, N_INPUT]: the rows of images, their pixels from 0 to 1.
    y are labels, whole numbers [n] below N_CLASSES. Data of your own may take their place.
    """
    check(N_STEPS * N_INPUT == 28 * 28,
          f"N_STEPS = {N_STEPS} times N_INPUT = {N_INPUT} must be 784, the pixels of an image.")
    if fetch_mnist():
        (train_images, train_y), (test_images, test_y) = read_mnist()
        name = "MNIST"
    else:
        (train_images, train_y), (test_images, test_y) = read_uci_digits()
        name = SAMPLE
    return (rows_of(train_images), train_y), (rows_of(test_images), test_y), name


def rows_of(images):
    """Cuts images, uint8 [n, 28, 28, 1], into float32 [n, N_STEPS, N_INPUT] from 0 to 1."""
    pixels = np.multiply(images, 1 / 255, dtype=np.float32)  # with no float64 copy of them all
    return pixels.reshape(-1, N_STEPS, N_INPUT)


def build_model():
    """Returns the network, from [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES], compiled.

    Change it as you like: what is returned here is what trains and is saved.
    """
    # float32, as in the original, whatever Keras's settings say, and however a GPU would round.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)

    stddev = 1.0  # of the first weights and biases around the LSTM
    initializers = keras.initializers

    # How the weights start. Each has an initializer of its own, since Keras's give the same numbers
    # each time they are used; in the layers below, ** passes on both of a layer's.
    def normal():
        return dict(kernel_initializer=initializers.RandomNormal(stddev=stddev),
                    bias_initializer=initializers.RandomNormal(stddev=stddev))

    def uniform():
        # The original's LSTM had one kernel for its input and its last output together, with twice
        # the fan-in of each of Keras's two: hence 0.5. Where it added 1 in the forget gate, Keras
        # starts that gate's bias at 1.
        return dict(kernel_initializer=initializers.VarianceScaling(0.5, "fan_in", "uniform"),
                    recurrent_initializer=initializers.VarianceScaling(0.5, "fan_in", "uniform"))

    model = keras.Sequential([
        keras.Input([N_STEPS, N_INPUT]),
        keras.layers.Dense(N_HIDDEN, **normal(), name="hidden"),
        keras.layers.LSTM(N_HIDDEN, **uniform(), name="lstm"),
        keras.layers.Dense(N_CLASSES, "softmax", **normal(), name="out"),
    ])
    optimizer = keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8)  # Keras would take 1e-7
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def minibatches(x, y):
    """Yields BATCH_SIZE of both without end: each epoch in a new order, its short tail dropped."""
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(y))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[start:start + BATCH_SIZE]
            yield x[chosen], y[chosen]


def train(model, x, y, name, signals):
    """Trains as long as the images seen stay below TRAINING_ITERS and `signals` is empty.

    Saves what was learned, also if a signal or an error ends the training, but not if it diverges.
    Returns how many images were seen and, if the model is not in its place, a sentence about that.
    """
    # Trains and tests the same weights, but sooner. Without the part on speed: network = model
    network = faster(model)
    batches = minibatches(x, y)
    start, seen, loss = time.perf_counter(), 0, 0.0
    try:
        while seen + BATCH_SIZE < TRAINING_ITERS and not signals:
            batch_x, batch_y = next(batches)
            network.train_on_batch(batch_x, batch_y)
            seen += BATCH_SIZE
            if seen == BATCH_SIZE:  # what can't be measured should fail before a model is replaced
                measure(model, network, batch_x, batch_y)
            if seen % (DISPLAY_STEP * BATCH_SIZE) == 0:
                loss, accuracy = measure(model, network, batch_x, batch_y)
                if not np.isfinite(loss):
                    break
                print(f"Iter {seen}, Minibatch Loss= {loss:.6f}, "
                      f"Training Accuracy= {accuracy:.5f}", flush=True)
                if LOG_DIR:
                    tf.summary.scalar("minibatch loss", loss, seen)
                    tf.summary.scalar("minibatch accuracy", accuracy, seen)
        if seen:
            # An optimizer that keeps averages of the weights, by use_ema=True, now puts them in.
            model.optimizer.finalize_variable_values(model.trainable_variables)
            loss, _ = measure(model, network, batch_x, batch_y)  # after the very last update
        check_learned(model, seen, loss)
    finally:
        by = f" by {signal.Signals(signals[0]).name}" if signals else ""
        say(f"Training ended{by} at Iter {seen} after {time.perf_counter() - start:.1f} s.")
        problem = save(model, name, seen, loss)
    return seen, problem


def measure(model, network, x, y):
    """Returns the loss of a minibatch, and its accuracy: the share that is classified right."""
    model.reset_metrics()  # up to Keras 3.10, what is measured adds to what was measured before
    measured = network.test_on_batch(x, y, return_dict=True)
    if "accuracy" not in measured:  # build_model compiles the network without this metric
        measured["accuracy"] = np.mean(model.predict_on_batch(x).argmax(axis=1) == y)
    return measured["loss"], measured["accuracy"]


def test(model, x, y, name):
    """Prints the accuracies on the first TEST_LEN, as the original did, and on all.

    Returns the accuracy on all.
    """
    right = model.predict(x, BATCH_SIZE, verbose=0).argmax(axis=1) == y
    # In float32, as the original computed them, they are printed with as many digits.
    of_first = str(right[:TEST_LEN].mean(dtype=np.float32))
    of_all = str(right.mean(dtype=np.float32))
    note = f" ({name})" if name == SAMPLE else ""
    noun = "images" if name in ("MNIST", SAMPLE) else "sequences"
    print(f"Testing Accuracy: {of_first}{note}\n"
          f"Testing Accuracy, all {len(y)} {noun}: {of_all}{note}", flush=True)
    return float(right.mean())


def main():
    """Loads, builds, trains, saves and tests; returns the accuracy on the whole test set.

    Raises a TrainingError where constants, data or network can't be used, where the training
    diverges, or where the model can't be saved in its place.
    """
    check_settings()
    with seeded():
        (train_x, train_y), (test_x, test_y), name = check_data(load_data())
    check_settings()  # again, since load_data may have set constants
    with seeded():  # anew, so that the network does not depend on what load_data has drawn
        model = check_model(build_model())
        say(f"{name}: {len(train_y)} to train on, {len(test_y)} to test; "
            f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates by minibatches of {BATCH_SIZE}.")
        with held_signals() as signals, curves().as_default():
            seen, problem = train(model, train_x, train_y, name, signals)
            if not signals:
                print("Optimization Finished!", flush=True)
            accuracy = test(model, test_x, test_y, name)
            if LOG_DIR:
                tf.summary.scalar("test accuracy", accuracy, seen)
    if problem:
        raise TrainingError(problem)
    return accuracy


# The data, the second part, may be skipped by whoever brings their own.

SAMPLE = "UCI digits, not MNIST"  # the name of what stands in for MNIST


def data_dir():
    """Returns the folder of TFDS's data sets."""
    folder = DATA_DIR or os.getenv("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(os.path.expanduser(folder))


def mnist_dir():
    """Returns the folder of MNIST as TFDS prepares it."""
    return data_dir() / "mnist" / str(tfds.builder_cls("mnist").VERSION)


def files_dir():
    """Returns the folder of MNIST's four files.

    TFDS has a folder for such files, but there those of other data sets have the same names.
    """
    return data_dir() / "downloads" / "mnist"


def read_mnist():
    """Returns (images uint8 [n, 28, 28, 1], labels int64 [n]) to train on, and the same to test.

    Like the original, it sets the first 5,000 of the 60,000 training images aside.
    """
    try:
        if not mnist_dir().exists():
            prepare_mnist()
        mnist = tfds.builder_from_directory(mnist_dir())
        return tfds.as_numpy(mnist.as_dataset(["train[5000:]", "test"], batch_size=-1,
                                              as_supervised=True))
    except Exception as error:  # TFDS raises errors of many kinds
        remedy = "prepared: set another DATA_DIR."
        if mnist_dir().exists():
            remedy = "read: set another DATA_DIR or move it away."
        raise TrainingError(f"MNIST in {mnist_dir()} can't be {remedy} ({in_short(error)})"
                            ) from error


def prepare_mnist():
    """Lets TFDS prepare MNIST from its four files."""
    random.seed()  # TFDS draws the name of a folder, which must not be that of another run
    with (
        contextlib.redirect_stdout(sys.stderr),
        # What TFDS extracts it would share with other runs, and with data sets whose files have
        # the same names.
        tempfile.TemporaryDirectory(dir=files_dir()) as extract_dir,
    ):
        config = tfds.download.DownloadConfig(manual_dir=files_dir(), extract_dir=extract_dir)
        mnist = tfds.builder("mnist", data_dir=data_dir())
        with contextlib.suppress(FileExistsError):  # another run was faster
            mnist.download_and_prepare(download_config=config)


def fetch_mnist():
    """Fetches what is missing of MNIST's four files; returns whether MNIST can be read now."""
    infos = tfds.builder_cls("mnist").url_infos  # {URL: a file's name, size and checksum}
    try:
        if not mnist_dir().exists():
            for url, info in infos.items():
                fetch_file(url, info)
    except OSError as error:
        names = ", ".join(info.filename for info in infos.values())
        sentence = (f"MNIST can be neither read from {data_dir()} nor fetched. To get it, put "
                    f"{names} into {files_dir()} and run again. A SOCKS proxy needs pip install "
                    "pysocks, a certificate of your organization REQUESTS_CA_BUNDLE. "
                    f"({in_short(error)})")
        check(OFFLINE_SAMPLE, sentence)
        say(sentence)
        return False
    return True


def fetch_file(url, info):
    """Fetches a file, unless it is there; `info` is its name, size in bytes and checksum."""
    def is_right(content):
        return hashlib.sha256(content).hexdigest() == info.checksum

    path = files_dir() / info.filename
    if path.exists():
        check(is_right(path.read_bytes()), f"{path} is not MNIST's file, by its checksum: put the "
              "right one there, or delete it to have it fetched.")
        return
    say(f"Fetching {url} to {files_dir()}.")
    reply = requests.get(url, stream=True, timeout=(3, 12))  # seconds to connect, and to read on
    reply.raise_for_status()
    content = b"".join(
        tqdm.tqdm(reply.iter_content(1024), total=info.size // 1024 + 1, unit="kB"))
    if not is_right(content):
        raise OSError(f"what came from {url} is not MNIST's file, by its checksum")
    write_whole(path, lambda part: part.write_bytes(content))


def read_uci_digits():
    """Returns 1,541 and 256 UCI digits (Alpaydin, Kaynak, 1998) as `read_mnist` does MNIST."""
    folder = pathlib.Path()  # a notebook's
    if "__file__" in globals():
        folder = pathlib.Path(__file__).parent
    path = folder.absolute() / "uci_digits.npz"
    try:
        with np.load(path) as digits:
            images, labels = digits["images"], digits["labels"]  # [1797, 8, 8], [1797]
    except Exception as error:  # NumPy raises errors of many kinds
        raise TrainingError(f"The UCI digits can't be read from {path} either: put them there. "
                            f"({in_short(error)})") from error
    images = tf.round(tf.image.resize(images[..., np.newaxis], [20, 20]) * (255 / 16))
    images = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)]).astype(np.uint8)  # as in MNIST
    order = np.random.RandomState(0).permutation(len(images))  # the same for every NumPy
    return [(images[part], labels[part]) for part in (order[256:], order[:256])]


# Speed, the third part, may be skipped, or deleted together with the line that calls `faster`: the
# log is the same up to rounding, which grows from update to update.

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
with contextlib.suppress(OSError, ValueError):  # a container on Linux may have the time of fewer
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    CORES = min(CORES, max(1, round(int(quota) / int(period))))


def faster(model):
    """Returns an object that has Keras's train_on_batch and test_on_batch for a model's weights.

    For three plain layers on a CPU it takes the short way, else it is the model itself.
    """
    if not has_short_way(model):
        return model

    @tf.function(autograph=False)
    def train_on_batch(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=x, y=y, y_pred=short_way(model, x))
            loss = model.optimizer.scale_loss(loss)  # the same, but for a LossScaleOptimizer
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)

    @tf.function(autograph=False)
    def test_on_batch(x, y, return_dict):
        outputs = short_way(model, x)
        right = tf.argmax(outputs, axis=1) == y
        return {"loss": tf.reduce_mean(model.compute_loss(x=x, y=y, y_pred=outputs)),
                "accuracy": tf.reduce_mean(tf.cast(right, tf.float32))}

    model.optimizer.build(model.trainable_variables)  # else the first update is traced twice
    return types.SimpleNamespace(train_on_batch=train_on_batch, test_on_batch=test_on_batch)


def has_short_way(model):
    """Returns whether `short_way` does what `model` does, which then is three plain layers.

    All that Keras would save of a layer is compared, so that no option is overlooked.
    """
    def options(layer):
        free = ("name", "units", "trainable", "seed", "unit_forget_bias")
        return {  # activations as functions, for a user's own may be named tanh, too
            name: getattr(layer, name) if "activation" in name else value
            for name, value in layer.get_config().items()
            if name not in free and not name.endswith("_initializer")}

    if tf.config.list_physical_devices("GPU") or tf.distribute.has_strategy():
        return False
    if model.distribute_strategy is not tf.distribute.get_strategy():
        return False
    if type(model) is not keras.Sequential or not model.compiled or model.run_eagerly:
        return False
    if {"train_step", "test_step"} & vars(model).keys():  # of one's own
        return False
    if [tensor.dtype for tensor in getattr(model, "inputs", [])] != ["float32"]:
        return False
    fixed = dict(kernel_initializer="zeros", dtype="float32", name="plain")  # zeros draw no seed
    with tf.Graph().as_default():  # keeps a variable of the LSTM's out of the training's graph
        plain = [keras.layers.Dense(1, **fixed),
                 keras.layers.LSTM(1, recurrent_initializer="zeros", seed=0, **fixed),
                 keras.layers.Dense(1, "softmax", **fixed)]
    return ([*map(type, model.layers)] == [*map(type, plain)]
            and [*map(options, model.layers)] == [*map(options, plain)])


def short_way(model, x):
    """Returns the outputs of a `model` that has the short way, each core at work on a shard."""
    hidden, lstm, out = model.layers
    number = max(1, min(CORES, x.shape[0] // 32))  # less is not worth a thread
    sizes = [len(shard) for shard in np.array_split(range(x.shape[0]), number)]
    shards = [last_output(hidden, lstm.cell, rows) for rows in tf.split(x, sizes)]
    return out.activation(tf.matmul(tf.concat(shards, axis=0), out.kernel) + out.bias)


def last_output(hidden, cell, rows):
    """Returns the LSTM's last output [n, units] for `rows` [n, timesteps, inputs].

    The projection folds into the LSTM's kernel, (x W + b) K = x (W K) + b K. The rest is
    https://arxiv.org/abs/1409.2329.
    """
    input_kernel = tf.matmul(hidden.kernel, cell.kernel)  # [inputs, 4 * units]
    bias = tf.linalg.matvec(cell.kernel, hidden.bias, transpose_a=True) + cell.bias  # [4 * units]

    def timestep(state, row):  # ([n, units], [n, units]), [n, inputs]
        h, c = state
        gates = tf.nn.bias_add(tf.matmul(row, input_kernel), bias)
        gates += tf.matmul(h, cell.recurrent_kernel)
        i, f, j, o = tf.split(gates, 4, axis=1)  # input, forget, new input, output: [n, units]
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(j)
        return tf.sigmoid(o) * tf.tanh(c), c

    zeros = tf.zeros([rows.shape[0], cell.units])
    rows = tf.transpose(rows, [1, 0, 2])  # [timesteps, n, inputs]
    if rows.shape[0] <= 56:  # unrolled, they run a tenth faster, but the graph grows with each
        h, _ = functools.reduce(timestep, tf.unstack(rows), (zeros, zeros))
    else:
        h, _ = tf.foldl(timestep, rows, (zeros, zeros))
    return h


# Guards, the fourth part, may be skipped, too. They keep what goes wrong from costing your work.


class TrainingError(Exception):
    """What can't be trained or saved, or has diverged: a sentence that says why, and what to do."""


def check(right, sentence):
    """Raises a TrainingError with the sentence unless all is right."""
    if not right:
        raise TrainingError(sentence)


def say(text):
    """Prints to standard error, even if nobody can read that any more."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def in_short(error):
    """Returns the kind of an error, or of what caused it, and the first line of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


@contextlib.contextmanager
def seeded():
    """Seeds all generators by SEED; puts back Python's and NumPy's at the block's end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(secrets.randbits(32) if SEED is None else SEED)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def check_settings():
    """Refuses the first constant that is wrong; makes NumPy's numbers Python's, as Keras asks."""
    def check_number(name, kind, low, high, must_be):
        value = globals()[name]
        value = value.item() if isinstance(value, np.generic) else value
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        check(is_number and low <= value <= high, f"{name} = {value!r} must be {must_be}.")
        globals()[name] = float(value) if kind is numbers.Real else value

    def check_path(name, path, must_be, ending=""):
        is_path = isinstance(path, (str, os.PathLike)) and str(path).endswith(ending)
        check(is_path and str(path) and "://" not in str(path),
              f"{name} = {path!r} must be {must_be}.")

    for name in ("TRAINING_ITERS", "BATCH_SIZE", "DISPLAY_STEP", "N_INPUT", "N_STEPS", "N_HIDDEN",
                 "N_CLASSES", "TEST_LEN"):
        check_number(name, numbers.Integral, 1, 10**12, "a whole number from 1 to 10**12")
    check(TRAINING_ITERS > BATCH_SIZE,
          f"TRAINING_ITERS = {TRAINING_ITERS} must be above BATCH_SIZE = {BATCH_SIZE}.")
    if not isinstance(LEARNING_RATE, keras.optimizers.schedules.LearningRateSchedule):
        check_number("LEARNING_RATE", numbers.Real, 1e-37, 1e37,
                     "a number from 1e-37 to 1e37, or one of keras.optimizers.schedules")
    if SEED is not None:
        check_number("SEED", numbers.Integral, 0, 2**32 - 1,
                     "a whole number from 0 to 2**32 - 1, or None")
    check(isinstance(OFFLINE_SAMPLE, bool),
          f"OFFLINE_SAMPLE = {OFFLINE_SAMPLE!r} must be True or False.")
    if DATA_DIR is not None:
        check_path("DATA_DIR", DATA_DIR, "a local folder, or None")
    elif os.getenv("TFDS_DATA_DIR"):
        check_path("TFDS_DATA_DIR", os.environ["TFDS_DATA_DIR"], "a local folder")
    if LOG_DIR is not None:
        check_path("LOG_DIR", LOG_DIR, "a local folder, or None")
    if MODEL_PATH is not None:
        check_path("MODEL_PATH", MODEL_PATH, "a local file whose name ends in .keras, or None",
                   ".keras")
    check(keras.config.backend() == "tensorflow", f"Keras has its {keras.config.backend()} "
          "backend: restart Python, and import or run this script first.")


def check_data(data):
    """Returns what load_data() returned, as float32 and int64; refuses what can't be used."""
    try:
        (train_x, train_y), (test_x, test_y), name = data
    except (TypeError, ValueError):
        raise TrainingError("load_data() must return (train_x, train_y), (test_x, test_y) and a "
                            "name.") from None
    train_set = check_split(train_x, train_y, "training")
    test_set = check_split(test_x, test_y, "test")
    check(len(train_set[1]) >= BATCH_SIZE, f"BATCH_SIZE = {BATCH_SIZE} must be no larger than the "
          f"number of training sequences, {len(train_set[1])}.")
    return train_set, test_set, str(name)


def check_split(x, y, split):
    """Returns sequences as float32 [n, N_STEPS, N_INPUT] and their labels as int64 [n]."""
    check(not np.ma.is_masked(x) and not np.ma.is_masked(y), f"Some {split} sequences or labels "
          "are masked out: fill them in or leave them out.")
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            x = np.asarray(x).astype(np.float32, casting="same_kind", copy=False)
        y = np.asarray(y)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"The {split} sequences must be an array of real numbers, all of one "
                            f"length, and their labels an array. ({in_short(error)})") from error
    check(x.shape[1:] == (N_STEPS, N_INPUT) and len(x) > 0,
          f"The {split} sequences have the shape {x.shape}, not (n, N_STEPS, N_INPUT) = "
          f"(1 or more, {N_STEPS}, {N_INPUT}).")
    wrong = np.count_nonzero(~np.isfinite(x))
    check(wrong == 0, f"The {split} sequences hold nan, or numbers too large for float32, in "
          f"{wrong} places: fill them in or leave them out.")
    check(y.shape == x.shape[:1], f"The {split} labels have the shape {y.shape}, not "
          f"{x.shape[:1]}, one for each sequence.")
    check(y.dtype.kind in "bui", f"The {split} labels are {y.dtype}, not whole numbers.")
    check(0 <= y.min() and y.max() < N_CLASSES, f"The {split} labels go from {y.min()} to "
          f"{y.max()}, not from 0 to N_CLASSES - 1 = {N_CLASSES - 1}.")
    return x, y.astype(np.int64)


def check_model(model):
    """Returns the model with its weights made and, if it has steps of its own, these made to fit.

    Refuses what is no model, or has other outputs than [n, N_CLASSES].
    """
    check(isinstance(model, keras.Model), f"build_model() returned {model!r}, not a Keras model.")
    # A Sequential keeps the batch size that it first meets; other models may need to be told one.
    batch_size = None if isinstance(model, keras.Sequential) else BATCH_SIZE
    outputs = model(keras.Input([N_STEPS, N_INPUT], batch_size))
    check(getattr(outputs, "shape", None) == (batch_size, N_CLASSES), "The model returns "
          f"{getattr(outputs, 'shape', outputs)}, not [n, N_CLASSES] = [n, {N_CLASSES}].")

    def without_none(step):
        # A step of one's own unpacks x and y, as Keras's guide and its fit have it, but from
        # train_on_batch and test_on_batch it gets None in the place of sample weights, too.
        return lambda data: step(data if data[-1] is not None else data[:2])

    for name in ("train_step", "test_step"):
        step = getattr(model, name)
        if getattr(step, "__func__", None) is not getattr(keras.Model, name):
            setattr(model, name, without_none(step))
    return model


@contextlib.contextmanager
def held_signals():
    """Gives a list of the signals that ask to end the run; the first has its effect afterwards.

    Those that somebody else handles, or ignores, are left alone. A third Ctrl-C raises
    KeyboardInterrupt at once.
    """
    def hold(number, frame):
        signals.append(number)
        if signals.count(signal.SIGINT) > 2:
            raise KeyboardInterrupt

    signals, earlier_handlers = [], {}
    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK",  # people and systems send these,
                     "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGQUIT"):  # schedulers these
            number = getattr(signal, name, None)  # no system has them all
            handler = number and signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                earlier_handlers[number] = signal.signal(number, hold)
    try:
        yield signals
    except (OSError, TrainingError):
        if not signals:  # else what reads the log may have ended by the same Ctrl-C
            raise
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)
    if signals:
        signal.raise_signal(signals[0])
        sys.exit(128 + signals[0])  # for process 1 of a container, which no signal can end


def check_learned(model, seen, loss):
    """Refuses what is not worth keeping: what has diverged, or one update from random weights."""
    if not all(np.isfinite(value).all() for value in [loss, *model.get_weights()]):
        rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        raise TrainingError(f"The loss or a weight is not finite at Iter {seen}. Often the "
                            f"learning rate, here {rate:g}, is too high: try a smaller one.")
    check(seen > BATCH_SIZE or seen + BATCH_SIZE >= TRAINING_ITERS,
          "It was stopped before its second update.")


def save(model, name, seen, loss):
    """Saves what was learned to MODEL_PATH or, if that fails, its weights to a temporary file.

    Returns None or, if the model is not in its place, a sentence that says so.
    """
    try:
        check_learned(model, seen, loss)
    except TrainingError as error:
        say(f"Nothing is saved. {error}")
        return None
    if MODEL_PATH is None:
        return None
    place = str(MODEL_PATH)
    if name == SAMPLE:  # so that MNIST's model keeps its place
        place = place.removesuffix(".keras") + "-uci_digits.keras"
    try:
        path = os.path.realpath(os.path.expanduser(place))  # of a link, its target
        write_whole(path, model.save)
        say(f"The model, trained on {name}, is saved to {path}.")
        return None
    except Exception as error:  # whatever it is, the weights can be rescued
        problem = f"The model can't be saved to {place} ({in_short(error)})"
    try:
        path = os.path.join(tempfile.gettempdir(), f"rnn_mnist-{run_name()}.npz")
        # In float64, since NumPy's files don't know all of Keras's types, and it holds them all.
        write_whole(path, lambda part: np.savez(part, *map(np.float64, model.get_weights())))
        problem += (f", but its weights are in {path}: model.set_weights([*np.load({path!r})."
                    "values()]) gives them to a model of the same kind.")
    except Exception as error:
        problem += f", and its weights not to a temporary file either ({in_short(error)})."
    say(problem)
    return problem


def run_name():
    """Returns a name that no other run has: when, and in which process."""
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"


def write_whole(path, write):
    """Lets `write` fill a file that then takes the place of `path`, as a whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which python -W error would make an error
        part = pathlib.Path(folder, path.name)
        write(part)
        os.replace(part, path)


def curves():
    """Returns TensorBoard's writer to a folder of the run's own in LOG_DIR, if there is one."""
    if LOG_DIR is None:
        return tf.summary.create_noop_writer()
    folder = os.path.join(os.path.expanduser(LOG_DIR), f"{run_name()}-seed{SEED}")
    os.makedirs(folder)  # which fails in clearer words than TensorFlow
    return tf.summary.create_file_writer(folder)


if __name__ == "__main__":
    sys.stderr = sys.stderr or open(os.devnull, "w")  # it is None after `2>&-`
    if not hasattr(sys, "ps1"):  # in a notebook neither arguments nor Ctrl-C are the script's
        if sys.argv[1:]:
            sys.exit("The settings are the constants at the top of rnn_mnist.py: see README.md.")
        sys.excepthook = lambda kind, *rest: (  # Ctrl-C needs no traceback
            kind is KeyboardInterrupt or sys.__excepthook__(kind, *rest))
    try:
        main()
    except TrainingError as error:
        sys.exit(str(error))
    except BrokenPipeError:  # what read the log has ended, as `| head` does
        sys.exit(1)
    except OSError as error:
        sys.exit(in_short(error))
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # else Python would flush again as it ends, complain, and return 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
