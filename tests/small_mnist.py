"""The four files of MNIST in small, made of the UCI digits, for TFDS's own MNIST builder to check, prepare and read.

The real files may not be shipped, so TFDS's list of checksums and its counts are adapted to the small ones: all else,
the builder's reading of the files included, is TFDS as it is.
"""

import gzip
import hashlib
import pathlib
import sys

import numpy as np
import tensorflow_datasets as tfds

PAUSE = "print('paused', file=sys.stderr, flush=True), sys.stdin.readline()"  # until the test closes the pipe
COUNTS = {"train": 5600, "test": 300}  # of the 5,600, rnn_mnist sets 5,000 aside
TRAIN_SIZE = COUNTS["train"] - 5000


def examples(split):
    """Returns the images, uint8 [n, 28, 28], and labels, uint8 [n], of "train" or "test"."""
    with np.load(pathlib.Path(__file__).parent.parent / "uci_digits.npz") as digits:
        images = np.zeros([len(digits["images"]), 28, 28], np.uint8)
        images[:, 6:22, 6:22] = np.repeat(np.repeat(digits["images"], 2, axis=1), 2, axis=2) * 15
        labels = digits["labels"]
    chosen = (np.arange(COUNTS[split]) + (split == "test")) % len(labels)
    return images[chosen], labels[chosen]


def files():
    """Returns {name: content} of the four files: gzip, with the header that MNIST's have."""
    contents = {}
    for prefix, split in [("train", "train"), ("t10k", "test")]:
        images, labels = examples(split)
        header = np.array([2051, len(images), 28, 28], ">i4").tobytes()
        contents[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(header + images.tobytes(), 1, mtime=0)
        header = np.array([2049, len(labels)], ">i4").tobytes()
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(header + labels.tobytes(), 1, mtime=0)
    return contents


def adapt_tfds(pause=False):
    """Makes TFDS expect the small files in place of MNIST's, and pause while it prepares; returns what undoes it."""
    mnist = tfds.builder_cls("mnist")
    split_generators, infos = mnist._split_generators, dict(mnist.url_infos)
    generate_examples = mnist._generate_examples

    def pausing_examples(self, **arguments):
        for number, example in enumerate(generate_examples(self, **arguments)):
            if number == 1000:
                exec(PAUSE)
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
        mnist.url_infos[url] = type(info)(len(content), hashlib.sha256(content).hexdigest(), info.filename)
    mnist._split_generators = small_split_generators
    if pause:
        mnist._generate_examples = pausing_examples
    return undo
