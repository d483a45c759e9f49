"""Trains each change on docs/experiments.md with seeds 0, 1 and 2, and writes changes.csv.

    python docs/evidence/changes.py

The changes of the model are read from the page's table; those of the constants are listed below.
A line of changes.csv is a whole run of rnn_mnist.py: the change, the seed, the test accuracy and
the seconds of the training. Existing lines are kept, so delete the file to start anew. Prints, for
each change, the mean of the accuracies and the time as a multiple of the unchanged model's. Takes
20 minutes to an hour on two idle cores, on MNIST as rnn_mnist.py finds it.
"""

import ast
import csv
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
TABLE = pathlib.Path(__file__).with_name("changes.csv")
SEEDS = (0, 1, 2)
CONSTANTS = [dict(LEARNING_RATE=0.01), dict(BATCH_SIZE=32), dict(N_INPUT=56, N_STEPS=14),
             dict(N_HIDDEN=32), dict(TRAINING_ITERS=20000), dict(TRAINING_ITERS=1000000)]


def edits(page):
    """Returns [(what, where, lines of code, accuracy, time)], a page's table of networks."""
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")]
            for row in re.findall(r"^\| .*\|$", page, re.MULTILINE)]
    return [(*change.split("<br>"), re.findall(r"`([^`]+)`", code), *figures)
            for change, code, *figures in (row for row in rows if len(row) == 4)
            if re.match(r"`(keras\.|\w+ = )", code)]


def edit(source, where, code):
    """Types lines of code above, below or in place of a layer, or an assignment, of build_model."""
    how, name = re.fullmatch(r"([\w ]+) `(\w+)`", where).groups()
    tree = ast.parse(source)
    function, = [node for node in tree.body if getattr(node, "name", "") == "build_model"]
    found = [node for node in ast.walk(function)
             if isinstance(node, ast.Assign) and node.targets[0].id == name
             or isinstance(node, ast.Call) and any(
                 keyword.arg == "name" and ast.literal_eval(keyword.value) == name
                 for keyword in node.keywords)]
    assert len(found) == 1, f"{name} is not in build_model, once"
    lines = source.splitlines()
    first, last = found[0].lineno - 1, found[0].end_lineno
    start, end = {"above": (first, first), "below": (last, last), "in place of": (first, last)}[how]
    lines[start:end] = [" " * found[0].col_offset + line for line in code]
    return "\n".join(lines) + "\n"


def with_constants(source, constants):
    for name, value in constants.items():
        source, changed = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", source,
                                  flags=re.MULTILINE)
        assert changed == 1, f"the constant {name} is not in rnn_mnist.py, once"
    return source


def changed_scripts():
    """Returns {change: the script's text with it}."""
    source = (ROOT / "rnn_mnist.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    scripts = {"unchanged": source}
    for what, where, code, *_ in edits(page):
        scripts[what] = edit(source, where, code)
    for constants in CONSTANTS:
        what = ", ".join(f"{name} = {value}" for name, value in constants.items())
        scripts[what] = with_constants(source, constants)
    return scripts


def run(source, seed):
    """Runs a text of the script with a seed; returns the test accuracy and seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rnn_mnist.py")
        path.write_text(with_constants(source, dict(SEED=seed)), encoding="utf-8")
        process = subprocess.run([sys.executable, path.name], cwd=folder, text=True, check=True,
                                 capture_output=True)
    accuracy = re.search(r"^Testing Accuracy, all 10000 images: (\S+)$", process.stdout, re.M)[1]
    return accuracy, re.search(r"after (\S+) s\.", process.stderr)[1]


def main():
    if not TABLE.exists():
        TABLE.write_text("change,seed,test_accuracy,training_seconds\n")
    with open(TABLE, newline="") as file:
        rows = {(row["change"], row["seed"]): row for row in csv.DictReader(file)}
    for seed in SEEDS:
        for change, source in changed_scripts().items():
            if (change, str(seed)) not in rows:
                figures = run(source, seed)
                with open(TABLE, "a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow([change, seed, *figures])
                print(change, seed, *figures, file=sys.stderr)
    with open(TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    usual = seconds("unchanged", rows)
    for change in changed_scripts():
        accuracies = [float(row["test_accuracy"]) for row in rows if row["change"] == change]
        print(f"{change}: {statistics.mean(accuracies):.3f} of {len(accuracies)} seeds, "
              f"time {seconds(change, rows) / usual:.1f}")


def seconds(change, rows):
    return statistics.median(float(row["training_seconds"]) for row in rows
                             if row["change"] == change)


if __name__ == "__main__":
    main()
