"""The README and the pages of docs/: the code runs, the edits train, what they name is there."""

import ast
import importlib.util
import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import rnn_mnist
from conftest import QUICK, ROOT, imported, script

spec = importlib.util.spec_from_file_location("changes", ROOT / "docs" / "evidence" / "changes.py")
changes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(changes)
edit, edits = changes.edit, changes.edits

PAGES = {path.name: path.read_text(encoding="utf-8")
         for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
README, CHINESE, ELSEWHERE, RECIPES = map(
    PAGES.get, ("README.md", "README.zh.md", "elsewhere.md", "recipes.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {  # what a block is for, and what only that block holds
    "own sequences": "np.loadtxt(", "own file": "np.savetxt(", "export": "model.export(",
    "going on": "model.fit(", "many runs": "range(40)",
    "older Keras": "model.load_weights(", "a notebook": "rnn_mnist.TRAINING_ITERS = 20000"}


TESTED_ELSEWHERE = ["recipes.md", "class.md"]  # in files of their own, block by block


def block(purpose):
    found = [code for name, page in PAGES.items() for code in BLOCK.findall(page)
             if BLOCKS[purpose] in code and name not in TESTED_ELSEWHERE + ["README.zh.md"]]
    assert len(found) == 1, f"{len(found)} blocks with {BLOCKS[purpose]}"
    return found[0]


def test_no_block_is_left_untested():
    for name, page in PAGES.items():
        for code in BLOCK.findall(page) if name not in TESTED_ELSEWHERE else []:
            assert sum(mark in code for mark in BLOCKS.values()) == 1, f"{name}:\n{code}"


# the blocks


@pytest.fixture
def trained(settings, trained_file):
    """A trained model, in the working directory as rnn_mnist.keras."""
    shutil.copy(trained_file, "rnn_mnist.keras")
    return keras.models.load_model("rnn_mnist.keras")


@pytest.mark.slow
def test_a_training_goes_on(trained):
    (images, labels), _, _ = rnn_mnist.load_data()
    keras.utils.set_random_seed(0)  # fit shuffles, and another order may end a little higher
    exec(block("going on"), {})
    models = trained, keras.models.load_model("rnn_mnist.keras")
    before, after = [int(model.optimizer.iterations) for model in models]
    assert after == before + -(-len(images) // 128)
    before, after = [model.evaluate(images, labels, verbose=0)[0] for model in models]
    assert after < before


@pytest.mark.slow
def test_an_older_keras_can_take_the_weights(trained):
    variables = {}
    exec(block("older Keras"), variables)  # all in this Keras; also seen in 3.5, 3.8 and 3.12
    for ours, theirs in zip(variables["model"].get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_forty_runs_make_a_table(settings, capsys, tmp_path):
    settings(**QUICK, SEED=0, MODEL_PATH=None)  # all put back at the end
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    exec(block("many runs").replace("range(40)", "range(3)"), {})
    table = tmp_path / "docs" / "evidence" / "port_accuracies.csv"
    header, *rows = table.read_text().splitlines()
    printed = re.findall(r"all 256 images: (\S+) ", capsys.readouterr().out)
    assert header == "seed,test_accuracy" and len(rows) == 3
    for seed, (row, accuracy) in enumerate(zip(rows, printed, strict=True)):
        assert row.split(",")[0] == str(seed)
        assert float(row.split(",")[1]) == pytest.approx(float(accuracy))


@pytest.mark.slow
@pytest.mark.skipif(tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13),
                    reason="this Keras does not know of LiteRT")
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, of its interpreter's new home
def test_the_model_can_go_onto_a_phone_and_into_onnx(trained, capsys):
    with_litert, with_onnx = block("export").split("\n\n")[1:]
    variables = {}
    exec(f"import keras\n\n{with_litert}", variables)
    _, (images, _), _ = rnn_mnist.load_data()
    expected = keras.ops.convert_to_numpy(trained(images[:50]))
    interpreter = tf.lite.Interpreter("rnn_mnist.tflite")  # without TensorFlow's own operations
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    for image, probabilities in zip(images, expected):
        interpreter.set_tensor(source["index"], image[np.newaxis])
        interpreter.invoke()
        outputs = interpreter.get_tensor(target["index"])[0]
        np.testing.assert_allclose(outputs, probabilities, atol=1e-5)
    if importlib.util.find_spec("tf2onnx"):
        exec(with_onnx, variables)
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession("rnn_mnist.onnx")
        outputs, = session.run(None, {session.get_inputs()[0].name: images[:50]})
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.slow
def test_a_notebook_can_call_main_twice(settings, cpu, small_data_dir, capsys):
    settings(**QUICK, DATA_DIR=str(small_data_dir), MODEL_PATH=None)  # all put back at the end
    code = block("a notebook").replace("20000", "2000")
    exec(code, {})
    first = capsys.readouterr().out
    exec(code, {})
    assert first.startswith("Iter 1000, ") and capsys.readouterr().out == first


@pytest.mark.slow
def test_sequences_come_from_a_csv_file(settings, capsys):
    names = "N_STEPS N_INPUT N_CLASSES MODEL_PATH load_data".split()
    settings(TRAINING_ITERS=20000, **{name: getattr(rnn_mnist, name) for name in names})
    shutil.copy(ROOT / "uci_digits.npz", ".")
    exec(block("own file"), {})
    exec(block("own sequences"), {})
    out, err = capsys.readouterr()
    accuracy = re.search(r"^Testing Accuracy, all 359 sequences: (\S+)$", out, re.MULTILINE)[1]
    assert float(accuracy) > 0.8 and "images" not in out
    assert "my sequences: 1438 training and 359 test sequences, " in err
    assert keras.models.load_model("sequences.keras").input_shape == (None, 8, 8)


# changes of the network


def numbers():
    sequences = np.random.default_rng(0).random([96, 7, 5], np.float32)
    return (sequences, np.arange(96) % 4), (sequences, np.arange(96) % 4), "numbers"


def train_edited(folder, lines, **constants):
    path = script(folder, **{**dict(N_STEPS=7, N_INPUT=5, N_HIDDEN=8, N_CLASSES=4, BATCH_SIZE=32,
                                    TRAINING_ITERS=161, DISPLAY_STEP=2), **constants})
    source = path.read_text(encoding="utf-8")
    for where, code in lines:
        assert (source := edit(source, where, code)) != path.read_text(encoding="utf-8")
    path.write_text(source, encoding="utf-8")
    keras.backend.clear_session()  # names of layers begin anew, as in a process of its own
    module = imported(path)
    module.load_data = numbers
    assert 0 <= module.main() <= 1
    return keras.models.load_model("rnn_mnist.keras"), module.build_model()


@pytest.mark.slow
@pytest.mark.parametrize("where, code", [row[1:3] for row in edits(README)])
def test_a_changed_network_trains(where, code, settings, untraced, tmp_path, capsys):
    settings()
    saved, built = train_edited(tmp_path, [(where, code)])
    line = r"Iter \d+, Minibatch Loss= \d+\.\d{6}, Training Accuracy= [01]\.\d{5}\n"
    assert re.fullmatch(rf"({line}){{2}}"
                        r"Optimization Finished!\nTesting Accuracy: \S+\n"
                        r"Testing Accuracy, all 96 sequences: \S+\n", capsys.readouterr().out)
    for model in (saved, built):
        kinds = [type(layer).__name__ for layer in model.layers]
        for line in code:
            if kind := re.match(r"keras\.layers\.(\w+)", line):
                assert kind[1] in kinds
        optimizer = re.match(r"optimizer = keras\.optimizers\.(\w+)", code[0])
        assert type(model.optimizer).__name__ == (optimizer[1] if optimizer else "Adam")


@pytest.mark.slow
def test_the_line_for_pixels_one_by_one_trains(settings, untraced, tmp_path):
    settings()
    text = " ".join(RECIPES.split())
    code, where = re.search(r"`(keras\.layers\.Conv1D[^`]*)` (in place of `hidden`)", text).groups()
    saved, _ = train_edited(tmp_path, [(where, [code.replace("28", "3")])])
    assert saved.layers[0].output.shape == (None, 2, 8)


def test_the_table_of_networks_is_whole():
    rows = edits(README)
    assert len(rows) >= 10
    for *_, accuracy, time in rows:
        assert re.fullmatch(r"0\.\d{3}", accuracy) and re.fullmatch(r"\d\.\d", time)


# what the pages name


def test_the_constants_are_those_of_the_script():
    table = dict.fromkeys(name for row in re.findall(r"^\| (`[A-Z_`, ]+`) \|", README, re.MULTILINE)
                          for name in re.findall(r"[A-Z_]+", row))
    tree = ast.parse((ROOT / "rnn_mnist.py").read_text(encoding="utf-8"))
    first_function = min(node.lineno for node in tree.body if isinstance(node, ast.FunctionDef))
    constants = [node.targets[0].id for node in tree.body if node.lineno < first_function
                 and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    assert set(table) == set(constants)


def test_the_chinese_page_says_the_same():
    def without_comments(code):
        return re.sub(r" *#.*", "", code)

    def commands(page):
        return re.findall(r"^    (\S.*)$", re.sub(BLOCK, "", page), re.MULTILINE)

    assert [*map(without_comments, BLOCK.findall(CHINESE))] == \
        [*map(without_comments, BLOCK.findall(README))]
    assert commands(CHINESE) == commands(README)
    assert [row[2:] for row in edits(CHINESE)] == [row[2:] for row in edits(README)]
    places = {"above": "上方", "below": "下方", "in place of": "替换"}
    for (_, where, *_), (_, chinese, *_) in zip(edits(README), edits(CHINESE)):
        place, name = where.rsplit(" ", 1)
        assert sorted(chinese.split()) == sorted([places[place], name])


def test_the_gpu_version_is_the_required_one():
    requirements = (ROOT / "requirements.txt").read_text()
    required = re.search(r"^tensorflow(==[\d.]+)", requirements, re.MULTILINE)[1]
    named = {version for page in PAGES.values()
             for version in re.findall(r"tensorflow\[and-cuda\](==[\d.]+)", page)}
    assert named == {required}


def test_next_years_releases_of_what_the_script_imports_are_kept_out():
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    tree = ast.parse((ROOT / "rnn_mnist.py").read_text(encoding="utf-8"))
    modules = {alias.name.partition(".")[0] for node in tree.body if isinstance(node, ast.Import)
               for alias in node.names}
    for name in modules - sys.stdlib_module_names:
        package = name.replace("_", "-")
        lines = [line for line in requirements if re.match(package + r"\b(?!-)", line)]
        assert lines and all(re.match(r"[\w-]+(==|>=.*,<)\d", line) for line in lines), name


def headings(page):
    """Returns the anchors that GitHub makes of a page's headings."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}


def test_what_links_and_commands_name_is_there():
    for name, page in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for path in re.findall(r"(?:-r |python )((?:\w+/)*\w+\.(?:txt|py))\b", page):
            assert pathlib.Path(ROOT, path).exists(), f"{name}: {path}"
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page):
            target = folder / path if path else folder / name
            assert target.exists(), f"{name}: {path}"
            assert not anchor or anchor in headings(PAGES[target.name]), f"{name}: {anchor}"


def test_the_one_command_for_tests_can_be_found():  # by machines that run it as it stands
    assert len(re.findall(r"^    .*bin/python -m pytest$", README, re.MULTILINE)) == 1
