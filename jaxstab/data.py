"""Data sets as arrays: the embedded digits, TensorFlow Datasets, synthetic ones.

`load` returns everything in memory, scaled and one-hot, as float32. The digits come with
scikit-learn and need no network. TensorFlow Datasets are read from disk, without TensorFlow;
nothing here touches the network except `prepare`, which downloads once:

    pip install 'jaxstab[tfds]'
    python -m jaxstab.data fashion_mnist
"""

import argparse
import importlib.util
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_at_least, check_name, check_positive

Array = jax.Array
Labelled = tuple[Array, Array]

# The host that TFDS downloads each data set from: asked once, before TFDS tries for minutes.
_SOURCES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
}
NAMES = ("digits", *_SOURCES)
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


class DatasetNotPreparedError(FileNotFoundError):
    """A TensorFlow Dataset is not on disk; the message has the command that prepares it."""


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
        train, test, names = _tfds(name, seed, classes, data_dir)
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


# A split: (how many or None, the argument's name for errors) -> (x in [0, 1], labels).
_Split = Callable[[int | None, str], tuple[np.ndarray, np.ndarray]]


def _too_many(argument: str, wanted: int, available: int, where: str) -> ValueError:
    return ValueError(f"{argument} is {wanted}, and {where} has {available} examples")


def _chosen(all_names: Sequence[str], classes: Sequence[str | int] | None) -> dict[int, int]:
    """Returns old label -> new label for the classes to keep."""
    if classes is None:
        return {label: label for label in range(len(all_names))}
    if isinstance(classes, str | int) or not len(classes):
        raise ValueError(f"classes is a sequence of names or numbers, got {classes!r}")
    labels = []
    for item in classes:
        if isinstance(item, str):
            labels.append(list(all_names).index(check_name("class", item, all_names)))
        elif 0 <= item < len(all_names):
            labels.append(int(item))
        else:
            raise ValueError(f"there is no class {item}: classes are 0 to {len(all_names) - 1}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"classes names one class twice: {list(classes)}")
    return {label: position for position, label in enumerate(labels)}


def _digits(
    seed: int, n_test: int | None, classes: Sequence[str | int] | None
) -> tuple[_Split, _Split, tuple[str, ...]]:
    from sklearn.datasets import load_digits  # imported late: it takes a second

    raw = load_digits()
    names = tuple(str(name) for name in raw.target_names)
    keep = _chosen(names, classes)
    order = np.random.default_rng([seed, 0]).permutation(len(raw.target))
    order = order[np.isin(raw.target[order], list(keep))]
    x = raw.images[order][..., None] / 16.0
    labels = np.array([keep[label] for label in raw.target[order]])
    held_out = round(len(labels) * _DIGITS_TEST / len(raw.target)) if n_test is None else n_test

    def train(count: int | None, argument: str) -> tuple[np.ndarray, np.ndarray]:
        available = len(labels) - held_out
        if count is not None and count > available:
            where = f"digits less {held_out} test examples"
            raise _too_many(argument, count, max(available, 0), where)
        count = available if count is None else count
        return x[:count], labels[:count]

    def test(count: int | None, argument: str) -> tuple[np.ndarray, np.ndarray]:
        if held_out >= len(labels):
            raise _too_many(argument, held_out, len(labels), "digits")
        return x[len(labels) - held_out :], labels[len(labels) - held_out :]

    return train, test, tuple(names[label] for label in keep)


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    return Path(default if data_dir is None else data_dir).expanduser()


def _prepared_directory(name: str, data_dir: Path) -> Path:
    """Returns the directory of the newest prepared version, found on disk alone."""
    found = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    if not found:
        raise DatasetNotPreparedError(
            f"{name} is not prepared in {data_dir}. Prepare it once, with a network:\n"
            f"    pip install 'jaxstab[tfds]'\n"
            f"    python -m jaxstab.data {name} --data-dir {data_dir}\n"
            f"or copy a directory {name}/<version> prepared elsewhere (format array_record) there. "
            "data.load('digits') needs neither."
        )

    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(part) if part.isdigit() else -1 for part in path.name.split("."))

    return max(found, key=version)


def _tfds(
    name: str,
    seed: int,
    classes: Sequence[str | int] | None,
    data_dir: str | os.PathLike[str] | None,
) -> tuple[_Split, _Split, tuple[str, ...]]:
    directory = _prepared_directory(name, _data_dir(data_dir))
    import tensorflow_datasets as tfds  # imported late: it takes half a second

    builder: Any = tfds.builder_from_directory(str(directory))
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise DatasetNotPreparedError(
            f"{directory} is prepared in the format {getattr(file_format, 'value', None)}, which "
            "cannot be read without TensorFlow. Prepare it again:\n"
            f"    python -m jaxstab.data {name} --data-dir {_data_dir(data_dir)}"
        )
    all_names = tuple(str(label) for label in builder.info.features["label"].names)
    keep = _chosen(all_names, classes)

    def split(which: str, stream: int) -> _Split:
        def take(count: int | None, argument: str) -> tuple[np.ndarray, np.ndarray]:
            source = builder.as_data_source(split=which)
            order = np.random.default_rng([seed, stream]).permutation(len(source))
            return _read(source, order, keep, count, argument, f"{name}'s split {which!r}")

        return take

    return split("train", 1), split("test", 2), tuple(all_names[label] for label in keep)


def _read(
    source: Any,
    order: np.ndarray,
    keep: dict[int, int],
    count: int | None,
    argument: str,
    where: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads examples of the kept classes in the given order until there are `count`."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    block = 1000
    for start in range(0, len(order), block):
        if count is not None and len(labels) >= count:
            break
        for example in source.__getitems__(order[start : start + block].tolist()):
            if int(example["label"]) in keep:
                images.append(example["image"])
                labels.append(keep[int(example["label"])])
    if count is not None and len(labels) < count:
        raise _too_many(argument, count, len(labels), where)
    images, labels = images[:count], labels[:count]
    pixels = np.empty((len(images), *source[0]["image"].shape), np.float32)  # also if none
    for row, image in zip(pixels, images, strict=True):
        row[...] = image
    return pixels / 255.0, np.asarray(labels, np.int64)


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a TensorFlow Dataset and prepares it as array_record; needs TensorFlow.

    The only function here that uses the network. It asks the source once, for at most ten seconds,
    before it lets TFDS begin, which by itself retries a closed network for minutes.

    Args:
      name: "mnist", "fashion_mnist", "cifar10" or "cifar100".
      data_dir: where to; $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
      the directory of the prepared version.

    Raises:
      ValueError: for an unknown name.
      ImportError: without TensorFlow.
      ConnectionError: if the source cannot be reached.
    """
    check_name("TensorFlow Dataset", name, _SOURCES)
    directory = _data_dir(data_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            "preparing a TensorFlow Dataset needs TensorFlow (reading it does not): "
            "pip install 'jaxstab[tfds]'"
        )
    _check_reachable(name)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(
        name, data_dir=str(directory), file_format="array_record", try_gcs=False
    )
    builder.download_and_prepare()
    return _prepared_directory(name, directory)


def _check_reachable(name: str) -> None:
    request = urllib.request.Request(_SOURCES[name], method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return
    except urllib.error.HTTPError:
        return  # it answered: the host is there
    except OSError as error:
        raise ConnectionError(
            f"cannot reach {_SOURCES[name]} ({error}). Prepare {name} on a machine with a network "
            f"(python -m jaxstab.data {name}) and copy its directory into the data directory "
            "here, or use data.load('digits')"
        ) from error


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m jaxstab.data NAME`: prepares a TensorFlow Dataset."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxstab.data", description="download and prepare a TensorFlow Dataset"
    )
    parser.add_argument("name", help=", ".join(_SOURCES))
    parser.add_argument("--data-dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    options = parser.parse_args(arguments)
    try:
        directory = prepare(options.name, options.data_dir)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.name} is prepared in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
