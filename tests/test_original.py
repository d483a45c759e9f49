"""Step for step the original: `build_model`, `faster`, `measure` against recorded runs of it, its
equations in NumPy and its initial state.
"""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist

TRAJECTORIES = pathlib.Path(__file__).parent / "trajectories"
WEIGHTS = ["w_hidden", "b_hidden", "lstm_matrix", "lstm_bias", "w_out", "b_out"]


@pytest.fixture(params=["cpu", "gpu"], ids=["the fast path", "the layers"])
def way(request):
    """Both ways through the network: a CPU's and, by a mock, a GPU's."""
    request.getfixturevalue(request.param)
    return request.param


# its tensors and Keras's


def reorder(gates):
    """Swaps the middle two of four column blocks: the original's i, j, f, o, Keras's i, f, j, o."""
    i, j, f, o = np.split(gates, 4, axis=-1)
    return np.concatenate([i, f, j, o], axis=-1)


def forget_bias(units):
    """Returns what Keras has in its bias, and the original adds in the gate: [4 * units]."""
    return np.repeat(np.float32([0, 1, 0, 0]), units)


def to_keras(w_hidden, b_hidden, lstm_matrix, lstm_bias, w_out, b_out):
    """Returns the original's tensors as the Keras model's, with two kernels for one matrix."""
    units = len(b_hidden)
    input_kernel, recurrent_kernel = np.split(reorder(lstm_matrix), [units])
    bias = reorder(lstm_bias) + forget_bias(units)
    return [w_hidden, b_hidden, input_kernel, recurrent_kernel, bias, w_out, b_out]


def to_original(w_hidden, b_hidden, input_kernel, recurrent_kernel, lstm_bias, w_out, b_out):
    matrix = reorder(np.concatenate([input_kernel, recurrent_kernel]))
    bias = reorder(lstm_bias - forget_bias(len(b_hidden)))
    return [w_hidden, b_hidden, matrix, bias, w_out, b_out]


# a recorded run, in small


@pytest.fixture
def recording():
    with np.load(TRAJECTORIES / "original_trajectory.npz") as file:
        return {name: file[name] for name in file}


def test_every_step_is_the_originals(recording, settings, way):
    """Runs the port's own update on the recorded minibatches, and compares each step."""
    _, _, n_steps, n_input = recording["images"].shape
    settings(N_STEPS=n_steps, N_INPUT=n_input, N_HIDDEN=len(recording["b_hidden"]),
             N_CLASSES=len(recording["b_out"]))
    model = rnn_mnist.build_model()
    model.set_weights(to_keras(*(recording[name] for name in WEIGHTS)))
    network = rnn_mnist.faster(model)
    for images, labels, recorded_loss, recorded_accuracy in zip(
            recording["images"] / np.float32(255), recording["labels"].astype(np.int64),
            recording["losses"], recording["accuracies"], strict=True):
        network.train_on_batch(images, labels)
        loss, accuracy = rnn_mnist.measure(model, network, images, labels)
        # float32's rounding, which grows with the loss: 1.4e-6 was seen
        assert abs(loss - recorded_loss) <= 1e-5 * recorded_loss
        assert accuracy == recorded_accuracy
    # Adam divides by the root mean square of the gradients, so where that is tiny, rounding grows
    # to a visible step. Here no weight is so: the furthest of 2,746 is 7e-7 away.
    for name, weight in zip(WEIGHTS, to_original(*model.get_weights()), strict=True):
        assert np.abs(weight - recording[f"final_{name}"]).max() <= 1e-5, name


# a recorded run at the real size


@pytest.fixture
def full_size(settings):
    """Returns the recording, its first weights, and each of its minibatches.

    The first weights are not stored, since NumPy's frozen generator makes them.
    """
    with np.load(TRAJECTORIES / "original_trajectory_full_size.npz") as file:
        recording = {name: file[name] for name in file}
    train, test, _ = rnn_mnist.load_data()  # the UCI digits, since there is no network
    sequences, labels = (np.concatenate(both) for both in zip(train, test, strict=True))
    random = np.random.RandomState(1)
    for epoch in range(3):
        order = random.permutation(1797)[:14 * 128].reshape(14, 128)
        recorded = recording["order"][14 * epoch:14 * epoch + 14]
        np.testing.assert_array_equal(recorded, order[:len(recorded)])
    np.testing.assert_array_equal(labels[recording["order"]], recording["labels"])
    bound = (3 / 256) ** 0.5
    weights = [random.normal(size=[28, 128]), random.normal(size=128),
               random.uniform(-bound, bound, [256, 512]), np.zeros(512),
               random.normal(size=[128, 10]), random.normal(size=10)]
    batches = [(sequences[order], labels[order].astype(np.int64)) for order in recording["order"]]
    return recording, [weight.astype(np.float32) for weight in weights], batches


def test_at_its_real_size_it_is_nearer_to_the_equations_than_the_original_was(full_size, way):
    recording, weights, batches = full_size
    model = rnn_mnist.build_model()
    model.set_weights(to_keras(*weights))
    network = rnn_mnist.faster(model)
    distances, all_missed = [], 0
    for number, (sequences, labels) in enumerate(batches):
        network.train_on_batch(sequences, labels)
        loss, accuracy = map(float, rnn_mnist.measure(model, network, sequences, labels))
        distances.append(abs(loss / recording["exact_losses"][number] - 1))
        missed = round(abs(accuracy - recording["accuracies"][number]) * 128)
        if missed:  # where two logits, of up to 30, are the rounding of 30 steps apart
            *_, second, first = np.sort(model(sequences), axis=1).T
            assert missed <= np.sum(np.log(first / second) < 1e-4), number
            all_missed += missed
    assert all_missed < 5  # of 3,840: else the allowance would hide something
    original = np.abs(recording["losses"] / recording["exact_losses"] - 1)
    # 3.8e-6 was seen by the fast path, 1.2e-5 by the layers, 3.4e-5 is the original's
    assert len(distances) == 30 and max(distances) < original.max() < 4e-5


# the original's equations


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_log_probabilities(weights, sequences):
    """The original's forward pass in NumPy, its tensors as `WEIGHTS` names them."""
    w_hidden, b_hidden, lstm_matrix, lstm_bias, w_out, b_out = weights
    h = c = np.zeros([len(sequences), len(b_hidden)])
    for row in np.swapaxes(sequences, 0, 1):
        x = row @ w_hidden + b_hidden
        gates = np.concatenate([x, h], axis=1) @ lstm_matrix + lstm_bias
        i, j, f, o = np.split(gates, 4, axis=1)
        c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
    logits = h @ w_out + b_out
    return logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))


def reference_loss(weights, sequences, labels):
    log_probabilities = reference_log_probabilities(weights, sequences)
    return -np.mean(log_probabilities[np.arange(len(labels)), labels])


def random_case(settings, n_steps, n_input, n_hidden, n=8):
    """Returns a model, random everywhere, its weights as the original's, and a minibatch."""
    settings(N_STEPS=n_steps, N_INPUT=n_input, N_HIDDEN=n_hidden)
    keras.utils.set_random_seed(n_steps * n_hidden)
    model = rnn_mnist.build_model()
    generator = np.random.default_rng(n_steps * n_hidden)
    weights = model.get_weights()
    weights[4] = weights[4] + generator.normal(size=weights[4].shape).astype(np.float32)
    model.set_weights(weights)
    sequences = generator.random([n, n_steps, n_input], np.float32)
    labels = generator.integers(0, 10, n)
    return model, [weight.astype(np.float64) for weight in to_original(*weights)], sequences, labels


@pytest.mark.parametrize("n_steps, n_input, n_hidden", [
    (28, 28, 128), (28, 28, 1), (14, 56, 64), (1, 784, 128), (112, 7, 8)])
def test_the_forward_pass_is_the_originals(settings, way, n_steps, n_input, n_hidden):
    model, weights, sequences, labels = random_case(settings, n_steps, n_input, n_hidden)
    reference = reference_log_probabilities(weights, sequences)
    outputs = rnn_mnist.fast_path(model, sequences) if way == "cpu" else model(sequences)
    scale = max(1, np.abs(reference).max())  # float32's rounding grows with the logits
    np.testing.assert_allclose(np.log(outputs), reference, rtol=0, atol=1e-5 * scale)
    network = rnn_mnist.faster(model)
    loss, accuracy = map(float, rnn_mnist.measure(model, network, sequences, labels))
    assert loss == pytest.approx(reference_loss(weights, sequences, labels), rel=1e-5)
    assert accuracy == np.mean(reference.argmax(axis=1) == labels)


@pytest.mark.parametrize("n_steps, n_input", [(28, 28), (112, 7)])
def test_the_gradient_of_every_weight_is_the_originals(settings, cpu, n_steps, n_input):
    """By central differences, in float64."""
    model, weights, sequences, labels = random_case(settings, n_steps, n_input, n_hidden=4, n=5)
    with tf.GradientTape() as tape:
        outputs = rnn_mnist.fast_path(model, sequences)
        loss = model.compute_loss(x=sequences, y=labels, y_pred=outputs)
    gradients = [each.numpy() for each in tape.gradient(loss, model.trainable_variables)]
    gradients[4] = gradients[4] + forget_bias(4)  # which to_original takes off a bias
    for name, weight, gradient in zip(WEIGHTS, weights, to_original(*gradients), strict=True):
        differences = np.empty_like(weight)
        for index in np.ndindex(weight.shape):
            value = weight[index]
            weight[index] = value + 1e-5
            above = reference_loss(weights, sequences, labels)
            weight[index] = value - 1e-5
            below = reference_loss(weights, sequences, labels)
            weight[index] = value
            differences[index] = (above - below) / 2e-5
        tolerance = 1e-5 * max(1, np.abs(differences).max())  # float32's rounding
        np.testing.assert_allclose(gradient, differences, rtol=0, atol=tolerance, err_msg=name)


# the original's initial state


def assert_distribution(samples, cdf, odds=1e-9):
    """Fails a wrong distribution, and a right one with probability `odds`.

    After Dvoretzky, Kiefer and Wolfowitz: the empirical distribution of n samples is
    sqrt(ln(2 / odds) / 2n) away from the true one with at most these odds.
    """
    samples = np.sort(samples.ravel())
    n = len(samples)
    distance = np.abs(cdf(samples) - (np.arange(n) + 0.5) / n).max() - 0.5 / n
    assert distance < np.sqrt(np.log(2 / odds) / (2 * n))


def test_initial_weights_have_the_originals_distributions(settings):
    settings(N_HIDDEN=400, N_CLASSES=400)
    keras.utils.set_random_seed(0)
    models = [rnn_mnist.build_model().get_weights() for _ in range(10)]
    w_hidden, b_hidden, kernel, recurrent_kernel, lstm_bias, w_out, b_out = map(
        np.array, zip(*models, strict=True))
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
