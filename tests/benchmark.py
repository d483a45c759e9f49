"""Times this network: rnn_mnist.py, Keras and, where they are installed, PyTorch and JAX.

Run by hand: `python tests/benchmark.py`, on MNIST as rnn_mnist.py finds it or else on the UCI digits: 25 minutes. Each
contestant runs in a process of its own, in turn, for several rounds. Prints three tables, medians over the rounds:
the training, 781 updates of 128 images and 78 evaluations of a minibatch, tracing included; a step, which is one update
once the run is warm, at other sizes; and where the seconds of the whole script go.
"""

import importlib.util
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

ROUNDS = 3
UPDATES = 781
DISPLAY_STEP = 10
WARM = 100  # updates of the training that do not count as steps
SIZES = [  # images in a minibatch, timesteps, pixels at a timestep, LSTM units
    (128, 28, 28, 128), (1, 28, 28, 128), (32, 28, 28, 128), (64, 28, 28, 128), (512, 28, 28, 128),
    (128, 28, 28, 32), (128, 28, 28, 512), (128, 28, 28, 1024),
    (128, 14, 56, 128), (128, 56, 14, 128), (128, 112, 7, 128), (128, 784, 1, 128), (1, 112, 7, 128)]
SECONDS = 1  # for the steps of a size
PARTS = [  # of the whole script, each with the line before which it ends, and when
    ("starting Python, importing TensorFlow, Keras and TFDS", "# data", True),
    ("reading the data", "check_settings(len(", True),
    ("building the model, tracing, up to the first log line", "step += 1", "step == DISPLAY_STEP"),
    ("the rest of the training", "seconds, seen = ", True),
    ("testing on all test images, saving", "for line in lines:", True),
]


# contestants: each returns, for a size, an update of its weights by a minibatch and the loss of a minibatch


def this_project(batch_size, timesteps, pixels, units):
    import tensorflow as tf
    import rnn_mnist

    rnn_mnist.BATCH_SIZE, rnn_mnist.N_STEPS, rnn_mnist.N_INPUT = batch_size, timesteps, pixels
    rnn_mnist.N_HIDDEN = units
    rnn_mnist.use_every_core()
    model = rnn_mnist.build_model()
    update, predict = tf.function(rnn_mnist.train_step), tf.function(rnn_mnist.logits_of)
    return (lambda images, labels: update(model, images, labels),
            lambda images, labels: rnn_mnist.loss_and_accuracy(predict(model, images), labels)[0])


def keras_model(timesteps, pixels, units):
    """The same layers as Keras has them, initial weights included; returns the model, its loss and its optimizer."""
    import keras

    model = keras.Sequential([
        keras.Input([timesteps, pixels]), keras.layers.Dense(units), keras.layers.LSTM(units), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, loss, keras.optimizers.Adam(epsilon=1e-8)


def keras_layers(batch_size, timesteps, pixels, units):
    import tensorflow as tf

    model, loss_of, adam = keras_model(timesteps, pixels, units)

    @tf.function
    def evaluate(images, labels):
        return loss_of(labels, model(tf.cast(images, tf.float32) / 255))

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
        logits = network(torch.from_numpy(images).float() / 255)
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

    weights = dict(w_hidden=uniform(pixels, units), b_hidden=jnp.zeros(units), kernel=uniform(units, 4 * units),
                   recurrent_kernel=uniform(units, 4 * units), bias=jnp.zeros(4 * units),
                   w_out=uniform(units, 10), b_out=jnp.zeros(10))

    def loss_of(weights, images, labels):
        rows = jnp.swapaxes(images, 0, 1).astype(jnp.float32) / 255
        inputs = (rows @ weights["w_hidden"] + weights["b_hidden"]) @ weights["kernel"] + weights["bias"]

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
        return jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), weights, m, v), m, v, step + 1

    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = [weights, zeros, zeros, jnp.float32(1)]

    def update(images, labels):
        state[:] = jax.block_until_ready(adam(*state, images, labels))

    evaluate = jax.jit(loss_of)
    return update, lambda images, labels: evaluate(state[0], images, labels)


# what is timed


def data():
    """Returns training images, uint8 [n, 28, 28], and labels, int64 [n]."""
    import rnn_mnist

    return rnn_mnist.load_data()[0]


def training(contestant):
    """Returns the seconds of the whole training and the median of a step's, and the last loss evaluated."""
    import rnn_mnist

    if contestant is this_project:
        rnn_mnist.use_every_core()  # as main() does, before TensorFlow reads the data and its threads are made
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
    return {"training": time.perf_counter() - start, "step": statistics.median(seconds[WARM:]), "loss": loss}


def fit_training():
    """The same by Keras's fit, which makes the minibatches itself: others of the same size are evaluated."""
    import keras
    import numpy as np
    import tensorflow as tf

    images, labels = data()
    images = images / np.float32(255)
    start = time.perf_counter()
    model, loss, adam = keras_model(*SIZES[0][1:])
    model.compile(adam, loss, metrics=["accuracy"])
    evaluate = tf.function(lambda images, labels: loss(labels, model(images)))
    seconds, losses = [], []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.batch_start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            seconds.append(time.perf_counter() - self.batch_start)
            if len(seconds) % DISPLAY_STEP == 0:
                first = len(seconds) * 128 % (len(images) - 128)
                losses.append(evaluate(images[first:first + 128], labels[first:first + 128]))
            model.stop_training = len(seconds) == UPDATES

    model.fit(images, labels, batch_size=128, epochs=UPDATES, verbose=0, callbacks=[Clock()])
    return {"training": time.perf_counter() - start, "step": statistics.median(seconds[WARM:]),
            "loss": float(losses[-1])}


def floor():
    """Times the step's matrix products alone, at the rate tf.matmul reaches on large matrices with all cores.

    A product takes 2 floating-point operations for each weight, image and timestep. There are three for each kernel,
    one forward and two backward, but two for the projection, whose input needs no gradient.
    """
    import tensorflow as tf

    operations = 128 * 28 * 2 * (2 * 28 * 128 + 3 * 128 * 512 + 3 * 128 * 512) + 128 * 2 * 3 * 128 * 10
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
    """Returns the median seconds of a step on random images; `size` is the number of one of SIZES."""
    import numpy as np

    batch_size, timesteps, pixels, units = SIZES[int(size)]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, [batch_size, timesteps, pixels], np.uint8)
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


def whole_script():
    """Returns the seconds of each part of `python rnn_mnist.py`, by the clock in a copy of it and around it."""
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    for part, line, when in PARTS:
        clock = f"if {when}: print('END OF {part}:', time.monotonic(), file=sys.stderr)"
        source, found = re.subn(rf"^( *)(?={re.escape(line)})", rf"\1{clock}\n\1", source, flags=re.MULTILINE)
        assert found == 1, line
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "rnn_mnist.py").write_text(source, encoding="utf-8")
        pathlib.Path(folder, "uci_digits.npz").write_bytes((ROOT / "uci_digits.npz").read_bytes())
        start = time.monotonic()
        messages = subprocess.run([sys.executable, "rnn_mnist.py"], cwd=folder, text=True, check=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr
        end = time.monotonic()
    times = [("start", start), *((part, float(at)) for part, at in re.findall(r"^END OF (.*): (\S+)$", messages, re.M)),
             ("ending Python", end)]
    parts = {part: at - earlier for (_, earlier), (part, at) in zip(times, times[1:])}
    return {**parts, "the whole command": end - start}


# tables


def main():
    contestants = ["this_project", "keras_layers"] + [
        name for name, package in [("pytorch", "torch"), ("jax", "jax")] if importlib.util.find_spec(package)]
    trainings = [f"training {name}" for name in contestants if name != "keras_layers"]
    results = {job: [] for job in [
        *trainings, "fit_training", "floor", "whole_script",
        *(f"step {name} {number}" for number in range(len(SIZES)) for name in contestants)]}
    for _ in range(ROUNDS):
        for job, rounds in results.items():
            process = subprocess.run([sys.executable, __file__, *job.split()], stdout=subprocess.PIPE, check=True)
            rounds.append(json.loads(process.stdout))
            print(job, rounds[-1], file=sys.stderr)
            assert "training" not in job or rounds[-1]["loss"] < 0.3, f"{job} has not learned"
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
          f"median of {ROUNDS} rounds (least to most)\n")
    print("| | training, s | a step, ms | training, this / that | a step, this / that |\n|---|---|---|---|---|")
    this = results["training this_project"]
    for job in [*trainings, "fit_training", "floor"]:
        cells = [job]
        for key, scale in [("training", 1), ("step", 1000)]:
            cells.append(spread([scale * result[key] for result in results[job] if key in result], 1))
        for key in ("training", "step"):
            pairs = zip(this, results[job])
            cells.append(spread([ours[key] / theirs[key] for ours, theirs in pairs if key in theirs], 2))
        print("| " + " | ".join(cells) + " |")
    print("\n| images, timesteps, pixels, units | " + " | ".join(f"{name}, ms" for name in contestants) + " | "
          + " | ".join(f"this / {name}" for name in contestants[1:]) + " |")
    print("|---" * 2 * len(contestants) + "|")
    for number, size in enumerate(SIZES):
        milliseconds = {name: [1000 * seconds for seconds in results[f"step {name} {number}"]] for name in contestants}
        ours, *others = milliseconds.values()
        ratios = [statistics.median(our / their for our, their in zip(ours, theirs)) for theirs in others]
        print("| " + " | ".join([", ".join(map(str, size)),
                                 *(f"{statistics.median(each):.3g}" for each in milliseconds.values()),
                                 *(f"{ratio:.2f}" for ratio in ratios)]) + " |")
    print("\n| part of `python rnn_mnist.py` | s |\n|---|---|")
    for part in results["whole_script"][0]:
        print(f"| {part} | {spread([rounds[part] for rounds in results['whole_script']], 1)} |")


def spread(values, digits):
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        function, *names = sys.argv[1:]
        print(json.dumps(globals()[function](*(globals().get(name, name) for name in names))))
    else:
        main()
