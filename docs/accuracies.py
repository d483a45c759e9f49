"""Draws accuracies.png, whole runs of the original beside the port's, and prints what the README says of them.

    pip install matplotlib scipy && python docs/accuracies.py

original_accuracies.csv holds 40 runs of the original on TensorFlow 1.15.5, with the initial LSTM matrix of 0.12 and the
images in the order of TFDS, seeds 0 to 39. port_accuracies.csv holds 40 runs of rnn_mnist.py with SEED edited, 0 to 39.
"""

import pathlib

import matplotlib
import numpy as np
import scipy.stats

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

folder = pathlib.Path(__file__).parent
runs = {name: np.genfromtxt(folder / f"{file}_accuracies.csv", delimiter=",", skip_header=1)[:, 1]
        for name, file in [("original", "original"), ("rnn_mnist.py", "port")]}

plt.figure(figsize=(7, 2.6), layout="constrained")
for place, (name, accuracies) in enumerate(runs.items()):
    spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(accuracies))  # so that no run hides another
    plt.plot(accuracies, place + spread, "o", markersize=4, alpha=0.6)
    print(f"{name}: {len(accuracies)} runs, mean {accuracies.mean():.4f}, "
          f"standard deviation {accuracies.std(ddof=1):.4f}, {accuracies.min():.4f} to {accuracies.max():.4f}")
plt.boxplot(runs.values(), positions=[0, 1], widths=0.5, orientation="horizontal", showfliers=False)
plt.yticks([0, 1], runs)
plt.gca().invert_yaxis()
plt.xlabel("test accuracy, all 10,000 images; a dot is a whole run")
plt.savefig(folder / "accuracies.png", dpi=120)

original, port = runs.values()
print(f"Welch's t-test of the means: p = {scipy.stats.ttest_ind(original, port, equal_var=False).pvalue:.2f}")
print(f"Levene's test of the spreads: p = {scipy.stats.levene(original, port).pvalue:.2f}")
print(f"Kolmogorov-Smirnov test of the distributions: p = {scipy.stats.ks_2samp(original, port).pvalue:.2f}")
