"""In notebooks: a real Jupyter kernel, into which the whole file is pasted as a cell."""

import json
import pathlib
import threading
import time

import jupyter_client
import keras
import pytest
import small_mnist
from conftest import QUICK, TIMEOUT, environment, posix, script
from misbehaving_proxy import misbehaving_proxy

pytestmark = pytest.mark.slow

BEFORE = """
import os, signal
of_the_user, handlers = 42, [signal.getsignal(number) for number in (2, 15)]
os.chdir({folder!r})
import keras
keras.config.set_floatx("float16")
keras.config.set_dtype_policy("bfloat16")
"""
AFTER = "assert of_the_user == 42 and handlers == [signal.getsignal(number) for number in (2, 15)]"


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory):
    """A running kernel, whose user has settings of Keras's in a home of their own."""
    home = tmp_path_factory.mktemp("home")
    settings = dict(epsilon=0.1, image_data_format="channels_first", floatx="float32",
                    backend="tensorflow")
    (home / "keras.json").write_text(json.dumps(settings))
    manager, client = jupyter_client.manager.start_new_kernel(
        startup_timeout=TIMEOUT, kernel_name="python3",
        env=environment(KERAS_HOME=str(home), KERAS_MAX_EPOCHS="7"))
    yield manager, client, home
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(shared_kernel, tmp_path):
    """The same, in the test's own folder, with a variable of the user's, and Keras in float16."""
    assert run_cell(shared_kernel[1], BEFORE.format(folder=str(tmp_path)))[0] == "ok"
    yield shared_kernel
    assert run_cell(shared_kernel[1], AFTER)[0] == "ok"


def run_cell(client, source, on_output=lambda text: None):
    """Runs a cell; returns its status, standard output and error, and the exception's name."""
    texts = {"stdout": "", "stderr": ""}

    def collect(message):
        if message["msg_type"] == "stream":
            texts[message["content"]["name"]] += message["content"]["text"]
            on_output(message["content"]["text"])

    reply = client.execute_interactive(source, timeout=TIMEOUT, output_hook=collect)["content"]
    return reply["status"], texts["stdout"], texts["stderr"], reply.get("ename")


def pasted(folder, before_main="", **constants):
    """The whole file, as pasted into a cell, with edited constants."""
    return script(folder, before_main, **{**QUICK, **constants}).read_text(encoding="utf-8")


def test_a_pasted_script_runs_twice_whatever_keras_was_set_to(tmp_path, kernel, small_data_dir,
                                                              usual_log):
    _, client, home = kernel
    cell = pasted(tmp_path, DATA_DIR=small_data_dir)
    for _ in range(2):
        status, out, err, _ = run_cell(client, cell)  # no SystemExit, which would be an error
        assert status == "ok" and out == usual_log and "Traceback" not in err
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras")
    later = (f"assert keras.config.image_data_format() == 'channels_first'\n"
             f"assert keras.config.epsilon() == 0.1\n"
             f"assert os.environ['KERAS_MAX_EPOCHS'] == '7'\n"
             f"cached = keras.utils.get_file('mine', {pathlib.Path(__file__).as_uri()!r})\n"
             f"assert cached.startswith({str(home)!r})")
    assert run_cell(client, later)[0] == "ok"  # Keras itself stays as the user has it


def test_a_pasted_script_finds_the_sample_in_the_current_folder(tmp_path, kernel):
    _, client, _ = kernel
    status, out, err, _ = run_cell(client, pasted(tmp_path, DATA_DIR=str(tmp_path / "data")))
    assert status == "ok" and "all 256 images" in out, err


def test_functions_and_constants_are_handed_over(tmp_path, kernel):
    _, client, _ = kernel
    script(tmp_path)
    cell = """
import sys; sys.path.insert(0, "")
import numpy as np, rnn_mnist
rnn_mnist.N_STEPS, rnn_mnist.N_INPUT, rnn_mnist.N_CLASSES = 3, 2, 2
rnn_mnist.BATCH_SIZE, rnn_mnist.TRAINING_ITERS = 8, 100

def mine():
    model = keras.Sequential([keras.Input([3, 2]), keras.layers.GRU(4),
                              keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model

rnn_mnist.build_model = mine
rnn_mnist.load_data = lambda: 2 * [(np.ones([9, 3, 2]), [0, 1, 1] * 3)] + ["mine"]
keras.config.set_floatx("float32"); keras.config.set_dtype_policy("float32")
assert 0 <= rnn_mnist.main() <= 1
"""
    status, out, err, _ = run_cell(client, cell)
    assert status == "ok" and "all 9 sequences" in out, err
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras").layers[0].units == 4


@posix
def test_an_interrupted_cell_keeps_what_was_learned_and_ends_run_all(tmp_path, kernel,
                                                                     small_data_dir):
    manager, client, _ = kernel
    cell = pasted(tmp_path, DATA_DIR=small_data_dir, TRAINING_ITERS=10**9)
    interrupt_once, later = iter([manager.interrupt_kernel]), []

    def on_output(text):
        if text.startswith("Iter") and (interrupt := next(interrupt_once, None)):
            later.append(client.execute("ran = True"))  # waits in line, as 'run all' has it
            interrupt()

    status, out, err, name = run_cell(client, cell, on_output)
    assert status == "error" and name == "KeyboardInterrupt"
    assert "SIGINT" in err and "all 300 images" in out
    assert keras.models.load_model(tmp_path / "rnn_mnist.keras")
    while (reply := client.get_shell_msg(timeout=TIMEOUT))["parent_header"]["msg_id"] != later[0]:
        pass
    assert reply["content"]["status"] == "aborted"
    assert run_cell(client, pasted(tmp_path, DATA_DIR=small_data_dir))[0] == "ok"


@posix
def test_an_interrupt_while_data_is_fetched_leaves_the_kernel_alive(tmp_path, kernel):
    manager, client, _ = kernel
    patient = ("get = requests.get\n"  # so that only the interrupt can end it
               "requests.get = lambda url, timeout, **more: get(url, timeout=3600, **more)")
    cell = pasted(tmp_path, patient, DATA_DIR=str(tmp_path / "data"))
    ca_file = tmp_path / "authority.pem"
    with misbehaving_proxy("stalls", small_mnist.files(), ca_file) as (proxy, served):
        variables = dict(HTTPS_PROXY=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=str(ca_file))
        assert run_cell(client, f"before = dict(os.environ); os.environ.update({variables})"
                        )[0] == "ok"

        def interrupt():
            while not served:
                time.sleep(0.01)
            manager.interrupt_kernel()

        threading.Thread(target=interrupt, daemon=True).start()
        status, out, err, name = run_cell(client, cell)
    assert status == "error" and name == "KeyboardInterrupt" and out == "" and "UCI" not in err
    assert not (tmp_path / "data").exists()  # no litter
    restore = "requests.get = get; os.environ.clear(); os.environ.update(before)"
    assert run_cell(client, restore)[0] == "ok"
