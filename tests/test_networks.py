"""The network you write is the network that trains, is tested and is saved: nearly forty of them.

Each is handed over as build_model and trained by main. Then its weights are compared with those
of Keras's own train_on_batch, from the same weights on the same minibatches; the loss and accuracy
of the log with those of Keras's evaluate; the accuracy that is printed with that of the model that
is saved.
"""

import contextlib
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import QUICK, run, script

UPDATES = 5  # more than the four of an epoch
SIZES = dict(N_STEPS=4, N_INPUT=5, N_HIDDEN=8, N_CLASSES=4, BATCH_SIZE=16, DISPLAY_STEP=UPDATES,
             TRAINING_ITERS=16 * (UPDATES + 1))
CROSS_ENTROPY = "sparse_categorical_crossentropy"


def numbers():
    generator = np.random.default_rng(0)
    sequences = generator.random([64, 4, 5], np.float32) - np.float32(0.3)
    sequences[::3, -2:] = 0  # for a layer that masks
    # of the values at two timesteps, so that there is something to learn
    labels = (sequences[:, 1, 0] > 0.2) + 2 * (sequences[:, 3, 1] > 0)
    return (sequences, labels), (sequences[:50], labels[:50]), "numbers"


# the layers of the network as it stands, with options


def dense(units=8, activation=None, **options):
    return keras.layers.Dense(units, activation, **options)


def lstm(**options):
    return keras.layers.LSTM(8, **options)


def out(activation="softmax", **options):
    return keras.layers.Dense(4, activation, **options)


def adam(rate=0.01, **options):
    return keras.optimizers.Adam(rate, **options)


def sequential(*layers, optimizer=None, loss=CROSS_ENTROPY, metrics=("accuracy",), **options):
    model = keras.Sequential([keras.Input([4, 5]), *layers])
    model.compile(optimizer or adam(), loss=loss, metrics=[*metrics], **options)
    return model


def plain(**options):
    return sequential(dense(), lstm(), out(), **options)


# networks


def frozen():
    model = plain()
    model.layers[0].trainable = False
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


def functional():
    inputs = keras.Input([4, 5])
    rows = dense()(inputs)
    both = keras.layers.Concatenate()([lstm()(rows), keras.layers.GRU(8)(rows)])
    model = keras.Model(inputs, out()(both))
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


def unbuilt():
    model = keras.Sequential([lstm(), out()])
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


@keras.saving.register_keras_serializable()
class Written(keras.Model):
    """A model as people write them, with a loss of its own besides."""

    def __init__(self, **options):
        super().__init__(**options)
        self.lstm, self.out = lstm(), out()

    def call(self, sequences, training=False):
        return self.out(self.lstm(sequences))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        return loss + 0.1 * tf.reduce_mean(tf.square(y_pred)) + tf.reduce_mean(tf.square(x))


def written():
    model = Written()
    model.compile(adam(), loss=CROSS_ENTROPY)
    return model


@keras.saving.register_keras_serializable(name="tanh")
def tanh(x):
    return 1.7 * keras.ops.tanh(2 * x / 3)


@keras.saving.register_keras_serializable(name="linear")
def linear(x):
    return 2 * x


@keras.saving.register_keras_serializable()
def smoothed(labels, probabilities):
    targets = keras.ops.one_hot(keras.ops.cast(labels, "int32"), 4)
    return keras.losses.categorical_crossentropy(targets, probabilities, label_smoothing=0.1)


L2 = keras.regularizers.L2(0.01)
layers, optimizers = keras.layers, keras.optimizers
NETWORKS = {
    # as it stands, with other optimizers: by the fast path on a CPU
    "as it stands": rnn_mnist.build_model,
    "momentum": lambda: plain(optimizer=optimizers.SGD(0.05, momentum=0.9, nesterov=True)),
    "a schedule": lambda: plain(
        optimizer=adam(optimizers.schedules.ExponentialDecay(0.01, 5, 0.5))),
    "clipped, with decay": lambda: plain(optimizer=optimizers.AdamW(0.01, 0.1, clipnorm=0.1)),
    "accumulated": lambda: plain(optimizer=adam(gradient_accumulation_steps=3)),
    "a scaled loss": lambda: plain(optimizer=optimizers.LossScaleOptimizer(adam())),
    "a frozen layer": frozen,
    "another loss": lambda: plain(loss=smoothed),
    # the three layers with options
    "a constraint": lambda: sequential(
        dense(kernel_constraint="max_norm"), lstm(recurrent_constraint="unit_norm"), out()),
    "a ReLU projection": lambda: sequential(dense(activation="relu"), lstm(), out()),
    "a ReLU that shows later": lambda: sequential(
        dense(activation="relu", kernel_initializer="zeros"), lstm(kernel_initializer="zeros"),
        out()),
    "activations in the LSTM": lambda: sequential(
        dense(), lstm(activation="relu", recurrent_activation="hard_sigmoid"), out()),
    "a tanh of one's own": lambda: sequential(dense(), lstm(activation=tanh), out()),
    "a linear of one's own": lambda: sequential(dense(activation=linear), lstm(), out()),
    "backwards": lambda: sequential(dense(), lstm(go_backwards=True), out()),
    "no biases": lambda: sequential(dense(use_bias=False), lstm(use_bias=False),
                                    out(use_bias=False)),
    "no forget bias": lambda: sequential(dense(), lstm(unit_forget_bias=False), out()),
    "regularized weights": lambda: sequential(
        dense(kernel_regularizer=L2), lstm(recurrent_regularizer=L2), out(bias_regularizer=L2)),
    "regularized activities": lambda: sequential(
        dense(activity_regularizer=L2), lstm(activity_regularizer=L2), out()),
    "sigmoids": lambda: sequential(dense(), lstm(), out("sigmoid")),
    "logits": lambda: sequential(
        dense(), lstm(), out(None),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "half precision": lambda: sequential(dense(dtype="mixed_float16"), lstm(), out()),
    # other layers
    "two LSTMs": lambda: sequential(dense(), lstm(return_sequences=True), lstm(), out()),
    "a GRU": lambda: sequential(dense(), layers.GRU(8), out()),
    "a SimpleRNN": lambda: sequential(dense(), layers.SimpleRNN(8), out()),
    "two directions": lambda: sequential(dense(), layers.Bidirectional(lstm()), out()),
    "a convolution": lambda: sequential(
        layers.Conv1D(8, 3, activation="relu"), layers.GlobalMaxPooling1D(), out()),
    "masking": lambda: sequential(layers.Masking(), dense(), lstm(), out()),
    "batch normalization": lambda: sequential(  # before it a bias would follow rounding alone
        dense(use_bias=False), layers.BatchNormalization(momentum=0.8), lstm(), out()),
    "no recurrence": lambda: sequential(layers.Flatten(), dense(activation="tanh"), out()),
    # otherwise compiled, or other models
    "eager": lambda: plain(run_eagerly=True),
    "no metric": lambda: sequential(layers.GRU(8), out(), metrics=[]),
    "another metric first": lambda: sequential(
        layers.GRU(8), out(), metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2), "acc"]),
    "functional": functional,
    "unbuilt": unbuilt,
    "written": written,
}
ON_FAST_PATH = [*[*NETWORKS][:[*NETWORKS].index("a constraint")], "no forget bias"]
QUICK_ONES = ["as it stands", "a GRU"]
RANDOM = {  # networks that draw at random as they train, by how much they do
    "dropout": lambda rate: sequential(dense(), lstm(), layers.Dropout(rate), out()),
    "dropout in the LSTM": lambda rate: sequential(dense(), lstm(dropout=rate), out()),
    "recurrent dropout": lambda rate: sequential(dense(), lstm(recurrent_dropout=rate), out()),
    "noise": lambda rate: sequential(layers.GaussianNoise(rate), dense(), lstm(), out()),
}


def train_by_main(settings, monkeypatch, capsys, build, traced=True):
    """Hands a network over to main; returns it, its first weights, and what main printed.

    Not `traced` by TensorFlow, Keras computes the same: so most of these tests take half the time.
    """
    first, check_outputs = [], rnn_mnist.check_outputs

    def build_model():
        keras.utils.set_random_seed(1)
        return build()

    def note_first(model, x):
        check_outputs(model, x)
        first.extend([model, model.get_weights()])

    with monkeypatch.context() as patch, contextlib.nullcontext() if traced else eagerly():
        patch.setattr(rnn_mnist, "check_outputs", note_first)
        settings(**SIZES, load_data=numbers)
        patch.setattr(rnn_mnist, "build_model", build_model)
        assert 0 <= rnn_mnist.main() <= 1
    log = capsys.readouterr().out
    line, = re.findall(r"Minibatch Loss= (\S+), Training Accuracy= (\S+)", log)
    accuracy = re.search(r"all 50 sequences: (\S+)", log)[1]
    return *first, [*map(float, line)], float(accuracy)


def train_by_keras(build, weights):
    """Returns the network after as many updates by train_on_batch, and the last minibatch."""
    keras.utils.set_random_seed(1)
    model = build()
    model(keras.Input([4, 5]))
    model.set_weights(weights)
    batches = rnn_mnist.minibatches(*numbers()[0])
    with eagerly():
        for _ in range(UPDATES):
            batch = next(batches)
            model.train_on_batch(*batch)
    return model, batch


@contextlib.contextmanager
def eagerly():
    """Spares Keras the tracing, which would take most of these tests' time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def distance(model, other):
    """Returns the largest distance of a weight from the other model's, relative to its norm."""
    pairs = zip(map(np.float64, model.get_weights()), map(np.float64, other.get_weights()),
                strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6) for a, b in pairs)


def evaluated(model, batch):
    """Returns the loss and the accuracy of a minibatch, by Keras's evaluate and predict."""
    sequences, labels = batch
    with eagerly():
        loss = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)["loss"]
        predicted = model.predict(sequences, verbose=0).argmax(axis=1)
    return [loss, np.mean(predicted == labels)]


def assert_saved_as_printed(accuracy):
    sequences, labels = numbers()[1]
    saved = keras.models.load_model("rnn_mnist.keras")
    predicted = np.argmax(saved(sequences, training=False), axis=1)
    # both are float32 means of the same 50; float32 outputs of several batch sizes may put one
    # near-tie on the other side, 1 / 50
    assert accuracy == pytest.approx(np.mean(predicted == labels), abs=0.021)
    return saved


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in QUICK_ONES else pytest.mark.slow) for name in NETWORKS])
def test_the_network_you_write_is_the_one_that_trains(settings, cpu, monkeypatch, capsys, name):
    model, weights, line, accuracy = train_by_main(
        settings, monkeypatch, capsys, NETWORKS[name], traced=name in ON_FAST_PATH + QUICK_ONES)
    assert rnn_mnist.has_fast_path(model) == (name in ON_FAST_PATH)
    reference, batch = train_by_keras(NETWORKS[name], weights)
    # float32's rounding, in other orders, through some updates; half precision rounds to 1e-3
    rounding = 1e-2 if name == "half precision" else 1e-3
    assert distance(model, reference) < rounding
    assert line == pytest.approx(evaluated(model, batch), rel=rounding)
    saved = assert_saved_as_printed(accuracy)
    assert distance(saved, model) == 0
    saved.set_weights(weights)
    assert distance(saved, model) > 0.01  # it did train


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_in_training_is_in_training_only(settings, cpu, monkeypatch, capsys, name):
    model, weights, line, accuracy = train_by_main(
        settings, monkeypatch, capsys, lambda: RANDOM[name](0.3), traced=False)
    without, batch = train_by_keras(lambda: RANDOM[name](0.0), weights)
    assert distance(model, without) > 0.01  # ten times what rounding would do
    assert line == pytest.approx(evaluated(model, batch), rel=1e-3)  # float32's rounding
    assert_saved_as_printed(accuracy)


# what Keras's fit would do, beyond train_on_batch


class OwnStep(keras.Sequential):
    """Trains and is tested by steps of its own, written as in Keras's guide: half as far."""

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


def own_step():
    model = OwnStep([keras.Input([4, 5]), lstm(), out()])
    model.compile(keras.optimizers.SGD(0.5), loss=CROSS_ENTROPY)
    return model


def averaged():
    return plain(optimizer=adam(0.05, use_ema=True, ema_momentum=0.9))


@pytest.mark.parametrize("build", [own_step, averaged], ids=["its own step", "averages"])
def test_a_training_is_what_fit_would_make_of_it(settings, cpu, monkeypatch, capsys, build):
    model, weights, line, _ = train_by_main(settings, monkeypatch, capsys, build)
    reference, batches = build(), rnn_mnist.minibatches(*numbers()[0])
    reference.set_weights(weights)
    seen = [next(batches) for _ in range(UPDATES)]
    with eagerly():
        reference.fit(*map(np.concatenate, zip(*seen)), batch_size=16, shuffle=False, verbose=0)
    assert distance(model, reference) < 1e-3  # float32's rounding, in other orders
    if build is own_step:
        tested = reference.test_step(seen[-1])["loss"]  # which evaluate would not take for the loss
        assert line[0] == pytest.approx(float(tested), rel=1e-3)


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
    status, out, err = run(script(tmp_path, STRATEGY, **QUICK, DATA_DIR=str(small_data_dir)))
    assert status == 0, err
    lines, usual = out.splitlines(), usual_log.splitlines()
    loss, other = (float(line.split()[4].rstrip(",")) for line in (lines[0], usual[0]))
    assert loss == pytest.approx(other, rel=1e-3)  # the same weights; the mean of two means rounds
    saved = keras.models.load_model(tmp_path / "rnn_mnist.keras")
    settings(**QUICK, DATA_DIR=str(small_data_dir))
    _, (sequences, labels), _ = rnn_mnist.load_data()
    right = saved.predict(sequences, verbose=0).argmax(axis=1) == labels
    assert lines[-1] == f"Testing Accuracy, all 300 images: {right.mean(dtype=np.float32)!s}"


# what is looked at stays as it was


def draws():
    """Returns what comes next out of each generator that a network could draw from."""
    return [random.random(), np.random.random(), *keras.random.uniform([2]).numpy(),
            *tf.random.uniform([2]).numpy(), dense().kernel_initializer.seed]


@pytest.mark.parametrize("build", [
    rnn_mnist.build_model, lambda: RANDOM["recurrent dropout"](0.3),
    NETWORKS["batch normalization"]], ids=["as it stands", "dropout", "batch normalization"])
def test_looking_for_the_fast_path_leaves_no_trace(settings, cpu, build):
    settings(**SIZES)
    seen = []
    for look in (False, True):
        keras.utils.clear_session()  # Keras 3.12, the last for Python 3.10, else draws on
        keras.utils.set_random_seed(3)
        model = build()
        if look:
            before = model.get_weights()
            config = model.get_config()
            rnn_mnist.has_fast_path(model)
            rnn_mnist.check_outputs(model, numbers()[0][0])
            for weight, value in zip(model.get_weights(), before, strict=True):
                np.testing.assert_array_equal(weight, value)
            assert model.get_config() == config and not model.losses
        seen.append(draws())
    assert seen[0] == seen[1]


# what can't be used


def test_a_network_that_is_not_compiled_has_keras_own_words(settings, tmp_path):
    settings(**SIZES, load_data=numbers, build_model=lambda: keras.Sequential(
        [keras.Input([4, 5]), dense(), lstm(), out()]))
    with pytest.raises(ValueError):
        rnn_mnist.main()
    assert not list(tmp_path.iterdir())


def two_outputs():
    inputs = keras.Input([4, 5])
    model = keras.Model(inputs, [out()(lstm()(inputs)), lstm()(inputs)])
    model.compile(adam(), loss=[CROSS_ENTROPY, None])
    return model


@pytest.mark.parametrize("build, part", [
    (lambda: sequential(lstm(), dense(3, "softmax")), "(16, 3)"),
    (lambda: sequential(lstm(), dense(1, "sigmoid"), loss="binary_crossentropy"), "(16, 1)"),
    (lambda: sequential(lstm(return_sequences=True), out()), "(16, 4, 4)"),
    (two_outputs, "[(16, 4), (16, 8)]")], ids=["classes", "sigmoid", "every timestep", "two outputs"])
def test_outputs_of_another_shape_are_told(settings, refusal, build, part):
    settings(**SIZES, build_model=build, load_data=numbers)
    message = refusal()
    assert part in message and "N_CLASSES" in message and "(16, 4)" in message


def test_a_bug_in_build_model_keeps_its_traceback(settings):
    settings(**SIZES, build_model=lambda: 1 / 0, load_data=numbers)
    with pytest.raises(ZeroDivisionError):
        rnn_mnist.main()
