"""In other people's programs: sweeps, random searches, seeds of their own.

What belongs to the program that calls main stays as it was, and gets an answer in every case.
"""

import random
import re

import keras
import numpy as np
import pytest

import rnn_mnist
from conftest import QUICK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("untraced")]


@pytest.fixture
def quick(settings, small_data_dir):
    settings(**QUICK, DATA_DIR=str(small_data_dir), MODEL_PATH=None)
    return settings


# an answer in every case


def test_a_sweep_goes_on_after_a_point_that_can_not_be_trained(quick, capsys):
    accuracies = {}
    for learning_rate in (1e30, -1, 0.01):  # diverges, is refused, learns
        quick(LEARNING_RATE=learning_rate)
        try:
            accuracies[learning_rate] = rnn_mnist.main()
        except Exception as error:  # as people write it
            assert str(learning_rate)[:4] in str(error)
    printed = re.search(r"all 300 images: (\S+)", capsys.readouterr().out)[1]
    assert [*accuracies] == [0.01] and type(accuracies[0.01]) is float
    assert np.float32(accuracies[0.01]) == np.float32(printed)


# what belongs to the caller


def python_and_numpy():
    return [random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()]


@pytest.mark.parametrize("seed", [0, None])
def test_a_random_search_draws_on_as_if_nothing_had_been(quick, seed):
    quick(SEED=seed, TRAINING_ITERS=301)
    keras.utils.set_random_seed(5)
    expected = [python_and_numpy() for _ in range(3)]
    keras.utils.set_random_seed(5)
    for trial in range(3):
        assert python_and_numpy() == expected[trial]
        rnn_mnist.main()


def test_a_training_that_is_refused_leaves_the_generators_too(quick, refusal):
    keras.utils.set_random_seed(5)
    expected = python_and_numpy()
    keras.utils.set_random_seed(5)
    quick(N_CLASSES=9)
    assert "training labels" in refusal()
    assert python_and_numpy() == expected


def test_without_a_seed_a_caller_who_has_seeded_gets_other_runs(quick, capsys):
    quick(SEED=None, TRAINING_ITERS=301, DISPLAY_STEP=1)
    for _ in range(2):
        keras.utils.set_random_seed(5)
        rnn_mnist.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Iter 100, ") and lines.count(lines[0]) == 1
