"""The constants, checked before anything is loaded, and what of the surroundings matters."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import QUICK, VERSION_DIR, imported, posix, run, script


@pytest.fixture
def no_data(monkeypatch):
    """Whatever looks for data fails."""
    monkeypatch.delattr(rnn_mnist, "load_data")


WHOLE = "an integer from 1 to 10**12."
RATE = "a number from 1e-37 to 1e37, or one of keras.optimizers.schedules."
SEEDS = "an integer from 0 to 2**32 - 1, or None."
FOLDER = "a local folder, or None."
MODEL = "a local file whose name ends in .keras, or None."
WRONG = {  # what a constant must be, and values that are something else
    ("TRAINING_ITERS", WHOLE): ["100000", 1e5, None, 10**13],
    ("TRAINING_ITERS", "greater than BATCH_SIZE = 128."): [128, 1],
    ("BATCH_SIZE", WHOLE): ["128", 12.5, True, 0],
    ("DISPLAY_STEP", WHOLE): [0, -10, None],
    ("LEARNING_RATE", RATE): [0, -0.1, float("inf"), float("nan"), "0.001", True, 1e-60, 10**400],
    ("SEED", SEEDS): [-1, 2**32, 0.5, "0"],
    ("N_HIDDEN", WHOLE): [0, 12.5, 10**30], ("N_CLASSES", WHOLE): [0, 10**30],
    ("N_STEPS", WHOLE): [28.0], ("N_INPUT", WHOLE): [None], ("TEST_LEN", WHOLE): [0],
    ("OFFLINE_SAMPLE", "True or False."): [1, None],
    ("DATA_DIR", FOLDER): [5, "", "gs://tfds-data/"], ("LOG_DIR", FOLDER): [5, "s3://bucket/logs"],
    ("MODEL_PATH", MODEL): ["model.h5", "", 5, "gs://bucket/model.keras"],
}


@pytest.mark.parametrize("name, must_be, value", [
    (*what, value) for what, values in WRONG.items() for value in values], ids=str)
def test_a_wrong_constant_is_named_with_its_value_and_what_it_must_be(settings, refusal, no_data,
                                                                      name, must_be, value):
    settings(**{name: value})
    assert refusal() == f"{name} = {value!r} must be {must_be}"


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
             SEED=np.int64(3), LEARNING_RATE=np.float16(0.01), DATA_DIR=str(small_data_dir))
    load_data = rnn_mnist.load_data

    def load_labels():
        rnn_mnist.N_CLASSES = labels.max() + 1
        return load_data()

    labels = np.arange(10)
    assert 0 <= rnn_mnist.main() <= 1
    settings(N_CLASSES=2, load_data=load_labels)  # which sets a constant itself
    assert 0 <= rnn_mnist.main() <= 1


def test_a_schedule_of_keras_is_a_learning_rate(settings, untraced):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5)
    settings(**QUICK, LEARNING_RATE=schedule)
    rnn_mnist.main()
    saved = keras.models.load_model("rnn_mnist-uci_digits.keras")
    assert float(saved.optimizer.learning_rate) == pytest.approx(0.01 * 0.5 ** (21 / 5))


# folders


@pytest.mark.parametrize("data_dir", ["file/data", "x" * 300], ids=["under a file", "too long"])
def test_a_data_directory_that_can_not_be_leads_to_the_sample(settings, small_files, tmp_path,
                                                              capsys, data_dir):
    (tmp_path / "file").touch()
    settings(DATA_DIR=data_dir)
    rnn_mnist.check_settings()
    assert rnn_mnist.load_data()[2] == rnn_mnist.SAMPLE
    assert "README.md" in capsys.readouterr().err.splitlines()[-1]


def test_a_bucket_is_no_local_folder(settings, monkeypatch, refusal, no_data):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data/datasets")
    assert refusal() == "TFDS_DATA_DIR = 'gs://tfds-data/datasets' must be a local folder."
    settings(DATA_DIR="here")
    rnn_mnist.check_settings()  # which does not need the variable


def test_checking_the_settings_leaves_nothing_behind(settings, tmp_path):
    settings(DATA_DIR="data", MODEL_PATH="models/today/model.keras", LOG_DIR=str(tmp_path))
    rnn_mnist.check_settings()
    assert not list(tmp_path.iterdir())


def test_a_colon_in_the_name_of_a_folder_makes_no_bucket_of_it(settings):
    settings(DATA_DIR="run:/data", MODEL_PATH="run:/model.keras", LOG_DIR="run:/logs")
    rnn_mnist.check_settings()


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
    path = script(tmp_path, LOADS.format(data_dirs=data_dirs), **QUICK, DATA_DIR=str(small_data_dir),
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
    assert status == 1 and "Training ended" not in err and "Traceback" not in err
    assert str(tmp_path / "mine" / "model.keras") in err and "ermission denied" in err


# surroundings


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_named_before_anything_else(settings, monkeypatch, refusal, no_data,
                                                       backend):
    monkeypatch.setattr(keras.config, "backend", lambda: backend)  # a mock: none need be there
    message = refusal()
    assert backend in message and "restart Python" in message and len(message.splitlines()) == 1


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
