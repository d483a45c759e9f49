"""Guards: `check_settings`, called before anything is loaded, and what of the surroundings matters.

A new constant needs a check there, a line in WRONG, its words in test_messages.SETTINGS and a row
in the table of docs/experiments.md.
"""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, ROOT, VERSION_DIR, imported, posix, run, script

import rnn_mnist

WRONG = {
    "TRAINING_ITERS": ["100000", 1e5, None, 10**13, 128, 1],
    "BATCH_SIZE": ["128", 12.5, True, 0], "DISPLAY_STEP": [0, -10, None],
    "LEARNING_RATE": [0, -0.1, float("inf"), float("nan"), "0.001", True, 1e-60, 10**400],
    "SEED": [-1, 2**32, 0.5, "0"], "N_HIDDEN": [0, 12.5, 10**30], "N_CLASSES": [0, 10**30],
    "N_STEPS": [28.0], "N_INPUT": [None], "TEST_LEN": [0], "OFFLINE_SAMPLE": [1, None],
    "DATA_DIR": [5, "", "gs://tfds-data/"], "LOG_DIR": [5, "s3://bucket/logs"],
    "MODEL_PATH": ["model.h5", "", 5, "gs://bucket/model.keras"],
}


@pytest.mark.parametrize("name, value", [
    (name, value) for name, values in WRONG.items() for value in values], ids=str)
def test_a_wrong_constant_is_named_with_its_value(settings, monkeypatch, refusal, name, value):
    monkeypatch.delattr(rnn_mnist, "load_data")  # before anything is loaded
    settings(**{name: value})
    message = refusal()
    assert name in message and re.search(rf"(?<!\w){re.escape(repr(value))}(?!\w)", message)


def test_each_constant_is_checked():
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8").partition("\ndef ")[0]
    assert {*WRONG} == {*re.findall(r"^([A-Z_]+) = ", source, re.MULTILINE)}


def test_unusual_constants_are_right(settings):
    settings(N_CLASSES=1, TEST_LEN=10**6, N_STEPS=5, N_INPUT=np.int64(7), BATCH_SIZE=3, SEED=None,
             TRAINING_ITERS=4, LEARNING_RATE=1, MODEL_PATH=pathlib.Path("models/m.keras"))
    rnn_mnist.check_settings()
    assert rnn_mnist.build_model().optimizer.learning_rate == 1
    settings(SEED=2**32 - 1, TRAINING_ITERS=10**12, LEARNING_RATE=np.float32(0.1), MODEL_PATH=None)
    rnn_mnist.check_settings()


def test_numbers_of_numpy_are_numbers(settings, untraced, small_data_dir):
    """As in `N_HIDDEN = np.random.choice([64, 128])`; Keras takes only Python's."""
    settings(**{name: np.int64(value) for name, value in QUICK.items()}, N_CLASSES=np.int32(10),
             SEED=np.int64(3), LEARNING_RATE=np.float16(0.01), DATA_DIR=small_data_dir)
    load_data = rnn_mnist.load_data

    def load_labels():
        rnn_mnist.N_CLASSES = np.arange(10).max() + 1
        return load_data()

    assert 0 <= rnn_mnist.main() <= 1
    settings(N_CLASSES=2, load_data=load_labels)  # which sets a constant itself
    assert 0 <= rnn_mnist.main() <= 1


def test_a_schedule_of_keras_is_a_learning_rate(quick, untraced):
    quick(LEARNING_RATE=keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5))
    rnn_mnist.main()
    saved = keras.models.load_model("rnn_mnist.keras")
    assert float(saved.optimizer.learning_rate) == pytest.approx(0.01 * 0.5 ** (7 / 5))


# folders


@pytest.mark.parametrize("data_dir", ["file/data", "x" * 300], ids=["under a file", "too long"])
def test_a_data_directory_that_can_not_be_leads_to_the_sample(settings, tmp_path, data_dir):
    (tmp_path / "file").touch()
    settings(DATA_DIR=data_dir)
    rnn_mnist.check_settings()
    assert rnn_mnist.load_data()[2] == rnn_mnist.SAMPLE


def test_a_bucket_is_no_local_folder(settings, monkeypatch, refusal):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data/datasets")
    assert "TFDS_DATA_DIR" in (message := refusal()) and "'gs://tfds-data/datasets'" in message
    settings(DATA_DIR="here")
    rnn_mnist.check_settings()  # which does not need the variable


def test_checking_the_settings_leaves_nothing_behind(settings, tmp_path):
    settings(DATA_DIR="run:/data", MODEL_PATH="run:/today/model.keras", LOG_DIR="logs")
    rnn_mnist.check_settings()  # a colon makes no bucket of a folder
    assert not list(tmp_path.iterdir())


LOADS = """
usual = DATA_DIR
for DATA_DIR in {data_dirs!r}:
    try:
        load_data()
    except TrainingError as error:
        print(error)
DATA_DIR = usual
"""


@posix
@pytest.mark.slow
def test_what_may_not_be_written_or_read_is_told(tmp_path, small_data_dir):
    """Root, whom no permission stops, gives up that capability: hence a process."""
    data_dirs = []
    for number, part in enumerate(["dataset_info.json", "mnist-train.tfrecord-00000-of-00001"]):
        data_dirs.append(str(tmp_path / str(number)))
        subprocess.run(["cp", "-r", small_data_dir, data_dirs[-1]], check=True)
        pathlib.Path(data_dirs[-1], VERSION_DIR, part).chmod(0)
    (tmp_path / "mine").mkdir(mode=0o555)
    path = script(tmp_path, LOADS.format(data_dirs=data_dirs), **QUICK, DATA_DIR=small_data_dir,
                  MODEL_PATH="mine/model.keras")
    command = [sys.executable, path.name]
    if os.geteuid() == 0:
        taken = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}", *command]
    status, out, err = run(path, command=command)
    for message, data_dir in zip(out.splitlines(), data_dirs, strict=True):
        assert data_dir in message
        assert "ermission denied" in message or "PermissionDenied" in message
    # and a model that can't be saved is told before the training
    assert (status, "Iter" in err, "Traceback" in err) == (1, False, False)
    assert str(tmp_path / "mine" / "model.keras") in err and "ermission denied" in err


# surroundings


def test_keras_computes_in_float32_on_every_device():
    keras.config.set_floatx("float16")
    keras.config.set_dtype_policy("mixed_float16")
    tf.config.experimental.enable_tensor_float_32_execution(True)  # TensorFlow's default
    model = rnn_mnist.build_model()
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize("wanted, used", [(None, "true"), ("false", "false")])
def test_no_more_of_a_gpus_memory_than_needed_unless_wanted(tmp_path, monkeypatch, wanted, used):
    name = "TF_FORCE_GPU_ALLOW_GROWTH"
    monkeypatch.delenv(name, raising=False)
    if wanted is not None:
        monkeypatch.setenv(name, wanted)
    imported(script(tmp_path))
    assert os.environ[name] == used
