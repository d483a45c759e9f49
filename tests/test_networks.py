"""The network you write is the network that trains, is tested and is saved: `faster`, `train`,
`measure`, `test` and `save` with custom networks.

Each is handed over as build_model and trained by main. Then its weights are compared with those of
Keras's own train_on_batch, from the same weights on the same minibatches; the loss and accuracy of
the log with those of Keras's evaluate; the accuracy that is printed with that of the saved model.
Layers with options take Keras's own way, which test_fast_path.py tests option by option. At the
end: networks that main refuses.
"""

import contextlib
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, eagerly, run, script

import rnn_mnist

UPDATES = 5  # more than the four of an epoch
SIZES = dict(N_STEPS=4, N_INPUT=5, N_HIDDEN=8, N_CLASSES=4, BATCH_SIZE=16, DISPLAY_STEP=UPDATES,
             TRAINING_ITERS=16 * (UPDATES + 1))
CROSS_ENTROPY = "sparse_categorical_crossentropy"
layers, optimizers = keras.layers, keras.optimizers


def numbers():
    generator = np.random.default_rng(0)
    sequences = generator.random([64, 4, 5], np.float32) - np.float32(0.3)
    # of the values at two timesteps, so that there is something to learn
    labels = (sequences[:, 1, 0] > 0.2) + 2 * (sequences[:, 3, 1] > 0)
    return (sequences, labels), (sequences[:50], labels[:50]), "numbers"


def dense(**options):
    return layers.Dense(8, **options)


def lstm(**options):
    return layers.LSTM(8, **options)


def out(activation="softmax"):
    return layers.Dense(4, activation)


def adam(rate=0.01, **options):
    return optimizers.Adam(rate, **options)


def sequential(*parts, optimizer=None, loss=CROSS_ENTROPY, metrics=("accuracy",), **options):
    model = keras.Sequential([keras.Input([4, 5]), *parts])
    model.compile(optimizer or adam(), loss=loss, metrics=[*metrics], **options)
    return model


def plain(**options):
    return sequential(dense(), lstm(), out(), **options)


def frozen():
    model = plain()
    model.layers[0].trainable = False
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


def functional():
    inputs = keras.Input([4, 5])
    both = layers.Concatenate()([lstm()(inputs), layers.GRU(8)(dense()(inputs))])
    model = keras.Model(inputs, out()(both))
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


def unbuilt():
    model = keras.Sequential([lstm(), out()])
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


@keras.saving.register_keras_serializable()
class Subclass(keras.Model):
    """A model as people write them, with a custom loss besides."""

    def __init__(self, **options):
        super().__init__(**options)
        self.lstm, self.out = lstm(), out()

    def call(self, sequences, training=False):
        return self.out(self.lstm(sequences))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        return loss + 0.1 * tf.reduce_mean(tf.square(y_pred)) + tf.reduce_mean(tf.square(x))


def subclass():
    model = Subclass()
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


@keras.saving.register_keras_serializable()
class HalfSteps(keras.Sequential):
    """Trains and is tested by custom steps, as in Keras's guide, with half of the loss."""

    def train_step(self, data):
        sequences, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=labels, y_pred=self(sequences, training=True)) / 2
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}

    def test_step(self, data):
        sequences, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"loss": self.compute_loss(y=labels, y_pred=self(sequences)) / 2}


def half_steps():
    model = HalfSteps([keras.Input([4, 5]), lstm(), out()])
    model.compile(optimizers.SGD(0.5), loss=CROSS_ENTROPY)
    return model


@keras.saving.register_keras_serializable()
def smoothed(labels, probabilities):
    targets = keras.ops.one_hot(keras.ops.cast(labels, "int32"), 4)
    return keras.losses.categorical_crossentropy(targets, probabilities, label_smoothing=0.1)


ON_FAST_PATH = {  # where there is a CPU
    "default": rnn_mnist.build_model,
    "momentum": lambda: plain(optimizer=optimizers.SGD(0.05, momentum=0.9, nesterov=True)),
    "schedule": lambda: plain(
        optimizer=adam(optimizers.schedules.ExponentialDecay(0.01, 5, 0.5))),
    "clipped, with decay": lambda: plain(optimizer=optimizers.AdamW(0.01, 0.1, clipnorm=0.1)),
    "accumulated": lambda: plain(optimizer=adam(gradient_accumulation_steps=3)),
    "averaged": lambda: plain(optimizer=adam(0.05, use_ema=True, ema_momentum=0.9)),
    "scaled loss": lambda: plain(optimizer=optimizers.LossScaleOptimizer(adam())),
    "frozen layer": frozen,
    "custom loss": lambda: plain(loss=smoothed),
}
BY_KERAS = {
    "GRU": lambda: sequential(dense(), layers.GRU(8), out()),
    "two LSTMs": lambda: sequential(dense(), lstm(return_sequences=True), lstm(), out()),
    "batch normalization": lambda: sequential(  # before it a bias would follow rounding alone
        dense(use_bias=False), layers.BatchNormalization(momentum=0.8), lstm(), out()),
    "regularized": lambda: sequential(
        dense(kernel_regularizer="l2"), lstm(activity_regularizer="l2"), out()),
    "sigmoids": lambda: sequential(dense(), lstm(), out("sigmoid")),
    "logits": lambda: sequential(
        dense(), lstm(), out(None),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "half precision": lambda: sequential(dense(dtype="mixed_float16"), lstm(), out()),
    "eager": lambda: plain(run_eagerly=True),
    "no metric": lambda: sequential(layers.GRU(8), out(), metrics=[]),
    "another metric first": lambda: sequential(
        layers.GRU(8), out(), metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2), "acc"]),
    "functional": functional,
    "unbuilt": unbuilt,
    "subclass": subclass,
}
NETWORKS = {**ON_FAST_PATH, **BY_KERAS}
RANDOM = {  # networks that draw random numbers as they train, by how much they do
    "dropout": lambda rate: sequential(dense(), lstm(), layers.Dropout(rate), out()),
    "recurrent dropout": lambda rate: sequential(dense(), lstm(recurrent_dropout=rate), out()),
}


@pytest.fixture
def by_main(settings, monkeypatch, cpu, capsys):
    """Has main train a network; returns it, its first weights, its log line, its accuracy."""
    def by_main(build, traced=False):
        def build_model():
            keras.utils.set_random_seed(1)
            return build()

        def note_first(model, x):
            check_outputs(model, x)
            first.extend([model, model.get_weights()])

        first, check_outputs = [], rnn_mnist.check_outputs
        settings(**SIZES, load_data=numbers, build_model=build_model, check_outputs=note_first)
        with contextlib.nullcontext() if traced else eagerly():
            rnn_mnist.main()
        log = capsys.readouterr().out
        line, = re.findall(r"Minibatch Loss= (\S+), Training Accuracy= (\S+)", log)
        return *first, [*map(float, line)], float(re.search(r"all 50 sequences: (\S+)", log)[1])

    return by_main


def by_keras(build, weights):
    """Returns the network after as many updates by Keras's fit, and the last minibatch."""
    keras.utils.set_random_seed(1)
    model = build()
    model(keras.Input([4, 5]))
    model.set_weights(weights)
    batches = rnn_mnist.minibatches(*numbers()[0])
    seen = [next(batches) for _ in range(UPDATES)]
    x, y = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    with eagerly():
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    return model, seen[-1]


def distance(model, other):
    """Returns the largest distance of a weight from the other model's, relative to its norm."""
    pairs = zip(map(np.float64, model.get_weights()), map(np.float64, other.get_weights()),
                strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6) for a, b in pairs)


def evaluated(model, batch):
    """Returns the loss and the accuracy of a minibatch, by Keras's evaluate and predict."""
    with eagerly():
        loss = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)["loss"]
        predicted = model.predict(batch[0], verbose=0).argmax(axis=1)
    return [loss, np.mean(predicted == batch[1])]


def assert_saved_as_printed(accuracy):
    sequences, labels = numbers()[1]
    saved = keras.models.load_model("rnn_mnist.keras")
    predicted = np.argmax(saved(sequences, training=False), axis=1)
    # both are float32 means of the same 50; float32 outputs of several batch sizes may put one
    # near-tie on the other side, 1 / 50
    assert accuracy == pytest.approx(np.mean(predicted == labels), abs=0.021)
    return saved


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in ("default", "GRU", "subclass") else pytest.mark.slow)
    for name in NETWORKS])
def test_the_network_you_write_is_the_one_that_trains(by_main, name):
    model, weights, line, accuracy = by_main(NETWORKS[name], traced=name == "default")
    assert rnn_mnist.has_fast_path(model) == (name in ON_FAST_PATH)
    reference, batch = by_keras(NETWORKS[name], weights)
    # float32's rounding, in other orders, through some updates; half precision rounds to 1e-3
    rounding = 1e-2 if name == "half precision" else 1e-3
    assert distance(model, reference) < rounding
    if name != "averaged":  # whose log shows the parameters before they are averaged
        assert line == pytest.approx(evaluated(model, batch), rel=rounding)
    saved = assert_saved_as_printed(accuracy)
    assert distance(saved, model) == 0
    saved.set_weights(weights)
    assert distance(saved, model) > 0.01  # it did train


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_in_training_is_in_training_only(by_main, name):
    model, weights, line, accuracy = by_main(lambda: RANDOM[name](0.3))
    without, batch = by_keras(lambda: RANDOM[name](0.0), weights)
    assert distance(model, without) > 0.01  # ten times what rounding would do
    assert line == pytest.approx(evaluated(model, batch), rel=1e-3)  # float32's rounding
    assert_saved_as_printed(accuracy)


def test_custom_steps_train_and_test(by_main):
    model, weights, line, _ = by_main(half_steps)
    reference, batch = by_keras(half_steps, weights)
    assert distance(model, reference) < 1e-3  # float32's rounding, in other orders
    assert line[0] == pytest.approx(float(reference.test_step(batch)["loss"]), rel=1e-3)


STRATEGY = """
tf.config.experimental.enable_op_determinism()  # which no process can switch off again
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], 2 * [tf.config.LogicalDeviceConfiguration()])
original = build_model

def build_model():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        return original()
"""


@pytest.mark.slow
def test_a_strategy_of_tf_distribute_trains_on_two_devices(settings, tmp_path, small_data_dir,
                                                           usual_log):
    """With deterministic operations switched on as well."""
    status, out, err = run(script(tmp_path, STRATEGY, **QUICK, DATA_DIR=small_data_dir))
    assert status == 0, err
    lines, usual = out.splitlines(), usual_log.splitlines()
    loss, other = (float(line.split()[4].rstrip(",")) for line in (lines[0], usual[0]))
    assert loss == pytest.approx(other, rel=1e-3)  # the same weights; the mean of two means rounds
    saved = keras.models.load_model(tmp_path / "rnn_mnist.keras")
    settings(**QUICK, DATA_DIR=small_data_dir)
    _, (sequences, labels), _ = rnn_mnist.load_data()
    correct = saved.predict(sequences, verbose=0).argmax(axis=1) == labels
    assert lines[-1].endswith(f" {correct.mean(dtype=np.float32)!s}")


def draws():
    """Returns what comes next out of each generator that a network could draw from."""
    return [random.random(), np.random.random(), *keras.random.uniform([2]).numpy(),
            *tf.random.uniform([2]).numpy(), dense().kernel_initializer.seed]


@pytest.mark.parametrize("build", [
    rnn_mnist.build_model, lambda: RANDOM["recurrent dropout"](0.3),
    NETWORKS["batch normalization"]], ids=["default", "dropout", "batch normalization"])
def test_looking_at_a_network_leaves_no_trace(settings, cpu, build):
    settings(**SIZES)
    seen = []
    for look in (False, True):
        keras.utils.clear_session()  # Keras 3.12, the last for Python 3.10, otherwise draws on
        keras.utils.set_random_seed(3)
        model = build()
        if look:
            before, config = model.get_weights(), model.get_config()
            rnn_mnist.has_fast_path(model)
            rnn_mnist.check_outputs(model, numbers()[0][0])
            for weight, value in zip(model.get_weights(), before, strict=True):
                np.testing.assert_array_equal(weight, value)
            assert model.get_config() == config and not model.losses
        seen.append(draws())
    assert seen[0] == seen[1]


# networks that can't be used


def two_outputs():
    inputs = keras.Input([4, 5])
    model = keras.Model(inputs, [out()(lstm()(inputs)), lstm()(inputs)])
    model.compile(adam(), loss=[CROSS_ENTROPY, None])
    return model


@pytest.mark.parametrize("build, shape", [
    (lambda: sequential(lstm(), layers.Dense(3, "softmax")), "(16, 3)"),
    (lambda: sequential(lstm(return_sequences=True), out()), "(16, 4, 4)"),
    (two_outputs, "[(16, 4), (16, 8)]")], ids=["classes", "every timestep", "two outputs"])
def test_outputs_of_another_shape_are_told(settings, refusal, build, shape):
    settings(**SIZES, build_model=build, load_data=numbers)
    message = refusal()
    assert shape in message and "N_CLASSES" in message and "(16, 4)" in message


def not_compiled():
    return keras.Sequential([keras.Input([4, 5]), lstm(), out()])


@pytest.mark.parametrize("build, error, fact", [
    (not_compiled, ValueError, "compile"), (lambda: 1 / 0, ZeroDivisionError, "zero")],
    ids=["not compiled", "bug"])
def test_errors_of_keras_and_of_build_model_pass_unchanged(settings, tmp_path, build, error, fact):
    settings(**SIZES, load_data=numbers, build_model=build)
    with pytest.raises(error, match=fact):
        rnn_mnist.main()
    assert not list(tmp_path.iterdir())  # no model, and nothing of its rehearsal
