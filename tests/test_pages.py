"""README.md and docs/*.md: their programs run, their figures are those measured, their names exist.

- Programs: `run` finds a ```python block by a piece of its text, on any page. Where a ```text block
  follows it, the program must print that, with other figures if it trains. No block is left out.
- Networks: each edit in the tables applies to the script and builds the layers that it names.
- Figures: those in tables, ranges and answers are those of the .csv files in docs/evidence.
- Names: constants, links, anchors, files, versions and the commands that .ci/run looks for exist.
- The Chinese page has the programs, the commands and the figures of the README.
"""

import ast
import collections
import csv
import functools
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import small_mnist
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import QUICK, ROOT, TIMEOUT, imported, script

import rnn_mnist

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
ENGLISH = {name: text for name, text in PAGES.items() if ".zh." not in name}
CONSTANTS = {name: value for name, value in vars(rnn_mnist).items() if name.isupper()}
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
Block = collections.namedtuple("Block", "page heading code shown")


def headings(text):
    return re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)


BLOCKS = [Block(page, headings(text[:match.start()])[-1], match[1], match[2] or "")
          for page, text in ENGLISH.items() for match in BLOCK.finditer(text)]


def block(mark):
    """Returns the one block whose program contains a text."""
    found = [block for block in BLOCKS if mark in block.code]
    assert len(found) == 1, f"{len(found)} programs contain {mark!r}"
    return found[0]


# programs


@pytest.fixture
def run(settings, monkeypatch, capsys):
    """Runs the program with a text on the sample, `old` replaced; returns variables and output."""
    monkeypatch.setenv("MPLBACKEND", "Agg")  # draws without a screen
    # whatever a program sets is put back at the end
    functions = ("load_data", "build_model", "measure")
    settings(**CONSTANTS, **{name: getattr(rnn_mnist, name) for name in functions})
    settings(**QUICK)

    def run(mark, old="", new=""):
        code = block(mark).code
        assert old in code
        capsys.readouterr()
        variables = {}
        exec(code.replace(old, new), variables)
        return variables, capsys.readouterr().out

    return run


@pytest.fixture
def trained(run, settings, trained_file):
    """A trained model, as rnn_mnist.keras; test images, their labels, and what it predicts."""
    settings(N_STEPS=28, N_INPUT=28)
    shutil.copy(trained_file, "rnn_mnist.keras")
    _, (images, labels), _ = rnn_mnist.load_data()
    model = keras.models.load_model("rnn_mnist.keras")
    return model, images, labels, model.predict(images, verbose=0).argmax(axis=1)


def updates(model):
    return int(model.optimizer.iterations)


def accuracies(out):
    """Returns the test accuracies of the runs that printed `out`."""
    return [float(text) for text in re.findall(r"^Testing Accuracy, all .*?: (\S+)", out, re.M)]


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_each_program_has_a_test():
    source = pathlib.Path(__file__).read_text(encoding="utf-8")
    marks = re.findall(r'\b(?:run|block)\("(.*?)"', source)  # by which tests here name programs
    assert all(block(mark) for mark in marks)
    for page, heading, code, shown in BLOCKS:
        here = {mark for mark in marks if mark in code}
        assert shown or len(here) == 1, f"{page}, {heading}: {here}\n{code}"
    for page, text in PAGES.items():
        assert "```py" not in BLOCK.sub("", text), page  # written in another way


@pytest.mark.slow
def test_predictions_are_shown(trained, run, tmp_path):
    _, _, labels, predicted = trained
    _, out = run("image = images[0]")
    assert numbers(out)[-2:] == [predicted[0], labels[0]]
    _, out = run("axis.imshow(")
    wrong = np.count_nonzero(predicted != labels)
    assert 0 < wrong < 256 and numbers(out)[-2:] == [wrong, 256]
    assert [path.stat().st_size > 1000 for path in tmp_path.glob("*.png")] == [True]
    _, out = run("confusion_matrix(")
    matrix = np.zeros([10, 10])
    np.add.at(matrix, (labels, predicted), 1)
    assert numbers(out) == [*matrix.flat]


@pytest.mark.slow
def test_a_saved_model_is_used_again(trained, run):
    model, *_ = trained
    older = run("model.load_weights(")[0]["model"]  # in this Keras; also seen in 3.5, 3.8 and 3.12
    for ours, theirs in zip(older.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    run("rnn_mnist.build_model = lambda")
    resumed = keras.models.load_model("rnn_mnist-uci_digits.keras")
    assert updates(resumed) == updates(model) + 7  # of QUICK
    keras.utils.set_random_seed(0)  # fit shuffles, and another order may end a little higher
    run("model.fit(images, labels")
    (images, labels), _, _ = rnn_mnist.load_data()
    resumed = keras.models.load_model("rnn_mnist.keras")
    assert updates(resumed) == updates(model) + -(-len(images) // 128)
    after, before = [m.evaluate(images, labels, verbose=0)[0] for m in (resumed, model)]
    assert after < before


@pytest.mark.slow
@pytest.mark.skipif(tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13),
                    reason="this Keras does not know of LiteRT")
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, of its interpreter's new home
def test_the_model_goes_onto_a_phone_and_into_onnx(trained, run):
    with_onnx = importlib.util.find_spec("tf2onnx")
    to_onnx = 'model.export("rnn_mnist.onnx", format="onnx")'
    run("model.export(", to_onnx, to_onnx if with_onnx else "")
    model, images, *_ = trained
    interpreter = tf.lite.Interpreter("rnn_mnist.tflite")  # without TensorFlow's own operations
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    for image in images[:20, np.newaxis]:
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        outputs = interpreter.get_tensor(target["index"])
        np.testing.assert_allclose(outputs, model(image), atol=1e-5)
    if with_onnx:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession("rnn_mnist.onnx")
        outputs, = session.run(None, {session.get_inputs()[0].name: images[:20]})
        np.testing.assert_allclose(outputs, model(images[:20]), atol=1e-5)


@pytest.mark.slow
def test_several_runs_are_compared(run, tmp_path):
    _, out = run("ddof=1")
    assert len(accuracies(out)) == 3 and len(set(accuracies(out))) > 1
    expected = [np.mean(accuracies(out)), np.std(accuracies(out), ddof=1)]
    assert numbers(out)[-2:] == pytest.approx(expected, abs=1e-4)  # which has four decimals
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    _, out = run("range(40)", "(40)", "(3)")
    path, = tmp_path.rglob("*.csv")
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    assert path.read_text().startswith("seed,test_accuracy\n") and [*table[:, 0]] == [0, 1, 2]
    assert [*table[:, 1]] == pytest.approx(accuracies(out))
    variables, out = run("random.uniform(", "-4, -1", "-4, 40")  # some are refused or diverge
    results = variables["results"]
    assert 1 < len(set(results)) == len(accuracies(out)) < 5
    assert out.endswith(f"{max(results)}\n")
    assert max(results)[0] == pytest.approx(max(accuracies(out)))
    assert not [*tmp_path.rglob("*.keras")]


@pytest.mark.slow
def test_a_notebook_calls_main_twice(run, cpu):
    outputs = [run("rnn_mnist.TRAINING_ITERS =", "20000", "2000")[1] for _ in range(2)]
    assert outputs[0].startswith("Iter 300, ") and outputs[1] == outputs[0]


@pytest.mark.slow
def test_a_schedule_and_early_stopping(run, settings):
    run("CosineDecay(")
    model = keras.models.load_model("schedule-uci_digits.keras")
    expected = 0.0015 * (1 + np.cos(np.pi * 7 / 781))  # half of 0.003, a cosine of 7 updates
    assert float(model.optimizer.learning_rate) == pytest.approx(expected, rel=1e-5)  # float32
    settings(LEARNING_RATE=0.001)
    variables, out = run("EarlyStopping(", "epochs=50", "epochs=2")
    assert variables["held_out"] == 140 and "val_loss" in out
    test_set = variables["test_images"], variables["test_labels"]
    model = keras.models.load_model("early_stopping.keras")
    assert model.evaluate(*test_set, verbose=0)[1] == variables["accuracy"]


@pytest.mark.slow
def test_fashion_mnist(run, monkeypatch, tmp_path):
    """Small files in its format stand for Fashion-MNIST's, prepared and read by TFDS itself."""
    for name, content in small_mnist.files().items():
        (tmp_path / name).write_bytes(content)
    # TFDS reads $TFDS_DATA_DIR as it is imported, which is too early for a test
    config = dict(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
    monkeypatch.setattr(tfds, "load", functools.partial(
        tfds.load, data_dir=tmp_path / "data", download_and_prepare_kwargs=config))
    with small_mnist.in_tfds(name="fashion_mnist"):
        assert len(accuracies(run("fashion_mnist")[1])) == 1
    assert keras.models.load_model("fashion_mnist.keras").input_shape == (None, 2, 392)


@pytest.mark.slow
def test_padding_is_skipped(run):
    _, (padded, _), _ = run("Masking(")[0]["load_data"]()
    model = keras.models.load_model("variable_length.keras")
    shortest = padded[[np.argmin((padded[..., 0] != -9999).sum(axis=1))]]
    sequence = shortest[:, shortest[0, :, 0] != -9999]
    assert 5 <= sequence.shape[1] < 12
    for layer in model.layers[1:]:  # all but the mask
        sequence = layer(sequence)
    np.testing.assert_allclose(model(shortest), sequence, atol=1e-5)  # float32


@pytest.mark.slow
def test_sequences_come_from_a_csv_file(run, settings):
    shutil.copy(ROOT / "uci_digits.npz", ".")
    run("np.savetxt(")
    settings(**CONSTANTS)  # trains as long as the page says
    _, out = run("table[:, 1:]")
    said, = {float(figure) for text in PAGES.values()
             for figure in re.findall(r"all 359 sequences: (0\.\d+)", text)}
    # of 359 sequences the standard deviation is 0.01; other processors round differently
    assert accuracies(out) == [pytest.approx(said, abs=0.03)]

    variables, out = run("[0, 1:]")
    (x, y), (test_x, test_y), _ = rnn_mnist.load_data()
    assert x.shape == (1438, 8, 8)
    assert np.any(np.all(np.r_[x, test_x] == variables["sequence"], axis=(1, 2)))
    outputs = keras.models.load_model("sequences.keras")(variables["sequence"])
    assert numbers(out) == [np.argmax(outputs), pytest.approx(np.max(outputs), abs=0.005)]

    table = np.loadtxt("sequences.csv", delimiter=",")
    table[:, 1:] /= 2  # for decimal marks
    rows = [";".join(f"{value:g}".replace(".", ",") for value in row) for row in table]
    with open("sequences.csv", "w", encoding="utf-8-sig", newline="\r\n") as file:
        print("label" + 64 * ";value", *rows, sep="\n", file=file)
    settings(**QUICK)
    line = re.search(r"^    table = np.loadtxt.*\n", block("table[:, 1:]").code, re.MULTILINE)[0]
    run("table[:, 1:]", line, block("utf-8-sig").code)
    (excel_x, excel_y), *_ = rnn_mnist.load_data()
    np.testing.assert_array_equal(excel_y, y)
    np.testing.assert_array_equal(excel_x, x / 2)


@pytest.mark.slow
def test_tokens_and_memory_maps_train(run, settings):
    out = run("mmap_mode=")[1]
    assert accuracies(out) and np.load("train_x.npy").shape == (1541, 2, 392)
    settings(TRAINING_ITERS=20000)
    assert accuracies(run("Embedding(")[1])[0] > 0.9  # 0.7 if one class is always the answer


@pytest.mark.slow
def test_the_best_model_is_saved_beside_the_last(run):
    variables, out = run("best.keras", "batch_size=500", "batch_size=50")
    held_out = variables["held_out"]
    x, y = variables["x"][:held_out], variables["y"][:held_out]
    best = keras.models.load_model("best.keras")
    assert held_out == 140 and 0 < updates(best) <= 6
    assert np.mean(best.predict(x, verbose=0).argmax(axis=1) == y) == variables["best"]
    assert numbers(out)[-1] == pytest.approx(variables["best"], abs=1e-4)  # its four decimals


@pytest.mark.slow
@pytest.mark.parametrize("log, drawn", [("Iter 1280, Minibatch Loss= 1.8, ", True), ("", False)])
def test_the_loss_curve_of_a_log(tmp_path, log, drawn):
    process = subprocess.run([sys.executable, ROOT / "docs" / "loss_curves.py"], input=log,
                             cwd=tmp_path, text=True, capture_output=True, timeout=TIMEOUT)
    assert (process.returncode == 0) == drawn and "Traceback" not in process.stderr
    assert (tmp_path / "loss_curves.png").exists() == drawn


# answers: programs with what they print

ANSWERS = [block for block in BLOCKS if block.shown]
LOG = re.compile(r"^(Iter |Optimization Finished!|Testing Accuracy).*\n", re.MULTILINE)


def without_figures(text):
    """Returns a text with 0 for each figure and each list of figures, and no gaps."""
    text = re.sub(r"\d+(\.\d*)?", "0", text)
    return re.sub("0(,?0)+", "0", "".join(text.split()))


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS, ids=[answer.heading for answer in ANSWERS])
def test_a_program_prints_what_the_page_shows(run, settings, untraced, answer):
    if not re.search(r"main\(|load_data\(|load_model\(", answer.code):  # it only calculates
        settings(**CONSTANTS)
        assert run(answer.code)[1] == answer.shown
        return
    settings(TRAINING_ITERS=301)  # three updates
    plain = rnn_mnist.build_model()
    plain.optimizer.build(plain.trainable_variables)
    plain.save("rnn_mnist.keras")
    _, out = run(answer.code)
    assert without_figures(LOG.sub("", out)) == without_figures(answer.shown)
    if "keras.layers.GRU(" in answer.code:
        gru = keras.models.load_model("gru-uci_digits.keras")
        assert type(gru.layers[1]) is keras.layers.GRU and updates(gru) == 3
        for ours, theirs in zip(gru.layers, plain.layers, strict=True):
            assert ours.get_config()["kernel_initializer"] == \
                theirs.get_config()["kernel_initializer"]


def test_each_exercise_has_an_answer():
    exercises = [title for text in ENGLISH.values()
                 for title in re.findall(r"^(\d+\. )\*\*(.*?)\.\*\*", text, re.MULTILINE)]
    answers = [answer.heading for answer in ANSWERS if answer.heading[0].isdigit()]
    assert answers == [*map("".join, exercises)] != []


# networks that pages tell readers to type

changes = imported(ROOT / "docs" / "evidence" / "changes.py")
EDITS = [row[:3] for text in ENGLISH.values() for row in changes.edits(text)]
EDITS += [("pixel by pixel", "in place of `hidden`", [" ".join(code.split())])
          for text in ENGLISH.values()
          for code in re.findall(r"`(keras\.layers\.Conv1D[^`]*)`", text)]


def edited(folder, where, code, **constants):
    """Returns a copy of the script as a module, with lines of code typed where a page says."""
    path = script(folder, **constants)
    source = path.read_text(encoding="utf-8")
    path.write_text(changes.edit(source, where, code), encoding="utf-8")
    keras.backend.clear_session()  # names of layers begin anew, as in a process of its own
    return imported(path)


@pytest.mark.parametrize("where, code", [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_an_edit_builds_the_network_it_names(tmp_path, where, code):
    model = edited(tmp_path, where, code).build_model()
    how, name = re.fullmatch(r"(.*) `(\w+)`", where).groups()
    kinds = {"hidden": ["Dense"], "lstm": ["LSTM"], "out": ["Dense"]}
    if typed := re.findall(r"^keras\.layers\.(\w+)", "\n".join(code), re.MULTILINE):
        kinds[name] = {"above": typed + kinds[name], "below": kinds[name] + typed,
                       "in place of": typed}[how]
    assert [type(layer).__name__ for layer in model.layers] == sum(kinds.values(), [])
    assert model.output_shape == (None, 10)
    optimizer = re.match(r"optimizer = keras\.optimizers\.(\w+)", code[0])
    assert type(model.optimizer).__name__ == (optimizer[1] if optimizer else "Adam")
    stddev = re.match(r"stddev = ([\d.]+)", code[0])
    drawn = np.std(model.get_layer("out").kernel)  # of 1,280, which varies by 0.02 of itself
    assert drawn == pytest.approx(float(stddev[1]) if stddev else 1, rel=0.1)


@pytest.mark.slow
def test_an_edited_script_trains(settings, untraced, tmp_path, capsys):
    """The edit of the most lines; test_networks.py trains networks like the others."""
    settings()
    _, where, code = max(EDITS, key=lambda row: len(row[2]))
    module = edited(tmp_path, where, code, N_STEPS=7, N_INPUT=5, N_HIDDEN=8, N_CLASSES=4,
                    BATCH_SIZE=32, TRAINING_ITERS=161, DISPLAY_STEP=2)
    data = np.random.default_rng(0).random([96, 7, 5], np.float32), np.arange(96) % 4
    module.load_data = lambda: (data, data, "random numbers")
    assert module.main() == pytest.approx(accuracies(capsys.readouterr().out)[0])
    saved, built = keras.models.load_model("rnn_mnist.keras"), module.build_model()
    assert updates(saved) == 5 and [*map(type, saved.layers)] == [*map(type, built.layers)]


# figures


def rows_of(name):
    """Returns the rows of a table in docs/evidence as dictionaries."""
    with open(ROOT / "docs" / "evidence" / name, encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


ACCURACIES, SECONDS = collections.defaultdict(list), collections.defaultdict(list)
for row in rows_of("changes.csv"):
    ACCURACIES[row["change"]].append(float(row["test_accuracy"]))
    SECONDS[row["change"]].append(float(row["training_seconds"]))
UNCHANGED, *_ = ACCURACIES


def tabulated(text):
    """Yields each change in the tables of a page, its accuracy, and its time or None."""
    for change, _, _, accuracy, time in changes.edits(text):
        yield change, accuracy, time
    for accuracy, time in re.findall(r"^\|[^|]+\| +\| ([\d.]+) \| ([\d.]+) \|$", text, re.M):
        yield UNCHANGED, accuracy, time
    for names, cell in re.findall(r"^\| (`[A-Z_`, ]+`) \|.*\| (.*) \|$", text, re.M):
        # such as "32: 0.905" or "56 and 14: two rows at a time, 0.954"
        for part in cell.split("; "):
            if tried := re.match(r"(\d+\.?\d*)(?: and (\d+))?:.*?(0\.\d+)$", part):
                values = zip(re.findall(r"\w+", names), filter(None, tried.groups()), strict=False)
                yield ", ".join(map(" = ".join, values)), tried[3], None


def rounded(value, like):
    """Returns a figure with as many decimals as another."""
    return f"{value:.{len(like.partition('.')[2])}f}"


def test_the_tables_show_what_was_measured():
    assert {row["seed"] for row in rows_of("changes.csv")} == {"0", "1", "2"}
    shown = [row for text in ENGLISH.values() for row in tabulated(text)]
    assert {change for change, *_ in shown} == ACCURACIES.keys()
    for change, accuracy, time in shown:
        assert accuracy == rounded(np.mean(ACCURACIES[change]), accuracy), change
        ratio = np.median(SECONDS[change]) / np.median(SECONDS[UNCHANGED])
        assert time is None or time == rounded(ratio, time), change
        assert len(ACCURACIES[change]) == 3


def test_ranges_of_accuracies_are_those_measured():
    """Of the unchanged network: of three seeds, and of 40 runs of the port and of the original."""
    spreads = [ACCURACIES[UNCHANGED], *(
        [float(row["test_accuracy"]) for row in rows_of(f"{program}_accuracies.csv")]
        for program in ("port", "original"))]
    found = []
    for page, text in PAGES.items():
        logged = {*map(float, re.findall(r"all 10000 images: ([\d.]+)", text))}
        assert logged <= {ACCURACIES[UNCHANGED][0]}, page
        for mean, deviation, low, high in re.findall(
                r"(?:\| ([\d.]+) \| ([\d.]+) \| )?(0\.\d{3,4}) (?:to|到) (0\.\d{3,4})",
                BLOCK.sub("", text)):
            runs = next((runs for runs in spreads if low == rounded(min(runs), low)
                         and high == rounded(max(runs), high)), None)
            assert runs, f"{page}: {low} to {high}"
            found.append(runs)
            assert mean in ("", rounded(np.mean(runs), mean)), page
            assert deviation in ("", rounded(np.std(runs, ddof=1), deviation)), page
        for three in re.findall(r"(0\.\d{4}), (0\.\d{4}) and (0\.\d{4})", text):
            assert [*map(float, three)] in ACCURACIES.values(), page
    assert all(runs in found for runs in spreads)


def test_the_answers_show_what_was_measured():
    unchanged = ACCURACIES[UNCHANGED]
    assert numbers(block("start:start + 256").shown)[-3:] == unchanged
    lines = map(numbers, block("for rate in").shown.splitlines())
    by_rate = {f"LEARNING_RATE = {rate}": accuracies for rate, _, _, _, *accuracies in lines}
    measured = by_rate.keys() & ACCURACIES.keys()
    assert measured and all(by_rate[change] == ACCURACIES[change] for change in measured)
    gru = keras.layers.GRU(CONSTANTS["N_HIDDEN"])
    gru.build([None, None, CONSTANTS["N_HIDDEN"]])
    assert numbers(block("keras.layers.GRU(").shown)[0] == gru.count_params()
    unmoved = block("moved[:, down:, right:]").shown.split("\n")[0].split()[-1]
    assert unmoved == rounded(unchanged[0], unmoved)
    shown = numbers(block("np.add.at(").shown)
    matrix, correct, mistakes = np.reshape(shown[:100], [10, 10]), shown[100:110], shown[110:]
    assert np.trace(matrix) / np.sum(matrix) == unchanged[0]
    assert correct == pytest.approx(np.diag(matrix) / matrix.sum(axis=1), abs=0.0005)
    most = sorted(matrix[~np.eye(10, dtype=bool)])[:-4:-1]
    assert mistakes[::3] == most == [matrix[int(digit), int(taken_for)] for digit, taken_for
                                     in zip(mistakes[1::3], mistakes[2::3], strict=True)]


# names


def test_the_constants_are_those_of_the_script():
    table = {}
    for text in ENGLISH.values():
        for names, values in re.findall(r"^\| (`[A-Z_`, ]+`) \| (.*?) \|", text, re.MULTILINE):
            values = ast.literal_eval(f"[{values.replace('`', '')}]")
            table.update(zip(re.findall(r"\w+", names), values, strict=True))
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8").partition("\ndef ")[0]
    names = re.findall(r"^([A-Z_]+) = ", source, re.MULTILINE)
    assert table == {name: CONSTANTS[name] for name in names}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page):
    folder, text = (ROOT / page).parent, PAGES[page]
    for path, anchor in re.findall(r"(?:\]\(|src=\"|href=\")(?!http)([^)#\"]*)#?([^)\"]*)", text):
        target = folder / path if path else ROOT / page
        assert target.exists(), path
        linked = PAGES.get(target.resolve().relative_to(ROOT.resolve()).as_posix(), "")
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")  # as GitHub does
                   for title in headings(linked)]
        assert not anchor or anchor in anchors, anchor
    for path in re.findall(r"(?:-r |python )((?:\w+[/\\])*\w+\.(?:txt|py))\b", text):
        assert (ROOT / path.replace("\\", "/")).exists(), path
    for path in re.findall(r"`((?:docs|tests|evidence|\.github)/[\w./]+)`", text):
        assert (ROOT / path).exists() or (folder / path).exists(), path


def test_the_versions_are_the_required_ones():
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    named = {version for text in PAGES.values()
             for version in re.findall(r"tensorflow\[and-cuda\](==[\d.]+)", text)}
    assert named == {re.search(r"^tensorflow(==[\d.]+)", requirements, re.MULTILINE)[1]}
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    for name in {*re.findall(r"^import (\w+)", source, re.MULTILINE)} - sys.stdlib_module_names:
        lines = re.findall(rf"^{name.replace('_', '-')}\b(?!-).*", requirements, re.MULTILINE)
        # next year's releases are kept out
        assert lines and all(re.match(r"[\w-]+(==|>=.*,<)\d", line) for line in lines), name


def test_machines_find_the_command_of_the_tests():
    """.ci/run takes the line that ends so."""
    line, = re.findall(r"^    (.*bin/python -m pytest)$", PAGES["README.md"], re.MULTILINE)
    assert "-m venv" in line and "-r tests/requirements.txt" in line


# the Chinese page


def pieces(text):
    """Returns what a translation keeps: programs, commands, and the code and figures of tables."""
    for chinese, english in [("`(.*?)` 上方", r"above `\1`"), ("`(.*?)` 下方", r"below `\1`"),
                             ("替换 `", "in place of `")]:
        text = re.sub(f"(?<=<br>){chinese}", english, text)
    programs = [re.sub(r" *#.*", "", match[1]) for match in BLOCK.finditer(text)]
    commands = re.findall(r"^    (\S.*)$", BLOCK.sub("", text), re.MULTILINE)
    kept = re.compile(r"`.*?`|\d+(?:\.\d+)?|(?<=<br>)[a-z ]+(?=`)")
    rows = map(kept.findall, re.findall(r"^\|.*\|$", text, re.MULTILINE))
    return programs, commands, [*filter(None, rows)]


@pytest.mark.parametrize("page", sorted(PAGES.keys() - ENGLISH.keys()))
def test_a_translation_keeps_programs_commands_and_figures(page):
    """All of the README's in its order, and nothing but what the English pages have."""
    english = zip(pieces(PAGES["README.md"]), *map(pieces, ENGLISH.values()), strict=True)
    for translated, (readme, *pages) in zip(pieces(PAGES[page]), english, strict=True):
        assert [piece for piece in translated if piece in readme] == readme
        assert all(piece in sum(pages, []) for piece in translated)
