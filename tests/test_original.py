"""Step for step the original: recorded runs of it, its equations in NumPy, and its initial state."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist

TRAJECTORIES = sorted(pathlib.Path(__file__).parent.glob("trajectories/*.npz"))
WEIGHTS = ["w_hidden", "b_hidden", "lstm_matrix", "lstm_bias", "w_out", "b_out"]


@pytest.fixture
def constants(monkeypatch):
    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(rnn_mnist, name, value)
    return change


# recorded runs of the original


def reorder(gates):
    """Swaps the middle two of the four column blocks: i, j, f, o of the original and i, f, j, o of Keras."""
    i, j, f, o = np.split(gates, 4, axis=-1)
    return np.concatenate([i, f, j, o], axis=-1)


def to_keras(w_hidden, b_hidden, lstm_matrix, lstm_bias, w_out, b_out):
    """Returns the original's tensors as the Keras model's: two kernels for one matrix, 1 in the forget bias."""
    units = len(b_hidden)
    forget = np.repeat(np.float32([0, 1, 0, 0]), units)
    input_kernel, recurrent_kernel = np.split(reorder(lstm_matrix), [units])
    return [w_hidden, b_hidden, input_kernel, recurrent_kernel, reorder(lstm_bias) + forget, w_out, b_out]


def to_original(w_hidden, b_hidden, input_kernel, recurrent_kernel, lstm_bias, w_out, b_out):
    forget = np.repeat(np.float32([0, 1, 0, 0]), len(b_hidden))
    matrix = reorder(np.concatenate([input_kernel, recurrent_kernel]))
    return [w_hidden, b_hidden, matrix, reorder(lstm_bias - forget), w_out, b_out]


def replay(recording, constants, change_weights=lambda weights: weights, change_model=lambda model: None):
    """Runs rnn_mnist's own update from the recorded start on the recorded minibatches, and compares each step."""
    _, _, n_steps, n_input = recording["images"].shape
    constants(N_STEPS=n_steps, N_INPUT=n_input, N_HIDDEN=len(recording["b_hidden"]), N_CLASSES=len(recording["b_out"]))
    model = rnn_mnist.build_model()
    model.set_weights(change_weights(to_keras(*(recording[name] for name in WEIGHTS))))
    change_model(model)
    update = tf.function(rnn_mnist.train_step)
    for images, labels, recorded_loss, recorded_accuracy in zip(
            recording["images"], recording["labels"].astype(np.int64), recording["losses"], recording["accuracies"]):
        update(model, images, labels)
        loss, accuracy = rnn_mnist.loss_and_accuracy(rnn_mnist.logits_of(model, images), labels)
        assert abs(loss - recorded_loss) <= 1e-5 * recorded_loss  # float32's rounding grows with the loss
        assert accuracy == recorded_accuracy
    # Adam divides by the root mean square of the gradients, so where that is tiny, rounding grows to a visible step.
    # In original_trajectory.npz no weight needs the allowance: the furthest of 2,746 is 7e-7 away.
    squares = [(variable / (1 - 0.999 ** len(recording["losses"]))) for variable in second_moments(model)]
    for name, weight, square in zip(WEIGHTS, to_original(*model.get_weights()), to_original(*squares)):
        error = np.abs(weight - recording[f"final_{name}"])
        tiny = np.sqrt(np.maximum(square, 0)) < 1e-4
        assert np.all(error <= np.where(tiny, 1e-4, 1e-5)), name
        assert np.sum(error > 1e-5) <= 0.001 * error.size, name


def second_moments(model):
    """Returns Adam's running means of the squared gradients, one array a weight."""
    return [v.numpy() for v in model.optimizer.variables if "velocity" in v.path]


@pytest.fixture(params=TRAJECTORIES, ids=lambda path: path.stem)
def recording(request):
    with np.load(request.param) as file:
        return {name: file[name] for name in file}


def test_every_step_is_the_originals(recording, constants):
    replay(recording, constants)


def test_every_step_is_the_originals_by_keras_layers_too(recording, constants, layers_way):
    replay(recording, constants)


@pytest.fixture
def layers_way(monkeypatch):
    """The way a GPU takes, through Keras's layers. Test machines have none, so the list of them is a mock."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind] if kind == "GPU" else [])


def test_keras_epsilon_would_be_noticed(recording, constants):
    def change_model(model):
        model.compile(keras.optimizers.Adam(rnn_mnist.LEARNING_RATE))

    with pytest.raises(AssertionError):
        replay(recording, constants, change_model=change_model)


def test_a_missing_forget_bias_would_be_noticed(recording, constants):
    def change_weights(weights):
        bias = weights[4].copy()
        bias[len(bias) // 4:len(bias) // 2] -= 1
        return weights[:4] + [bias] + weights[5:]

    with pytest.raises(AssertionError):
        replay(recording, constants, change_weights)


def test_gates_in_the_wrong_order_would_be_noticed(recording, constants):
    with pytest.raises(AssertionError):
        replay(recording, constants, lambda weights: weights[:2] + [reorder(w) for w in weights[2:4]] + weights[4:])


def test_an_activation_on_the_projection_would_be_noticed(recording, constants, layers_way):
    def change_model(model):
        model.layers[0].activation = tf.nn.relu

    with pytest.raises(AssertionError):
        replay(recording, constants, change_model=change_model)


def test_a_loss_over_the_wrong_axis_would_be_noticed(recording, constants, monkeypatch):
    right = rnn_mnist.loss_and_accuracy

    def wrong(logits, labels):
        one_hot = tf.one_hot(labels, logits.shape[1])
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(one_hot, logits, axis=0))
        return loss, right(logits, labels)[1]

    monkeypatch.setattr(rnn_mnist, "loss_and_accuracy", wrong)
    with pytest.raises(AssertionError):
        replay(recording, constants)


def test_products_are_those_of_float32_on_every_device(constants):
    tf.config.experimental.enable_tensor_float_32_execution(True)  # TensorFlow's default
    rnn_mnist.build_model()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


# the original's equations


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_logits(weights, images):
    """The original's forward pass in NumPy, its tensors as `WEIGHTS` names them, for images from 0 to 1."""
    w_hidden, b_hidden, lstm_matrix, lstm_bias, w_out, b_out = weights
    h = c = np.zeros([len(images), len(b_hidden)])
    for row in np.swapaxes(images, 0, 1):
        x = row @ w_hidden + b_hidden
        i, j, f, o = np.split(np.concatenate([x, h], axis=1) @ lstm_matrix + lstm_bias, 4, axis=1)
        c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
    return h @ w_out + b_out


def reference_loss(weights, images, labels):
    logits = reference_logits(weights, images)
    return np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(labels)), labels])


def random_case(constants, n_steps, n_input, n_hidden, n=8):
    """Returns a model with random weights everywhere, these weights as the original's in float64, and a minibatch."""
    constants(N_STEPS=n_steps, N_INPUT=n_input, N_HIDDEN=n_hidden)
    keras.utils.set_random_seed(n_steps * n_hidden)
    model = rnn_mnist.build_model()
    generator = np.random.default_rng(n_steps * n_hidden)
    weights = model.get_weights()
    weights[4] = weights[4] + generator.normal(size=weights[4].shape).astype(np.float32)
    model.set_weights(weights)
    images = generator.integers(0, 256, [n, n_steps, n_input], np.uint8)
    labels = generator.integers(0, 10, n)
    return model, [weight.astype(np.float64) for weight in to_original(*weights)], images, labels


@pytest.mark.parametrize("n_steps, n_input, n_hidden", [
    (28, 28, 128), (28, 28, 1), (14, 56, 64), (56, 14, 32), (98, 8, 16), (1, 784, 128), (784, 1, 8)])
def test_the_forward_pass_is_the_originals(constants, n_steps, n_input, n_hidden):
    model, weights, images, labels = random_case(constants, n_steps, n_input, n_hidden)
    logits = rnn_mnist.logits_of(model, images)
    reference = reference_logits(weights, images / 255)
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * max(1, np.abs(reference).max()))
    loss, accuracy = rnn_mnist.loss_and_accuracy(logits, labels)
    assert loss.numpy() == pytest.approx(reference_loss(weights, images / 255, labels), rel=1e-5)
    assert accuracy == np.mean(reference.argmax(axis=1) == labels)
    np.testing.assert_allclose(model(images / np.float32(255)), tf.nn.softmax(reference), atol=1e-5)


@pytest.mark.parametrize("n_steps, n_input", [(28, 28), (112, 7)])
def test_the_gradient_of_every_weight_is_the_originals(constants, n_steps, n_input):
    model, weights, images, labels = random_case(constants, n_steps, n_input, n_hidden=4, n=5)
    with tf.GradientTape() as tape:
        loss, _ = rnn_mnist.loss_and_accuracy(rnn_mnist.logits_of(model, images), labels)
    gradients = to_original(*(g.numpy() for g in tape.gradient(loss, model.trainable_variables)))
    gradients[3] += reorder(np.repeat(np.float32([0, 1, 0, 0]), 4))  # which to_original takes off a bias
    for name, weight, gradient in zip(WEIGHTS, weights, gradients):
        differences = np.empty_like(weight)
        for index in np.ndindex(weight.shape):
            value = weight[index]
            weight[index] = value + 1e-5
            above = reference_loss(weights, images / 255, labels)
            weight[index] = value - 1e-5
            below = reference_loss(weights, images / 255, labels)
            weight[index] = value
            differences[index] = (above - below) / 2e-5
        np.testing.assert_allclose(gradient, differences, rtol=0, atol=1e-5 * max(1, np.abs(differences).max()),
                                   err_msg=name)


# the original's initial state


def assert_distribution(samples, cdf, odds=1e-9):
    """Fails a wrong distribution, and a right one with probability `odds`, after Dvoretzky, Kiefer and Wolfowitz:
    the empirical distribution of n samples is sqrt(ln(2 / odds) / 2n) away from the true one with at most these odds.
    """
    samples = np.sort(samples.ravel())
    n = len(samples)
    distance = np.abs(cdf(samples) - (np.arange(n) + 0.5) / n).max() - 0.5 / n
    assert distance < np.sqrt(np.log(2 / odds) / (2 * n))


def test_initial_weights_have_the_originals_distributions(constants):
    constants(N_HIDDEN=400, N_CLASSES=400)
    keras.utils.set_random_seed(0)
    models = [rnn_mnist.build_model().get_weights() for _ in range(10)]
    w_hidden, b_hidden, kernel, recurrent_kernel, lstm_bias, w_out, b_out = (np.array(w) for w in zip(*models))
    for samples in (w_hidden, b_hidden, w_out, b_out):  # 112,000, 4,000, 1,600,000 and 4,000
        assert_distribution(samples, lambda x: 0.5 * (1 + tf.math.erf(x / np.sqrt(2)).numpy()))
        # six standard errors: odds of 2e-9 each
        assert abs(samples.mean()) < 6 / np.sqrt(samples.size)
        assert abs(samples.std() - 1) < 6 / np.sqrt(2 * samples.size)
        assert np.abs(samples).max() > 2.5  # not truncated: odds of 0.9876 ** 4000 = 1e-22
    bound = np.sqrt(3 / (2 * 400))
    for samples in (kernel, recurrent_kernel):  # 6,400,000 each: a bound 0.3% off would be found
        assert_distribution(samples, lambda x: np.clip((x + bound) / (2 * bound), 0, 1))
        assert np.abs(samples).max() <= bound
    np.testing.assert_array_equal(lstm_bias, np.tile(np.repeat([0, 1, 0, 0], 400), [10, 1]))
