"""Draws what_it_sees.png: test digits, and beside each what the network takes it for, row after row.

    pip install matplotlib && python rnn_mnist.py && python docs/what_it_sees.py

Uses rnn_mnist.keras and the images that rnn_mnist.py would test on.
"""

import pathlib
import sys

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import rnn_mnist

hidden, lstm, out = keras.models.load_model(ROOT / "rnn_mnist.keras").layers
every_row = keras.layers.LSTM(lstm.units, return_sequences=True)
_, (images, labels), name = rnn_mnist.load_data()
rows = hidden(images / np.float32(255))
every_row.build(rows.shape)
every_row.set_weights(lstm.get_weights())
probabilities = np.array(out(every_row(rows)))  # [n, timesteps, digits], after each row

# Six digits that the network gets right after it took them for two to four others, the surer the better.
guesses = probabilities.argmax(axis=2)
changes = np.count_nonzero(np.diff(guesses[:, 6:]), axis=1)  # the rows above are black
sureness = probabilities[:, 6:].max(axis=2).mean(axis=1)
chosen = []
for index in np.argsort(-sureness):
    right = probabilities[index, -1, labels[index]] > 0.9
    if right and 2 <= changes[index] <= 4 and labels[index] not in labels[chosen] and len(chosen) < 6:
        chosen.append(index)
chosen.sort(key=lambda index: labels[index])

figure, axes = plt.subplots(2, 6, figsize=(10, 5), layout="constrained", width_ratios=[1.5, 1] * 3)
for index, (digit, belief) in zip(chosen, axes.reshape(6, 2)):
    digit.imshow(images[index].reshape(28, 28), cmap="gray", aspect="auto")
    digit.set(xticks=[], ylabel="rows read")
    belief.imshow(probabilities[index], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    belief.set(xticks=range(10), yticks=[])
    changed = guesses[index, 6:] != np.append(-1, guesses[index, 6:-1])
    belief.set_title("takes it for " + ", ".join(map(str, guesses[index, 6:][changed])), fontsize=9, loc="right")
figure.suptitle(f"{name}, test images: the probability of each digit, 0 to 9, after every row")
plt.savefig(ROOT / "docs" / "what_it_sees.png", dpi=110)
