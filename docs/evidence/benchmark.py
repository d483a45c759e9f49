"""Times this network: rnn_mnist.py, Keras and, where they are installed, PyTorch and JAX.

    python docs/evidence/benchmark.py > speed_tables.md

Run by hand, on a machine that does nothing else, on MNIST as rnn_mnist.py finds it or else on the
UCI digits: half an hour. Each contestant runs in a process of its own, in turn, for several rounds.
Prints the tables of docs/speed.md as they stand there; every figure is the median of the rounds,
and a ratio that of the ratios within a round. A training is 781 updates of 128 images with 78
evaluations of a minibatch, tracing included; a step is one update of a run that is warm.
"""

import importlib.util
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

ROUNDS = 3
UPDATES = 781
DISPLAY_STEP = 10
WARM = 100  # updates of the training that do not count as steps
SIZES = [  # images in a minibatch, timesteps, pixels at a timestep, LSTM units
    (128, 28, 28, 128), (1, 28, 28, 128), (32, 28, 28, 128), (64, 28, 28, 128), (512, 28, 28, 128),
    (128, 28, 28, 32), (128, 28, 28, 512), (128, 28, 28, 1024),
    (128, 14, 56, 128), (128, 56, 14, 128), (128, 112, 7, 128), (128, 784, 1, 128),
    (1, 112, 7, 128)]
NETWORKS = {  # what replaces the LSTM in a changed network
    "two LSTMs": lambda layers, units: [
        layers.LSTM(units, return_sequences=True), layers.LSTM(units)],
    "GRU": lambda layers, units: [layers.GRU(units)],
    "a convolution": lambda layers, units: [
        layers.Conv1D(units, 3, activation="relu"), layers.GlobalMaxPooling1D()],
    "bidirectional": lambda layers, units: [layers.Bidirectional(layers.LSTM(units))],
    "SimpleRNN": lambda layers, units: [layers.SimpleRNN(units)],
}
NETWORK_UNITS = {128: 100, 1024: 12}  # and how many steps of such a network, 3 of them to warm up
SECONDS = 1  # for the steps of a size


# contestants: each returns, for a size, an update by a minibatch and the loss of a minibatch


def this_project(batch_size, timesteps, pixels, units):
    import rnn_mnist

    rnn_mnist.BATCH_SIZE, rnn_mnist.N_STEPS, rnn_mnist.N_INPUT = batch_size, timesteps, pixels
    rnn_mnist.N_HIDDEN = units
    model = rnn_mnist.build_model()
    network = rnn_mnist.faster(model)
    return (network.train_on_batch,
            lambda images, labels: rnn_mnist.measure(model, network, images, labels)[0])


def keras_model(timesteps, pixels, units):
    """Returns the same layers with Keras's own initial weights, their loss and optimizer."""
    import keras

    model = keras.Sequential([
        keras.Input([timesteps, pixels]), keras.layers.Dense(units), keras.layers.LSTM(units),
        keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, loss, keras.optimizers.Adam(epsilon=1e-8)


def keras_layers(batch_size, timesteps, pixels, units):
    import tensorflow as tf

    model, loss_of, adam = keras_model(timesteps, pixels, units)

    @tf.function
    def evaluate(images, labels):
        return loss_of(labels, model(images))

    @tf.function
    def update(images, labels):
        with tf.GradientTape() as tape:
            loss = evaluate(images, labels)
        adam.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    return update, evaluate


def pytorch(batch_size, timesteps, pixels, units):
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = torch.nn.Linear(pixels, units)
            self.lstm = torch.nn.LSTM(units, units, batch_first=True)
            self.out = torch.nn.Linear(units, 10)

        def forward(self, rows):
            return self.out(self.lstm(self.hidden(rows))[0][:, -1])

    network = Network()
    adam = torch.optim.Adam(network.parameters(), lr=0.001)

    def loss_of(images, labels):
        logits = network(torch.from_numpy(images))
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))

    def update(images, labels):
        adam.zero_grad()
        loss_of(images, labels).backward()
        adam.step()

    return update, torch.no_grad()(loss_of)


def jax(batch_size, timesteps, pixels, units):
    import jax
    import jax.numpy as jnp
    import numpy as np

    generator = np.random.default_rng(0)

    def uniform(*shape):
        return jnp.asarray(generator.uniform(-1, 1, shape) / np.sqrt(shape[0]), jnp.float32)

    weights = dict(
        w_hidden=uniform(pixels, units), b_hidden=jnp.zeros(units),
        kernel=uniform(units, 4 * units), bias=jnp.zeros(4 * units),
        recurrent_kernel=uniform(units, 4 * units),
        w_out=uniform(units, 10), b_out=jnp.zeros(10))

    def loss_of(weights, images, labels):
        rows = jnp.swapaxes(images, 0, 1)
        projection = rows @ weights["w_hidden"] + weights["b_hidden"]
        inputs = projection @ weights["kernel"] + weights["bias"]

        def timestep(state, x):
            h, c = state
            i, f, j, o = jnp.split(x + h @ weights["recurrent_kernel"], 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros([len(images), units])
        (h, _), _ = jax.lax.scan(timestep, (zeros, zeros), inputs)
        log_probabilities = jax.nn.log_softmax(h @ weights["w_out"] + weights["b_out"])
        return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()

    @jax.jit
    def adam(weights, m, v, step, images, labels):
        gradients = jax.grad(loss_of)(weights, images, labels)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
        rate = 0.001 * jnp.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step)
        weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), weights, m, v)
        return weights, m, v, step + 1

    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = [weights, zeros, zeros, jnp.float32(1)]

    def update(images, labels):
        state[:] = jax.block_until_ready(adam(*state, images, labels))

    evaluate = jax.jit(loss_of)
    return update, lambda images, labels: evaluate(state[0], images, labels)


# what is timed


def data():
    """Returns training images, float32 [n, 28, 28] from 0 to 1, and labels, int64 [n]."""
    import rnn_mnist

    return rnn_mnist.load_data()[0]


def training(contestant):
    """Returns the seconds of the training, the median of its steps', and the last loss."""
    import rnn_mnist

    images, labels = data()
    start = time.perf_counter()
    update, evaluate = contestant(*SIZES[0])
    seconds = []
    batches = rnn_mnist.minibatches(images, labels)
    for step in range(1, UPDATES + 1):
        batch_start = time.perf_counter()
        batch = next(batches)
        update(*batch)
        seconds.append(time.perf_counter() - batch_start)
        if step % DISPLAY_STEP == 0:
            loss = float(evaluate(*batch))
    return {"training": time.perf_counter() - start, "loss": loss,
            "step": statistics.median(seconds[WARM:])}


def fit_training():
    """The same by Keras's fit, which makes the minibatches itself, and evaluates no others."""
    import keras
    import tensorflow as tf

    images, labels = data()
    start = time.perf_counter()
    model, loss, adam = keras_model(*SIZES[0][1:])
    model.compile(adam, loss, metrics=["accuracy"])
    evaluate = tf.function(lambda images, labels: loss(labels, model(images)))
    clock, losses = step_clock(keras), []

    def on_train_batch_end(batch, logs):
        if len(clock.seconds) % DISPLAY_STEP == 0:
            first = len(clock.seconds) * 128 % (len(images) - 128)
            losses.append(evaluate(images[first:first + 128], labels[first:first + 128]))
        model.stop_training = len(clock.seconds) == UPDATES

    log = keras.callbacks.LambdaCallback(on_train_batch_end=on_train_batch_end)
    model.fit(images, labels, batch_size=128, epochs=UPDATES, verbose=0, callbacks=[clock, log])
    return {"training": time.perf_counter() - start, "loss": float(losses[-1]),
            "step": statistics.median(clock.seconds[WARM:])}


def floor():
    """Times the step's matrix products alone, at the rate of tf.matmul on large matrices.

    A product takes 2 floating-point operations for each weight, image and timestep. There are three
    for each kernel, one forward and two backward, but two for the projection, whose input needs no
    gradient.
    """
    import tensorflow as tf

    at_each_timestep = 2 * 28 * 128 + 3 * 128 * 512 + 3 * 128 * 512
    operations = 128 * 2 * (28 * at_each_timestep + 3 * 128 * 10)
    size = 2048
    matrix = tf.random.normal([size, size])
    product = tf.function(lambda: tf.matmul(matrix, matrix))
    product()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return {"step": operations * statistics.median(seconds) / (2 * size**3)}


def step(contestant, size):
    """Returns the median seconds of a step on random images of SIZES[size]."""
    import numpy as np

    batch_size, timesteps, pixels, units = SIZES[int(size)]
    generator = np.random.default_rng(0)
    images = generator.random([batch_size, timesteps, pixels], np.float32)
    labels = generator.integers(0, 10, batch_size)
    update, _ = contestant(batch_size, timesteps, pixels, units)
    for _ in range(3):
        update(images, labels)
    seconds = []
    while sum(seconds) < SECONDS or len(seconds) < 5:
        start = time.perf_counter()
        update(images, labels)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def changed_network(contestant, network, units):
    """Returns the median seconds of a step of a changed network, by this script or Keras's fit."""
    import keras
    import numpy as np

    import rnn_mnist

    units = int(units)
    model = keras.Sequential([
        keras.Input([28, 28]), keras.layers.Dense(units), *NETWORKS[network](keras.layers, units),
        keras.layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(0.001, epsilon=1e-8), metrics=["accuracy"],
                  loss="sparse_categorical_crossentropy")
    generator = np.random.default_rng(0)
    images = generator.random([NETWORK_UNITS[units] * 128, 28, 28], np.float32)
    labels = generator.integers(0, 10, len(images))
    if contestant == "fit":
        clock = step_clock(keras)
        model.fit(images, labels, batch_size=128, verbose=0, callbacks=[clock])
        return statistics.median(clock.seconds[3:])
    network = rnn_mnist.faster(model)
    seconds = []
    for first in range(0, len(images), 128):
        start = time.perf_counter()
        network.train_on_batch(images[first:first + 128], labels[first:first + 128])
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def step_clock(keras):
    """Returns a callback for fit that keeps the seconds of each step in its list `seconds`."""
    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_train_batch_begin(self, batch, logs=None):
            self.batch_start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            self.seconds.append(time.perf_counter() - self.batch_start)

    return Clock()


def whole_script():
    """Returns the seconds of each part of a whole run, which add up to those of the command."""
    start = time.monotonic()
    output = subprocess.run([sys.executable, __file__, "timed_run"], text=True, check=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    end = time.monotonic()
    ends = [("", start), *json.loads(output.splitlines()[-1]), ("ending Python", end)]
    parts = {part: at - before for (_, before), (part, at) in itertools.pairwise(ends)}
    return {**parts, "the whole command": end - start}


def timed_run():
    """Runs rnn_mnist.main(); returns when each part of it ended, by time.monotonic."""
    import rnn_mnist

    ends = [("starting Python, importing TensorFlow, Keras and TFDS", time.monotonic())]

    def note_end(part):
        if part not in dict(ends):
            ends.append((part, time.monotonic()))

    def mark(function, part, before=None):
        """Notes the end of `part` when `function` ends, and of the part `before` when it begins."""
        def marked(*arguments):
            if before:
                note_end(before)
            result = function(*arguments)
            note_end(part)
            return result
        return marked

    folder = tempfile.TemporaryDirectory()
    rnn_mnist.MODEL_PATH = os.path.join(folder.name, "rnn_mnist.keras")
    rnn_mnist.load_data = mark(rnn_mnist.load_data, "reading the data")
    rnn_mnist.train = mark(rnn_mnist.train, "the rest of the training, and saving",
                           before="building the model, the rehearsals")
    rnn_mnist.measure = mark(rnn_mnist.measure, "tracing, the first ten updates")
    rnn_mnist.test = mark(rnn_mnist.test, "testing on all test images")
    rnn_mnist.main()
    return ends


# tables


NAMES = {  # of the contestants, in the tables
    "this_project": "this script", "keras_layers": "Keras layers", "pytorch": "PyTorch",
    "jax": "JAX", "fit_training": "the Keras layers with `fit`",
    "floor": "the matrix products alone, at `tf.matmul`'s best rate"}


def main():
    contestants = ["this_project", "keras_layers"] + [
        name for name, package in [("pytorch", "torch"), ("jax", "jax")]
        if importlib.util.find_spec(package)]
    jobs = [*(["training", name] for name in contestants if name != "keras_layers"),
            ["fit_training"], ["floor"], ["whole_script"],
            *(["step", name, str(number)] for number in range(len(SIZES)) for name in contestants),
            *(["changed_network", name, network, str(units)] for network in NETWORKS
              for units in NETWORK_UNITS for name in ("script", "fit"))]
    results = {tuple(job): [] for job in jobs}
    for _ in range(ROUNDS):
        for job, rounds in results.items():
            process = subprocess.run([sys.executable, __file__, *job], stdout=subprocess.PIPE,
                                     check=True)
            rounds.append(json.loads(process.stdout.splitlines()[-1]))
            print(json.dumps([job, rounds[-1]]), file=sys.stderr)
            learned = "training" not in job[0] or rounds[-1]["loss"] < 0.3
            assert learned, f"{job} has not learned"
    print_tables(contestants, results)


def print_tables(contestants, results):
    """Prints the tables of docs/speed.md, from the results of each job's rounds."""
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians of "
          f"{ROUNDS} rounds, least to most in brackets.\n")
    print("| | training, s | a step, ms | training, ratio | a step, ratio |\n|---|---|---|---|---|")
    ours = results["training", "this_project"]
    for job, rounds in results.items():
        if job[0] in ("training", "fit_training", "floor"):
            cells = [NAMES[job[-1]]]
            for key, scale in [("training", 1), ("step", 1000)]:
                cells.append(spread([scale * each[key] for each in rounds if key in each], 1))
            for key in ("training", "step"):
                pairs = [(our[key], their[key]) for our, their in zip(ours, rounds, strict=True)
                         if key in their]
                cells.append("" if rounds is ours else spread([a / b for a, b in pairs], 2))
            print("| " + " | ".join(cells) + " |")
    print("\n| images, timesteps, pixels, units | "
          + " | ".join(f"{NAMES[name]}, ms" for name in contestants) + " | "
          + " | ".join(f"to {NAMES[name]}" for name in contestants[1:]) + " |")
    print("|---" * 2 * len(contestants) + "|")
    for number, size in enumerate(SIZES):
        print(row(", ".join(map(str, size)),
                  [results["step", name, str(number)] for name in contestants]))
    print("\n| in place of the LSTM, units | this script, ms | Keras's `fit`, ms | ratio |")
    print("|---|---|---|---|")
    for network in NETWORKS:
        for units in NETWORK_UNITS:
            print(row(f"{network}, {units:,}", [
                results["changed_network", name, network, str(units)]
                for name in ("script", "fit")]))
    print("\n| part of `python rnn_mnist.py` | s |\n|---|---|")
    rounds = results["whole_script",]
    for part in rounds[0]:
        print(f"| {part} | {spread([each[part] for each in rounds], 1)} |")


def row(name, seconds):
    """Returns a line of a table: medians of each contestant's rounds in ms, ratios to the first."""
    medians = [f"{1000 * statistics.median(rounds):.3g}" for rounds in seconds]
    ratios = [[our / their for our, their in zip(seconds[0], theirs, strict=True)]
              for theirs in seconds[1:]]
    ratios = [f"{statistics.median(each):.2f}" for each in ratios]
    return "| " + " | ".join([name, *medians, *ratios]) + " |"


def processor():
    """Returns the processor's name where Linux tells it, else what Python knows."""
    with open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def spread(values, digits):
    if not values:
        return ""
    return (f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to "
            f"{max(values):.{digits}f})")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        function, *names = sys.argv[1:]
        print(json.dumps(globals()[function](*(globals().get(name, name) for name in names))))
    else:
        main()
