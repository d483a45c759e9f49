"""Speed: `faster`, `has_fast_path`, `fast_path`, `last_hidden_state`, `CORES`: what the fast path
computes, when it is taken, and that the part can be deleted.
"""

import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, ROOT, imported, script

import rnn_mnist


def case(settings, n, n_steps, n_input, n_hidden):
    """Returns a model whose weights are all random, and `n` random sequences with labels."""
    settings(N_STEPS=n_steps, N_INPUT=n_input, N_HIDDEN=n_hidden)
    keras.utils.set_random_seed(n * n_steps)
    generator = np.random.default_rng(n * n_steps)
    model = rnn_mnist.build_model()
    model.set_weights([weight + 0.1 * generator.normal(size=weight.shape)
                       for weight in model.get_weights()])
    sequences = generator.random([n, n_steps, n_input], np.float32)
    return model, sequences, generator.integers(0, 10, n)


# what it computes


def outputs_and_gradients(outputs_of, model, sequences, labels):
    with tf.GradientTape() as tape:
        outputs = outputs_of(model, sequences)
        loss = model.compute_loss(x=sequences, y=labels, y_pred=outputs)
    return [outputs, *tape.gradient(loss, model.trainable_variables)]


@pytest.mark.parametrize("n, n_steps, n_input, n_hidden, cores", [
    (128, 28, 28, 128, 2),
    (128, 28, 28, 128, 64),  # four shards of 32
    (100, 28, 28, 32, 3),  # shards of 34, 33 and 33
    (65, 14, 56, 16, 2),
    (1, 28, 28, 16, 2),
    (64, 56, 14, 8, 2),
    (70, 112, 7, 8, 2),  # not unrolled
])
def test_outputs_and_gradients_are_the_layers(settings, cpu, n, n_steps, n_input, n_hidden, cores):
    settings(CORES=cores)
    model, sequences, labels = case(settings, n, n_steps, n_input, n_hidden)
    fast = outputs_and_gradients(rnn_mnist.fast_path, model, sequences, labels)
    layers = outputs_and_gradients(lambda model, x: model(x), model, sequences, labels)
    assert len(fast) == 8
    for of_fast_path, of_layers in zip(fast, layers, strict=True):
        error = np.linalg.norm(of_fast_path - of_layers)
        assert error <= 1e-5 * np.linalg.norm(of_layers)  # float32's rounding through the sums


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("n", [1, 63, 64, 100, 128, 1000])
def test_every_core_gets_an_even_share_of_at_least_32(settings, cpu, monkeypatch, n, cores):
    settings(CORES=cores)
    model, sequences, _ = case(settings, n, 1, 784, 1)
    shards, last_hidden_state = [], rnn_mnist.last_hidden_state
    monkeypatch.setattr(rnn_mnist, "last_hidden_state", lambda hidden, cell, rows: (
        shards.append(len(rows)) or last_hidden_state(hidden, cell, rows)))
    rnn_mnist.fast_path(model, sequences)
    assert sum(shards) == n and max(shards) - min(shards) <= 1
    assert len(shards) == 1 if n < 64 else min(shards) >= 32
    assert len(shards) <= cores and (len(shards) == cores or n // (len(shards) + 1) < 32)


def test_784_timesteps_make_no_larger_a_graph_than_112(settings, cpu):
    sizes = []
    for n_steps in (112, 784):
        model, *minibatch = case(settings, 4, n_steps, 784 // n_steps, 2)
        update = rnn_mnist.faster(model).train_on_batch
        function = update.get_concrete_function(*map(tf.constant, minibatch))
        graph = function.graph.as_graph_def()
        sizes.append(len(graph.node) + sum(len(each.node_def) for each in graph.library.function))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("x_type, y_type", [("float64", "int32"), ("float16", "uint8"),
                                            ("int32", "float32")])
def test_minibatches_of_other_types_are_cast_as_keras_casts_them(settings, cpu, x_type, y_type):
    """As a custom `minibatches` may yield them: with noise, say, in float64."""
    model, sequences, labels = case(settings, 8, 3, 4, 5)
    sequences, labels = (9 * sequences).astype(x_type), labels.astype(y_type)
    fast = rnn_mnist.faster(model)
    assert fast is not model
    expected = model.test_on_batch(sequences, labels, return_dict=True)
    measured = fast.test_on_batch(sequences, labels, return_dict=True)
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5)  # float32's rounding
    assert fast.train_on_batch(sequences, labels) is None  # as its docstring has it
    assert fast.test_on_batch(sequences, labels)["loss"] < measured["loss"]


# when it is taken


def is_taken(model):
    """Returns whether a model trains and is tested by the fast path, not by itself."""
    network = rnn_mnist.faster(model)
    assert hasattr(network, "train_on_batch") and hasattr(network, "test_on_batch")
    return network is not model


def network(Dense=keras.layers.Dense, LSTM=keras.layers.LSTM, Model=keras.Sequential, **options):
    """Returns the three layers with options, {"hidden": {...}, "lstm": {...}, "out": {...}}."""
    hidden, lstm, out = (options.get(name, {}) for name in ("hidden", "lstm", "out"))
    return compiled(Model([keras.Input([3, 4]), Dense(5, **hidden), LSTM(6, **lstm),
                           keras.layers.Dense(7, **{"activation": "softmax", **out})]))


def compiled(model, **options):
    model.compile("adam", "sparse_categorical_crossentropy", **options)
    return model


def test_a_cpu_takes_it_for_the_network_as_it_stands(settings, cpu):
    settings(N_STEPS=3, N_INPUT=4, N_HIDDEN=5)
    model = rnn_mnist.build_model()
    assert is_taken(model)
    model.compile(keras.optimizers.SGD(), loss="mse", metrics=[])
    assert is_taken(model)
    model.layers[1].trainable = False
    assert is_taken(model)
    model.layers[1].name = "renamed"
    assert is_taken(model)


def test_how_weights_begin_does_not_matter(cpu):
    assert is_taken(network())
    assert is_taken(network(hidden=dict(kernel_initializer="zeros"),
                            lstm=dict(unit_forget_bias=False, seed=3),
                            out=dict(bias_initializer="ones")))
    assert is_taken(network(hidden=dict(activation=keras.activations.linear),
                            lstm=dict(activation=keras.activations.tanh),
                            out=dict(activation=keras.activations.softmax)))


def test_a_gpu_takes_the_layers(gpu):
    assert not is_taken(network())


def test_what_keras_keeps_takes_the_layers(cpu):
    """Strategies, eager execution, and that a network must be compiled, are Keras's to keep."""
    assert not is_taken(compiled(network(), run_eagerly=True))
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = network()
        assert not is_taken(model)
    assert not is_taken(model)
    layers = network().layers
    assert not is_taken(keras.Sequential([keras.Input([3, 4]), *layers]))


def linear(x):
    return 2 * x


def tanh(x):
    return 2 * tf.tanh(x)


def sigmoid(x):
    return 2 * tf.sigmoid(x)


def softmax(x):
    return 2 * tf.nn.softmax(x)


L2 = keras.regularizers.L2(0.1)
OPTIONS = {  # another value for each option that changes what a layer computes
    "hidden": dict(
        activation=["relu", linear], use_bias=[False], kernel_regularizer=[L2],
        bias_regularizer=[L2], activity_regularizer=[L2], kernel_constraint=["max_norm"],
        bias_constraint=["unit_norm"], lora_rank=[2], dtype=["float64", "mixed_float16"]),
    "lstm": dict(
        activation=["relu", tanh], recurrent_activation=["hard_sigmoid", sigmoid],
        use_bias=[False], kernel_regularizer=[L2], recurrent_regularizer=[L2],
        bias_regularizer=[L2], activity_regularizer=[L2], kernel_constraint=["max_norm"],
        recurrent_constraint=["max_norm"], bias_constraint=["max_norm"], dropout=[0.5],
        recurrent_dropout=[0.5], go_backwards=[True], unroll=[True], dtype=["float64"]),
    "out": dict(
        activation=["sigmoid", "linear", "log_softmax", softmax], use_bias=[False],
        kernel_regularizer=[L2], activity_regularizer=[L2], kernel_constraint=["max_norm"],
        dtype=["float64"]),
}


def name_of(value):
    """Returns what a test is called by, the same in every process."""
    return "L2" if value is L2 else getattr(value, "__name__", value)


@pytest.mark.parametrize("layer, option, value", [
    pytest.param(layer, option, value, id=f"{layer}, {option}, {name_of(value)}")
    for layer, options in OPTIONS.items() for option, values in options.items()
    for value in values])
def test_any_option_that_changes_a_layer_takes_the_layers(cpu, layer, option, value):
    assert not is_taken(network(**{layer: {option: value}}))


@pytest.mark.parametrize("option", ["return_sequences", "return_state", "stateful"])
def test_other_outputs_of_the_lstm_take_the_layers(cpu, option):
    model = keras.Sequential([  # not built, since such a model can't be, or needs a batch size
        keras.layers.Dense(5), keras.layers.LSTM(6, **{option: True}),
        keras.layers.Dense(7, "softmax")])
    assert not is_taken(compiled(model))


def test_an_option_that_is_set_later_takes_the_layers(cpu):
    model = network()
    model.layers[0].activation = keras.activations.relu
    assert not is_taken(model)
    model = network()
    model.layers[1].cell.activation = keras.activations.relu
    assert not is_taken(model)
    model = network()
    model.layers[0].enable_lora(2)
    assert not is_taken(model)


@pytest.mark.parametrize("name, other", [
    ("Dense", type("Dense", (keras.layers.Dense,), {})),  # custom classes may do anything
    ("LSTM", type("LSTM", (keras.layers.LSTM,), {})), ("LSTM", keras.layers.GRU),
    ("Model", type("Sequential", (keras.Sequential,), {}))],
    ids=["Dense", "LSTM", "GRU", "Sequential"])
def test_any_other_class_takes_the_layers(cpu, name, other):
    assert not is_taken(network(**{name: other}))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float64"])
def test_another_type_of_inputs_takes_the_layers(cpu, dtype):
    hidden, lstm, out = network().layers
    inputs = keras.Input([3, 4], dtype=dtype)  # which Keras casts, and so may cut values off
    assert not is_taken(compiled(keras.Sequential([inputs, hidden, lstm, out])))


def test_any_other_arrangement_takes_the_layers(cpu):
    hidden, lstm, out = network().layers
    inputs = keras.Input([3, 4])
    assert not is_taken(compiled(keras.Model(inputs, out(lstm(hidden(inputs))))))
    for layers in [[lstm, out], [hidden, lstm], [hidden, lstm, out, keras.layers.Dropout(0.0)],
                   [keras.layers.Masking(), hidden, lstm, out]]:
        copies = [type(layer).from_config(layer.get_config()) for layer in layers]
        assert not is_taken(compiled(keras.Sequential([keras.Input([3, 4]), *copies])))


# cores


@pytest.fixture
def on_64_cores(tmp_path, monkeypatch):
    """Loads a copy of the script on a host that shows 64 cores: a mock, with none at hand."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    return lambda **constants: imported(script(tmp_path, **constants))


@pytest.mark.parametrize("limit, cores", [
    ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 64),
    ("", 64), (None, 64)])
def test_a_containers_quota_is_respected(on_64_cores, monkeypatch, limit, cores):
    read_text = pathlib.Path.read_text

    def read(path, *arguments, **more):  # stands for the file that Linux shows in a container
        if path != pathlib.Path("/sys/fs/cgroup/cpu.max"):
            return read_text(path, *arguments, **more)
        if limit is None:
            raise FileNotFoundError
        return limit

    monkeypatch.setattr(pathlib.Path, "read_text", read)
    assert on_64_cores().CORES == cores


# it can be deleted


@pytest.mark.slow
def test_without_the_speed_part_the_script_trains_the_same(settings, monkeypatch, cpu, tmp_path,
                                                           small_data_dir, capsys):
    """Deletes it from a copy with the call of it, as the script says one may."""
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    before, _, rest = source.partition("# Part 3: speed")
    _, part_4, after = rest.partition("# Part 4: guards")
    call = "network = faster(model)"
    assert before.count(call) == 1 and part_4
    (tmp_path / "short.py").write_text(
        before.replace(call, "network = model") + part_4 + after, encoding="utf-8")
    logs = []
    for module in (imported(tmp_path / "short.py"), rnn_mnist):
        for name, value in dict(QUICK, DATA_DIR=small_data_dir, MODEL_PATH=None,
                                DISPLAY_STEP=1).items():
            monkeypatch.setattr(module, name, value)
        assert 0 <= module.main() <= 1
        logs.append(capsys.readouterr().out.splitlines())
    without, usual = logs
    assert len(without) == len(usual) == 7 + 3
    for ours, theirs in zip(usual[:7], without[:7], strict=True):
        loss, other = (float(line.split()[4].rstrip(",")) for line in (ours, theirs))
        assert loss == pytest.approx(other, abs=1e-5)  # losses near 2, in float32
