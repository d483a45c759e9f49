"""The four files of MNIST in small, made of the UCI digits, for TFDS's own MNIST builder to read.

The real files may not be shipped, so TFDS's list of checksums and its counts are adapted to the
small ones: all else, the builder's reading of the files included, is TFDS as it is.
"""

import gzip
import hashlib
import pathlib

import numpy as np
import tensorflow_datasets as tfds

import pauses

COUNTS = {"train": 5600, "test": 300}  # of the 5,600, rnn_mnist sets 5,000 aside
TRAIN_SIZE = COUNTS["train"] - 5000


def examples(split):
    """Returns the images, uint8 [n, 28, 28], and labels, uint8 [n], of "train" or "test"."""
    with np.load(pathlib.Path(__file__).parent.parent / "uci_digits.npz") as digits:
        images = np.zeros([len(digits["images"]), 28, 28], np.uint8)
        images[:, 6:22, 6:22] = digits["images"].repeat(2, axis=1).repeat(2, axis=2) * 15
        labels = digits["labels"]
    chosen = (np.arange(COUNTS[split]) + (split == "test")) % len(labels)
    return images[chosen], labels[chosen]


def files():
    """Returns {name: content} of the four files: gzip, with the header that MNIST's have."""
    contents = {}
    for prefix, split in [("train", "train"), ("t10k", "test")]:
        images, labels = examples(split)
        for kind, number, values in [("images-idx3", 2051, images), ("labels-idx1", 2049, labels)]:
            header = np.array([number, *values.shape], ">i4").tobytes()
            content = gzip.compress(header + values.tobytes(), 1, mtime=0)
            contents[f"{prefix}-{kind}-ubyte.gz"] = content
    return contents


def adapt_tfds(halfway=None, name="mnist"):
    """Makes TFDS expect the small files in place of MNIST's, or those of another data set in its
    format; returns what undoes it.

    Calls `halfway`, if given, while TFDS prepares.
    """
    mnist = tfds.builder_cls(name)
    split_generators, infos = mnist._split_generators, dict(mnist.url_infos)
    generate_examples = mnist._generate_examples

    def examples_with_a_break(self, **arguments):
        for number, example in enumerate(generate_examples(self, **arguments)):
            if number == 1000:
                halfway()
            yield example

    def small_split_generators(self, dl_manager):
        generators = split_generators(self, dl_manager)
        for generator in generators:
            generator.gen_kwargs["num_examples"] = COUNTS[str(generator.name)]
        return generators

    def undo():
        mnist._split_generators, mnist._generate_examples = split_generators, generate_examples
        mnist.url_infos.update(infos)

    contents = files()
    for url, info in infos.items():
        content = contents[info.filename]
        checksum = hashlib.sha256(content).hexdigest()
        mnist.url_infos[url] = type(info)(len(content), checksum, info.filename)
    mnist._split_generators = small_split_generators
    if halfway:
        mnist._generate_examples = examples_with_a_break
    return undo


def pause_while_preparing():
    """Adapts TFDS, for a copy of the script, and lets it pause while it prepares."""
    adapt_tfds(pauses.pause)
