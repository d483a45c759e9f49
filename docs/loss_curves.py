"""Draws loss_curves.png: the original's published log, original_log.csv, beside a run of the port.

    pip install matplotlib && python rnn_mnist.py | python docs/loss_curves.py
"""

import csv
import pathlib
import re
import sys

import matplotlib

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

folder = pathlib.Path(__file__).parent
with open(folder / "original_log.csv", newline="") as file:
    original = [(int(row["iter"]), float(row["minibatch_loss"])) for row in csv.DictReader(file)]
lines = re.findall(r"Iter (\d+), Minibatch Loss= (\S+),", sys.stdin.read())
port = [(int(seen), float(loss)) for seen, loss in lines]

plt.figure(figsize=(7, 3.5), layout="constrained")
plt.plot(*zip(*original), "o", markersize=4,
         label="original, TensorFlow 0.8: the 57 of 78 lines that were published")
plt.plot(*zip(*port), "o-", markersize=3, label="rnn_mnist.py, SEED = 0")
plt.xlabel("training images seen")
plt.ylabel("minibatch loss")
plt.ylim(bottom=0)
plt.legend()
plt.savefig(folder / "loss_curves.png", dpi=120)
