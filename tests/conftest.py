import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import small_mnist
import rnn_mnist

# an address where nothing listens stands for a network that is down
NO_NETWORK = dict.fromkeys(["HTTPS_PROXY", "https_proxy"], "http://127.0.0.1:9")
QUICK = dict(TRAINING_ITERS=3000, N_STEPS=4, N_INPUT=196, N_HIDDEN=16, BATCH_SIZE=100)  # a run of seconds
LONG = {**QUICK, "TRAINING_ITERS": 10**9}  # one that only ends when something ends it
PATIENT = [("timeout=(3, 12)", "timeout=(3000, 12000)")]  # an edit of the script: the network may take its time
TIMEOUT = 600  # s until a test gives up what hangs, however slow the machine


def pytest_configure(config):
    for known in ["__array__ implementation doesn't accept",  # Keras's, at each array made of a variable
                  ".*got an unexpected keyword argument '___pyct_anno'",  # AutoGraph's, on Python 3.13
                  r"label\(\) is deprecated. Use is_required"]:  # TFDS's, on Python 3.10
        config.addinivalue_line("filterwarnings", f"ignore:{known}:DeprecationWarning")  # any other one is shown


@pytest.fixture(scope="session")
def small_data_dir(tmp_path_factory):
    """A data directory where TFDS has prepared the small MNIST from its four files. Tests copy it to change it."""
    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    write_files(data_dir)
    undo = small_mnist.adapt_tfds()
    patch = pytest.MonkeyPatch()
    patch.setattr(rnn_mnist, "DATA_DIR", str(data_dir))
    rnn_mnist.read_mnist()
    patch.undo()
    undo()
    return data_dir


def write_files(data_dir):
    manual_dir = data_dir / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    for name, content in small_mnist.files().items():
        (manual_dir / name).write_bytes(content)
    return manual_dir


@pytest.fixture
def small_files():
    """TFDS takes the small files for MNIST's while the test runs."""
    undo = small_mnist.adapt_tfds()
    yield
    undo()


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Sets constants of rnn_mnist for one test; the working directory is a new one, and there is no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing here"))
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(rnn_mnist, name, value)

    return change


def script(folder, small=False, edits=(), pause_before=None, **constants):
    """Copies rnn_mnist.py into `folder` and edits its constants as a user would; `small` adapts TFDS.

    `edits` are further pairs of an old and a new text. Before the line that starts with `pause_before`, the run pauses:
    `wait_for_pause` and `go_on` give a signal, or another event, its moment.
    """
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    for name, value in constants.items():
        source, changed = re.subn(rf"^{name} = [^#\n]*", lambda _: f"{name} = {value!r}  ", source, flags=re.MULTILINE)
        assert changed == 1, name
    if small:
        edits = [*edits, ("import tensorflow_datasets as tfds\n", "import tensorflow_datasets as tfds, small_mnist; "
                          f"small_mnist.adapt_tfds(pause={small == 'pause'})\n")]
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    if pause_before:
        source, changed = re.subn(rf"^( *)(?={re.escape(pause_before)})", rf"\1{small_mnist.PAUSE}\n\1", source,
                                  flags=re.MULTILINE)
        assert changed == 1, pause_before
    (folder / "rnn_mnist.py").write_text(source, encoding="utf-8")
    (folder / "uci_digits.npz").write_bytes((ROOT / "uci_digits.npz").read_bytes())
    return folder / "rnn_mnist.py"


def wait_for_pause(process):
    """Returns once the run pauses; nothing it does from then on is missed."""
    while "paused" not in (line := process.stderr.readline()):
        assert line, (process.wait(), process.stdout.read())


def go_on(process):
    """Lets the run go on, past all pauses to come, to its end; returns its exit status, standard output and error."""
    process.stdin.close()
    process.stdin = None
    return end(process)


def end(process):
    """Waits for the end of a run; returns its exit status, standard output and standard error."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return process.returncode, stdout, stderr


@pytest.fixture
def cpu(monkeypatch):
    """Keeps a GPU, where there is one, from a test that speaks of the CPU's way."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    with tf.device("CPU"):
        yield


def environment(**changes):
    """The environment of a run: no network, and no GPU, on which a SEED need not give the same log every time."""
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # which would hide much
    return {**usual, **NO_NETWORK, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT / "tests"), **changes}


def usual_signals():
    """For a new process: ignores no signal, though tests that run in the background may."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(path, env=None, **kwargs):
    """Starts a copy of the script in its folder, as `python rnn_mnist.py` there would."""
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    if os.name == "posix":
        kwargs.setdefault("preexec_fn", usual_signals)
    return subprocess.Popen([sys.executable, path.name], cwd=path.parent, env=env or environment(), text=True,
                            **{**pipes, **kwargs})


def run(path, env=None, **kwargs):
    """Runs a copy of the script to its end; returns its exit status, standard output and standard error."""
    return end(start(path, env, **kwargs))
