"""What the tests share: settings, data, a mock of a GPU, and runs of the script as people run it.

Most tests call functions of rnn_mnist, `main` included, in pytest's own process: `settings` gives
them constants, an empty folder and no network. Where a process is what matters, its end or what
it leaves in a terminal, a test runs a copy of the script:

    path = script(tmp_path, **QUICK, DATA_DIR=str(small_data_dir))  # a copy, its constants edited
    status, out, err = run(path)  # to its end; or step by step:
    process = start(path)
    wait_for_pause(process)  # ... where `before_main` has put a pause, see pauses.py
    process.send_signal(signal.SIGINT)
    status, out, err = go_on(process)  # past all pauses to come; or end(process)

`before_main` is code that the copy runs once its functions are there, just before `main` starts:
it may replace any of them. No test waits for a time: they wait for what happens.
"""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs"), str(ROOT / "tests")]

import rnn_mnist  # before TensorFlow, since it chooses Keras's backend
import small_mnist
import tensorflow as tf

# an address where nothing listens stands for a network that is down
NO_NETWORK = dict.fromkeys(["HTTPS_PROXY", "https_proxy"], "http://127.0.0.1:9")
QUICK = dict(TRAINING_ITERS=2200, N_STEPS=4, N_INPUT=196, N_HIDDEN=16, BATCH_SIZE=100)  # seconds
LONG = {**QUICK, "TRAINING_ITERS": 10**9}  # a run that only ends when something ends it
TIMEOUT = 600  # s until a test gives up what hangs, however slow the machine
VERSION_DIR = pathlib.Path("mnist", "3.0.1")  # of MNIST in a data directory
FILES_DIR = pathlib.Path("downloads", "mnist")  # of its four files

# The script's own text that tests edit: everything else they change by replacing functions.
TEXTS = {
    'if __name__ == "__main__":\n': "conftest.py puts a test's code before it",
    "# Part 3: speed": "test_fast_path.py deletes from here",
    "# Part 4: guards": "test_fast_path.py deletes up to here",
    "network = faster(model)": "test_fast_path.py deletes the call with the speed part",
}

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits, permissions of POSIX")


def prepared_mnist():
    """Returns the data directory where TFDS has MNIST prepared for the user of the tests, if any.

    Called as pytest starts, since tests change the environment.
    """
    data_dir = os.getenv("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    return data_dir if pathlib.Path(data_dir, VERSION_DIR, "dataset_info.json").exists() else None


MNIST_DIR = prepared_mnist()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out by -m 'not slow', which takes a minute")
    for known in [
            "__array__ implementation doesn't accept",  # Keras's, of each array made of a variable
            ".*got an unexpected keyword argument '___pyct_anno'",  # AutoGraph's, on Python 3.13
            r"label\(\) is deprecated. Use is_required"]:  # TFDS's, on Python 3.10
        config.addinivalue_line("filterwarnings", f"ignore:{known}:DeprecationWarning")
    # TensorFlow's, which says that functions of tf.data are traced all the same
    config.addinivalue_line("filterwarnings", "ignore:Even though the .tf.config.experimental")


# settings and data


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Sets constants, or functions, of rnn_mnist for one test, in a new folder without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing here"))
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(rnn_mnist, name, value)

    return change


@pytest.fixture
def untraced():
    """Spares TensorFlow the tracing, most of a short run's time: what it computes is the same."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def refusal(capsys):
    """Returns the sentence with which a function refuses, unsaved and untested."""
    def of(function=None):
        with pytest.raises(rnn_mnist.TrainingError) as refused:
            (function or rnn_mnist.main)()
        assert capsys.readouterr().out == ""
        return str(refused.value)

    return of


@pytest.fixture(scope="session")
def small_data_dir(tmp_path_factory):
    """A data directory with the small MNIST, prepared by TFDS. Tests copy it to change it."""
    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    write_files(data_dir)
    undo = small_mnist.adapt_tfds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rnn_mnist, "DATA_DIR", str(data_dir))
        rnn_mnist.read_mnist()
    undo()
    return data_dir


def write_files(data_dir, folder=FILES_DIR):
    """Puts the small MNIST's four files into a data directory, as by hand; returns the folder."""
    (data_dir / folder).mkdir(parents=True)
    for name, content in small_mnist.files().items():
        (data_dir / folder / name).write_bytes(content)
    return data_dir / folder


@pytest.fixture
def small_files():
    """TFDS takes the small files for MNIST's while the test runs."""
    undo = small_mnist.adapt_tfds()
    yield
    undo()


def normalized(images):
    """Returns clean drawings as MNIST's makers would have put them: float32 [n, 28, 28], 0 to 1."""
    import read_digit

    large = (np.kron(image, np.ones([8, 8])).astype(np.float32) / 255 for image in images)
    return np.stack([*map(read_digit.as_in_mnist, large)])


@pytest.fixture(scope="session")
def trained_file(tmp_path_factory):
    """The file of a network, trained by main on the sample's digits, put as MNIST's are."""
    splits = [(normalized(images[..., 0]), labels)
              for images, labels in rnn_mnist.read_uci_digits()]
    path = tmp_path_factory.mktemp("model") / "rnn_mnist.keras"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(MODEL_PATH=path, BATCH_SIZE=32, TRAINING_ITERS=9000,
                                load_data=lambda: (*splits, "digits")).items():
            patch.setattr(rnn_mnist, name, value)
        assert rnn_mnist.main() > 0.8
    return path


# devices and limits


@pytest.fixture
def gpu(monkeypatch):
    """TensorFlow lists a GPU. A mock, since test machines have none: all computes on the CPU."""
    monkeypatch.setattr(tf.config, "list_physical_devices",
                        lambda kind=None: [kind] if kind == "GPU" else [])


@pytest.fixture
def cpu(monkeypatch):
    """Keeps a GPU, where there is one, from a test that speaks of a CPU."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    with tf.device("CPU"):
        yield


@contextlib.contextmanager
def full_disk(size):
    """Inside the block files can't grow beyond `size` bytes, which stands for a full disk."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# copies of the script


def edited(source, old, new):
    """Returns the script's text with one of the TEXTS replaced."""
    assert source.count(old) == 1, f"{old!r} is no longer in rnn_mnist.py, once: {TEXTS[old]}"
    return source.replace(old, new)


def script(folder, before_main="", **constants):
    """Copies rnn_mnist.py into `folder`, with its sample; edits its constants as a user would."""
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    for name, value in constants.items():
        source, changed = re.subn(rf"^{name} = [^#\n]*", lambda _: f"{name} = {value!r}  ",
                                  source, flags=re.MULTILINE)
        assert changed == 1, f"the constant {name} is not in rnn_mnist.py, once"
    main = 'if __name__ == "__main__":\n'
    source = edited(source, main, f"{before_main}\n\n{main}")
    folder.mkdir(exist_ok=True)
    (folder / "rnn_mnist.py").write_text(source, encoding="utf-8")
    (folder / "uci_digits.npz").write_bytes((ROOT / "uci_digits.npz").read_bytes())
    return folder / "rnn_mnist.py"


def imported(path):
    """Returns a copy of the script as a module of its own."""
    spec = importlib.util.spec_from_file_location("copy_of_rnn_mnist", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(**changes):
    """The environment of a run: no network, and no GPU, on which a SEED promises no same log."""
    hidden = ("PYTHONUNBUFFERED", "TFDS_DATA_DIR")  # which would hide what tests look for
    usual = {name: value for name, value in os.environ.items() if name not in hidden}
    ours = {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT / "tests")}
    return {**usual, **NO_NETWORK, **ours, **changes}


def usual_signals():
    """For a new process: ignores no signal, though tests that run in the background may."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def start(path, env=None, command=(), **kwargs):
    """Starts a copy of the script in its folder, as `python rnn_mnist.py` there would."""
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    if os.name == "posix":
        kwargs.setdefault("preexec_fn", usual_signals)
    return subprocess.Popen(command or [sys.executable, path.name], cwd=path.parent, text=True,
                            env=env or environment(), **{**pipes, **kwargs})


def run(path, env=None, **kwargs):
    """Runs a copy to its end; returns its exit status, standard output and standard error."""
    return end(start(path, env, **kwargs))


def wait_for_pause(process):
    """Returns once the run pauses; nothing it does from then on is missed."""
    while "paused" not in (line := process.stderr.readline()):
        assert line, (process.wait(), process.stdout.read())


def go_on(process):
    """Lets the run go on, past all pauses to come, to its end; returns what `run` does."""
    process.stdin.close()
    process.stdin = None
    return end(process)


def end(process):
    """Waits for a run's end; returns its exit status, standard output and standard error."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="session")
def usual_log(small_data_dir):
    """Standard output of a QUICK run on the small MNIST, in this process."""
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(log):
        for name, value in {**QUICK, "DATA_DIR": str(small_data_dir), "MODEL_PATH": None}.items():
            patch.setattr(rnn_mnist, name, value)
        patch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
        with tf.device("CPU"):  # as processes have it
            rnn_mnist.main()
    assert log.getvalue().startswith("Iter 1000, ")
    return log.getvalue()
