"""Reads MNIST digits row by row with an LSTM: a TensorFlow 0.8 tutorial script, ported to TensorFlow 2 and Keras 3.

Run it with `python rnn_mnist.py`; the constants below are its settings. README.md explains the network and how the port
differs from the original. Standard output is the original's log, everything else goes to standard error.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up messages; TensorFlow reads it when it loads
os.environ.update(KERAS_BACKEND="tensorflow", KERAS_NNX_ENABLED="0")  # whatever Keras's settings file says
try:
    import keras
except Exception:  # an entry of the file or the environment that Keras refuses: do without them
    os.environ.update(KERAS_HOME=os.devnull, KERAS_MAX_EPOCHS="0", KERAS_MAX_STEPS_PER_EPOCH="0")
    import keras
import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm

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

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # this process may use
with contextlib.suppress(OSError, ValueError):  # on Linux, a container may get the time of fewer: "150000 100000"
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    CORES = min(CORES, max(1, round(int(quota) / int(period))))


def load_data():
    """Returns (images, labels) for training, (images, labels) for testing and the name of the data set they come from.

    Images are uint8 [n, N_STEPS, N_INPUT] from 0 to 255, labels int64 [n].
    """
    has_mnist = os.path.exists(mnist_dir()) or fetch_mnist()
    splits = read_mnist() if has_mnist else read_uci_digits()
    train, test = [(images.reshape(-1, N_STEPS, N_INPUT), labels) for images, labels in splits]
    return train, test, "MNIST" if has_mnist else "UCI digits, not MNIST"


def read_mnist():
    """Reads MNIST, which TFDS prepares first: (images uint8 [n, 28, 28, 1], labels int64 [n]) of 55,000 and 10,000."""
    with on_failure(f"MNIST in {mnist_dir()} can't be read: set another DATA_DIR or, if it is damaged, move it away."):
        with contextlib.suppress(FileExistsError), contextlib.redirect_stdout(sys.stderr):  # another run was faster
            tfds.builder("mnist", data_dir=mnist_dir().parents[1]).download_and_prepare()
        builder = tfds.builder_from_directory(mnist_dir())
        if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:  # prepared for tfds.data_source, as by Grain
            sources = builder.as_data_source(["train", "test"], decoders={"image": tfds.decode.SkipDecoding()})
            splits = [(np.array([tf.io.decode_png(each["image"]) for each in split]),
                       np.array([each["label"] for each in split])) for split in map(list, sources)]
        else:
            splits = tfds.as_numpy(builder.as_dataset(["train", "test"], batch_size=-1, as_supervised=True))
    (images, labels), test = splits
    return (images[5000:], labels[5000:]), test  # like the original, which set the others aside


def read_uci_digits():
    """Reads the UCI digits in MNIST's geometry, 20 x 20 in 28 x 28, as read_mnist: 1,541 and 256 for testing.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    path = os.path.join(os.path.dirname(globals().get("__file__", "")), "uci_digits.npz")  # a notebook has no __file__
    with (on_failure(f"The UCI digits can't be read from {os.path.abspath(path)} either: put that file there."),
          np.load(path) as digits):
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
        for chosen in order[:len(order) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE):
            yield images[chosen], labels[chosen]


def build_model():
    """Returns the network, [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES], with the original's initial weights.

    The original's LSTM kernel was one matrix, uniform with variance 1 / fan-in, so both of Keras's kernels count the
    fan-in of the two. Its forget gate added 1 at every step; Keras starts that gate's bias at 1, the same function.
    """
    keras.config.set_floatx("float32")  # whatever Keras's settings file or, in a notebook, an earlier call says
    keras.config.set_dtype_policy("float32")
    normal = functools.partial(keras.initializers.RandomNormal, stddev=1.0)
    bound = (3 / (2 * N_HIDDEN)) ** 0.5
    uniform = functools.partial(keras.initializers.RandomUniform, -bound, bound)
    model = keras.Sequential([
        keras.Input([N_STEPS, N_INPUT]),
        keras.layers.Dense(N_HIDDEN, kernel_initializer=normal(), bias_initializer=normal(), name="hidden"),
        keras.layers.LSTM(N_HIDDEN, kernel_initializer=uniform(), recurrent_initializer=uniform(), name="lstm"),
        keras.layers.Dense(N_CLASSES, "softmax", kernel_initializer=normal(), bias_initializer=normal(), name="out"),
    ])
    adam = keras.optimizers.Adam(float(LEARNING_RATE), epsilon=1e-8)  # the original's epsilon; Keras's own is 1e-7
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
            tf.config.threading.set_inter_op_parallelism_threads(min(CORES, max(2, BATCH_SIZE // 32)))


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
    model.optimizer.apply(gradients, model.trainable_variables)


def train(model, images, labels, signals):
    """Trains until it has seen TRAINING_ITERS images or `signals` holds a signal; returns how many it has seen."""
    update, predict = tf.function(train_step, autograph=False), tf.function(logits_of, autograph=False)
    batches = minibatches(images, labels)
    step = 1
    while step * BATCH_SIZE < TRAINING_ITERS and not signals:
        batch_images, batch_labels = next(batches)
        update(model, batch_images, batch_labels)
        if step % DISPLAY_STEP == 0:
            seen = step * BATCH_SIZE
            loss, accuracy = loss_and_accuracy(predict(model, batch_images), batch_labels)
            watch(seen, loss, {"minibatch loss": loss, "minibatch accuracy": accuracy})
            print(f"Iter {seen}, Minibatch Loss= {loss:.6f}, Training Accuracy= {accuracy:.5f}", flush=True)
        step += 1
    return (step - 1) * BATCH_SIZE


def main():
    """Trains, tests and saves the network; returns the exit status: 0, 1 if saving failed, 128 + the ending signal."""
    check_settings()
    use_every_core()
    (images, labels), (test_images, test_labels), name = load_data()
    check_settings(len(images), len(test_images))
    if SEED is not None:
        keras.utils.set_random_seed(int(SEED))
    model = build_model()
    if LOG_DIR is not None:
        run = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.perf_counter_ns()}"
        tf.summary.create_file_writer(os.path.join(os.path.expanduser(LOG_DIR), run)).set_as_default()
    device = "GPU" if tf.config.list_physical_devices("GPU") else f"CPU with {CORES} cores"
    print(f"{name}: {len(images)} training and {len(test_images)} test images; "
          f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates of {BATCH_SIZE} images on the {device}.", file=sys.stderr)
    with first_signal() as signals:
        start = time.perf_counter()
        seen = train(model, images, labels, signals)
        seconds = time.perf_counter() - start
        stop = f"Stopped by {signal.Signals(signals[0]).name} at Iter {seen}. " if signals else ""
        print(f"{stop}Training took {seconds:.1f} s, {seen / seconds:.0f} images a second.", file=sys.stderr)
        if signals and seen <= BATCH_SIZE:  # nothing learned that would be worth an earlier model's place
            return 128 + signals[0]
        predict = tf.function(logits_of, autograph=False)
        logits = tf.concat([predict(model, test_images[n:n + 1000]) for n in range(0, len(test_images), 1000)], axis=0)
        loss, accuracy = loss_and_accuracy(logits, test_labels)
        _, accuracy_of_first = loss_and_accuracy(logits[:TEST_LEN], test_labels[:TEST_LEN])
        watch(seen, loss, {"test accuracy": accuracy})
        saved = MODEL_PATH is None or save(model)
    if not signals:
        print("Optimization Finished!")
    note = "" if name == "MNIST" else f" ({name})"
    print(f"Testing Accuracy: {accuracy_of_first.numpy()!s}{note}")
    print(f"Testing Accuracy, all {len(test_labels)} images: {accuracy.numpy()!s}{note}", flush=True)
    return 128 + signals[0] if signals else int(not saved)


# faults: what follows keeps them from costing anyone their work

def check_settings(train_size=55000, test_size=10000):
    """Ends the program with a sentence for each constant that is wrong, given the sizes of the data set in images."""

    def number(value, low=1, high=10**12, kinds=(int, np.integer)):
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    settings = [  # name, whether its value is right, what it must be
        ("DATA_DIR", DATA_DIR is None or can_write(DATA_DIR) or os.path.exists(mnist_dir()),
         "a folder that holds MNIST or can be written, or None"),
        ("OFFLINE_SAMPLE", isinstance(OFFLINE_SAMPLE, bool), "True or False"),
        ("LEARNING_RATE", number(LEARNING_RATE, 1e-37, 3e38, (int, float, np.number)), "a finite number above 0"),
        ("BATCH_SIZE", number(BATCH_SIZE, 1, train_size), f"a whole number from 1 to the {train_size} training images"),
        *((name, number(globals()[name]), "a whole number from 1 to 10**12")
          for name in ("TRAINING_ITERS", "DISPLAY_STEP", "N_INPUT", "N_HIDDEN")),
        ("SEED", SEED is None or number(SEED, 0, 2**32 - 1), "a whole number from 0 to 4294967295, or None"),
        ("N_STEPS", number(N_STEPS) and (not number(N_INPUT) or N_STEPS * N_INPUT == 784),
         f"a whole number that times N_INPUT = {N_INPUT!r} is 784, the pixels of an image"),
        ("N_CLASSES", number(N_CLASSES, 10), "a whole number from 10, the digits, to 10**12"),
        ("TEST_LEN", number(TEST_LEN, 1, test_size), f"a whole number from 1 to the {test_size} test images"),
        ("MODEL_PATH", MODEL_PATH is None or str(MODEL_PATH).endswith(".keras")
         and can_write(os.path.dirname(MODEL_PATH) or ".") and not os.path.isdir(os.path.expanduser(MODEL_PATH)),
         "a file ending in .keras, in a folder that can be written, or None"),
        ("LOG_DIR", LOG_DIR is None or can_write(LOG_DIR) and importlib.util.find_spec("tensorboard"),
         "a folder that can be written, with TensorBoard installed (pip install tensorboard), or None"),
    ]
    if keras.config.backend() != "tensorflow":
        sys.exit(f"Keras is loaded with its {keras.config.backend()} backend: restart Python, run this script first.")
    if wrong := [f"{name} = {globals()[name]!r} must be {allowed}." for name, right, allowed in settings if not right]:
        sys.exit("\n".join(wrong))


def can_write(folder):
    """Tells whether `folder` is a path where files can be made, at the latest once the folders to it are made."""
    path = pathlib.Path(os.path.expanduser(str(folder))).absolute()
    existing = next((each for each in (path, *path.parents) if os.path.exists(each)), path)
    is_path = isinstance(folder, (str, os.PathLike)) and str(folder) != ""
    return is_path and os.path.isdir(existing) and os.access(existing, os.W_OK)


@contextlib.contextmanager
def on_failure(sentence, kinds=Exception, stop=True):
    """Says `sentence`, with the reason, if the block raises one of `kinds`; ends the program unless `stop` is False."""
    try:
        yield
    except kinds as error:
        while cause := error.__cause__ or not error.__suppress_context__ and error.__context__:
            error = cause  # what went wrong first says it most plainly
        sentence += f" ({type(error).__name__}: {error}".splitlines()[0] + ")"
        if stop:
            sys.exit(sentence)
        print(sentence, file=sys.stderr)


@contextlib.contextmanager
def first_signal():
    """Yields a list for the number of the block's first Ctrl-C or SIGTERM; a second is met as if outside the block."""
    signals = []
    with contextlib.ExitStack() as earlier_handlers:
        def note(number, frame):
            signals.append(number)
            earlier_handlers.close()

        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                earlier_handlers.callback(signal.signal, number, signal.signal(number, note))
        yield signals


def write_whole(path, write):
    """Lets `write` fill a file that then takes the place of `path`, which is replaced whole or not at all."""
    os.makedirs(path.parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write(pathlib.Path(folder, path.name))
        os.replace(pathlib.Path(folder, path.name), path)


def mnist_dir():
    """Returns the folder where TFDS keeps MNIST prepared, be it there or not."""
    data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets" if DATA_DIR is None else DATA_DIR
    return pathlib.Path(os.path.expanduser(str(data_dir)), "mnist", str(tfds.builder_cls("mnist").VERSION))


def fetch_mnist():
    """Fetches those of MNIST's four files that are not where TFDS looks for them; returns whether all are there now."""
    manual_dir, url_infos = mnist_dir().parents[1] / "downloads" / "manual", tfds.builder_cls("mnist").url_infos
    notice = (f"MNIST is not in {mnist_dir().parents[1]} and can't be fetched. To get it, put "
              f"{', '.join(info.filename for info in url_infos.values())} into {manual_dir} and run again.")
    with on_failure(notice, OSError, stop=not OFFLINE_SAMPLE):
        for url, info in url_infos.items():
            if not (manual_dir / info.filename).exists():
                print(f"Fetching {url} to {manual_dir}.", file=sys.stderr)
                with requests.get(url, stream=True, timeout=(3, 12)) as response:  # s to connect, and to read on
                    response.raise_for_status()
                    content = b"".join(tqdm.tqdm(response.iter_content(1024), total=info.size // 1024 + 1, unit="kB"))
                if hashlib.sha256(content).hexdigest() != info.checksum:
                    raise OSError(f"what came from {url} is not MNIST's file")
                write_whole(manual_dir / info.filename, lambda part: part.write_bytes(content))
        return True
    return False


def watch(seen, loss, curves):
    """Ends the program where training has diverged; adds a point to each of TensorBoard's curves, {name: value}."""
    if not np.isfinite(loss):
        sys.exit(f"The loss is {loss} at Iter {seen}: LEARNING_RATE = {LEARNING_RATE} is probably too high. Not saved.")
    if LOG_DIR is not None:
        with on_failure(f"The curves can't be written to {LOG_DIR}.", tf.errors.OpError, stop=False):
            for name, value in curves.items():
                tf.summary.scalar(name, value, seen)
            tf.summary.flush()


def save(model):
    """Saves the model to MODEL_PATH or else to the folder for temporary files; returns whether to the former."""
    wanted = pathlib.Path(os.path.realpath(os.path.expanduser(MODEL_PATH)))
    for path in (wanted, pathlib.Path(tempfile.gettempdir(), f"rnn_mnist-{os.getpid()}.keras")):
        with on_failure(f"The model can't be saved to {path}.", OSError, stop=False):
            write_whole(path, model.save)
            print(f"The model is saved to {path}.", file=sys.stderr)
            return path == wanted
    return False


if __name__ == "__main__":
    try:
        if status := main():  # a good run ends without SystemExit, which would stop a notebook's "run all"
            sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        sys.exit(f"BATCH_SIZE = {BATCH_SIZE} and N_HIDDEN = {N_HIDDEN} need more memory than there is: lower them.")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python would complain of what is left to flush
        sys.exit(1 if isinstance(error, BrokenPipeError) else f"A file can't be read or written: {error}.")
