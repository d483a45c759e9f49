"""Reads MNIST's digits row by row with an LSTM: a TensorFlow 0.8 script, ported to Keras 3.

The constants are its settings; README.md explains it. Standard output is the original's log and,
as its last line, the accuracy on the whole test set. The original is recurrent_network.py,
copyright 2015 Aymeric Damien, MIT licence; docs/original.md has its notice.
"""

# The task, first of four parts: the one to read, and to change as you like.

import contextlib
import dataclasses
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
SEED = 0  # the same log every time; None: another run each time

# network
N_INPUT = 28  # values read at a timestep: the pixels of a row
N_STEPS = 28  # timesteps: the rows of an image
N_HIDDEN = 128  # LSTM units, and the width of the input projection
N_CLASSES = 10  # digits

# output
TEST_LEN = 256  # test images in the original's last line
MODEL_PATH = "rnn_mnist.keras"  # file for the trained model; None: not saved
LOG_DIR = None  # folder for TensorBoard's curves, a subfolder a run; None: no curves


def load_data():
    """Returns (train_x, train_y), (test_x, test_y) and the name of the data.

    x are sequences, float32 [n, N_STEPS, N_INPUT]: the rows of images, their pixels from 0 to 1.
    y are labels, whole numbers [n] below N_CLASSES. Data of your own may take their place.
    """
    if N_STEPS * N_INPUT != 28 * 28:
        raise TrainingError(f"N_STEPS = {N_STEPS} times N_INPUT = {N_INPUT} must be 784, the "
                            "pixels of an image.")
    if fetch_mnist():
        (train_images, train_y), (test_images, test_y) = read_mnist()
        name = "MNIST"
    else:
        (train_images, train_y), (test_images, test_y) = read_uci_digits()
        name = SAMPLE
    return (rows_of(train_images), train_y), (rows_of(test_images), test_y), name


def rows_of(images):
    """Cuts images, uint8 [n, 28, 28, 1], into float32 [n, N_STEPS, N_INPUT] from 0 to 1."""
    pixels = np.multiply(images, 1 / 255, dtype=np.float32)
    return pixels.reshape(-1, N_STEPS, N_INPUT)


def minibatches(x, y):
    """Yields BATCH_SIZE of both without end: each epoch in a new order, its short tail dropped."""
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(y))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[start:start + BATCH_SIZE]
            yield x[chosen], y[chosen]


def start_generators():
    """Lets all random generators give the same every time or, without a SEED, something new."""
    keras.utils.set_random_seed(secrets.randbits(32) if SEED is None else int(SEED))


def build_model():
    """Returns the network, from [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES], compiled.

    Change it as you like: what is returned here is what trains and is saved.
    """
    keras.config.set_floatx("float32")  # the original's, whatever a keras.json says
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)  # TF32 rounds, on a GPU

    stddev = 1.0  # of the first weights and biases around the LSTM
    # The original's LSTM had one kernel for its input and its last output together, so its fan-in
    # was 2 * N_HIDDEN; Keras has two kernels. Their variance is 1 / fan-in, and that of a uniform
    # distribution in +-bound is bound ** 2 / 3. The original's forget gate added 1 to its input;
    # Keras starts its bias at 1.
    bound = (3 / (2 * N_HIDDEN)) ** 0.5

    def normal():
        return dict(kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
                    bias_initializer=keras.initializers.RandomNormal(stddev=stddev))

    def uniform():
        return dict(kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
                    recurrent_initializer=keras.initializers.RandomUniform(-bound, bound))

    model = keras.Sequential([
        keras.Input([N_STEPS, N_INPUT]),
        keras.layers.Dense(N_HIDDEN, **normal(), name="hidden"),
        keras.layers.LSTM(N_HIDDEN, **uniform(), name="lstm"),
        keras.layers.Dense(N_CLASSES, "softmax", **normal(), name="out"),
    ])
    learning_rate = LEARNING_RATE
    if isinstance(learning_rate, numbers.Real):  # else a schedule
        learning_rate = float(learning_rate)
    optimizer = keras.optimizers.Adam(learning_rate, epsilon=1e-8)  # Keras's own epsilon: 1e-7
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def outputs_of(model, x, training):
    """Returns what `model` makes of sequences [n, N_STEPS, N_INPUT]: [n, N_CLASSES].

    The short way, explained in the part on speed, gives the same up to rounding, but sooner.
    """
    if has_short_way(model):
        return short_way(model, x)
    return model(x, training=training)


def train_step(model, x, y):
    """Updates the weights once, for a minibatch [n, N_STEPS, N_INPUT] and its labels int64 [n]."""
    if type(model).train_step is not keras.Model.train_step:  # the model has one of its own
        return model.train_step((x, y))
    with tf.GradientTape() as tape:
        outputs = outputs_of(model, x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs)
        loss = model.optimizer.scale_loss(loss)  # the same loss, but for mixed precision
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply(gradients, model.trainable_variables)


def evaluate(model, x, y):
    """Returns the loss that training lowers, and the share of the sequences classified right."""
    outputs = outputs_of(model, x, training=False)
    loss = model.compute_loss(x=x, y=y, y_pred=outputs)
    right = tf.argmax(outputs, axis=1) == y
    return tf.reduce_mean(loss), tf.reduce_mean(tf.cast(right, tf.float32))


@dataclasses.dataclass
class Progress:
    """How far a training has come."""

    seen: int = 0  # training images, counted each time they are seen
    signals: list = dataclasses.field(default_factory=list)  # received, which ask it to stop
    lost: bool = False  # by a divergence or a second Ctrl-C
    misplaced: str = ""  # a sentence, if the model could not be saved in its place

    @property
    def finished(self):
        """Whether one more minibatch would reach TRAINING_ITERS: there the original stops."""
        return self.seen + BATCH_SIZE >= TRAINING_ITERS

    @property
    def learned(self):
        """Whether there is something to keep; one update alone, from random weights, is not."""
        return not self.lost and (self.finished or self.seen > BATCH_SIZE)


def train(model, x, y, progress):
    """Trains as long as the images seen stay below TRAINING_ITERS and no signal asks to stop."""
    update = tf.function(train_step, autograph=False)
    measure = tf.function(evaluate, autograph=False)
    batches = minibatches(x, y)
    while not progress.finished and not progress.signals:
        batch_x, batch_y = next(batches)
        update(model, batch_x, batch_y)
        progress.seen += BATCH_SIZE
        if progress.seen % (DISPLAY_STEP * BATCH_SIZE) == 0:
            loss, accuracy = measure(model, batch_x, batch_y)
            stop_if_diverged(model, progress, loss)
            print(f"Iter {progress.seen}, Minibatch Loss= {loss:.6f}, "
                  f"Training Accuracy= {accuracy:.5f}", flush=True)
            draw("minibatch loss", loss, progress)
            draw("minibatch accuracy", accuracy, progress)
    if progress.seen:
        model.optimizer.finalize_variable_values(model.trainable_variables)  # for use_ema=True
        loss, _ = measure(model, batch_x, batch_y)
        stop_if_diverged(model, progress, loss)  # the last update may have done it


def draw(name, value, progress):
    """Adds a point to one of TensorBoard's curves, if there is a LOG_DIR."""
    if LOG_DIR is not None:
        with contextlib.suppress(tf.errors.OpError):  # curves_to_log_dir says so in the end
            tf.summary.scalar(name, value, progress.seen)


def test(model, x, y, name):
    """Prints the accuracy on the first TEST_LEN, as the original did, and on all; returns it."""
    predict = tf.function(functools.partial(outputs_of, training=False), autograph=False)
    outputs = [predict(model, x[n:n + BATCH_SIZE]) for n in range(0, len(y), BATCH_SIZE)]
    right = np.concatenate(outputs).argmax(axis=1) == y
    # float32, in which the original computed it, decides how many digits are printed.
    of_first = str(right[:TEST_LEN].mean(dtype=np.float32))
    of_all = str(right.mean(dtype=np.float32))
    note = f" ({name})" if name == SAMPLE else ""
    noun = "images" if name in ("MNIST", SAMPLE) else "sequences"
    print(f"Testing Accuracy: {of_first}{note}\n"
          f"Testing Accuracy, all {len(y)} {noun}: {of_all}{note}", flush=True)
    return float(right.mean())


test.__test__ = False  # pytest would take it for a test of a file that imports it


def main():
    """Loads, builds, trains, saves and tests; returns the accuracy on the whole test set.

    Raises a TrainingError where constants, data or network can't be used, where the training
    diverges, or where the model can't be saved in its place. Returns nan if a signal came before
    anything was learned and whoever handles it goes on.
    """
    check_settings()
    with leave_as_found():
        start_generators()
        (train_x, train_y), (test_x, test_y), name = check_data(load_data())
        start_generators()  # anew, so that the network does not depend on what load_data has drawn
        model = check_model(build_model())
        say(f"{name}: {len(train_y)} to train on, {len(test_y)} to test; "
            f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates by minibatches of {BATCH_SIZE}.")
        progress, accuracy = Progress(), float("nan")
        with hold_signals(progress), curves_to_log_dir():
            with keep_what_is_learned(model, progress, name):
                train(model, train_x, train_y, progress)
            if progress.finished:
                print("Optimization Finished!", flush=True)
            if progress.learned:
                accuracy = test(model, test_x, test_y, name)
                draw("test accuracy", accuracy, progress)
    if progress.misplaced:
        raise TrainingError(progress.misplaced)
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

    In TFDS's own folder for such files, those of other data sets have the same names.
    """
    return data_dir() / "downloads" / "mnist"


def read_mnist():
    """Returns (images uint8 [n, 28, 28, 1], labels int64 [n]) to train on, and the same to test.

    Like the original, it sets the first 5,000 of the 60,000 training images aside.
    """
    sentence = f"MNIST in {mnist_dir()} can't be read: set another DATA_DIR or move it away."
    with on_failure(sentence, refuse):
        if not mnist_dir().exists():
            prepare_mnist()
        mnist = tfds.builder_from_directory(mnist_dir())
        return tfds.as_numpy(mnist.as_dataset(["train[5000:]", "test"], batch_size=-1,
                                              as_supervised=True))


def prepare_mnist():
    """Lets TFDS prepare MNIST from its four files."""
    with (
        leave_as_found(),
        to_standard_error(),
        # What TFDS extracts it would share with other runs, and with data sets whose files have
        # the same names.
        tempfile.TemporaryDirectory(dir=files_dir()) as extract_dir,
    ):
        random.seed()  # TFDS draws the name of a folder, which must not be that of another run
        config = tfds.download.DownloadConfig(manual_dir=files_dir(), extract_dir=extract_dir)
        mnist = tfds.builder("mnist", data_dir=data_dir())
        with contextlib.suppress(FileExistsError):  # another run was faster
            mnist.download_and_prepare(download_config=config)


def fetch_mnist():
    """Fetches what is missing of MNIST's four files; returns whether MNIST can be read now."""
    infos = tfds.builder_cls("mnist").url_infos  # {URL: a file's name, size and checksum}
    names = ", ".join(info.filename for info in infos.values())
    sentence = (f"MNIST can be neither read from {data_dir()} nor fetched. To get it, put {names} "
                f"into {files_dir()} and run again. A SOCKS proxy needs pip install pysocks, a "
                "certificate of your organization REQUESTS_CA_BUNDLE.")
    can_be_read = False
    with on_failure(sentence, say if OFFLINE_SAMPLE else refuse, OSError):
        if not mnist_dir().exists():
            for url, info in infos.items():
                fetch_file(url, info)
        can_be_read = True
    return can_be_read


def fetch_file(url, info):
    """Fetches a file, unless it is there; `info` is its name, size in bytes and checksum."""
    def is_right(content):
        return hashlib.sha256(content).hexdigest() == info.checksum

    path = files_dir() / info.filename
    if path.exists():
        if not is_right(path.read_bytes()):
            raise TrainingError(f"{path} is not MNIST's file, by its checksum: put the right one "
                                "there, or delete it to have it fetched.")
        return
    say(f"Fetching {url} to {files_dir()}.")
    reply = requests.get(url, stream=True, timeout=(3, 12))  # seconds to connect, and to read on
    reply.raise_for_status()
    with to_standard_error():
        chunks = tqdm.tqdm(reply.iter_content(1024), total=info.size // 1024 + 1, unit="kB")
        content = b"".join(chunks)
    if not is_right(content):
        raise OSError(f"what came from {url} is not MNIST's file, by its checksum")
    write_whole(path, lambda part: part.write_bytes(content))


def read_uci_digits():
    """Returns 1,541 and 256 UCI digits (Alpaydin, Kaynak, 1998) as `read_mnist` does MNIST."""
    folder = pathlib.Path()  # a notebook's
    if "__file__" in globals():
        folder = pathlib.Path(__file__).parent
    path = folder.absolute() / "uci_digits.npz"
    with on_failure(f"The UCI digits can't be read from {path} either: put them there.", refuse):
        with np.load(path) as digits:
            images, labels = digits["images"], digits["labels"]  # [1797, 8, 8], [1797]
    images = tf.round(tf.image.resize(images[..., np.newaxis], [20, 20]) * (255 / 16))
    images = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)]).astype(np.uint8)  # as in MNIST
    order = np.random.RandomState(0).permutation(len(images))  # the same for every NumPy
    return [(images[part], labels[part]) for part in (order[256:], order[:256])]


# Speed, the third part, may be skipped, or deleted with what calls it: the outputs are the same up
# to rounding, which grows from update to update.

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
with contextlib.suppress(OSError, ValueError):  # a container on Linux may have the time of fewer
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    CORES = min(CORES, max(1, round(int(quota) / int(period))))


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

    if tf.config.list_physical_devices("GPU") or type(model) is not keras.Sequential:
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


def refuse(sentence):
    """Raises a TrainingError."""
    raise TrainingError(sentence)


def say(text):
    """Prints to standard error, even if nobody can read that any more."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def to_standard_error():
    """Lets what libraries print in the block go to standard error or, if it is closed, nowhere."""
    with open(os.devnull, "w") as nowhere:
        stream = sys.stderr or nowhere
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield


@contextlib.contextmanager
def leave_as_found():
    """Puts back, at the block's end, what belongs to the program that calls the script.

    The random generators of TensorFlow and Keras show no state that could be put back. They go on
    from a seed that was drawn from them before the block.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        seed = int(tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32))
    except RuntimeError:  # under tf.config.experimental.enable_op_determinism, without a seed
        seed = secrets.randbits(31)
    floatx, dtype_policy = keras.config.floatx(), keras.config.dtype_policy()
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    eagerly = tf.config.functions_run_eagerly()
    try:
        yield
    finally:
        keras.utils.set_random_seed(seed)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(dtype_policy)
        tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
        tf.config.run_functions_eagerly(eagerly)


@contextlib.contextmanager
def on_failure(sentence, tell, kinds=Exception):
    """Hands `tell` the sentence, with what went wrong, if the block raises one of `kinds`."""
    try:
        yield
    except kinds as error:
        tell(f"{sentence} ({in_short(error)})")


def in_short(error):
    """Returns the kind of an error, or of what caused it, and the first line of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]


def check_settings():
    """Raises a TrainingError with a sentence for each constant that is wrong."""
    def number(value, kind, low, high):
        return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high

    def local(path):
        return isinstance(path, (str, os.PathLike)) and str(path) != "" and "://" not in str(path)

    def check(name, right, must_be):
        if not right:
            wrong.append(f"{name} = {globals()[name]!r} must be {must_be}.")

    wrong = []
    check("DATA_DIR", DATA_DIR is None or local(DATA_DIR), "a local folder, or None")
    if DATA_DIR is None and not local(os.getenv("TFDS_DATA_DIR") or "none"):
        wrong.append(f"TFDS_DATA_DIR = {os.environ['TFDS_DATA_DIR']!r} must be a local folder.")
    check("OFFLINE_SAMPLE", isinstance(OFFLINE_SAMPLE, bool), "True or False")
    is_schedule = isinstance(LEARNING_RATE, keras.optimizers.schedules.LearningRateSchedule)
    check("LEARNING_RATE", is_schedule or number(LEARNING_RATE, numbers.Real, 1e-37, 1e37),
          "a number from 1e-37 to 1e37, or one of keras.optimizers.schedules")
    for name in ("TRAINING_ITERS", "BATCH_SIZE", "DISPLAY_STEP", "N_INPUT", "N_STEPS", "N_HIDDEN",
                 "N_CLASSES", "TEST_LEN"):
        check(name, number(globals()[name], numbers.Integral, 1, 10**12),
              "a whole number from 1 to 10**12")
    check("SEED", SEED is None or number(SEED, numbers.Integral, 0, 2**32 - 1),
          "a whole number from 0 to 2**32 - 1, or None")
    is_model = local(MODEL_PATH) and str(MODEL_PATH).endswith(".keras")
    check("MODEL_PATH", MODEL_PATH is None or is_model,
          "a local file whose name ends in .keras, or None")
    check("LOG_DIR", LOG_DIR is None or local(LOG_DIR), "a local folder, or None")
    if not wrong:
        check("TRAINING_ITERS", TRAINING_ITERS > BATCH_SIZE, f"above BATCH_SIZE = {BATCH_SIZE}")
    if keras.config.backend() != "tensorflow":
        wrong.append(f"Keras has its {keras.config.backend()} backend: restart Python, and import "
                     "or run this script first.")
    if wrong:
        refuse("\n".join(wrong))


def check_data(data):
    """Returns what load_data() returned, as float32 and int64; refuses what can't be used."""
    try:
        (train_x, train_y), (test_x, test_y), name = data
    except (TypeError, ValueError):
        refuse("load_data() must return (train_x, train_y), (test_x, test_y) and a name.")
    train, test = check_split(train_x, train_y, "training"), check_split(test_x, test_y, "test")
    if len(train_y) < BATCH_SIZE:
        refuse(f"BATCH_SIZE = {BATCH_SIZE} must be no larger than the number of training "
               f"sequences, {len(train_y)}.")
    return train, test, str(name)


def check_split(x, y, split):
    """Returns sequences as float32 [n, N_STEPS, N_INPUT] and their labels as int64 [n]."""
    sentence = (f"The {split} sequences are no array of real numbers. Of unequal lengths, "
                "keras.utils.pad_sequences(sequences, N_STEPS, 'float32') makes one.")
    with (on_failure(sentence, refuse, (TypeError, ValueError)),
          np.errstate(over="ignore")):  # what is too large for float32 becomes infinite
        x = np.asarray(x).astype(np.float32, casting="same_kind", copy=False)
    with on_failure(f"The {split} labels are no array.", refuse, ValueError):
        y = np.asarray(y)
    if x.shape[1:] != (N_STEPS, N_INPUT) or len(x) == 0:
        remedy = ""
        if x.ndim == 2 and x.shape[1] == N_STEPS * N_INPUT:
            remedy = " Of rows of a table, sequences.reshape(-1, N_STEPS, N_INPUT) makes them."
        refuse(f"The {split} sequences have the shape {x.shape}, not (n, N_STEPS, N_INPUT) = "
               f"(1 or more, {N_STEPS}, {N_INPUT}).{remedy}")
    if not np.isfinite([x.min(), x.max()]).all():
        refuse(f"The {split} sequences hold nan, or numbers too large for float32, in "
               f"{np.count_nonzero(~np.isfinite(x))} places: fill them in or leave them out.")
    if y.shape != x.shape[:1]:
        remedies = {(len(x), 1): " Of a column, labels[:, 0] takes them.",
                    (len(x), N_CLASSES): " Of one-hot labels, labels.argmax(axis=1) makes them."}
        refuse(f"The {split} labels have the shape {y.shape}, not {x.shape[:1]}, one for each "
               f"sequence.{remedies.get(y.shape, '')}")
    if y.dtype.kind not in "bui":
        refuse(f"The {split} labels are {y.dtype}, not whole numbers. Of numbers such as 3.0 or "
               "'3', labels.astype(int) makes them; of names, their places in a list of all.")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= N_CLASSES:
        remedy = f"If there are {high + 1} classes, set N_CLASSES = {high + 1}."
        if low != 0:
            remedy = "Number the classes from 0."
        refuse(f"The {split} labels go from {low} to {high}, not from 0 to N_CLASSES - 1 = "
               f"{N_CLASSES - 1}. {remedy}")
    return x, y.astype(np.int64)


def check_model(model):
    """Returns the model with all its weights made; refuses one that can't be used."""
    if getattr(model, "optimizer", None) is None:
        refuse(f"build_model() returned {model!r}, not a Keras model that is compiled.")
    if tf.distribute.has_strategy() or model.distribute_strategy != tf.distribute.get_strategy():
        refuse("The model is made in the scope of a tf.distribute strategy: make it outside of "
               "one, or train it by Keras's fit.")
    # A Sequential keeps the batch size that it first meets.
    batch_size = None if isinstance(model, keras.Sequential) else BATCH_SIZE
    outputs = model(keras.Input([N_STEPS, N_INPUT], batch_size))
    if getattr(outputs, "shape", None) != (batch_size, N_CLASSES):
        refuse(f"The model returns {getattr(outputs, 'shape', outputs)}, not [n, N_CLASSES] = "
               f"[n, {N_CLASSES}].")
    if not model.optimizer.built:  # else TensorFlow would trace the first update twice
        model.optimizer.build(model.trainable_variables)
    if model.run_eagerly:
        tf.config.run_functions_eagerly(True)
    return model


@contextlib.contextmanager
def hold_signals(progress):
    """Holds signals that would end the run back to the block's end, but for a second Ctrl-C."""
    def those_of_this_system(*names):
        return {getattr(signal, name) for name in names if hasattr(signal, name)}

    ctrl_c = those_of_this_system("SIGINT", "SIGBREAK")
    requests_to_end = ctrl_c | those_of_this_system("SIGTERM", "SIGHUP")
    # Schedulers and limits of time send these. A handler of somebody's own may have other plans.
    scheduler_signals = those_of_this_system("SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGQUIT")

    def hold(number, frame):
        if number in ctrl_c and number in progress.signals:
            progress.lost = True
            raise KeyboardInterrupt
        progress.signals.append(number)  # a closing terminal may send SIGHUP twice

    earlier_handlers = {}
    try:
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            for number in requests_to_end | scheduler_signals:
                handler = signal.getsignal(number)
                # None: a handler that was there before Python
                held_anyway = number in requests_to_end and handler not in (signal.SIG_IGN, None)
                if handler == signal.SIG_DFL or held_anyway:
                    earlier_handlers[number] = handler
                    signal.signal(number, hold)
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)
        with contextlib.ExitStack() as effects:  # which has all of them, though one may raise
            for number in reversed(dict.fromkeys(progress.signals)):
                if earlier_handlers[number] == signal.SIG_DFL:
                    effects.callback(exit_as_process_1, number)
                effects.callback(signal.raise_signal, number)


def exit_as_process_1(number):
    """Ends the program as a signal does elsewhere: it can't end process 1 of a container."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def keep_what_is_learned(model, progress, name):
    """Saves the model at the block's end, whatever ends it, if there is something to keep."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        by = f" by {signal.Signals(progress.signals[0]).name}" if progress.signals else ""
        if progress.learned:
            save(model, progress, name)
        say(f"Training ended{by} at Iter {progress.seen} after {seconds:.1f} s.")


def stop_if_diverged(model, progress, *values):
    """Raises a TrainingError where one of `values`, losses or weights, is not finite."""
    if not all(np.isfinite(value).all() for value in values):
        progress.lost = True
        refuse(f"A loss or weight is not finite at Iter {progress.seen}: the learning rate, "
               f"{float(model.optimizer.learning_rate):g}, is probably too high. Not saved.")


def save(model, progress, name):
    """Saves the model to MODEL_PATH or, if that fails, its weights to a temporary file."""
    stop_if_diverged(model, progress, *model.get_weights())
    if MODEL_PATH is None:
        return
    place = str(MODEL_PATH)
    if name == SAMPLE:  # so that MNIST's model keeps its place
        place = place.removesuffix(".keras") + "-uci_digits.keras"
    try:
        path = pathlib.Path(os.path.realpath(os.path.expanduser(place)))  # of a link, its target
        write_whole(path, model.save)
    except Exception as error:  # whatever it is, the weights can be rescued
        say(f"The model can't be saved to {place} ({in_short(error)}).")
        progress.misplaced = rescue(model, place)
    else:
        say(f"The model, trained on {name}, is saved to {path}.")


def rescue(model, place):
    """Saves a model's weights to a temporary file; returns a sentence about where it is now."""
    def save_weights(part):
        variables = model.variables + model.optimizer.variables
        size = sum(variable.numpy().nbytes for variable in variables)
        # On a full disk this fails, where HDF5 would crash Python. A file of weights holds a little
        # more than the weights, so twice their size is tried.
        part.write_bytes(bytes(2 * size))
        model.save_weights(part)

    try:
        path = pathlib.Path(tempfile.gettempdir(), f"rnn_mnist-{run_name()}.weights.h5")
        write_whole(path, save_weights)
    except Exception as error:
        say(f"Its weights can't be saved to a temporary file either ({in_short(error)}).")
        return f"The model is neither in {place} nor anywhere else."
    say(f"Its weights are saved to {path}: check_model(build_model()).load_weights({str(path)!r}) "
        "reads them.")
    return f"The model is not in {place}, but its weights are in {path}."


def run_name():
    """Returns a name that no other run has: when, and in which process."""
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"


def write_whole(path, write):
    """Lets `write` fill a file that then takes the place of `path`, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = pathlib.Path(folder, path.name)
        write(part)
        os.replace(part, path)


@contextlib.contextmanager
def curves_to_log_dir():
    """Lets the block's curves go into a folder of the run's own in LOG_DIR, if there is one."""
    sentence = f"The curves can't be written to {LOG_DIR}."
    with contextlib.ExitStack() as curves:
        if LOG_DIR is not None:
            with on_failure(sentence, say, tf.errors.OpError):
                folder = os.path.join(os.path.expanduser(LOG_DIR), run_name())
                curves.enter_context(tf.summary.create_file_writer(folder).as_default())
        yield
        with on_failure(sentence, say, tf.errors.OpError):
            curves.close()


if __name__ == "__main__":
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
