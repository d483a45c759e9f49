"""Reads MNIST digits row by row with an LSTM: a TensorFlow 0.8 tutorial script, ported to TensorFlow 2 and Keras 3.

The constants below are its settings, README.md explains it. Standard output is the original's log and nothing else.
"""

import contextlib
import datetime
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
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # no more of a GPU's memory than the run needs
os.environ.update(KERAS_BACKEND="tensorflow", KERAS_NNX_ENABLED="0")  # whatever Keras's settings file says
if __name__ == "__main__" and not hasattr(sys, "ps1"):  # no notebook: without anything that Keras might refuse
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
    """Returns (images uint8 [n, N_STEPS, N_INPUT], labels int64 [n]) for training, for testing, and their name."""
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
            pairs = [[(tf.io.decode_png(each["image"]), each["label"]) for each in source] for source in sources]
            splits = [[np.array(column) for column in zip(*split)] for split in pairs]
        else:
            splits = tfds.as_numpy(builder.as_dataset(["train", "test"], batch_size=-1, as_supervised=True))
    return [column[5000:] for column in splits[0]], splits[1]  # like the original, which set the first 5,000 aside


def read_uci_digits():
    """Reads the UCI digits (Alpaydin, Kaynak: UCI Machine Learning Repository, 1998) as read_mnist: 1,541 and 256."""
    path = os.path.join(os.path.dirname(globals().get("__file__", "")), "uci_digits.npz")  # a notebook has no __file__
    with (on_failure(f"The UCI digits can't be read from {os.path.abspath(path)} either: put that file there."),
          np.load(path) as digits):
        images, labels = digits["images"], digits["labels"].astype(np.int64)  # [1797, 8, 8] from 0 to 16, [1797]
    images = tf.image.resize(images[..., np.newaxis], [20, 20]) * (255 / 16)  # bilinear; as in MNIST, 20 x 20
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
    """Returns the network, [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES], with the original's first weights."""
    keras.config.set_floatx("float32")  # whatever Keras's settings file or, in a notebook, an earlier call says
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)  # NVIDIA's GPUs would round the factors of products
    normal = functools.partial(keras.initializers.RandomNormal, stddev=1.0)
    # The original's LSTM kernel was one matrix, uniform with variance 1 / fan-in, so each of Keras's two counts the
    # fan-in of both. Its forget gate added 1 at every step; Keras starts that gate's bias at 1, the same function.
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

    The projection before it is linear, so it folds into the LSTM's input kernel: (x W + b) K = x (W K) + b K, with the
    same gradients, has N_INPUT inner columns, not N_HIDDEN. The rest is BasicLSTMCell: https://arxiv.org/abs/1409.2329.
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
    """Trains until it has seen TRAINING_ITERS images or `signals` holds a signal."""
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


def evaluate(model, images, labels, seen, name):
    """Returns the log's last lines: the accuracy on the first TEST_LEN test images, as in the original, and on all."""
    predict = tf.function(logits_of, autograph=False)
    logits = tf.concat([predict(model, images[n:n + 1000]) for n in range(0, len(images), 1000)], axis=0)
    loss, accuracy = loss_and_accuracy(logits, labels)
    _, accuracy_of_first = loss_and_accuracy(logits[:TEST_LEN], labels[:TEST_LEN])
    watch(seen, loss, {"test accuracy": accuracy})
    note = "" if name == "MNIST" else f" ({name})"
    return [f"Testing Accuracy: {accuracy_of_first.numpy()!s}{note}",
            f"Testing Accuracy, all {len(labels)} images: {accuracy.numpy()!s}{note}"]


def main():
    """Trains, tests, saves; returns 0, 1 if saving failed, 128 + an ending signal; raises what else ended training."""
    check_settings()
    use_every_core()
    (images, labels), (test_images, test_labels), name = load_data()
    check_settings(len(images), len(test_images))
    if SEED is not None:
        keras.utils.set_random_seed(int(SEED))
    model = build_model()
    if LOG_DIR is not None:
        run = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
        tf.summary.create_file_writer(os.path.join(os.path.expanduser(LOG_DIR), run)).set_as_default()
    device = "GPU" if tf.config.list_physical_devices("GPU") else f"CPU with {CORES} cores"
    signals, errors, saved = [], [], True  # what would end the run waits in these until the model is saved
    attempt(errors, print, f"{name}: {len(images)} training and {len(test_images)} test images; "
            f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates of {BATCH_SIZE} images on the {device}.", file=sys.stderr)
    with noted(signals):
        start = time.perf_counter()
        attempt(errors, train, model, images, labels, signals)
        seconds, seen = time.perf_counter() - start, int(model.optimizer.iterations.numpy()) * BATCH_SIZE
        lines = ["Optimization Finished!"] if seen + BATCH_SIZE >= TRAINING_ITERS else []
        by = f" by {signal.Signals(signals[0]).name}" if signals else ""
        attempt(errors, print, "" if lines else f"Stopped{by} at Iter {seen}. ", f"Training took {seconds:.1f} s, "
                f"{seen / seconds:.0f} images a second.", sep="", file=sys.stderr)
        if lines or seen > BATCH_SIZE:  # else nothing was learned that would be worth an earlier model's place
            lines += attempt(errors, evaluate, model, test_images, test_labels, seen, name) or []
            saved = MODEL_PATH is None or save(model)
    for line in lines:
        attempt(errors, print, line, flush=True)
    if errors and not (signals and isinstance(errors[0], OSError)):  # Ctrl-C also ends what reads the log
        raise errors[0]
    return 128 + signals[0] if signals else int(not saved)


# faults: what follows keeps them from costing anyone their work

def check_settings(train_size=55000, test_size=10000):
    """Ends the program with a sentence for each constant that is wrong, given the sizes of the data set in images."""
    def number(value, low=1, high=10**12, kinds=(int, np.integer)):
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    def writable(folder):  # in the last folder of the path that is there, a file is made and removed
        with contextlib.suppress(OSError, TypeError, ValueError):
            path = pathlib.Path(os.path.expanduser(folder)).absolute()
            tempfile.TemporaryFile(dir=next(filter(os.path.exists, (path, *path.parents)), path)).close()
            return folder != "" and "://" not in str(folder)

    settings = [  # name, whether its value is right, what it must be
        ("DATA_DIR", DATA_DIR is None or os.path.exists(mnist_dir()) or writable(DATA_DIR),
         "a local folder that holds MNIST or can be written, or None"),
        ("TFDS_DATA_DIR", DATA_DIR is not None or "://" not in os.environ.get("TFDS_DATA_DIR", ""), "a local folder"),
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
         and writable(os.path.dirname(MODEL_PATH) or ".") and not os.path.isdir(os.path.expanduser(MODEL_PATH)),
         "a file ending in .keras, in a local folder that can be written, or None"),
        ("LOG_DIR", LOG_DIR is None or writable(LOG_DIR) and importlib.util.find_spec("tensorboard"),
         "a local folder that can be written, with TensorBoard installed (pip install tensorboard), or None"),
    ]
    if keras.config.backend() != "tensorflow":
        sys.exit(f"Keras is loaded with its {keras.config.backend()} backend: restart Python, run this script first.")
    values = {**os.environ, **globals()}
    if wrong := [f"{name} = {values[name]!r} must be {allowed}." for name, right, allowed in settings if not right]:
        sys.exit("\n".join(wrong))


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
        attempt([], print, sentence, file=sys.stderr)


def attempt(errors, function, *arguments, **keywords):
    """Returns what `function` returns; an exception is added to `errors`, not raised."""
    try:
        return function(*arguments, **keywords)
    except Exception as error:
        errors.append(error)


@contextlib.contextmanager
def noted(signals):
    """Adds each Ctrl-C, SIGTERM and SIGHUP to `signals` that would end the block; only a second Ctrl-C does end it."""
    def note(number, frame):
        if number == signal.SIGINT and number in signals:
            raise KeyboardInterrupt
        signals.append(number)  # not the first alone: a terminal that closes may send SIGHUP twice

    with contextlib.ExitStack() as earlier_handlers:
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored, as by nohup, or not Python's
                    earlier_handlers.callback(signal.signal, number, signal.signal(number, note))
        yield


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
                attempt([], print, f"Fetching {url} to {manual_dir}.", file=sys.stderr)
                response = requests.get(url, stream=True, timeout=(3, 12))  # s to connect, and to read on
                response.raise_for_status()
                content = b"".join(tqdm.tqdm(response.iter_content(1024), total=info.size // 1024 + 1, unit="kB"))
                if hashlib.sha256(content).hexdigest() != info.checksum:
                    raise OSError(f"what came from {url} is not MNIST's file")
                write_whole(manual_dir / info.filename, lambda part: part.write_bytes(content))
        return True


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
        with on_failure(f"The model can't be saved to {path}.", stop=False):
            write_whole(path, model.save)
            attempt([], print, f"The model is saved to {path}.", file=sys.stderr)
            return path == wanted


if __name__ == "__main__":
    try:
        if status := main():  # a good run ends without SystemExit, which would stop a notebook's "run all"
            sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except ModuleNotFoundError as error:  # TFDS needs one to prepare a data set, but does not require it
        sys.exit(f"{error}: install it by {sys.executable} -m pip install {error.name}")
    except (MemoryError, tf.errors.ResourceExhaustedError):
        sys.exit(f"BATCH_SIZE = {BATCH_SIZE} and N_HIDDEN = {N_HIDDEN} need more memory than there is: lower them.")
    except OSError as error:
        sys.exit(1 if isinstance(error, BrokenPipeError) else f"A file can't be read or written: {error}.")
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            attempt(errors := [], stream.flush)
            if errors:  # else Python would try again as it ends, complain, and return 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
