"""The CPU's shorter way through the weights against Keras's layers, which a GPU takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist


pytestmark = pytest.mark.usefixtures("cpu")


def case(monkeypatch, n, n_steps, n_input, n_hidden):
    """Returns a model whose weights are all random, and `n` random images with labels."""
    for name, value in dict(N_STEPS=n_steps, N_INPUT=n_input, N_HIDDEN=n_hidden).items():
        monkeypatch.setattr(rnn_mnist, name, value)
    keras.utils.set_random_seed(n * n_steps)
    generator = np.random.default_rng(n * n_steps)
    model = rnn_mnist.build_model()
    model.set_weights([weight + 0.1 * generator.normal(size=weight.shape) for weight in model.get_weights()])
    return model, generator.integers(0, 256, [n, n_steps, n_input], np.uint8), generator.integers(0, 10, n)


def logits_and_gradients(model, images, labels):
    with tf.GradientTape() as tape:
        logits = rnn_mnist.logits_of(model, images)
        loss, _ = rnn_mnist.loss_and_accuracy(logits, labels)
    return [logits, *tape.gradient(loss, model.trainable_variables)]


@pytest.mark.parametrize("n, n_steps, n_input, n_hidden, cores", [
    (128, 28, 28, 128, 2),
    (128, 28, 28, 128, 64),  # four shards of 32
    (100, 28, 28, 32, 3),  # shards of 34, 33 and 33
    (65, 14, 56, 16, 2),
    (1, 28, 28, 16, 2),
    (64, 56, 14, 8, 2),
    (70, 112, 7, 8, 2),  # not unrolled
])
def test_logits_and_gradients_are_the_layers(monkeypatch, n, n_steps, n_input, n_hidden, cores):
    model, images, labels = case(monkeypatch, n, n_steps, n_input, n_hidden)
    monkeypatch.setattr(rnn_mnist, "CORES", cores)
    by_cpu = logits_and_gradients(model, images, labels)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])  # no GPU on test machines: a mock
    by_layers = logits_and_gradients(model, images, labels)
    assert len(by_cpu) == 8
    for cpu, layers in zip(by_cpu, by_layers):
        assert np.linalg.norm(cpu - layers) <= 1e-5 * np.linalg.norm(layers)


@pytest.mark.parametrize("n, cores, sizes", [
    (128, 1, [128]), (128, 2, [64, 64]), (128, 64, [32] * 4), (100, 2, [50, 50]), (100, 3, [34, 33, 33]),
    (63, 8, [63]), (1, 8, [1]), (1000, 8, [125] * 8)])
def test_every_core_gets_a_share_of_at_least_32_images(monkeypatch, n, cores, sizes):
    model, images, _ = case(monkeypatch, n, 1, 784, 1)
    monkeypatch.setattr(rnn_mnist, "CORES", cores)
    shards = []
    last_output = rnn_mnist.last_output
    monkeypatch.setattr(rnn_mnist, "last_output",
                        lambda hidden, cell, rows: shards.append(len(rows)) or last_output(hidden, cell, rows))
    rnn_mnist.logits_of(model, images)
    assert shards == sizes


def test_a_gpu_runs_keras_layers(monkeypatch):
    model, images, _ = case(monkeypatch, 128, 2, 392, 4)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])  # no GPU on test machines: a mock
    monkeypatch.delattr(rnn_mnist, "last_output")
    assert rnn_mnist.logits_of(model, images).shape == (128, 10)


def test_784_timesteps_make_no_larger_a_graph_than_112(monkeypatch):
    sizes = []
    for n_steps in (112, 784):
        model, images, labels = case(monkeypatch, 4, n_steps, 784 // n_steps, 2)
        update = tf.function(rnn_mnist.train_step)
        graph = update.get_concrete_function(model, tf.constant(images), tf.constant(labels)).graph.as_graph_def()
        sizes.append(len(graph.node) + sum(len(function.node_def) for function in graph.library.function))
    assert sizes[0] == sizes[1]
