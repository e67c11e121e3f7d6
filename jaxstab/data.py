"""Data sets as arrays: the embedded digits, TensorFlow Datasets, synthetic ones.

`load` returns everything in memory, scaled and one-hot, as float32. The digits come with
scikit-learn and need no network. TensorFlow Datasets are read from disk, without TensorFlow and
without a network; `prepare`, or `python -m jaxstab.tfds NAME`, puts them there.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import tfds
from jaxstab.checks import check_at_least, check_name, check_positive
from jaxstab.examples import shard, stream
from jaxstab.tfds import DatasetNotPreparedError, Split, chosen_labels, prepare, too_many

__all__ = [
    "NAMES",
    "Dataset",
    "DatasetNotPreparedError",
    "crop_and_flip",
    "load",
    "prepare",
    "shard",
    "stream",
    "synthetic_images",
    "teacher",
]

Array = jax.Array
Labelled = tuple[Array, Array]

NAMES = ("digits", *tfds.SOURCES)
_DIGITS_TEST = 397  # leaves 1,400 of the 1,797 for training


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      train: (x, y) with x (n_train, height, width, channels) and one-hot y (n_train, classes),
        float32; examples with random labels, if any, come last.
      test: the same with n_test examples.
      name: what was loaded.
      classes: number of classes.
      class_names: their names, in the order of the columns of y.
    """

    train: Labelled
    test: Labelled
    name: str
    classes: int
    class_names: tuple[str, ...]


def load(
    name: str,
    n_train: int | None = None,
    n_test: int | None = None,
    classes: Sequence[str | int] | None = None,
    random_labels: int = 0,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a data set as arrays, scaled to [0, 1] and one-hot.

    The examples are put in an order drawn from the seed and the first ones taken, so that a smaller
    subset is part of a larger one. The digits have no given split: the last 397 (or n_test) of that
    order are the test set.

    Args:
      name: "digits" (8 × 8 × 1, embedded), "mnist", "fashion_mnist" (28 × 28 × 1), "cifar10",
        "cifar100" (32 × 32 × 3).
      n_train: training examples with true labels; all by default.
      n_test: test examples; all (digits: 397) by default.
      classes: names or numbers of the classes to keep, in this order; all by default. For example
        ("airplane", "automobile") of cifar10.
      random_labels: so many further training examples, their images real ones beyond the first
        n_train, their labels uniform over the classes (so right by chance in one of k).
      seed: of the subset and of the random labels.
      data_dir: where TensorFlow Datasets are prepared; $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
      the Dataset.

    Raises:
      ValueError: for unknown names or classes, or more examples than there are.
      DatasetNotPreparedError: if a TensorFlow Dataset is not on disk, at once and without trying
        the network; it names the command to run.

    Example:
      >>> digits = load("digits", n_train=100, n_test=50)
      >>> digits.train[0].shape, digits.train[1].shape, digits.classes
      ((100, 8, 8, 1), (100, 10), 10)
    """
    check_name("data set", name, NAMES)
    if n_train is not None:
        check_at_least("n_train", n_train, 1)
    if n_test is not None:
        check_at_least("n_test", n_test, 0)
    check_at_least("random_labels", random_labels, 0)
    check_at_least("seed", seed, 0)
    if name == "digits":
        train, test, names = _digits(seed, n_test, classes)
    else:
        train, test, names = tfds.splits(name, seed, classes, data_dir)
    wanted = None if n_train is None else n_train + random_labels
    train_x, train_labels = train(wanted, "n_train + random_labels" if random_labels else "n_train")
    test_x, test_labels = test(n_test, "n_test")
    if random_labels >= len(train_labels):
        raise ValueError(
            f"random_labels is {random_labels} and {name} has {len(train_labels)} training "
            "examples: none would keep its label"
        )
    if random_labels:
        rng = np.random.default_rng([seed, 3])
        train_labels = train_labels.copy()
        train_labels[-random_labels:] = rng.integers(len(names), size=random_labels)
    return Dataset(
        _finish(train_x, train_labels, len(names)),
        _finish(test_x, test_labels, len(names)),
        name,
        len(names),
        names,
    )


def _finish(x: np.ndarray, labels: np.ndarray, classes: int) -> Labelled:
    return jnp.asarray(x, jnp.float32), jax.nn.one_hot(labels, classes, dtype=jnp.float32)


@functools.cache
def _raw_digits() -> Any:
    from sklearn.datasets import load_digits  # imported late: it takes a second

    return load_digits()


def _digits(
    seed: int, n_test: int | None, classes: Sequence[str | int] | None
) -> tuple[Split, Split, tuple[str, ...]]:
    raw = _raw_digits()
    names = tuple(str(name) for name in raw.target_names)
    keep = chosen_labels(names, classes)
    order = np.random.default_rng([seed, 0]).permutation(len(raw.target))
    order = order[np.isin(raw.target[order], list(keep))]
    x = raw.images[order][..., None] / 16.0
    labels = np.array([keep[label] for label in raw.target[order]])
    held_out = round(len(labels) * _DIGITS_TEST / len(raw.target)) if n_test is None else n_test

    def train(count: int | None, argument: str) -> tuple[np.ndarray, np.ndarray]:
        available = len(labels) - held_out
        if count is not None and count > available:
            where = f"digits less {held_out} test examples"
            raise too_many(argument, count, max(available, 0), where)
        count = available if count is None else count
        return x[:count], labels[:count]

    def test(count: int | None, argument: str) -> tuple[np.ndarray, np.ndarray]:
        if held_out >= len(labels):
            raise too_many(argument, held_out, len(labels), "digits")
        return x[len(labels) - held_out :], labels[len(labels) - held_out :]

    return train, test, tuple(names[label] for label in keep)


@functools.cache
def crop_and_flip(padding: int = 4, *, flip: bool = True) -> Callable[[Array, Labelled], Labelled]:
    """Returns the usual augmentation of small images: a random crop after padding, a random flip.

    He et al. (2016), arXiv 1512.03385, section 4.2: zeros of `padding` pixels on every side, a crop
    of the original size at a random place, a horizontal flip with probability ½.

    Args:
      padding: pixels, at least 0; 4 in that paper.
      flip: whether to flip: not where left and right differ, as in digits.

    Returns:
      `augment(key, (x, y)) -> (x, y)` for `jaxstab.train`, the same function for equal arguments.

    Example:
      >>> x, y = jnp.ones((2, 8, 8, 1)), jnp.ones((2, 10))
      >>> crop_and_flip(2)(jax.random.key(0), (x, y))[0].shape
      (2, 8, 8, 1)
    """
    check_at_least("padding", padding, 0)

    def one(key: Array, image: Array) -> Array:
        crop_key, flip_key = jax.random.split(key)
        around = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        corner = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
        crop = jax.lax.dynamic_slice(around, (*corner, 0), image.shape)
        return jnp.where(jax.random.bernoulli(flip_key) & flip, crop[:, ::-1], crop)

    def augment(key: Array, batch: Labelled) -> Labelled:
        x, y = batch
        return jax.vmap(one)(jax.random.split(key, x.shape[0]), x), y

    return augment


def synthetic_images(
    n_train: int,
    *,
    n_test: int = 0,
    shape: tuple[int, ...] = (32, 32, 3),
    classes: int = 10,
    noise: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Draws images of any shape: one Gaussian prototype per class, plus Gaussian noise.

    Args:
      n_train: training examples.
      n_test: test examples.
      shape: of one image.
      classes: number of classes, equally likely.
      noise: standard deviation of the noise; a pixel of a prototype has 1.
      seed: of everything.

    Returns:
      the Dataset; x has mean 0 and variance 1 + noise².
    """
    rng = np.random.default_rng([check_at_least("seed", seed, 0), 4])
    check_at_least("classes", classes, 1)
    check_positive("noise", noise, allow_zero=True)
    prototypes = rng.standard_normal((classes, *shape))

    def draw(n: int) -> Labelled:
        labels = rng.integers(classes, size=n)
        return _finish(
            prototypes[labels] + noise * rng.standard_normal((n, *shape)), labels, classes
        )

    train = draw(check_at_least("n_train", n_train, 1))
    test = draw(check_at_least("n_test", n_test, 0))
    return Dataset(train, test, "synthetic-images", classes, tuple(map(str, range(classes))))


def teacher(
    n_train: int,
    *,
    n_test: int = 0,
    inputs: int = 20,
    outputs: int = 1,
    hidden: int = 20,
    noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Draws a regression problem: Gaussian x, y from a random ReLU network with one hidden layer.

    y = A max(Wx, 0)·√2 + noise, with W and A Gaussian of variance one over their fan-in, so that
    each output has a second moment of 1 on average over teachers.

    Args:
      n_train: training examples.
      n_test: test examples.
      inputs: dimension of x.
      outputs: dimension of y; also `classes` of the result.
      hidden: width of the teacher.
      noise: standard deviation of the noise on y.
      seed: of everything.

    Returns:
      the Dataset with x (n, inputs), y (n, outputs).
    """
    for argument, value in (("inputs", inputs), ("outputs", outputs), ("hidden", hidden)):
        check_at_least(argument, value, 1)
    check_positive("noise", noise, allow_zero=True)
    rng = np.random.default_rng([check_at_least("seed", seed, 0), 5])
    first = rng.standard_normal((inputs, hidden)) / np.sqrt(inputs)
    second = rng.standard_normal((hidden, outputs)) / np.sqrt(hidden)

    def draw(n: int) -> Labelled:
        x = rng.standard_normal((n, inputs))
        y = np.sqrt(2) * np.maximum(x @ first, 0) @ second
        y = y + noise * rng.standard_normal(y.shape)
        return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    train = draw(check_at_least("n_train", n_train, 1))
    test = draw(check_at_least("n_test", n_test, 0))
    return Dataset(train, test, "teacher", outputs, tuple(map(str, range(outputs))))
