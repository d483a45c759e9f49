"""Draws what_it_sees.png in the current folder: what the network takes digits for as it reads them.

    pip install matplotlib scikit-image && python rnn_mnist.py && python docs/what_it_sees.py

It uses the model that rnn_mnist.py saved in its own folder, and the images it would test on.
"""

import os
import pathlib
import sys

import matplotlib
import numpy as np

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import read_digit  # noqa: E402
from read_digit import rnn_mnist  # noqa: E402

try:
    _, (x, labels), name = rnn_mnist.load_data()
    place = os.path.expanduser(rnn_mnist.MODEL_PATH or "rnn_mnist.keras")
    if name == rnn_mnist.SAMPLE:
        place = place.removesuffix(".keras") + "-uci_digits.keras"
    model = read_digit.for_any_length(read_digit.load_model(ROOT / place))
except (read_digit.Unreadable, rnn_mnist.TrainingError) as error:
    sys.exit(str(error))
probabilities = read_digit.after_every_timestep(model, x)  # [n, timesteps, digits]

# Six digits that the network classifies correctly after two to four changes of its answer: those
# for which its answers along the way were surest.
guesses = probabilities.argmax(axis=2)
start = 6 * rnn_mnist.N_STEPS // 28  # the rows above are mostly black
changes = np.count_nonzero(np.diff(guesses[:, start:]), axis=1)
sureness = probabilities[:, start:].max(axis=2).mean(axis=1)
chosen = []
for index in np.argsort(-sureness):
    correct = probabilities[index, -1, labels[index]] > 0.9
    new = len(chosen) < 6 and labels[index] not in labels[chosen]
    if correct and new and 2 <= changes[index] <= 4:
        chosen.append(index)
if not chosen:
    sys.exit("No test image is classified correctly, with a probability above 0.9, after two to "
             "four changes of the answer: train the network for longer.")
chosen.sort(key=lambda index: labels[index])

figure, axes = plt.subplots(2, 6, figsize=(10, 5), layout="constrained", width_ratios=[1.5, 1] * 3)
for index, (digit, belief) in zip(chosen, axes.reshape(6, 2)[:len(chosen)], strict=True):
    digit.imshow(x[index].reshape(28, 28), cmap="gray", aspect="auto")
    digit.set(xticks=[], yticks=[0, 6, 13, 20, 27], yticklabels=[1, 7, 14, 21, 28], ylabel="row")
    belief.imshow(probabilities[index], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    belief.set(xticks=range(10), yticks=[])
    changed = guesses[index, start:] != np.append(-1, guesses[index, start:-1])
    taken_for = ", ".join(map(str, guesses[index, start:][changed]))
    belief.set_title(f"takes it for {taken_for}", fontsize=9, loc="right")
figure.suptitle(f"{name}, test images: the probability of each digit, 0 to 9, after every timestep")
plt.savefig("what_it_sees.png", dpi=110)
