"""What the tests of several modules share: small data sets on disk in the format of TFDS."""

import io
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image

from jaxstab.checks import check_at_least, check_name

_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# shape of an image, class names and version, as TFDS 4.9 defines them
_SCHEMAS: dict[str, tuple[tuple[int, int, int], tuple[str, ...], str]] = {
    "mnist": ((28, 28, 1), tuple(map(str, range(10))), "3.0.1"),
    "fashion_mnist": ((28, 28, 1), _FASHION, "3.0.1"),
    "cifar10": ((32, 32, 3), _CIFAR10, "3.0.2"),
    "cifar100": ((32, 32, 3), tuple(f"fine-{label}" for label in range(100)), "3.0.2"),
}


def write_tfds(
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    n_train: int = 40,
    n_test: int = 20,
    noise: float = 40.0,
    seed: int = 0,
) -> Path:
    """Writes a small random data set with the schema of a TensorFlow Dataset, as array_record.

    Made without TensorFlow. Each image is the prototype of its class plus noise, so a network can
    learn it; labels go round: example i has label i modulo the number of classes. Example i of a
    split differs from every other, so a test can find it again.

    Args:
      name: "mnist", "fashion_mnist", "cifar10" or "cifar100".
      data_dir: where to; the files go to data_dir/name/version, as TFDS puts them.
      n_train: training examples.
      n_test: test examples.
      noise: standard deviation of the noise, in grey levels of 0 to 255.
      seed: of the images.

    Returns:
      the directory of the version.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    shape, names, version = _SCHEMAS[check_name("TensorFlow Dataset", name, _SCHEMAS)]
    check_at_least("n_train", n_train, 1)
    check_at_least("n_test", n_test, 1)
    directory = Path(data_dir) / name / version
    directory.mkdir(parents=True)
    features = {
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(names=names),
    }
    if name.startswith("cifar"):
        features["id"] = tfds.features.Text()
    if name == "cifar100":
        features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
    tfds.features.FeaturesDict(features).save_config(str(directory))

    rng = np.random.default_rng(seed)
    prototypes = rng.uniform(0, 255, (len(names), *shape))
    splits = []
    for split, count in (("train", n_train), ("test", n_test)):
        path = directory / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        size = 0
        for number in range(count):
            label = number % len(names)
            pixels = prototypes[label] + noise * rng.standard_normal(shape)
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(_png(pixels))
            feature["label"].int64_list.value.append(label)
            if "id" in features:
                feature["id"].bytes_list.value.append(f"{split}_{number:05d}".encode())
            if "coarse_label" in features:
                feature["coarse_label"].int64_list.value.append(label // 5)
            record = example.SerializeToString()
            size += len(record)
            writer.write(record)
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {
                "name": split,
                "shardLengths": [str(count)],
                "numBytes": str(size),
                "filepathTemplate": template,
            }
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(image.squeeze()).save(stream, "PNG")
    return stream.getvalue()
