"""TensorFlow Datasets from disk: read without TensorFlow, prepared with it.

Reading never touches the network. `prepare` does, once:

    pip install 'jaxstab[tfds]'
    python -m jaxstab.tfds fashion_mnist
"""

import argparse
import importlib.util
import io
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from jaxstab.checks import check_name

# The host that TFDS downloads each data set from: asked once, before TFDS tries for minutes.
SOURCES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
}


class DatasetNotPreparedError(FileNotFoundError):
    """A TensorFlow Dataset is not on disk; the message has the command that prepares it."""


# A split: (how many or None, the argument's name for errors) -> (x in [0, 1], labels).
Split = Callable[[int | None, str], tuple[np.ndarray, np.ndarray]]


def too_many(argument: str, wanted: int, available: int, where: str) -> ValueError:
    """Returns the error for more examples than there are."""
    return ValueError(
        f"{argument} is {wanted}, and {where} has {available} examples: give at most {available}"
    )


def chosen_labels(all_names: Sequence[str], classes: Sequence[str | int] | None) -> dict[int, int]:
    """Returns {old label: new label} for the classes to keep, in the order asked for."""
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


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns where prepared data lie: what is given, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    default = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    return Path(default if data_dir is None else data_dir).expanduser()


def prepared(data_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Returns the names of the data sets that are prepared there."""
    infos = data_folder(data_dir).glob("*/*/dataset_info.json")
    return sorted({info.parents[1].name for info in infos})


def _prepared_directory(name: str, data_dir: Path) -> Path:
    """Returns the directory of the newest prepared version, found on disk alone."""
    infos = (data_dir / name).glob("*/dataset_info.json")  # also of unfinished preparations
    found = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    if not found:
        raise DatasetNotPreparedError(
            f"{name} is not prepared in {data_dir}. Prepare it once, with a network:\n"
            f"    pip install 'jaxstab[tfds]'\n"
            f"    python -m jaxstab.tfds {name} --data-dir {data_dir}\n"
            f"or copy a directory {name}/<version> prepared elsewhere (format array_record) there. "
            "data.load('digits') needs neither."
        )
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))))


def splits(
    name: str,
    seed: int,
    classes: Sequence[str | int] | None,
    data_dir: str | os.PathLike[str] | None,
) -> tuple[Split, Split, tuple[str, ...]]:
    """Returns how to read the training and the test split, and the names of the kept classes."""
    directory = _prepared_directory(name, data_folder(data_dir))
    import tensorflow_datasets as tfds  # imported late: it takes half a second

    builder: Any = tfds.builder_from_directory(str(directory))
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise DatasetNotPreparedError(
            f"{directory} is prepared in the format {getattr(file_format, 'value', None)}, which "
            "cannot be read without TensorFlow. Prepare it as array_record in another place:\n"
            f"    python -m jaxstab.tfds {name} --data-dir SOME_OTHER_DIRECTORY"
        )
    all_names = tuple(str(label) for label in builder.info.features["label"].names)
    keep = chosen_labels(all_names, classes)

    def split(which: str, stream: int) -> Split:
        def take(count: int | None, argument: str) -> tuple[np.ndarray, np.ndarray]:
            decoders = {"image": tfds.decode.SkipDecoding()}  # only the kept ones, by _decode
            source = builder.as_data_source(split=which, decoders=decoders)
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
            label = keep.get(int(example["label"]))
            if label is not None and (count is None or len(labels) < count):
                images.append(_decode(example["image"]))
                labels.append(label)
    if count is not None and len(labels) < count:
        raise too_many(argument, count, len(labels), where)
    shape = _decode(source[0]["image"]).shape  # also if no example is wanted
    pixels = np.empty((len(images), *shape), np.float32)
    for row, image in zip(pixels, images, strict=True):
        row[...] = image
    return pixels / 255.0, np.asarray(labels, np.int64)


def _decode(encoded: bytes) -> np.ndarray:
    """Decodes a PNG to (height, width, channels); TFDS's own decoder warns when OpenCV is away."""
    image = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
    return image[..., None] if image.ndim == 2 else image


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a TensorFlow Dataset and prepares it as array_record; needs TensorFlow.

    The only function here that uses the network. It asks the source once, for at most ten seconds,
    before it lets TFDS begin, which by itself retries a closed network for minutes.

    Args:
      name: "mnist", "fashion_mnist", "cifar10" or "cifar100".
      data_dir: where to; $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
      the directory of the prepared version; at once if there is one.

    Raises:
      ValueError: for an unknown name.
      ImportError: without TensorFlow.
      ConnectionError: if the source cannot be reached.
    """
    check_name("TensorFlow Dataset", name, SOURCES)
    directory = data_folder(data_dir)
    try:
        return _prepared_directory(name, directory)
    except DatasetNotPreparedError:
        pass
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
    request = urllib.request.Request(SOURCES[name], method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return
    except urllib.error.HTTPError:
        return  # it answered: the host is there
    except OSError as error:
        raise ConnectionError(
            f"cannot reach {SOURCES[name]} ({error}). Prepare {name} on a machine with a network "
            f"(python -m jaxstab.tfds {name}) and copy its directory into the data directory "
            "here, or use data.load('digits')"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m jaxstab.tfds NAME`: prepares a TensorFlow Dataset."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxstab.tfds", description="download and prepare a TensorFlow Dataset"
    )
    parser.add_argument("name", help=", ".join(SOURCES))
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
