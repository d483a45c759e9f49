"""Reads MNIST digits row by row with an LSTM: a TensorFlow 0.8 tutorial script, ported to TensorFlow 2 and Keras 3.

Run it with `python rnn_mnist.py`; the constants below are its settings. Standard output is the original's log,
everything else goes to standard error. README.md explains the network and how the port differs from the original.
The program reads from here to main(); what follows main() keeps faults from costing anyone their work.
"""

import contextlib
import datetime
import errno
import functools
import hashlib
import numbers
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

if __name__ == "__main__":  # Ctrl-C while TensorFlow or the data load ends the script at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up messages; TensorFlow reads it when it loads

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# data
DATA_DIR = None  # folder of TFDS's data sets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets
OFFLINE_SAMPLE = True  # where MNIST can't be had: True trains on the bundled UCI digits, False stops

# training
LEARNING_RATE = 0.001  # Adam's step size
TRAINING_ITERS = 100000  # training images, counted each time they are seen
BATCH_SIZE = 128  # images in a minibatch
DISPLAY_STEP = 10  # minibatches from one log line to the next
SEED = 0  # the same log every time; None: another run each time

# network
N_INPUT = 28  # pixels the LSTM reads at a timestep
N_STEPS = 28  # timesteps; N_STEPS * N_INPUT is 784, the pixels of an image
N_HIDDEN = 128  # LSTM units, and the width of the input projection
N_CLASSES = 10  # digits

# output
TEST_LEN = 256  # test images in the original's last line
MODEL_PATH = "rnn_mnist.keras"  # file for the trained model; None: not saved
LOG_DIR = None  # folder for TensorBoard's curves, a subfolder a run; None: no curves


# data

def load_data():
    """Loads MNIST or, where it can't be had, the UCI digits bundled with this script.

    Returns (train images, train labels), (test images, test labels) and the name of the data set; images are
    uint8 [n, N_STEPS, N_INPUT] from 0 to 255, labels int64 [n]. Ends the program where MNIST is damaged or, without
    OFFLINE_SAMPLE, can't be had.
    """
    try:
        if not os.path.exists(mnist_dir()):
            prepare_mnist()
        splits, name = read_mnist(), "MNIST"
    except ConnectionError as error:
        if not OFFLINE_SAMPLE:
            sys.exit(str(error))
        print(f"{error} This run uses the bundled UCI digits instead: its figures are not MNIST's.", file=sys.stderr)
        splits, name = read_uci_digits(), "UCI digits, not MNIST"
    train, test = [(images.reshape(-1, N_STEPS, N_INPUT), labels) for images, labels in splits]
    return train, test, name


def read_mnist():
    """Reads prepared MNIST: (images uint8 [n, 28, 28, 1], labels int64 [n]) of 55,000 and of 10,000 for testing.

    The original set 5,000 training images aside; they are read, since only then TFDS finds damage in them. Ends the
    program where it finds any.
    """
    try:
        builder = tfds.builder("mnist", data_dir=mnist_dir().parents[1])
        splits = builder.as_dataset(["train[:5000]", "train[5000:]", "test"], batch_size=-1, as_supervised=True)
        return tfds.as_numpy(splits[1:])
    except Exception as error:  # whatever the damage makes TFDS, TensorFlow or Python raise
        sys.exit(f"MNIST in {mnist_dir()} is damaged: delete that folder and run again. ({first_line(error)})")


def read_uci_digits():
    """Reads the UCI digits in MNIST's geometry, 20 x 20 in 28 x 28, as read_mnist: 1,541 and 256 for testing.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    with np.load(pathlib.Path(__file__).with_name("uci_digits.npz")) as digits:
        images, labels = digits["images"], digits["labels"].astype(np.int64)  # [1797, 8, 8] from 0 to 16, [1797]
    images = tf.image.resize(images[..., np.newaxis], [20, 20]) * (255 / 16)  # bilinear, [1797, 20, 20, 1]
    images = tf.image.pad_to_bounding_box(tf.cast(tf.round(images), tf.uint8), 4, 4, 28, 28).numpy()
    order = np.random.RandomState(0).permutation(len(images))  # the same in every version of NumPy
    return [(images[part], labels[part]) for part in (order[256:], order[:256])]


def minibatches(images, labels):
    """Yields (images, labels) of BATCH_SIZE without end: every epoch in a new order, its short tail dropped."""
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(images))
        for start in range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[start:start + BATCH_SIZE]
            yield images[chosen], labels[chosen]


# model

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # this process may use


def build_model():
    """Returns the network, [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES], with the original's initial weights.

    The original's LSTM kernel was one matrix, uniform with variance 1 / fan-in, so both of Keras's kernels count the
    fan-in of the two. Its forget gate added 1 at every step; Keras starts that gate's bias at 1, the same function.
    """
    normal = functools.partial(tf.keras.initializers.RandomNormal, stddev=1.0)
    bound = (3 / (2 * N_HIDDEN)) ** 0.5
    uniform = functools.partial(tf.keras.initializers.RandomUniform, -bound, bound)
    model = tf.keras.Sequential([
        tf.keras.Input([N_STEPS, N_INPUT]),
        tf.keras.layers.Dense(N_HIDDEN, kernel_initializer=normal(), bias_initializer=normal(), name="hidden"),
        tf.keras.layers.LSTM(N_HIDDEN, kernel_initializer=uniform(), recurrent_initializer=uniform(), name="lstm"),
        tf.keras.layers.Dense(N_CLASSES, "softmax", kernel_initializer=normal(), bias_initializer=normal(), name="out"),
    ])
    adam = tf.keras.optimizers.Adam(float(LEARNING_RATE), epsilon=1e-8)  # the original's epsilon; Keras's own is 1e-7
    adam.build(model.trainable_variables)  # else TensorFlow would trace the first update twice
    model.compile(adam, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def logits_of(model, images):
    """Returns the logits [n, N_CLASSES] of `images` [n, N_STEPS, N_INPUT], whose pixels go from 0 to 255."""
    hidden, lstm, out = model.layers
    rows = tf.cast(images, tf.float32) / 255
    if tf.config.list_physical_devices("GPU"):
        outputs = lstm(hidden(rows))  # [n, N_HIDDEN], by cuDNN
    else:  # a shard of the images for each core; one below 32 images is not worth a thread
        shards = np.array_split(range(images.shape[0]), max(1, min(CORES, images.shape[0] // 32)))
        outputs = [last_output(hidden, lstm.cell, shard) for shard in tf.split(rows, [len(shard) for shard in shards])]
        outputs = tf.concat(outputs, axis=0)  # [n, N_HIDDEN]
    return tf.matmul(outputs, out.kernel) + out.bias


def last_output(hidden, cell, rows):
    """Returns what the LSTM layer does, [n, N_HIDDEN], for `rows` [n, N_STEPS, N_INPUT], faster on a CPU.

    The projection before it is linear, so it folds into the LSTM's input kernel: (x W + b) K = x (W K) + b K is the
    same function with the same gradients, and its product for a row has N_INPUT inner columns, not N_HIDDEN. The rest
    is the original's BasicLSTMCell: https://arxiv.org/abs/1409.2329.
    """
    input_kernel = tf.matmul(hidden.kernel, cell.kernel)  # [N_INPUT, 4 * N_HIDDEN]
    bias = tf.linalg.matvec(cell.kernel, hidden.bias, transpose_a=True) + cell.bias  # [4 * N_HIDDEN]

    def timestep(state, row):  # ([n, N_HIDDEN], [n, N_HIDDEN]), [n, N_INPUT]
        h, c = state
        gates = tf.nn.bias_add(tf.matmul(row, input_kernel), bias) + tf.matmul(h, cell.recurrent_kernel)
        i, f, j, o = tf.split(gates, 4, axis=1)  # input gate, forget gate, new input, output gate: [n, N_HIDDEN]
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(j)
        return tf.sigmoid(o) * tf.tanh(c), c

    zeros = tf.zeros([rows.shape[0], cell.units])
    rows = tf.transpose(rows, [1, 0, 2])  # [N_STEPS, n, N_INPUT]
    if rows.shape[0] <= 56:  # unrolled, the steps run a tenth faster, but the graph grows with each
        h, _ = functools.reduce(timestep, tf.unstack(rows), (zeros, zeros))
    else:
        h, _ = tf.foldl(timestep, rows, (zeros, zeros))
    return h


def use_every_core():
    """Lets the shards of `logits_of` run side by side on a CPU, each on one core."""
    if not tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # too late where a notebook has used TensorFlow: slower, but right
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(CORES)


# training

def loss_and_accuracy(logits, labels):
    """Returns the mean cross-entropy and the share of right answers of `logits` [n, N_CLASSES] for `labels` [n]."""
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    accuracy = tf.reduce_mean(tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32))
    return loss, accuracy


def train_step(model, images, labels):
    """Updates the weights once for a minibatch, uint8 [n, N_STEPS, N_INPUT] and int64 [n], by the model's optimizer."""
    with tf.GradientTape() as tape:
        loss, _ = loss_and_accuracy(logits_of(model, images), labels)
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))


def train(model, images, labels, signals):
    """Trains until TRAINING_ITERS images have been seen or `signals` holds a signal; returns how many were seen.

    Takes images uint8 [n, N_STEPS, N_INPUT] and labels int64 [n]. Ends the program where the loss is no longer finite.
    """
    update, predict = tf.function(train_step, autograph=False), tf.function(logits_of, autograph=False)
    batches = minibatches(images, labels)
    step = 1
    while step * BATCH_SIZE < TRAINING_ITERS and not signals:
        batch_images, batch_labels = next(batches)
        update(model, batch_images, batch_labels)
        if step % DISPLAY_STEP == 0:
            seen = step * BATCH_SIZE
            loss, accuracy = loss_and_accuracy(predict(model, batch_images), batch_labels)
            check_finite(loss, seen)
            log(f"Iter {seen}, Minibatch Loss= {loss:.6f}, Training Accuracy= {accuracy:.5f}")
            curves(seen, {"minibatch loss": loss, "minibatch accuracy": accuracy})
        step += 1
    return (step - 1) * BATCH_SIZE


def test_logits(model, images):
    """Returns the logits [n, N_CLASSES] of any number of images [n, N_STEPS, N_INPUT], in bounded memory."""
    predict = tf.function(logits_of, autograph=False)
    return tf.concat([predict(model, images[start:start + 1000]) for start in range(0, len(images), 1000)], axis=0)


# main

def main():
    """Trains, tests and saves the network.

    Returns the exit status: 0, 1 if the model is not where it should be, 128 + the signal that ended the training.
    """
    check_settings()
    use_every_core()
    (images, labels), (test_images, test_labels), name = load_data()
    check_settings(len(images), len(test_images))
    if SEED is not None:
        tf.keras.utils.set_random_seed(SEED)
    model = build_model()
    if LOG_DIR is not None:
        run = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
        tf.summary.create_file_writer(os.path.join(os.path.expanduser(LOG_DIR), run)).set_as_default()
    device = "GPU" if tf.config.list_physical_devices("GPU") else f"CPU with {CORES} cores"
    print(f"{name}: {len(images)} training and {len(test_images)} test images; "
          f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates of {BATCH_SIZE} images on the {device}.", file=sys.stderr)
    signals = []
    with on_signals(signals.append):
        start = time.perf_counter()
        seen = train(model, images, labels, signals)
        seconds = time.perf_counter() - start
        if signals:
            print(f"Stopped by {signal.Signals(signals[0]).name} at Iter {seen}.", file=sys.stderr)
            if seen == 0:  # nothing that would be worth an earlier model's place
                return 128 + signals[0]
        else:
            log("Optimization Finished!")
        print(f"Training took {seconds:.1f} s, {seen / seconds:.0f} images a second.", file=sys.stderr)
        logits = test_logits(model, test_images)
        loss, accuracy = loss_and_accuracy(logits, test_labels)
        _, accuracy_of_first = loss_and_accuracy(logits[:TEST_LEN], test_labels[:TEST_LEN])
        check_finite(loss, seen)
        note = "" if name == "MNIST" else f" ({name})"
        log(f"Testing Accuracy: {accuracy_of_first.numpy()!s}{note}")
        log(f"Testing Accuracy, all {len(test_labels)} images: {accuracy.numpy()!s}{note}")
        curves(seen, {"test accuracy": accuracy})
        saved = MODEL_PATH is None or save(model)
    return 128 + signals[0] if signals else int(not saved)


# faults: settings

def check_settings(train_size=55000, test_size=10000):
    """Ends the program with a sentence for each constant that is wrong, given the sizes of the data set in images."""
    wrong = []

    def check(name, right, allowed):
        if not right:
            wrong.append(f"{name} = {globals()[name]!r} must be {allowed}.")

    def whole(value, low=1, high=10**12):
        return isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= value <= high

    def path(value):
        return isinstance(value, (str, os.PathLike)) and os.fspath(value) != ""

    check("DATA_DIR", DATA_DIR is None or path(DATA_DIR) and (os.path.exists(mnist_dir()) or can_write(DATA_DIR)),
          "a folder that holds MNIST or can be written, or None")
    check("OFFLINE_SAMPLE", isinstance(OFFLINE_SAMPLE, bool), "True or False")
    check("LEARNING_RATE", isinstance(LEARNING_RATE, numbers.Real) and not isinstance(LEARNING_RATE, bool)
          and 1e-37 < LEARNING_RATE < 3e38, "a finite number above 0")  # float32 holds no others
    check("BATCH_SIZE", whole(BATCH_SIZE, 1, train_size), f"a whole number from 1 to the {train_size} training images")
    check("SEED", SEED is None or whole(SEED, 0, 2**32 - 1), "a whole number from 0 to 4294967295, or None")
    for name in ("TRAINING_ITERS", "DISPLAY_STEP", "N_INPUT", "N_STEPS", "N_HIDDEN"):
        check(name, whole(globals()[name]), "a whole number from 1 to 10**12")
    check("N_CLASSES", whole(N_CLASSES, 10), "a whole number from 10, the digits, to 10**12")
    check("TEST_LEN", whole(TEST_LEN, 1, test_size), f"a whole number from 1 to the {test_size} test images")
    check("MODEL_PATH", MODEL_PATH is None or path(MODEL_PATH) and os.fspath(MODEL_PATH).endswith(".keras")
          and not os.path.isdir(os.path.expanduser(MODEL_PATH)) and can_write(os.path.dirname(MODEL_PATH)),
          "a file ending in .keras, in a folder that can be written, or None")
    check("LOG_DIR", LOG_DIR is None or path(LOG_DIR) and can_write(LOG_DIR), "a folder that can be written, or None")
    if whole(N_STEPS) and whole(N_INPUT) and N_STEPS * N_INPUT != 784:
        wrong.append(f"N_STEPS = {N_STEPS} times N_INPUT = {N_INPUT} must be 784, the pixels of an image.")
    if wrong:
        sys.exit("\n".join(wrong))


def can_write(folder):
    """Tells whether files can be made in `folder` or, where it is yet to be made, in the nearest one above it."""
    folder = pathlib.Path(os.path.expanduser(folder)).absolute()
    try:
        tempfile.TemporaryFile(dir=next(each for each in (folder, *folder.parents) if os.path.exists(each))).close()
        return True
    except (OSError, StopIteration):
        return False


# faults: data and network

def mnist_dir():
    """Returns the folder where TFDS keeps MNIST prepared, be it there or not."""
    data_dir = DATA_DIR or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(os.path.expanduser(data_dir), "mnist", str(tfds.builder_cls("mnist").VERSION))


def prepare_mnist():
    """Lets TFDS prepare MNIST from its four original files, those in downloads/manual and the others downloaded.

    Raises ConnectionError, which says how to get the files, where they are missing and can't be downloaded.
    """
    data_dir, url_infos = mnist_dir().parents[1], tfds.builder_cls("mnist").url_infos
    manual_dir, missing = data_dir / "downloads" / "manual", []
    for url, info in url_infos.items():
        path = manual_dir / info.filename
        if not path.exists():
            missing.append(url)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != info.checksum:
            sys.exit(f"{path} is damaged or not MNIST's: replace it, or delete it to download it, and run again.")
    with (on_signals(lambda number: sys.exit(128 + number)), tempfile.TemporaryDirectory() as download_dir,
          contextlib.redirect_stdout(sys.stderr)):
        try:
            if missing:
                download(missing, download_dir)
            tfds.builder("mnist", data_dir=data_dir).download_and_prepare(
                download_dir=download_dir, download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
        except ConnectionError as error:
            names = ", ".join(info.filename for info in url_infos.values())
            raise ConnectionError(
                f"MNIST is not in {data_dir}, and its download from {os.path.dirname(missing[0])} failed ({error}). "
                f"To get it, put {names} into {manual_dir} and run again.") from error
        except Exception as error:
            if not os.path.exists(mnist_dir()):  # or else another run was faster
                sys.exit(f"MNIST can't be prepared in {data_dir}: {first_line(error)}.")


# TFDS's download knows no timeout, so it runs in a process of its own, which can be ended once nothing more arrives.
# It would try eleven times, silently, for 205 s; one try tells whether there is a network.
DOWNLOAD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the script, which then ends this process
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader
downloader.MAX_RETRIES = 0
manager = tfds.download.DownloadManager(
    download_dir=sys.argv[1], dataset_name="mnist", url_infos=tfds.builder_cls("mnist").url_infos)
try:
    manager.download(sys.argv[2:])
except Exception as error:
    while error.__context__:
        error = error.__context__  # what came first says it most plainly
    print(str(error).partition("\\n")[0], flush=True)
    os._exit(1)  # without waiting for the other files
"""


def download(urls, folder, patience=12):
    """Downloads `urls` into `folder` with TFDS's progress bar.

    Raises ConnectionError where that fails, or once nothing has arrived for `patience` seconds.
    """
    command = [sys.executable, "-c", DOWNLOAD, folder, *urls]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            arrived = None
            while process.poll() is None:
                before = arrived
                with contextlib.suppress(FileNotFoundError):  # TFDS moves a file when it is complete
                    arrived = [path.stat().st_size for path in pathlib.Path(folder).rglob("*")]
                if arrived != before:
                    deadline = time.monotonic() + patience
                elif time.monotonic() > deadline:
                    print("\n", file=sys.stderr)  # below the progress bar
                    raise ConnectionError(f"nothing arrived for {patience} s")
                time.sleep(0.1)
        finally:
            process.kill()
        if process.returncode:
            raise ConnectionError(process.stdout.read().strip())


def first_line(error):
    """Returns what kind of exception `error` is, and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


# faults: signals, training and output

@contextlib.contextmanager
def on_signals(handle):
    """Calls `handle` with the number of the block's first Ctrl-C or SIGTERM; a second is met as if outside it."""
    with contextlib.ExitStack() as earlier_handlers:

        def first(number, frame):
            earlier_handlers.close()
            handle(number)

        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                earlier_handlers.callback(signal.signal, number, signal.signal(number, first))
        yield


def check_finite(loss, seen):
    """Ends the program where training has diverged."""
    if not np.isfinite(loss):
        sys.exit(f"The loss is {loss} at Iter {seen}: LEARNING_RATE = {LEARNING_RATE} is probably too high. "
                 "Nothing was saved.")


def log(line):
    """Prints a line of the original's log at once; ends the program quietly if nobody reads on (`| head -3`)."""
    try:
        print(line, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to flush at the end
        closed_pipe = error.errno in (errno.EPIPE, errno.EINVAL)  # the latter on Windows
        sys.exit(1 if closed_pipe else f"The log can't be written: {error}.")


def curves(seen, values):
    """Adds a point to each curve of `values`, {name: value}, if LOG_DIR is set; warns where they can't be written."""
    if LOG_DIR is None:
        return
    scalars = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    try:
        for name, value in values.items():  # tf.summary.scalar would do it, but only where TensorBoard is installed
            tf.summary.write(name, value, seen, tf.compat.v1.SummaryMetadata(plugin_data=scalars))
        tf.summary.flush()
    except tf.errors.OpError as error:
        print(f"The curves can't be written to {LOG_DIR}: {first_line(error)}.", file=sys.stderr)


def save(model):
    """Writes the model to MODEL_PATH or, if that fails, to the folder for temporary files; tells if it was the former.

    It is written beside its place and moved there, so that what stood there before is replaced whole or not at all.
    """
    wanted = os.path.realpath(os.path.expanduser(MODEL_PATH))
    for path in (wanted, os.path.join(tempfile.gettempdir(), f"rnn_mnist-{os.getpid()}.keras")):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
                model.save(os.path.join(folder, "model.keras"))
                os.replace(os.path.join(folder, "model.keras"), path)
            print(f"The model is saved to {path}.", file=sys.stderr)
            return path == wanted
        except OSError as error:
            print(f"The model can't be saved to {path}: {error}.", file=sys.stderr)
    return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (MemoryError, tf.errors.ResourceExhaustedError):
        sys.exit(f"BATCH_SIZE = {BATCH_SIZE} and N_HIDDEN = {N_HIDDEN} need more memory than there is: lower them.")
