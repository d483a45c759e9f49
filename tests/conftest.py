"""What the tests share: constants, data, a mock of a GPU, and runs of the script as people run it.

Most tests call `rnn_mnist.main` in pytest's own process: `settings` gives it constants, an empty
folder and no network. Where a process is what matters, a test runs a copy of the script:

    path = script(tmp_path, **QUICK, DATA_DIR=small_data_dir)  # a copy, its constants edited
    status, out, err = run(path)

No test waits for a time: they wait for what happens.
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
# where TFDS has MNIST for whoever runs the tests; tests themselves change the environment
MNIST_DIR = os.getenv("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")

import rnn_mnist  # noqa: E402, before TensorFlow, since it chooses Keras's backend

# isort: split
import small_mnist  # noqa: E402
import tensorflow as tf  # noqa: E402

# an address where nothing listens stands for a network that is down
NO_NETWORK = dict.fromkeys(["HTTPS_PROXY", "https_proxy"], "http://127.0.0.1:9")
# 7 updates, two lines of the log, less than a second
QUICK = dict(TRAINING_ITERS=800, BATCH_SIZE=100, DISPLAY_STEP=3, N_STEPS=2, N_INPUT=392,
             N_HIDDEN=16)
ENDLESS = {**QUICK, "TRAINING_ITERS": 10**9}  # until something ends it
TIMEOUT = 600  # s until a process is given up, however slow the machine
VERSION_DIR = pathlib.Path("mnist", "3.0.1")  # of MNIST in a data directory
FILES_DIR = pathlib.Path("downloads", "mnist")  # of its four files
MAIN = 'if __name__ == "__main__":\n'

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits, permissions of POSIX")


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
def quick(settings, small_data, tmp_path):
    """As `settings`: a run of a second on the small MNIST, beside the model of an earlier run."""
    settings(**QUICK, load_data=lambda: small_data)
    (tmp_path / "rnn_mnist.keras").write_bytes(b"earlier")
    return settings


@contextlib.contextmanager
def eagerly():
    """Spares TensorFlow the tracing, most of a short run's time: what it computes is the same."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def untraced():
    with eagerly():
        yield


@pytest.fixture
def refusal(capsys):
    """Returns the message with which main, or a function, refuses, having printed nothing else."""
    def of(function=None):
        with pytest.raises(rnn_mnist.TrainingError) as refused:
            (function or rnn_mnist.main)()
        message = str(refused.value)
        assert capsys.readouterr().out == "" and len(message.splitlines()) == 1
        return message

    return of


@pytest.fixture
def when_printed(monkeypatch):
    """Calls a function as soon as a line that begins with some text is printed."""
    def when_printed(text, action):
        log = sys.stdout

        class Watched:
            def write(self, line):
                if line.startswith(text):
                    action()
                return log.write(line)

            def flush(self):
                log.flush()

        monkeypatch.setattr(sys, "stdout", Watched())

    return when_printed


def updates_of(path="rnn_mnist.keras"):
    """Returns after how many updates a model was saved."""
    return int(tf.keras.models.load_model(path).optimizer.iterations)


# data


@pytest.fixture(scope="session")
def small_data_dir(tmp_path_factory):
    """A data directory with the small MNIST, prepared by TFDS. Tests copy it to change it."""
    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    write_files(data_dir)
    with small_mnist.in_tfds(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rnn_mnist, "DATA_DIR", str(data_dir))
        rnn_mnist.read_mnist()
    return str(data_dir)


@pytest.fixture(scope="session")
def small_data(small_data_dir):
    """What load_data returns of the small MNIST, with the timesteps of QUICK."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUICK, "DATA_DIR": small_data_dir}.items():
            patch.setattr(rnn_mnist, name, value)
        return rnn_mnist.load_data()


def write_files(data_dir):
    """Puts the small MNIST's four files into a data directory, as by hand; returns their folder."""
    (data_dir / FILES_DIR).mkdir(parents=True)
    for name, content in small_mnist.files().items():
        (data_dir / FILES_DIR / name).write_bytes(content)
    return data_dir / FILES_DIR


@pytest.fixture
def small_files():
    """TFDS takes the small files for MNIST's while the test runs."""
    with small_mnist.in_tfds():
        yield


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


def link(target, path):
    """Makes a symbolic link, or skips the test where that can't be."""
    try:
        os.symlink(target, path)
    except OSError:
        pytest.skip("Windows lets only administrators and developers make links")
    if not os.path.islink(path):
        pytest.skip("Wine makes no links")


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


def script(folder, before_main="", **constants):
    """Copies rnn_mnist.py into `folder`, with its sample; edits its constants as a user would.

    `before_main` is code for its end, which may replace any function of the copy.
    """
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    for name, value in constants.items():
        source, changed = re.subn(rf"^{name} = [^#\n]*", lambda _, line=f"{name} = {value!r}  ":
                                  line, source, flags=re.MULTILINE)
        assert changed == 1, f"the constant {name} is not in rnn_mnist.py, once"
    assert source.count(MAIN) == 1
    folder.mkdir(exist_ok=True)
    (folder / "rnn_mnist.py").write_text(source.replace(MAIN, f"{before_main}\n\n{MAIN}"),
                                         encoding="utf-8")
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(path, env=None, command=(), **kwargs):
    """Starts a copy of the script in its folder, as `python rnn_mnist.py` there would."""
    if os.name == "posix":
        kwargs.setdefault("preexec_fn", usual_signals)
    return subprocess.Popen(command or [sys.executable, path.name], cwd=path.parent, text=True,
                            env=env or environment(), stdout=subprocess.PIPE,
                            **{"stderr": subprocess.PIPE, **kwargs})


def run(path, env=None, **kwargs):
    """Runs a copy to its end; returns its exit status, standard output and standard error."""
    process = start(path, env, **kwargs)
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def usual_log(small_data_dir):
    """Standard output of a QUICK run on the small MNIST, in this process."""
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(log):
        for name, value in {**QUICK, "DATA_DIR": small_data_dir, "MODEL_PATH": None}.items():
            patch.setattr(rnn_mnist, name, value)
        patch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
        with tf.device("CPU"):  # as processes have it
            rnn_mnist.main()
    assert log.getvalue().startswith("Iter 300, ")
    return log.getvalue()
