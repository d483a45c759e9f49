"""MNIST's four files: fetched over networks of all kinds, put there by hand, beside others'.

Not tested, since a test machine can't have it: packets that are dropped. A proxy that never
answers stands for them.
"""

import importlib.util
import sys
import tempfile

import pytest
import requests

import rnn_mnist
import small_mnist
from conftest import FILES_DIR, QUICK, VERSION_DIR, environment, posix, run, script, write_files
from misbehaving_proxy import misbehaving_proxy

pytestmark = pytest.mark.slow
SAMPLE = "UCI digits, not MNIST"


@pytest.fixture
def behind(settings, monkeypatch, small_files, tmp_path):
    """Loads data behind a proxy that misbehaves, with an empty data directory.

    The small files stand for MNIST's. Returns the name of the data and the files asked for.
    """
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    settings(DATA_DIR=str(tmp_path / "data"))
    requests_get = requests.get

    def load(behaviour, pace=100):  # times what the script waits for the network
        def get(url, timeout, **more):
            assert sum(timeout) <= 20  # s, which the README promises
            return requests_get(url, timeout=tuple(pace * each for each in timeout), **more)

        monkeypatch.setattr(requests, "get", get)
        files = small_mnist.files()
        with misbehaving_proxy(behaviour, files, tmp_path / "authority.pem") as (proxy, served):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            monkeypatch.setenv("https_proxy", proxy)
            return rnn_mnist.load_data()[2], served

    yield load
    # no litter, but for the empty folder that TFDS forgets whenever it prepares
    litter = (tmp_path / "temporary").rglob("*")
    assert [path for path in litter if not path.name.endswith("tfds")] == []


# the network fails


FAILURES = {  # what the proxy does, and what the message calls it
    "never answers": "imed out",
    "refuses to connect": "403",
    "shakes no hands": "imed out",
    "is no TLS server": "SSL",
    "404": "404",
    "403": "403",
    "login page": "checksum",
    "breaks off": "IncompleteRead",
    "stalls": "imed out",
}


@pytest.mark.parametrize("behaviour, reason", FAILURES.items())
def test_a_network_that_fails_leads_to_the_sample(behind, tmp_path, capsys, behaviour, reason):
    pace = 1 / 6 if reason == "imed out" else 100  # where it must time out, that is waited for
    assert behind(behaviour, pace)[0] == SAMPLE
    fetching, *_, notice = capsys.readouterr().err.splitlines()
    folder = str(tmp_path / "data" / FILES_DIR)
    assert "https://storage.googleapis.com/" in fetching and folder in fetching
    assert reason in notice and "README.md" in notice
    assert not (tmp_path / "data").exists()  # no litter


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "http://no-such-host.invalid:80"])
@pytest.mark.parametrize("sample", [True, False], ids=["the sample will do", "MNIST or nothing"])
def test_no_way_to_the_network_is_asked_for_once(settings, monkeypatch, refusal, capsys, tmp_path,
                                                 proxy, sample):
    asked, requests_get = [], requests.get
    monkeypatch.setattr(requests, "get",
                        lambda url, **more: asked.append(url) or requests_get(url, **more))
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    settings(OFFLINE_SAMPLE=sample, DATA_DIR=str(tmp_path / "data"))
    if sample:
        assert rnn_mnist.load_data()[2] == SAMPLE
        message = capsys.readouterr().err.splitlines()[-1]
    else:
        message = refusal(rnn_mnist.load_data)
    assert len(asked) == 1 and "README.md" in message and len(message.splitlines()) == 1


# the network is there


def test_all_four_files_are_fetched(behind, tmp_path, capfd):
    name, served = behind("is right")
    assert name == "MNIST" and sorted(served) == sorted(small_mnist.files())
    folder = tmp_path / "data" / FILES_DIR
    assert {path.name: path.read_bytes() for path in folder.glob("*.gz")} == small_mnist.files()
    out, err = capfd.readouterr()
    assert out == "" and "kB" in err  # the progress bar


@posix
@pytest.mark.slow
def test_a_first_run_fetches_and_prepares(tmp_path, usual_log):
    path = script(tmp_path, "import small_mnist; small_mnist.adapt_tfds()", **QUICK,
                  DATA_DIR=str(tmp_path / "data"))
    ca_file = tmp_path / "authority.pem"
    with misbehaving_proxy("is right", small_mnist.files(), ca_file) as (proxy, served):
        env = environment(HTTPS_PROXY=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=str(ca_file))
        status, out, err = run(path, env)
    assert (status, out) == (0, usual_log) and "Traceback" not in err and len(served) == 4


def test_a_slow_download_is_left_to_finish(behind):
    name, served = behind("is slow", pace=0.5)  # one file takes 7 s; a stall of 6 s would end it
    assert name == "MNIST" and len(served) == 4


def test_what_arrived_before_the_connection_broke_is_kept(behind, tmp_path):
    assert behind("breaks off after one file")[0] == SAMPLE
    folder = tmp_path / "data" / FILES_DIR
    kept, = folder.iterdir()
    assert kept.read_bytes() == small_mnist.files()[kept.name]
    name, served = behind("is right")
    assert name == "MNIST" and len(served) == 3 and kept.name not in served
    assert {path.name for path in folder.glob("*.gz")} == set(small_mnist.files())


def test_files_put_there_by_hand_are_not_fetched(behind, tmp_path):
    folder = write_files(tmp_path / "data")
    for path in folder.glob("*-labels-*"):
        path.unlink()
    name, served = behind("is right")
    assert name == "MNIST" and all("-labels-" in name for name in served) and len(served) == 2


# other data sets' files, which have the same names


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "fetched"])
def test_files_of_other_data_sets_neither_disturb_nor_are_touched(behind, tmp_path, by_hand):
    theirs = write_files(tmp_path / "data", "downloads/manual")
    for number, path in enumerate(sorted(theirs.iterdir())):
        path.write_bytes(b"Fashion-MNIST's %d" % number)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in theirs.iterdir()}
    if by_hand:
        write_files(tmp_path / "data")
    name, served = behind("is right")
    assert name == "MNIST" and len(served) == (0 if by_hand else 4)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in theirs.iterdir()}
    assert after == before
    ours = tmp_path / "data" / FILES_DIR
    assert {path.name: path.read_bytes() for path in ours.glob("*.gz")} == small_mnist.files()


