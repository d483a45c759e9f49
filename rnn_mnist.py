"""Trains an LSTM on MNIST, reading each digit row by row: a TensorFlow 0.8 script, now in Keras 3.

The constants below are the settings; README.md explains the rest. Standard output is the original's
log and one more line, the accuracy on the whole test set. The original is recurrent_network.py,
copyright 2015 Aymeric Damien, MIT licence; docs/original.md contains its notice.
"""

# Part 1 of 4: the task. Read it and change what you like. It calls functions of the other parts,
# which read the data, make the training fast and guard your work.

import contextlib
import datetime
import errno
import hashlib
import numbers
import os
import pathlib
import random
import signal
import sys
import time
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # otherwise TensorFlow prints a page of log
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # otherwise it takes all GPU memory
os.environ["KERAS_BACKEND"] = "tensorflow"  # read by Keras when it is imported
import keras
import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm

tf.get_logger().setLevel("ERROR")  # no warnings for programmers, such as on Windows about GPUs

# data
DATA_DIR = None  # folder for TFDS's datasets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets
OFFLINE_SAMPLE = True  # if MNIST can't be fetched: True trains on the UCI digits, False stops

# training
LEARNING_RATE = 0.001  # Adam's step size: a number or one of keras.optimizers.schedules
TRAINING_ITERS = 100000  # stops before this many images are seen, counting repeats
BATCH_SIZE = 128  # images in a minibatch
DISPLAY_STEP = 10  # minibatches per log line
SEED = 0  # a number makes runs repeatable; None: every run is different

# network
N_INPUT = 28  # values per timestep: the pixels of a row
N_STEPS = 28  # timesteps: the rows of an image
N_HIDDEN = 128  # LSTM units, also the width of the linear layer before the LSTM
N_CLASSES = 10  # digits

# output
TEST_LEN = 256  # test images in the first testing line, as in the original
MODEL_PATH = "rnn_mnist.keras"  # file for the trained model; None: don't save it
LOG_DIR = None  # folder for TensorBoard's curves, a subfolder for each run; None: no curves


def load_data():
    """Returns (train_x, train_y), (test_x, test_y) and the name of the dataset.

    Each x holds sequences, float32 [n, N_STEPS, N_INPUT]: the rows of images, scaled to 0 to 1.
    Each y holds labels, integers [n] from 0 to N_CLASSES - 1. Return your own data here.
    """
    check(N_STEPS * N_INPUT == 28 * 28,
          f"N_STEPS = {N_STEPS} times N_INPUT = {N_INPUT} must be 784, the pixels in an image.")
    try:
        (train_images, train_y), (test_images, test_y) = read_mnist()
        name = "MNIST"
    except OSError as error:
        message = (f"MNIST can't be fetched ({in_short(error)}). See 'Without a network' in "
                   "README.md.")
        check(OFFLINE_SAMPLE, message)
        say(message)
        (train_images, train_y), (test_images, test_y) = read_uci_digits()
        name = SAMPLE
    return (rows_of(train_images), train_y), (rows_of(test_images), test_y), name


def rows_of(images):
    """Returns images, uint8 [n, 28, 28, 1], as float32 sequences [n, N_STEPS, N_INPUT], 0 to 1."""
    pixels = np.multiply(images, 1 / 255, dtype=np.float32)  # as the original, without float64
    return pixels.reshape(-1, N_STEPS, N_INPUT)


def build_model():
    """Returns the compiled model, from [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES].

    Change it as you like: the model that you return is trained and saved.
    """
    # Compute in float32 like the original, whatever Keras's settings are, and not in TF32 on a GPU.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)

    stddev = 1.0  # of the initial weights and biases of the two Dense layers
    initializers = keras.initializers

    # A Keras initializer returns the same values each time it is called, so that each parameter
    # needs one of its own.
    def normal():
        return dict(kernel_initializer=initializers.RandomNormal(stddev=stddev),
                    bias_initializer=initializers.RandomNormal(stddev=stddev))

    def uniform():
        # The original's LSTM had a single kernel for its input and its hidden state, with twice the
        # fan-in of each of Keras's two kernels: hence 0.5. The original added 1 in the forget gate;
        # Keras initializes the bias of that gate to 1 instead.
        return dict(kernel_initializer=initializers.VarianceScaling(0.5, "fan_in", "uniform"),
                    recurrent_initializer=initializers.VarianceScaling(0.5, "fan_in", "uniform"))

    model = keras.Sequential([
        keras.Input([N_STEPS, N_INPUT]),
        keras.layers.Dense(N_HIDDEN, **normal(), name="hidden"),
        keras.layers.LSTM(N_HIDDEN, **uniform(), name="lstm"),
        keras.layers.Dense(N_CLASSES, "softmax", **normal(), name="out"),
    ])
    optimizer = keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8)  # Keras's default is 1e-7
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def minibatches(x, y):
    """Yields shuffled minibatches of x and y forever; drops each epoch's incomplete last one."""
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(y))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[start:start + BATCH_SIZE]
            yield x[chosen], y[chosen]


def train(model, x, y, name, signals):
    """Trains until the next minibatch would reach TRAINING_ITERS images, or a signal arrives.

    Saves the model and returns the number of images seen. A signal or an error may end the training
    early: the model is saved all the same. If the training diverged or ended before its second
    update, nothing is saved, and a TrainingError is raised.
    """
    # The network shares the model's parameters, but trains faster.
    network = faster(model)
    batches = minibatches(x, y)
    start, seen, loss = time.perf_counter(), 0, 0.0
    try:
        while seen + BATCH_SIZE < TRAINING_ITERS and not signals:
            batch_x, batch_y = next(batches)
            network.train_on_batch(batch_x, batch_y)
            seen += BATCH_SIZE
            if seen % (DISPLAY_STEP * BATCH_SIZE) == 0:
                loss, accuracy = measure(model, network, batch_x, batch_y)
                if not np.isfinite(loss):
                    break
                print(f"Iter {seen}, Minibatch Loss= {loss:.6f}, "
                      f"Training Accuracy= {accuracy:.5f}", flush=True)
                if LOG_DIR:
                    tf.summary.scalar("minibatch loss", loss, seen)
                    tf.summary.scalar("minibatch accuracy", accuracy, seen)
        # An optimizer with use_ema=True now replaces the parameters by their moving averages.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    finally:
        by = f" by {signal.Signals(signals[0]).name}" if signals else ""
        say(f"Training ended{by} at Iter {seen} after {time.perf_counter() - start:.1f} s.")
        failure = failure_of(model, seen, loss)
        if not failure:
            save(model, name)
    check(not failure, failure)
    return seen


def measure(model, network, x, y):
    """Returns the loss of a minibatch and its accuracy, the fraction classified correctly."""
    model.reset_metrics()  # otherwise metrics accumulate from call to call up to Keras 3.10
    measured = network.test_on_batch(x, y, return_dict=True)
    if "accuracy" not in measured:  # a custom model may be compiled without this metric
        measured["accuracy"] = np.mean(model.predict_on_batch(x).argmax(axis=1) == y)
    return measured["loss"], measured["accuracy"]


def test(model, x, y, name):
    """Prints the accuracy on the first TEST_LEN sequences, as the original did, and on all.

    Returns the latter.
    """
    correct = model.predict(x, batch_size=128, verbose=0).argmax(axis=1) == y
    # The original's accuracies were float32; str() prints as many digits as it did.
    of_first = str(correct[:TEST_LEN].mean(dtype=np.float32))
    of_all = str(correct.mean(dtype=np.float32))
    note = f" ({name})" if name == SAMPLE else ""
    noun = "images" if name in ("MNIST", SAMPLE) else "sequences"
    print(f"Testing Accuracy: {of_first}{note}\n"
          f"Testing Accuracy, all {len(y)} {noun}: {of_all}{note}", flush=True)
    return float(correct.mean())


def main():
    """Loads the data, then builds, trains, saves and tests the model.

    Returns the accuracy on the whole test set. Raises a TrainingError if a constant, the data or
    the model can't be used, if the training diverges, or if the model can't be saved.
    """
    check_settings()
    with seeded():
        train_set, test_set, name = load_data()
    check_settings()  # again, since a custom load_data may set constants
    train_x, train_y = check_split(*train_set, "training")
    test_x, test_y = check_split(*test_set, "test")
    check(len(train_y) >= BATCH_SIZE, f"BATCH_SIZE = {BATCH_SIZE} must not exceed the number of "
          f"training sequences, {len(train_y)}.")
    with seeded():  # again, so that random numbers drawn by load_data don't change the model
        model = build_model()
        check_outputs(model, train_x[:BATCH_SIZE])
        save(model, name, rehearsal=True)  # a failure now costs no training
        say(f"{name}: {len(train_y)} training and {len(test_y)} test sequences, "
            f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates with minibatches of {BATCH_SIZE}.")
        with deferred_signals() as signals, curves().as_default():
            seen = train(model, train_x, train_y, name, signals)
            if not signals:
                print("Optimization Finished!", flush=True)
            accuracy = test(model, test_x, test_y, name)
            if LOG_DIR:
                tf.summary.scalar("test accuracy", accuracy, seen)
    return accuracy


# Part 2: the data. Skip it if you bring your own.

SAMPLE = "UCI digits, not MNIST"  # the name of the dataset that replaces MNIST offline


def read_mnist():
    """Returns MNIST as (train_images, train_labels), (test_images, test_labels).

    Images are uint8 [n, 28, 28, 1], labels int64 [n]. Leaves out the first 5,000 of the 60,000
    training images; the original left out as many. Raises OSError if MNIST can't be fetched, and a
    TrainingError if it can't be prepared or read.
    """
    folder = DATA_DIR or os.getenv("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    data_dir = pathlib.Path(folder).expanduser()
    files_dir = data_dir / "downloads" / "mnist"
    builder_class = tfds.builder_cls("mnist")
    mnist_dir = data_dir / "mnist" / str(builder_class.VERSION)
    if not mnist_dir.exists():
        for url, info in builder_class.url_infos.items():
            fetch_file(files_dir / info.filename, url, info)
    random.seed()  # TFDS names a folder by `random`: two runs with one SEED would share it
    try:
        mnist = tfds.builder("mnist", data_dir=data_dir)
        config = tfds.download.DownloadConfig(manual_dir=files_dir)
        with (contextlib.redirect_stdout(sys.stderr),
              contextlib.suppress(FileExistsError)):  # another run has just prepared it
            mnist.download_and_prepare(download_config=config)
        return tfds.as_numpy(mnist.as_dataset(["train[5000:]", "test"], batch_size=-1,
                                              as_supervised=True))
    except Exception as error:  # TFDS raises errors of many kinds
        raise TrainingError(f"MNIST in {data_dir} can't be prepared or read ({in_short(error)}). "
                            "See 'Without a network' in README.md.") from error


def fetch_file(path, url, info):
    """Fetches a file unless it exists; `info` holds its size in bytes and its SHA-256 checksum.

    TFDS itself sets no timeout. Raises OSError if the file can't be fetched.
    """
    if path.exists():
        return
    say(f"Fetching {url} to {path}.")
    response = requests.get(url, stream=True, timeout=(3, 12))  # seconds to connect, to read on
    response.raise_for_status()
    chunks = tqdm.tqdm(response.iter_content(1024), total=info.size // 1024 + 1, unit="kB")
    content = b"".join(chunks)
    if hashlib.sha256(content).hexdigest() != info.checksum:
        raise OSError(f"wrong checksum of {url}")
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def read_uci_digits():
    """Returns 1,541 and 256 UCI digits (Alpaydin, Kaynak, 1998) in the form of `read_mnist`."""
    script = globals().get("__file__", "rnn_mnist.py")  # a notebook has no __file__
    path = pathlib.Path(script).resolve().with_name("uci_digits.npz")
    try:
        with np.load(path) as digits:
            images, labels = digits["images"], digits["labels"]  # [1797, 8, 8], [1797]
    except Exception as error:  # NumPy raises errors of many kinds
        raise TrainingError(f"The UCI digits can't be read from {path} ({in_short(error)}). Copy "
                            "uci_digits.npz from the repository there.") from error
    images = tf.round(tf.image.resize(images[..., np.newaxis], [20, 20]) * (255 / 16))
    # 20x20 digits centred in 28x28, as in MNIST
    images = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)]).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))  # the same in every NumPy version
    return [(images[part], labels[part]) for part in (order[256:], order[:256])]


# Part 3: speed. Skip it, or delete it and write `network = model` in `train`: the log then differs
# by rounding only, which grows from update to update.

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
with contextlib.suppress(OSError, ValueError):  # a container on Linux may have a quota
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    CORES = min(CORES, max(1, round(int(quota) / int(period))))


def faster(model):
    """Returns an object that trains and tests the model's parameters faster than the model.

    Its train_on_batch(x, y) returns nothing, its test_on_batch(x, y, return_dict=True) the loss and
    the accuracy. Returns the model itself if it has no fast path.
    """
    if not has_fast_path(model):
        return model

    @tf.function(autograph=False)
    def train_on_batch(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=x, y=y, y_pred=fast_path(model, x))
            loss = model.optimizer.scale_loss(loss)  # a no-op but for LossScaleOptimizer
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)

    @tf.function(autograph=False)
    def test_on_batch(x, y, return_dict=True):
        outputs = fast_path(model, x)
        correct = keras.metrics.sparse_categorical_accuracy(y, outputs)
        return {"loss": tf.reduce_mean(model.compute_loss(x=x, y=y, y_pred=outputs)),
                "accuracy": tf.reduce_mean(correct)}

    return types.SimpleNamespace(train_on_batch=train_on_batch, test_on_batch=test_on_batch)


def has_fast_path(model):
    """Returns True if `fast_path` computes what the model computes and no GPU is there.

    The model must be three Keras layers with default options. All options that Keras would save are
    compared, so that none is overlooked.
    """
    def options(layer):
        ignored = ("name", "units", "trainable", "seed", "unit_forget_bias")
        return {  # activations as functions, since a custom one may also be named tanh
            name: getattr(layer, name) if "activation" in name else value
            for name, value in layer.get_config().items()
            if name not in ignored and not name.endswith("_initializer")}

    if tf.config.list_physical_devices("GPU") or tf.distribute.has_strategy():
        return False
    if model.distribute_strategy is not tf.distribute.get_strategy():
        return False
    if type(model) is not keras.Sequential or not model.compiled or model.run_eagerly:
        return False
    if [tensor.dtype for tensor in getattr(model, "inputs", [])] != ["float32"]:
        return False
    fixed = dict(kernel_initializer="zeros", dtype="float32", name="plain")  # zeros draw no seed
    with tf.Graph().as_default():  # discards the variable of the LSTM's seed
        plain = [keras.layers.Dense(1, **fixed),
                 keras.layers.LSTM(1, recurrent_initializer="zeros", seed=0, **fixed),
                 keras.layers.Dense(1, "softmax", **fixed)]
    return ([*map(type, model.layers)] == [*map(type, plain)]
            and [*map(options, model.layers)] == [*map(options, plain)])


def fast_path(model, x):
    """Returns the model's outputs [n, N_CLASSES] for a minibatch x, each core computing a shard."""
    hidden, lstm, out = model.layers
    x = tf.cast(x, tf.float32)  # custom minibatches may have another dtype
    number = max(1, min(CORES, x.shape[0] // 32))  # smaller shards don't pay off
    sizes = [len(shard) for shard in np.array_split(range(x.shape[0]), number)]
    shards = [last_hidden_state(hidden, lstm.cell, rows) for rows in tf.split(x, sizes)]
    return out.activation(tf.matmul(tf.concat(shards, axis=0), out.kernel) + out.bias)


def last_hidden_state(hidden, cell, rows):
    """Returns the LSTM's hidden state [n, units] after the last of `rows` [n, timesteps, inputs].

    The linear layer is folded into the LSTM's kernel: (x W + b) K = x (W K) + b K. The equations of
    the LSTM are those of https://arxiv.org/abs/1409.2329.
    """
    input_kernel = tf.matmul(hidden.kernel, cell.kernel)  # [inputs, 4 * units]
    bias = tf.linalg.matvec(cell.kernel, hidden.bias, transpose_a=True) + cell.bias  # [4 * units]

    def timestep(state, row):  # row [n, inputs]
        h, c = state  # hidden state and cell state, both [n, units]
        gates = tf.nn.bias_add(tf.matmul(row, input_kernel), bias)
        gates += tf.matmul(h, cell.recurrent_kernel)
        i, f, j, o = tf.split(gates, 4, axis=1)  # input, forget, candidate, output: [n, units]
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(j)
        return tf.sigmoid(o) * tf.tanh(c), c

    zeros = tf.zeros([rows.shape[0], cell.units])
    state = zeros, zeros
    rows = tf.transpose(rows, [1, 0, 2])  # [timesteps, n, inputs]
    if rows.shape[0] > 56:
        state = tf.foldl(timestep, rows, state)
    else:  # unrolled, it is a tenth faster, but the graph grows with every timestep
        for row in tf.unstack(rows):
            state = timestep(state, row)
    return state[0]


# Part 4: guards. Skip it: it keeps mistakes and interruptions from costing you your work.


class TrainingError(Exception):
    """The training can't start or has failed; the message gives the reason and what to do."""


def check(condition, message):
    """Raises a TrainingError with the message unless the condition holds."""
    if not condition:
        raise TrainingError(message)


def say(text):
    """Prints to standard error, or nothing if that is closed."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def in_short(error):
    """Returns the type of an error, or of its root cause, and the first sentence of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    first, _, _ = " ".join(str(error).split()).partition(". ")
    return f"{type(error).__name__}: {first}"


@contextlib.contextmanager
def seeded():
    """Seeds all random generators with SEED; restores Python's and NumPy's after the block."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    any_seed = random.SystemRandom().getrandbits(32)
    keras.utils.set_random_seed(any_seed if SEED is None else SEED)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def check_settings():
    """Raises a TrainingError for the first invalid constant.

    Converts NumPy's numbers to Python's, as Keras requires, and real ones to float.
    """
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
        check_number(name, numbers.Integral, 1, 10**12, "an integer from 1 to 10**12")
    check(TRAINING_ITERS > BATCH_SIZE,
          f"TRAINING_ITERS = {TRAINING_ITERS} must be greater than BATCH_SIZE = {BATCH_SIZE}.")
    if not isinstance(LEARNING_RATE, keras.optimizers.schedules.LearningRateSchedule):
        check_number("LEARNING_RATE", numbers.Real, 1e-37, 1e37,
                     "a number from 1e-37 to 1e37, or one of keras.optimizers.schedules")
    if SEED is not None:
        check_number("SEED", numbers.Integral, 0, 2**32 - 1,
                     "an integer from 0 to 2**32 - 1, or None")
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
    check(keras.config.backend() == "tensorflow", "Keras already uses the "
          f"{keras.config.backend()} backend: restart Python, and run or import this script first.")


def check_split(x, y, split):
    """Returns sequences as float32 [n, N_STEPS, N_INPUT] and their labels as int64 [n]."""
    x, y = np.asarray(x, np.float32), np.asarray(y)
    check(x.shape[1:] == (N_STEPS, N_INPUT) and len(x) > 0,
          f"The {split} sequences have shape {x.shape}, but it must be (n, N_STEPS, N_INPUT) = "
          f"(n, {N_STEPS}, {N_INPUT}) with n >= 1.")
    check(np.isfinite(x).all(), f"The {split} sequences contain nan or values too large for "
          "float32. Replace or remove them.")
    check(y.shape == x.shape[:1] and y.dtype.kind in "bui", f"The {split} labels have shape "
          f"{y.shape} and dtype {y.dtype}, but must be integers of shape {x.shape[:1]}.")
    check(0 <= y.min() and y.max() < N_CLASSES, f"The {split} labels range from {y.min()} to "
          f"{y.max()}, but must be between 0 and N_CLASSES - 1 = {N_CLASSES - 1}.")
    return x, y.astype(np.int64)


def check_outputs(model, x):
    """Builds the model and its optimizer and checks the model's outputs for a minibatch x."""
    model(keras.Input([N_STEPS, N_INPUT]))  # for minibatches of any size
    if model.compiled:  # otherwise Keras complains in training
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    outputs = model.predict(x, verbose=0)
    shape = tf.nest.map_structure(np.shape, outputs)
    check(shape == (len(x), N_CLASSES), f"The model's outputs have shape {shape}, but for "
          f"{len(x)} sequences it must be (n, N_CLASSES) = {len(x), N_CLASSES}.")
    loss = keras.losses.get(model.loss) if isinstance(model.loss, str) else model.loss
    from_probabilities = (loss is keras.losses.sparse_categorical_crossentropy
                          or getattr(loss, "from_logits", True) is False)
    # Keras's loss divides probabilities by their sum, so that sigmoids will do.
    check(not from_probabilities or outputs.min() >= 0 and outputs.max() <= 1,
          f"The model's outputs range from {outputs.min():.3g} to {outputs.max():.3g}, so they are "
          "not probabilities. End the model with a softmax, or compile it with "
          "loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True).")


@contextlib.contextmanager
def deferred_signals():
    """Yields a list that collects the signals that ask the run to end; the first acts afterwards.

    Signals that are ignored or have a custom handler are left alone.
    """
    signals, earlier_handlers = [], {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP",  # sent by users and the system
                 "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM"):  # sent by schedulers and limits
        number = getattr(signal, name, None)  # Windows has only the first two
        handler = number and signal.getsignal(number)
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            with contextlib.suppress(ValueError):  # only the main thread may handle signals
                signal.signal(number, lambda number, frame: signals.append(number))
                earlier_handlers[number] = handler
    try:
        yield signals
    except (OSError, TrainingError) as error:
        if not signals:
            raise
        if not is_broken_pipe(error):  # Ctrl-C has also ended what reads the log
            say(error)
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)
    if signals:
        signal.raise_signal(signals[0])
        sys.exit(128 + signals[0])  # no signal of its own ends process 1 of a container


def is_broken_pipe(error):
    """Returns True if an error means that what read the log has ended."""
    numbers = [errno.EPIPE, errno.EINVAL] if os.name == "nt" else [errno.EPIPE]
    return isinstance(error, OSError) and error.errno in numbers


def failure_of(model, seen, loss):
    """Returns an error message if the model is not worth saving, otherwise None."""
    if not all(np.isfinite(value).all() for value in [loss, *model.get_weights()]):
        return (f"The training diverged: the loss or a parameter is not finite at Iter {seen}. Try "
                "a smaller learning rate.")
    if seen <= BATCH_SIZE and seen + BATCH_SIZE < TRAINING_ITERS:
        return f"The training ended at Iter {seen}, before its second update: nothing is saved."
    return None


def save(model, name, rehearsal=False):
    """Saves the model to MODEL_PATH as a whole or not at all; a rehearsal leaves no file.

    Raises a TrainingError if the model can't be saved.
    """
    if MODEL_PATH is None:
        return
    path = os.path.expanduser(MODEL_PATH)
    if name == SAMPLE:  # keeps a model trained on MNIST
        path = path.removesuffix(".keras") + "-uci_digits.keras"
    path = os.path.realpath(path)  # replaces a link's target, not the link
    try:
        write_whole(path, model.save, rehearsal)
    except Exception as error:  # Keras raises errors of many kinds
        raise TrainingError(f"The model can't be saved to {path} ({in_short(error)}). Change "
                            "MODEL_PATH, or set it to None to save no model.") from error
    if not rehearsal:
        say(f"Saved the model, trained on {name}, to {path}.")


def write_whole(path, write, rehearsal=False):
    """Calls write(temporary), a path in the same folder, then lets that file replace `path`."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    # longer than the name itself, so that a name too long fails in the rehearsal
    temporary = path.with_name(f"{os.getpid()}-{time.time_ns()}-{path.name}")
    try:
        write(temporary)
        if not rehearsal:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def curves():
    """Returns TensorBoard's writer to a new subfolder of LOG_DIR, or one that writes nothing."""
    if LOG_DIR is None:
        return tf.summary.create_noop_writer()
    run = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}-seed{SEED}"
    folder = os.path.join(os.path.expanduser(LOG_DIR), run)
    try:
        os.makedirs(folder)  # raises a clearer error than TensorFlow
        return tf.summary.create_file_writer(folder)
    except (OSError, tf.errors.OpError) as error:
        raise TrainingError(f"The curves can't be written to {folder} ({in_short(error)}). Change "
                            "LOG_DIR; on Windows its path must be ASCII.") from error


if __name__ == "__main__":
    if not hasattr(sys, "ps1"):  # in a notebook, the arguments and Ctrl-C are not the script's
        if sys.argv[1:]:
            sys.exit("rnn_mnist.py takes no arguments: edit the constants at its top.")
        sys.excepthook = lambda kind, *rest: (  # no traceback after Ctrl-C
            None if kind is KeyboardInterrupt else sys.__excepthook__(kind, *rest))
    try:
        main()
    except TrainingError as error:
        sys.exit(str(error))
    except OSError as error:
        if not is_broken_pipe(error):  # as `| head` breaks it
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        sys.exit(1)
