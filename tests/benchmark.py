"""Times the training of this network: rnn_mnist.py, Keras's fit and, where PyTorch is installed, its nn.LSTM.

Run by hand: `python tests/benchmark.py`, on MNIST as rnn_mnist.py finds it or else on the UCI digits. Each contestant
runs in a process of its own, in turn, for several rounds: 781 updates of 128 images and 78 evaluations of a minibatch,
tracing included. A step is one update, once the run is warm. Prints milliseconds and ratios, with their spread.
"""

import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

ROUNDS = 5
UPDATES = 781
DISPLAY_STEP = 10
WARM = 100  # updates that do not count as steps


class Clock:
    """Notes when each update ends, without the evaluations between them."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.steps = []

    def update_done(self):
        self.steps.append(time.perf_counter() - self.last)

    def next_update(self):
        self.last = time.perf_counter()

    def result(self, loss):
        return {"training": time.perf_counter() - self.start, "step": statistics.median(self.steps[WARM:]),
                "loss": float(loss)}


def data():
    """Returns training images, uint8 [n, 28, 28], and labels, int64 [n]."""
    import rnn_mnist

    return rnn_mnist.load_data()[0]


def this_project():
    import tensorflow as tf
    import rnn_mnist

    rnn_mnist.use_every_core()
    images, labels = data()
    clock = Clock()
    model = rnn_mnist.build_model()
    update, predict = tf.function(rnn_mnist.train_step), tf.function(rnn_mnist.logits_of)
    batches = rnn_mnist.minibatches(images, labels)
    for step in range(1, UPDATES + 1):
        clock.next_update()
        batch_images, batch_labels = next(batches)
        update(model, batch_images, batch_labels)
        clock.update_done()
        if step % DISPLAY_STEP == 0:
            loss, _ = rnn_mnist.loss_and_accuracy(predict(model, batch_images), batch_labels)
    return clock.result(loss)


def keras_fit():
    import keras
    import numpy as np
    import tensorflow as tf

    images, labels = data()
    images = images / np.float32(255)
    clock = Clock()
    model = keras.Sequential([
        keras.Input([28, 28]), keras.layers.Dense(128), keras.layers.LSTM(128), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(epsilon=1e-8), loss, metrics=["accuracy"])
    losses = []

    class Evaluate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            clock.next_update()

        def on_train_batch_end(self, batch, logs=None):
            clock.update_done()
            step = len(clock.steps)
            if step % DISPLAY_STEP == 0:  # fit does not hand out its minibatches: another of the same size
                start = step * 128 % (len(images) - 128)
                losses.append(evaluate(images[start:start + 128], labels[start:start + 128]))
            model.stop_training = step == UPDATES

    @tf.function
    def evaluate(images, labels):
        return loss(labels, model(images))

    model.fit(images, labels, batch_size=128, epochs=UPDATES, verbose=0, callbacks=[Evaluate()])
    return clock.result(losses[-1])


def pytorch():
    import torch
    import rnn_mnist

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = torch.nn.Linear(28, 128)
            self.lstm = torch.nn.LSTM(128, 128, batch_first=True)
            self.out = torch.nn.Linear(128, 10)

        def forward(self, rows):
            return self.out(self.lstm(self.hidden(rows))[0][:, -1])

    images, labels = data()
    clock = Clock()
    network = Network()
    adam = torch.optim.Adam(network.parameters(), lr=0.001)
    cross_entropy = torch.nn.CrossEntropyLoss()
    batches = rnn_mnist.minibatches(images, labels)
    for step in range(1, UPDATES + 1):
        clock.next_update()
        batch_images, batch_labels = (torch.from_numpy(array) for array in next(batches))
        batch_images = batch_images.float() / 255
        adam.zero_grad()
        cross_entropy(network(batch_images), batch_labels).backward()
        adam.step()
        clock.update_done()
        if step % DISPLAY_STEP == 0:
            with torch.no_grad():
                logits = network(batch_images)
                loss, _ = cross_entropy(logits, batch_labels), (logits.argmax(1) == batch_labels).float().mean()
    return clock.result(loss)


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


def main():
    contestants = [this_project, keras_fit] + ([pytorch] if importlib.util.find_spec("torch") else []) + [floor]
    results = {contestant.__name__: [] for contestant in contestants}
    for _ in range(ROUNDS):
        for name, rounds in results.items():
            process = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, check=True)
            rounds.append(json.loads(process.stdout))
            print(name, rounds[-1], file=sys.stderr)
            assert rounds[-1].get("loss", 0) < 0.3, f"{name} has not learned"
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
          f"median of {ROUNDS} rounds (least to most)\n")
    print("| | training, s | a step, ms | training, this / that | a step, this / that |")
    print("|---|---|---|---|---|")
    for name, rounds in results.items():
        cells = [name]
        for key, scale, digits in [("training", 1, 1), ("step", 1000, 1)]:
            cells.append(spread([scale * result[key] for result in rounds if key in result], digits))
        for key in ("training", "step"):
            cells.append(spread([this[key] / that[key] for this, that in zip(results["this_project"], rounds)
                                 if key in that], 2))
        print("| " + " | ".join(cells) + " |")


def spread(values, digits):
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(globals()[sys.argv[1]]()))
    else:
        main()
