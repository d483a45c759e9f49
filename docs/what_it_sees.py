"""Draws what_it_sees.png, in the current folder: what the network takes digits for, row after row.

    pip install matplotlib && python rnn_mnist.py && python docs/what_it_sees.py

Uses the model that rnn_mnist.py has saved in its own folder, and the images it would test on.
"""

import pathlib
import sys

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import rnn_mnist
import read_digit

_, (images, labels), name = rnn_mnist.load_data()
file = "rnn_mnist-uci_digits.keras" if name == rnn_mnist.SAMPLE else "rnn_mnist.keras"
model = read_digit.for_any_rows(keras.models.load_model(ROOT / file))
probabilities = read_digit.after_every_row(model, images)  # [n, rows, digits]

# Six digits that the network gets right after it changed its mind two to four times: those where
# it was surest on the way.
guesses = probabilities.argmax(axis=2)
changes = np.count_nonzero(np.diff(guesses[:, 6:]), axis=1)  # the rows above are black
sureness = probabilities[:, 6:].max(axis=2).mean(axis=1)
chosen = []
for index in np.argsort(-sureness):
    right = probabilities[index, -1, labels[index]] > 0.9
    new = len(chosen) < 6 and labels[index] not in labels[chosen]
    if right and new and 2 <= changes[index] <= 4:
        chosen.append(index)
chosen.sort(key=lambda index: labels[index])

figure, axes = plt.subplots(2, 6, figsize=(10, 5), layout="constrained", width_ratios=[1.5, 1] * 3)
for index, (digit, belief) in zip(chosen, axes.reshape(6, 2)):
    digit.imshow(images[index], cmap="gray", aspect="auto")
    digit.set(xticks=[], ylabel="rows read")
    belief.imshow(probabilities[index], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    belief.set(xticks=range(10), yticks=[])
    changed = guesses[index, 6:] != np.append(-1, guesses[index, 6:-1])
    taken_for = ", ".join(map(str, guesses[index, 6:][changed]))
    belief.set_title(f"takes it for {taken_for}", fontsize=9, loc="right")
figure.suptitle(f"{name}, test images: the probability of each digit, 0 to 9, after every row")
plt.savefig("what_it_sees.png", dpi=110)
