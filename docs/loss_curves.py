"""Draws loss_curves.png in the current folder: the log of a run beside the original's.

    pip install matplotlib && python rnn_mnist.py > log.txt && python docs/loss_curves.py < log.txt
"""

import csv
import pathlib
import re
import sys

import matplotlib

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

published = pathlib.Path(__file__).resolve().parent / "evidence" / "original_log.csv"
with open(published, newline="") as file:
    original = [(int(row["iter"]), float(row["minibatch_loss"])) for row in csv.DictReader(file)]
lines = re.findall(r"Iter (\d+), Minibatch Loss= (\S+),", sys.stdin.read())
if not lines:
    sys.exit("Standard input has no line of a log: run python docs/loss_curves.py < log.txt")
port = [(int(seen), float(loss)) for seen, loss in lines]

plt.figure(figsize=(7, 3.5), layout="constrained")
plt.plot(*zip(*original, strict=True), "o", markersize=4,
         label="original, TensorFlow 0.8: the 57 of 78 lines that were published")
plt.plot(*zip(*port, strict=True), "o-", markersize=3, label="rnn_mnist.py")
plt.xlabel("training images seen")
plt.ylabel("minibatch loss")
plt.ylim(bottom=0)
plt.legend()
plt.savefig("loss_curves.png", dpi=120)
