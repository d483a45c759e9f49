"""The four files of MNIST in small, made of the UCI digits, for TFDS's own MNIST builder to read.

The real files may not be shipped, so TFDS's list of checksums and its counts are adapted to the
small ones: all else, the builder's reading of the files included, is TFDS as it is.
"""

import contextlib
import gzip
import hashlib
import pathlib
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds

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


@contextlib.contextmanager
def in_tfds(halfway=lambda: None, name="mnist"):
    """Inside the block, TFDS expects the small files in place of MNIST's, or of those of another
    dataset in its format; it calls `halfway` while it prepares.
    """
    mnist = tfds.builder_cls(name)
    generate_examples, split_generators = mnist._generate_examples, mnist._split_generators

    def small_examples(self, **arguments):
        for number, example in enumerate(generate_examples(self, **arguments)):
            if number == 1000:
                halfway()
            yield example

    def small_splits(self, dl_manager):
        generators = split_generators(self, dl_manager)
        for generator in generators:
            generator.gen_kwargs["num_examples"] = COUNTS[str(generator.name)]
        return generators

    contents = files()
    infos = {url: type(info)(len(contents[info.filename]),
                             hashlib.sha256(contents[info.filename]).hexdigest(), info.filename)
             for url, info in mnist.url_infos.items()}
    with (mock.patch.dict(mnist.url_infos, infos),
          mock.patch.multiple(mnist, _generate_examples=small_examples,
                              _split_generators=small_splits)):
        yield
