"""docs/class.md: the program of each answer runs, and prints what the page shows.

Here they train for a few updates on small data, so their figures differ from the page's. Where a
program only calculates, they are the same.
"""

import re

import keras
import pytest

import rnn_mnist
from conftest import QUICK, ROOT

PAGE = (ROOT / "docs" / "class.md").read_text(encoding="utf-8")
ANSWERS = re.findall(r"^### \d+\. (.*?)$\n\n```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE,
                     re.MULTILINE | re.DOTALL)  # [(title, program, what it prints)]
CALCULATED = ("The log", "Weights")
LOG = re.compile(r"^(Iter |Optimization Finished!|Testing Accuracy).*\n", re.MULTILINE)


def without_figures(text):
    """Returns a text with 0 for each figure and each list of figures, and no gaps."""
    text = re.sub(r"\d+(\.\d*)?", "0", text)
    return re.sub("0(,?0)+", "0", "".join(text.split()))


@pytest.fixture
def small(settings, untraced, small_data_dir):
    """Small data. Returns a function that makes networks small, too, and saves the model of one.

    What the programs change is put back at the end.
    """
    changed = "LEARNING_RATE SEED MODEL_PATH load_data build_model".split()
    settings(DATA_DIR=str(small_data_dir), **{name: getattr(rnn_mnist, name) for name in changed})

    def small():
        settings(**{**QUICK, "TRAINING_ITERS": 1100})
        model = rnn_mnist.build_model()
        model.optimizer.build(model.trainable_variables)
        model.save("rnn_mnist.keras")

    return small


def assert_it_saved_a_gru():
    saved = keras.models.load_model("gru.keras")
    assert [type(layer).__name__ for layer in saved.layers] == ["Dense", "GRU", "Dense"]
    assert int(saved.optimizer.iterations) == 10
    original = keras.models.load_model("rnn_mnist.keras")
    assert type(original.layers[1]).__name__ == "LSTM"
    for ours, theirs in zip(saved.layers, original.layers):
        ours, theirs = ours.get_config(), theirs.get_config()
        assert ours["kernel_initializer"] == theirs["kernel_initializer"]


@pytest.mark.slow
@pytest.mark.parametrize("title, program, shown", ANSWERS, ids=[title for title, *_ in ANSWERS])
def test_an_answer_prints_what_the_page_shows(small, capsys, title, program, shown):
    if title in CALCULATED:
        exec(program, {})
        assert capsys.readouterr().out == shown
        return
    small()
    exec(program, {})
    printed = LOG.sub("", capsys.readouterr().out)
    assert without_figures(printed) == without_figures(shown)
    if title == "A GRU":
        assert_it_saved_a_gru()


def test_each_exercise_has_an_answer():
    exercises = re.findall(r"^\d+\. \*\*(.*?)\.\*\*", PAGE, re.MULTILINE)
    assert len(exercises) == 10 and exercises == [title for title, *_ in ANSWERS]
    assert PAGE.count("```python\n") == len(ANSWERS)
