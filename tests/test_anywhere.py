"""Wherever people run it: their own Keras settings, notebooks, data prepared by others, the script by itself."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import jupyter_client
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import rnn_mnist
import small_mnist
from conftest import PATIENT, QUICK, TIMEOUT, end, environment, run, script, start, write_files
from misbehaving_proxy import misbehaving_proxy

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX")


@pytest.fixture(scope="module")
def usual_log(tmp_path_factory, small_data_dir):
    status, out, err = run(script(tmp_path_factory.mktemp("usual"), **QUICK, DATA_DIR=str(small_data_dir)))
    assert status == 0 and out.startswith("Iter 1000, "), err
    return out


# Keras's own settings

KERAS_SETTINGS = [  # environment variables, and what keras.json holds
    (dict(KERAS_BACKEND="jax", KERAS_NNX_ENABLED="true", KERAS_MAX_EPOCHS="1", KERAS_MAX_STEPS_PER_EPOCH="1",
          KERAS_TORCH_DEVICE="cuda", TF_USE_LEGACY_KERAS="1"), None),
    (dict(KERAS_BACKEND=""), dict(backend="torch", floatx="float16", epsilon=0.1, image_data_format="channels_first",
                                  nnx_enabled=True)),
    (dict(KERAS_BACKEND="no backend", KERAS_MAX_EPOCHS="many"), dict(floatx="float64")),
    ({}, dict(floatx="bfloat16")),  # which Keras refuses, as the next two
    ({}, dict(epsilon=1)),
    ({}, ["no settings"]),
]


def test_keras_own_settings_change_nothing(tmp_path, small_data_dir, usual_log):
    processes = []
    for number, (variables, settings_file) in enumerate(KERAS_SETTINGS):
        folder = tmp_path / str(number)
        folder.mkdir()
        if settings_file is not None:
            (folder / "keras.json").write_text(json.dumps(settings_file))
        path = script(folder, **QUICK, DATA_DIR=str(small_data_dir))
        processes.append(start(path, environment(**{"KERAS_HOME": str(folder), **variables})))
    for process, settings in zip(processes, KERAS_SETTINGS):
        status, out, err = end(process)
        assert status == 0 and out == usual_log, (settings, err)


# notebooks: a real Jupyter kernel


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A running Jupyter kernel whose current folder is tmp_path, with a variable of the user's."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    manager, client = jupyter_client.manager.start_new_kernel(
        startup_timeout=TIMEOUT, kernel_name="python3", cwd=str(tmp_path))
    assert run_cell(client, "mine = 42; import signal; handlers = [signal.getsignal(n) for n in (2, 15)]")[0] == "ok"
    yield manager, client
    still_there = "assert mine == 42 and handlers == [signal.getsignal(n) for n in (2, 15)]"
    assert run_cell(client, still_there)[0] == "ok"
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_cell(client, source, on_output=lambda text: None):
    """Runs a cell to its end; returns its status, standard output, standard error and the exception's value."""
    texts = {"stdout": "", "stderr": ""}

    def collect(message):
        if message["msg_type"] == "stream":
            texts[message["content"]["name"]] += message["content"]["text"]
            on_output(message["content"]["text"])

    reply = client.execute_interactive(source, timeout=TIMEOUT, output_hook=collect)["content"]
    return reply["status"], texts["stdout"], texts["stderr"], reply.get("evalue")


def pasted(folder, edits=(), **constants):
    """The whole file, as pasted into a cell, with edited constants."""
    return script(folder, edits=edits, **{**QUICK, **constants}).read_text(encoding="utf-8")


def test_a_pasted_script_runs_twice_whatever_keras_was_set_to(tmp_path, kernel, small_data_dir, usual_log):
    _, client = kernel
    cell = pasted(tmp_path, DATA_DIR=str(small_data_dir))
    earlier = "import keras; keras.config.set_floatx('float16'); keras.config.set_dtype_policy('bfloat16')"
    assert run_cell(client, earlier)[0] == "ok"
    for _ in range(2):
        status, out, err, _ = run_cell(client, cell)
        assert status == "ok" and out == usual_log and "Traceback" not in err
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras")


def test_keras_itself_stays_as_a_notebook_has_it(tmp_path, kernel, small_data_dir, usual_log):
    _, client = kernel
    (tmp_path / "home").mkdir()
    settings = dict(floatx="float32", epsilon=0.1, backend="tensorflow", image_data_format="channels_first")
    (tmp_path / "home" / "keras.json").write_text(json.dumps(settings))
    variables = dict(KERAS_HOME=str(tmp_path / "home"), KERAS_MAX_EPOCHS="7")
    assert run_cell(client, f"import os; os.environ.update({variables})")[0] == "ok"
    assert run_cell(client, pasted(tmp_path, DATA_DIR=str(small_data_dir)))[:2] == ("ok", usual_log)
    later = (f"assert keras.config.image_data_format() == 'channels_first' and keras.config.epsilon() == 0.1\n"
             f"assert os.environ['KERAS_MAX_EPOCHS'] == '7'\n"
             f"cached = keras.utils.get_file('mine', {pathlib.Path(__file__).as_uri()!r})\n"
             f"assert cached.startswith({str(tmp_path / 'home')!r})")
    assert run_cell(client, later)[0] == "ok"


def test_a_pasted_script_finds_the_sample_in_the_current_folder(tmp_path, kernel):
    status, out, err, _ = run_cell(kernel[1], pasted(tmp_path, DATA_DIR=str(tmp_path / "data")))
    assert status == "ok" and "all 256 images" in out, err


@posix
def test_an_interrupt_in_a_notebook_keeps_what_was_learned(tmp_path, kernel, small_data_dir):
    manager, client = kernel
    cell = pasted(tmp_path, DATA_DIR=str(small_data_dir), TRAINING_ITERS=10**9)
    interrupt_once = iter([manager.interrupt_kernel])
    status, out, err, value = run_cell(
        client, cell, lambda text: text.startswith("Iter") and next(interrupt_once, lambda: None)())
    assert status == "error" and value == "130" and "Stopped by SIGINT" in err and "all 300 images" in out
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras")
    assert run_cell(client, pasted(tmp_path, DATA_DIR=str(small_data_dir)))[0] == "ok"


@posix
def test_an_interrupt_in_a_notebook_while_data_is_fetched_leaves_the_kernel_alive(tmp_path, kernel):
    manager, client = kernel
    with misbehaving_proxy("stalls", small_mnist.files(), tmp_path / "authority.pem") as (proxy, served):
        variables = dict(HTTPS_PROXY=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=str(tmp_path / "authority.pem"))
        assert run_cell(client, f"import os; os.environ.update({variables})")[0] == "ok"

        def interrupt():
            while not served:
                time.sleep(0.01)
            manager.interrupt_kernel()

        threading.Thread(target=interrupt, daemon=True).start()
        status, out, _, value = run_cell(client, pasted(tmp_path, PATIENT, DATA_DIR=str(tmp_path / "data")))
    assert status == "error" and value == "130" and out == ""


def test_another_backend_that_a_notebook_has_loaded_is_named(tmp_path, kernel):
    pytest.importorskip("jax", reason="other backends are large; the next test stands for them")
    _, client = kernel
    assert run_cell(client, "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras")[0] == "ok"
    status, out, _, value = run_cell(client, pasted(tmp_path, DATA_DIR=str(tmp_path / "data")))
    assert status == "error" and out == ""
    assert value == "Keras is loaded with its jax backend: restart Python, run this script first."


def test_another_backend_is_named_before_anything_else(settings, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")  # a mock: JAX is no requirement of the tests
    monkeypatch.delattr(rnn_mnist, "load_data")
    with pytest.raises(SystemExit, match="^Keras is loaded with its jax backend: "):
        rnn_mnist.main()


# data prepared by others


def test_mnist_prepared_as_array_record_is_read_too(settings, small_files, small_data_dir, tmp_path):
    pytest.importorskip("array_record", reason="comes with TFDS on Linux only")
    manual_dir = write_files(tmp_path / "data")
    tfds.builder("mnist", data_dir=tmp_path / "data", file_format="array_record").download_and_prepare(
        download_dir=tmp_path / "downloads", download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    loaded = []
    for data_dir in (small_data_dir, tmp_path / "data"):
        settings(DATA_DIR=str(data_dir))
        train, test, name = rnn_mnist.load_data()
        assert name == "MNIST"
        loaded.append([*train, *test])
    for usual, array_record in zip(*loaded):
        np.testing.assert_array_equal(usual, array_record)
        assert usual.dtype == array_record.dtype


def run_without_privileges(path):
    """Runs a copy of the script; root, whom no permission stops, gives up that capability."""
    command = [sys.executable, path.name]
    if os.geteuid() == 0:
        taken = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}", *command]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return end(subprocess.Popen(command, cwd=path.parent, env=environment(), **pipes))


@posix
def test_folders_that_may_not_be_written_are_refused(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o555)
    path = script(tmp_path, DATA_DIR="mine", MODEL_PATH="mine/model.keras", LOG_DIR="mine/logs/today")
    status, out, err = run_without_privileges(path)
    assert status == 1 and out == ""
    assert [line.split()[0] for line in err.splitlines()[-3:]] == ["DATA_DIR", "MODEL_PATH", "LOG_DIR"]


@posix
@pytest.mark.parametrize("unreadable", ["mnist/3.0.1", "mnist/3.0.1/dataset_info.json",
                                        "mnist/3.0.1/mnist-train.tfrecord-00000-of-00001"])
def test_intact_data_that_may_not_be_read_is_not_called_damaged(tmp_path, small_data_dir, unreadable):
    shutil.copytree(small_data_dir, tmp_path / "data")
    (tmp_path / "data" / unreadable).chmod(0)
    status, out, err = run_without_privileges(script(tmp_path, **QUICK, DATA_DIR=str(tmp_path / "data")))
    (tmp_path / "data" / unreadable).chmod(0o755)
    message = err.splitlines()[-1]
    assert status == 1 and out == "" and "Traceback" not in err
    assert message.startswith(f"MNIST in {tmp_path / 'data' / 'mnist' / '3.0.1'} can't be read: set another DATA_DIR")
    assert "ermission denied" in message or "PermissionDenied" in message
    assert "or, if it is damaged, move it away" in message and "delete" not in message


# the script by itself


@pytest.mark.parametrize("sample", [None, b"", b"no archive", b"PK\x03\x04 broken"])
def test_without_mnist_and_sample_it_says_how_to_get_both(settings, monkeypatch, tmp_path, capsys, sample):
    monkeypatch.setattr(rnn_mnist, "__file__", str(tmp_path / "rnn_mnist.py"))
    if sample is not None:
        (tmp_path / "uci_digits.npz").write_bytes(sample)
    with pytest.raises(SystemExit) as exit:
        rnn_mnist.main()
    assert exit.value.code.startswith(f"The UCI digits can't be read from {tmp_path / 'uci_digits.npz'} either: ")
    assert len(exit.value.code.splitlines()) == 1
    out, err = capsys.readouterr()
    notice = err.splitlines()[-1]
    assert out == "" and notice.startswith("MNIST is not in ") and "train-images-idx3-ubyte.gz" in notice


def test_the_script_alone_ends_in_sentences(tmp_path):
    path = script(tmp_path, **QUICK, DATA_DIR=str(tmp_path / "data"))
    (tmp_path / "uci_digits.npz").unlink()
    status, out, err = run(path)
    assert status == 1 and out == "" and "Traceback" not in err and "either: put that file there." in err


def test_with_mnist_it_needs_no_sample(tmp_path, small_data_dir, usual_log):
    path = script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir))
    (tmp_path / "uci_digits.npz").unlink()
    assert run(path)[:2] == (0, usual_log)


def test_a_missing_package_is_named_with_what_installs_it(tmp_path):
    without = ("import keras\n", "sys.modules['importlib_resources'] = None\nimport keras\n")  # as if not installed
    status, out, err = run(script(tmp_path, edits=[without], DATA_DIR=str(tmp_path / "data")))
    assert status == 1 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].endswith(f": install it by {sys.executable} -m pip install importlib_resources")


# more cores seen than given


@pytest.fixture
def load_script(tmp_path, monkeypatch):
    """Loads a copy of the script, its text changed, on a host that shows 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)  # no such host at hand
    monkeypatch.chdir(tmp_path)

    def load(old="", new="", **constants):
        path = script(tmp_path, **constants)
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("copy_of_rnn_mnist", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("batch_size, threads", [(128, 4), (32, 2), (1, 2), (4096, 64)])
def test_no_more_threads_than_shards_but_two(load_script, cpu, monkeypatch, batch_size, threads):
    intra_op, inter_op = [], []
    module = load_script(BATCH_SIZE=batch_size)
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", intra_op.append)  # mocks: TensorFlow
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", inter_op.append)  # takes them but once
    module.use_every_core()
    assert intra_op == [1] and inter_op == [threads]


@pytest.mark.parametrize("wanted, used", [(None, "true"), ("false", "false")])
def test_no_more_of_a_gpus_memory_than_needed_unless_wanted(load_script, monkeypatch, wanted, used):
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    if wanted is not None:
        monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", wanted)
    load_script()
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == used


@pytest.mark.parametrize("limit, cores", [
    ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 64), ("", 64), (None, 64)])
def test_a_containers_quota_is_respected(load_script, limit, cores):
    if limit is not None:
        pathlib.Path("cpu.max").write_text(limit)  # stands for the file that Linux shows in a container
    assert load_script('"/sys/fs/cgroup/cpu.max"', '"cpu.max"').CORES == cores
