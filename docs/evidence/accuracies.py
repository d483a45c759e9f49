"""Draws accuracies.png, whole runs of the original beside the port's, and prints their statistics.

    pip install matplotlib scipy && python docs/evidence/accuracies.py

original_accuracies.csv holds 40 runs of the original, seeds 0 to 39, made as docs/original.md says;
port_accuracies.csv holds 40 runs of rnn_mnist.py with SEED edited, 0 to 39.
"""

import pathlib

import matplotlib
import numpy as np
import scipy.stats

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt

folder = pathlib.Path(__file__).parent
runs = {}
for name, file in [("original", "original"), ("rnn_mnist.py", "port")]:
    table = np.genfromtxt(folder / f"{file}_accuracies.csv", delimiter=",", skip_header=1)
    runs[name] = table[:, 1]

plt.figure(figsize=(7, 2.6), layout="constrained")
for place, (name, accuracies) in enumerate(runs.items()):
    # so that no run hides another
    spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(accuracies))
    plt.plot(accuracies, place + spread, "o", markersize=4, alpha=0.6)
    print(f"{name}: {len(accuracies)} runs, mean {accuracies.mean():.4f}, "
          f"standard deviation {accuracies.std(ddof=1):.4f}, "
          f"{accuracies.min():.4f} to {accuracies.max():.4f}")
plt.boxplot(runs.values(), positions=[0, 1], widths=0.5, orientation="horizontal",
            showfliers=False)
plt.yticks([0, 1], runs)
plt.gca().invert_yaxis()
plt.xlabel("test accuracy, all 10,000 images; a dot is a whole run")
plt.savefig(folder / "accuracies.png", dpi=120)

original, port = runs.values()
for test, result in [
        ("Welch's t-test of the means", scipy.stats.ttest_ind(original, port, equal_var=False)),
        ("Levene's test of the spreads", scipy.stats.levene(original, port)),
        ("Kolmogorov-Smirnov test of the distributions", scipy.stats.ks_2samp(original, port))]:
    print(f"{test}: p = {result.pvalue:.2f}")
