"""Reads MNIST's digits row by row with an LSTM: a TensorFlow 0.8 script, ported to Keras 3.

The constants are its settings; README.md explains it. Standard output is the original's log alone.
"""

# The task, first of three parts: the one to read, and to change as you like.

import contextlib
import datetime
import functools
import hashlib
import numbers
import os
import pathlib
import signal
import sys
import tempfile
import types
from importlib.util import find_spec

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
LEARNING_RATE = 0.001  # Adam's step size
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
    """Returns (sequences, labels) to train on, the same to test, and the name of the data.

    Sequences are float32 [n, N_STEPS, N_INPUT]: the rows of images, their pixels from 0 to 1.
    Labels are whole numbers [n] below N_CLASSES. Data of your own may take their place.
    """
    name, splits = ("MNIST", read_mnist()) if fetch_mnist() else (SAMPLE, read_uci_digits())
    train, test = [(np.multiply(images, 1 / 255, dtype=np.float32).reshape(-1, N_STEPS, N_INPUT),
                    labels) for images, labels in splits]
    return train, test, name


def read_mnist():
    """Returns (images uint8 [n, 28, 28, 1], labels int64 [n]) to train on and to test.

    Like the original, it sets the first 5,000 of the 60,000 training images aside.
    """
    mnist_dir, files_dir = mnist_dirs()
    with on_failure(f"MNIST in {mnist_dir} can't be read: set another DATA_DIR or move it away."):
        # If the folder exists meanwhile, another run was faster.
        with contextlib.suppress(FileExistsError), contextlib.redirect_stdout(sys.stderr):
            tfds.builder("mnist", data_dir=mnist_dir.parents[1]).download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=files_dir, extract_dir=files_dir / "extracted"))
        mnist = tfds.builder_from_directory(mnist_dir)
        return tfds.as_numpy(mnist.as_dataset(["train[5000:]", "test"], batch_size=-1,
                                              as_supervised=True))


def minibatches(sequences, labels):
    """Yields BATCH_SIZE of both without end: each epoch in a new order, its short tail dropped."""
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(labels))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[start:start + BATCH_SIZE]
            yield sequences[chosen], labels[chosen]


def start_generators():
    """Lets all random generators give the same every time, if there is a SEED."""
    if SEED is not None:
        keras.utils.set_random_seed(int(SEED))


def build_model():
    """Returns the network, from [n, N_STEPS, N_INPUT] to probabilities [n, N_CLASSES], compiled.

    Change it as you like: what is returned here is what trains and is saved.
    """
    keras.config.set_floatx("float32")  # the original's, whatever a keras.json says
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(False)  # which rounds, on a GPU
    normal = functools.partial(keras.initializers.RandomNormal, stddev=1.0)
    # The original's LSTM had one kernel for its input and its last output together, uniform with
    # variance 1 / fan-in; Keras has two. Its forget gate added 1; Keras starts its bias at 1.
    bound = (3 / (2 * N_HIDDEN)) ** 0.5
    uniform = functools.partial(keras.initializers.RandomUniform, -bound, bound)
    model = keras.Sequential([
        keras.Input([N_STEPS, N_INPUT]),
        keras.layers.Dense(N_HIDDEN, kernel_initializer=normal(), bias_initializer=normal(),
                           name="hidden"),
        keras.layers.LSTM(N_HIDDEN, kernel_initializer=uniform(), recurrent_initializer=uniform()),
        keras.layers.Dense(N_CLASSES, "softmax", kernel_initializer=normal(),
                           bias_initializer=normal(), name="out"),
    ])
    optimizer = keras.optimizers.Adam(float(LEARNING_RATE), epsilon=1e-8)  # Keras's own: 1e-7
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def outputs_of(model, sequences, training):
    """Returns what `model` makes of `sequences` [n, N_STEPS, N_INPUT]: [n, N_CLASSES].

    The short way, explained in the second part, gives the same sooner.
    """
    if has_short_way(model):
        return short_way(model, sequences)
    return model(sequences, training=training)


def train_step(model, sequences, labels):
    """Updates the weights once, for a minibatch [n, N_STEPS, N_INPUT] and its labels int64 [n]."""
    if type(model).train_step is not keras.Model.train_step:  # the model has one of its own
        return model.train_step((sequences, labels))
    with tf.GradientTape() as tape:
        outputs = outputs_of(model, sequences, training=True)
        loss = model.compute_loss(x=sequences, y=labels, y_pred=outputs)
        loss = model.optimizer.scale_loss(loss)  # the same loss, but for mixed precision
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply(gradients, model.trainable_variables)


def evaluate(model, sequences, labels):
    """Returns the loss that training lowers, and the share of the sequences classified right."""
    outputs = outputs_of(model, sequences, training=False)
    loss = model.compute_loss(x=sequences, y=labels, y_pred=outputs)
    right = tf.argmax(outputs, axis=1) == labels
    return tf.reduce_mean(loss), tf.reduce_mean(tf.cast(right, tf.float32))


def train(model, sequences, labels, run):
    """Trains until it has seen TRAINING_ITERS sequences or `run.signals` holds a signal."""
    update, measure = (tf.function(each, autograph=False) for each in (train_step, evaluate))
    batches = minibatches(sequences, labels)
    step = 1
    while step * BATCH_SIZE < TRAINING_ITERS and not run.signals:
        batch = next(batches)
        update(model, *batch)
        run.seen = step * BATCH_SIZE
        if step % DISPLAY_STEP == 0:
            loss, accuracy = map(float, measure(model, *batch))
            stop_if_diverged(model, run.seen, loss)
            print(f"Iter {run.seen}, Minibatch Loss= {loss:.6f}, "
                  f"Training Accuracy= {accuracy:.5f}", flush=True)
            draw(run, {"minibatch loss": loss, "minibatch accuracy": accuracy})
        step += 1
    if run.seen:
        model.optimizer.finalize_variable_values(model.trainable_variables)  # for use_ema=True
        stop_if_diverged(model, run.seen, measure(model, *batch)[0])  # by the last update


def test(model, sequences, labels, name):
    """Prints the accuracy on the first TEST_LEN, as the original did, and on all; returns it."""
    predict = tf.function(functools.partial(outputs_of, training=False), autograph=False)
    outputs = [predict(model, sequences[n:n + BATCH_SIZE])
               for n in range(0, len(labels), BATCH_SIZE)]
    right = np.concatenate(outputs).argmax(axis=1) == labels
    first, accuracy = (part.mean(dtype=np.float32) for part in (right[:TEST_LEN], right))
    note = f" ({name})" if name == SAMPLE else ""
    noun = "images" if name in ("MNIST", SAMPLE) else "sequences"
    print(f"Testing Accuracy: {first!s}{note}\n"
          f"Testing Accuracy, all {len(labels)} {noun}: {accuracy!s}{note}", flush=True)
    return accuracy


def main():
    """Loads, builds, trains, saves and tests; returns 0, or 1 if MODEL_PATH can't be written."""
    check_settings()
    use_every_core()
    start_generators()
    (sequences, labels), test_set, name = check_data(load_data())
    start_generators()  # anew, for TFDS draws from them when it prepares
    model = check_model(build_model())
    say(f"{name}: {len(labels)} to train on, {len(test_set[1])} to test; "
        f"{(TRAINING_ITERS - 1) // BATCH_SIZE} updates by minibatches of {BATCH_SIZE}.")
    with hold_signals() as run:
        failure = None
        try:
            train(model, sequences, labels, run)
        except Exception as error:
            failure = error  # to be raised once the model is saved
        seconds = (datetime.datetime.now() - run.start).total_seconds()
        finished = run.seen + BATCH_SIZE >= TRAINING_ITERS
        learned = finished or run.seen > BATCH_SIZE  # enough for an earlier model's place
        saved = not learned or save(model, run.seen, name)
        by = f" by {signal.Signals(run.signals[0]).name}" if run.signals else ""
        say(f"Training ended{by} at Iter {run.seen} after {seconds:.1f} s.")
        if failure:
            raise failure
        if finished:
            print("Optimization Finished!", flush=True)
        if learned:
            draw(run, {"test accuracy": test(model, *test_set, name)})
    return int(not saved)


# Speed, the second part, may be skipped, or deleted with what calls it: the log is the same.

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
with contextlib.suppress(OSError, ValueError):  # a container on Linux may have the time of fewer
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    CORES = min(CORES, max(1, round(int(quota) / int(period))))


def use_every_core():
    """Lets the shards of `short_way` run side by side on a CPU, each on one core."""
    if not tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # too late, where a notebook has used TensorFlow
            tf.config.threading.set_intra_op_parallelism_threads(1)
            threads = min(CORES, max(2, BATCH_SIZE // 32))
            tf.config.threading.set_inter_op_parallelism_threads(threads)


def has_short_way(model):
    """Returns whether `short_way` does what `model` does, which then is three plain layers.

    All that Keras would save of a layer is compared, so that no option is overlooked.
    """
    def options(layer):
        free = ("name", "units", "trainable", "seed", "unit_forget_bias")
        return {  # with functions themselves, for a user's may be called tanh, too
            name: getattr(layer, name) if "activation" in name else value
            for name, value in layer.get_config().items()
            if name not in free and not name.endswith("_initializer")}

    fixed = dict(kernel_initializer="zeros", dtype="float32", name="plain")  # draws no seed
    with tf.Graph().as_default():  # keeps a variable of the LSTM's out of the training's graph
        plain = [keras.layers.Dense(1, **fixed),
                 keras.layers.LSTM(1, recurrent_initializer="zeros", seed=0, **fixed),
                 keras.layers.Dense(1, "softmax", **fixed)]
    return (not tf.config.list_physical_devices("GPU") and type(model) is keras.Sequential
            and [tensor.dtype for tensor in getattr(model, "inputs", [])] == ["float32"]
            and [*map(type, model.layers)] == [*map(type, plain)]
            and [*map(options, model.layers)] == [*map(options, plain)])


def short_way(model, sequences):
    """Returns the outputs of a `model` that has the short way, each core at work on a shard."""
    hidden, lstm, out = model.layers
    number = max(1, min(CORES, sequences.shape[0] // 32))  # less is not worth a thread
    sizes = [len(shard) for shard in np.array_split(range(sequences.shape[0]), number)]
    shards = [last_output(hidden, lstm.cell, rows) for rows in tf.split(sequences, sizes)]
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


# Faults, the third part, may be skipped, too. It keeps them from costing anyone their work.

SAMPLE = "UCI digits, not MNIST"  # the name of what stands in for MNIST


def say(text):
    """Prints to standard error, even if nobody can read that any more."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def on_failure(sentence, tell=sys.exit, kinds=Exception):
    """Tells `sentence`, and what went wrong first, if the block raises one of `kinds`."""
    try:
        yield
    except kinds as error:
        while cause := error.__cause__ or (not error.__suppress_context__ and error.__context__):
            error = cause
        tell(f"{sentence} ({type(error).__name__}: {error}".splitlines()[0] + ")")


def check_settings():
    """Ends the program with a sentence for each constant that is wrong."""
    def number(value, low=1, high=10**12, kind=numbers.Integral):
        return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high

    def writable(folder):  # tried in that part of the path that is there
        with contextlib.suppress(OSError, TypeError, ValueError):
            path = pathlib.Path(os.path.expanduser(folder)).absolute()
            tempfile.TemporaryFile(dir=next(filter(os.path.exists, (path, *path.parents)))).close()
            return folder != "" and "://" not in str(folder)

    local, whole = "a local folder that can be written", "a whole number from 1 to 10**12"
    settings = {  # by name: whether it is right, and what it must be
        "DATA_DIR": (DATA_DIR is None or mnist_dirs()[0].exists() or writable(DATA_DIR),
                     f"{local} or holds MNIST, or None"),
        "TFDS_DATA_DIR": (DATA_DIR or "://" not in os.getenv("TFDS_DATA_DIR", ""), local),
        "OFFLINE_SAMPLE": (isinstance(OFFLINE_SAMPLE, bool), "True or False"),
        "LEARNING_RATE": (number(LEARNING_RATE, 1e-37, 3e38, numbers.Real), "above 0"),
        "SEED": (SEED is None or number(SEED, 0, 2**32 - 1), "from 0 to 2**32 - 1, or None"),
        "MODEL_PATH": (MODEL_PATH is None or str(MODEL_PATH).endswith(".keras")
                       and not os.path.isdir(os.path.expanduser(MODEL_PATH))
                       and writable(os.path.dirname(MODEL_PATH) or "."),
                       f"a file ending in .keras in {local}, or None"),
        "LOG_DIR": (LOG_DIR is None or writable(LOG_DIR) and find_spec("tensorboard"),
                    f"{local}, with TensorBoard (pip install tensorboard), or None"),
        **{name: (number(globals()[name]), whole) for name in "BATCH_SIZE DISPLAY_STEP N_INPUT "
           "N_STEPS N_HIDDEN N_CLASSES TEST_LEN".split()},
        "TRAINING_ITERS": (number(TRAINING_ITERS, BATCH_SIZE + 1 if number(BATCH_SIZE) else 1),
                           f"{whole}, above BATCH_SIZE"),
    }
    if keras.config.backend() != "tensorflow":
        sys.exit(f"Keras has its {keras.config.backend()} backend: restart Python, run this first.")
    values = {**os.environ, **globals()}
    if wrong := [f"{name} = {values[name]!r} must be {must_be}."
                 for name, (right, must_be) in settings.items() if not right]:
        sys.exit("\n".join(wrong))


def check_data(data):
    """Returns what load_data() returned, as float32 and int64; says what of it can't be used."""
    checked = []
    with (on_failure("load_data() must return (sequences, labels), the same to test, and a name."),
          np.errstate(over="ignore")):  # what is too large for float32 is told below
        *splits, name = data
        for part, least, (x, y) in zip(("training", "test"), (BATCH_SIZE, 1), splits, strict=True):
            given, y = np.asarray(x), np.asarray(y)
            x = given.astype(np.float32, copy=False)
            if x.shape[1:] != (N_STEPS, N_INPUT) or len(x) < least:
                sys.exit(f"The {part} sequences have the shape {x.shape}, not (n, N_STEPS, N_INPUT)"
                         f" = ({least} or more, {N_STEPS}, {N_INPUT}); BATCH_SIZE = {BATCH_SIZE}.")
            if (given.dtype.kind in "cmM" or not np.isfinite([x.min(), x.max()]).all()
                    or given.dtype.kind in "iu" and not np.array_equal(x, given)):
                sys.exit(f"The {part} sequences are {given.dtype} from {x.min()} to {x.max()}, not "
                         "finite numbers that float32 can hold.")
            low, high = np.unique(y)[[0, -1]]
            if y.shape != x.shape[:1] or y.dtype.kind not in "iub" or low < 0 or high >= N_CLASSES:
                sys.exit(f"The {part} labels are {y.dtype} {y.shape} from {low} to {high}, not "
                         f"whole numbers {x.shape[:1]} from 0 to N_CLASSES - 1 = {N_CLASSES - 1}. "
                         "Try labels.astype(int), of one-hot ones labels.argmax(axis=1).")
            checked.append((x, y.astype(np.int64)))
    return *checked, str(name)


def check_model(model):
    """Returns the model with all its weights made; says if it can't be used."""
    if getattr(model, "optimizer", None) is None:
        sys.exit(f"build_model() returned {model!r}, not a Keras model that is compiled.")
    outputs = model(keras.Input([N_STEPS, N_INPUT], BATCH_SIZE))
    if getattr(outputs, "shape", None) != (BATCH_SIZE, N_CLASSES):
        sys.exit(f"The model returns {outputs}, not [n, N_CLASSES] = [n, {N_CLASSES}].")
    if not model.optimizer.built:  # else TensorFlow would trace the first update twice
        model.optimizer.build(model.trainable_variables)
    tf.config.run_functions_eagerly(bool(model.run_eagerly))
    return model


@contextlib.contextmanager
def hold_signals():
    """Holds Ctrl-C, SIGTERM, SIGHUP back to the block's end, but for a second Ctrl-C."""
    run = types.SimpleNamespace(start=datetime.datetime.now(), signals=[], seen=0, curves=None)

    def hold(number, frame):
        if number == signal.SIGINT and number in run.signals:
            raise KeyboardInterrupt
        run.signals.append(number)  # a closing terminal may send SIGHUP twice

    with contextlib.ExitStack() as earlier_handlers:
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)}:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's
                    earlier_handlers.callback(signal.signal, number, signal.signal(number, hold))
        try:
            yield run
        except OSError:
            if not run.signals:  # Ctrl-C ends what reads the log, too
                raise
    if run.signals:
        signal.raise_signal(run.signals[0])  # which now has its usual effect


def stop_if_diverged(model, seen, *numbers):
    """Ends the program, unsaved, where `numbers`, losses or weights, are not finite."""
    if not all(np.isfinite(number).all() for number in numbers):
        sys.exit(f"A loss or weight is not finite at Iter {seen}: the learning rate, "
                 f"{float(model.optimizer.learning_rate):g}, is probably too high. Not saved.")


def save(model, seen, name):
    """Saves the model to MODEL_PATH or else elsewhere; returns whether to MODEL_PATH."""
    stop_if_diverged(model, seen, *model.get_weights())
    if MODEL_PATH is None:
        return True
    path, other = str(MODEL_PATH), os.path.join(tempfile.gettempdir(), f"rnn_mnist-{os.getpid()}")
    if name == SAMPLE:  # so that MNIST's model keeps its place
        path = path.removesuffix(".keras") + "-uci_digits.keras"

    def save_weights(place):  # of a network that Keras can't write down
        np.savez(place, *model.get_weights())

    for place, write in [(path, model.save), (f"{other}.keras", model.save),
                         (f"{other}.npz", save_weights)]:
        with on_failure(f"The model can't be saved to {place}.", say):
            whole = pathlib.Path(os.path.realpath(os.path.expanduser(place)))
            write_whole(whole, write)
            say(f"The model, trained on {name}, is saved to {whole}.")
            return place == path


def write_whole(path, write):
    """Lets `write` fill a file that then takes the place of `path`, as a whole or not at all."""
    os.makedirs(path.parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write(pathlib.Path(folder, path.name))
        os.replace(pathlib.Path(folder, path.name), path)


def draw(run, curves):
    """Adds a point to each of TensorBoard's `curves`, {name: value}."""
    if LOG_DIR is not None:
        folder = os.path.join(os.path.expanduser(LOG_DIR), f"{run.start:%Y%m%d-%H%M%S-%f}")
        with on_failure(f"The curves can't be written to {LOG_DIR}.", say, tf.errors.OpError):
            run.curves = run.curves or tf.summary.create_file_writer(folder)
            with run.curves.as_default(run.seen):
                for name, value in curves.items():
                    tf.summary.scalar(name, value)


def mnist_dirs():
    """Returns the folder of MNIST as TFDS prepares it, and that of its four files."""
    data_dir = str(DATA_DIR or os.getenv("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    data_dir = pathlib.Path(os.path.expanduser(data_dir))
    version = str(tfds.builder_cls("mnist").VERSION)
    # In TFDS's own folder for such files, those of other data sets have the same names.
    return data_dir / "mnist" / version, data_dir / "downloads" / "mnist"


def fetch_mnist():
    """Fetches what is missing of MNIST's four files; returns whether MNIST can be read now."""
    if N_STEPS * N_INPUT != 784:
        sys.exit(f"N_STEPS = {N_STEPS} times N_INPUT = {N_INPUT} must be MNIST's 784 pixels.")
    mnist_dir, folder = mnist_dirs()
    files = {} if mnist_dir.exists() else tfds.builder_cls("mnist").url_infos
    names = ", ".join(info.filename for info in files.values())
    notice = (f"MNIST is not in {mnist_dir.parents[1]} and can't be fetched. To get it, put "
              f"{names} into {folder} and run again. A SOCKS proxy needs pip install pysocks, a "
              "network's own certificate REQUESTS_CA_BUNDLE.")
    with on_failure(notice, say if OFFLINE_SAMPLE else sys.exit, OSError):
        for url, info in files.items():
            path = folder / info.filename
            if by_hand := path.exists():
                content = path.read_bytes()
            else:
                say(f"Fetching {url} to {folder}.")
                reply = requests.get(url, stream=True, timeout=(3, 12))  # s to connect, to read on
                reply.raise_for_status()
                size = info.size // 1024 + 1
                content = b"".join(tqdm.tqdm(reply.iter_content(1024), total=size, unit="kB"))
            if hashlib.sha256(content).hexdigest() != info.checksum:
                raise (SystemExit if by_hand else OSError)(
                    f"{path if by_hand else url} is not MNIST's file, by its checksum.")
            if not by_hand:
                write_whole(path, lambda part: part.write_bytes(content))
        return True


def read_uci_digits():
    """Returns 1,541 and 256 UCI digits (Alpaydin, Kaynak, 1998) as `read_mnist` does MNIST."""
    path = pathlib.Path(globals().get("__file__", "notebook")).with_name("uci_digits.npz")
    path = path.absolute()
    with (on_failure(f"The UCI digits can't be read from {path} either: put them there."),
          np.load(path) as digits):
        images, labels = digits["images"], digits["labels"]  # [1797, 8, 8], [1797]
    images = tf.round(tf.image.resize(images[..., np.newaxis], [20, 20]) * (255 / 16))
    images = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)]).astype(np.uint8)  # as in MNIST
    order = np.random.RandomState(0).permutation(len(images))  # the same for every NumPy
    return [(images[part], labels[part]) for part in (order[256:], order[:256])]


if __name__ == "__main__":
    if not hasattr(sys, "ps1"):  # in a notebook neither arguments nor Ctrl-C are the script's
        if sys.argv[1:]:
            sys.exit("The settings are the constants at the top of rnn_mnist.py: see README.md.")
        sys.excepthook = lambda kind, *rest: (  # Ctrl-C needs no traceback
            kind is KeyboardInterrupt or sys.__excepthook__(kind, *rest))
    try:
        if main():  # a good run ends without SystemExit, which would stop a notebook's "run all"
            sys.exit(1)
    except ModuleNotFoundError as error:  # TFDS needs one to prepare data, but does not require it
        sys.exit(f"{error}: install it by {sys.executable} -m pip install {error.name}")
    except (MemoryError, tf.errors.ResourceExhaustedError):
        sys.exit(f"BATCH_SIZE = {BATCH_SIZE} and N_HIDDEN = {N_HIDDEN} need more memory than there "
                 "is: lower them.")
    except OSError as error:
        sys.exit(1 if isinstance(error, BrokenPipeError)
                 else f"A file can't be read or written: {error}.")
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # else Python would try again as it ends, complain, and return 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
