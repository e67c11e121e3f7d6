"""Data sets: splits, subsets, random labels, TFDS read without TensorFlow, errors at once."""

import doctest
import json
import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import data, testing, tfds


def rows(x):
    """Each example as bytes, to compare sets of examples."""
    return [np.asarray(row).tobytes() for row in x]


def test_docstring_examples():
    assert doctest.testmod(data).failed == 0


def test_digits_are_scaled_one_hot_and_split():
    digits = data.load("digits")
    (x, y), (test_x, _) = digits.train, digits.test
    assert x.shape == (1400, 8, 8, 1) and test_x.shape == (397, 8, 8, 1)
    assert x.dtype == y.dtype == np.float32
    assert float(x.min()) == 0.0 and float(x.max()) == 1.0
    np.testing.assert_array_equal(y.sum(1), 1.0)
    assert digits.classes == 10 and digits.class_names == tuple("0123456789")
    assert digits.name == "digits"


def test_digits_train_and_test_share_no_row_of_the_source():
    from sklearn.datasets import load_digits

    source = sorted(rows((load_digits().images[..., None] / 16.0).astype(np.float32)))
    digits = data.load("digits", seed=3)
    assert sorted(rows(digits.train[0]) + rows(digits.test[0])) == source


def test_digits_labels_belong_to_their_images():
    from sklearn.datasets import load_digits

    raw = load_digits()
    label_of = dict(zip(rows((raw.images[..., None] / 16.0).astype(np.float32)), raw.target))
    x, y = data.load("digits", seed=1).train
    assert [label_of[row] for row in rows(x)] == list(np.argmax(y, axis=1))


def test_subsets_are_nested_and_seeded():
    small = data.load("digits", n_train=50, n_test=20, seed=5)
    large = data.load("digits", n_train=90, n_test=20, seed=5)
    other = data.load("digits", n_train=50, n_test=20, seed=6)
    np.testing.assert_array_equal(small.train[0], large.train[0][:50])
    np.testing.assert_array_equal(small.test[0], large.test[0])
    assert rows(small.train[0]) != rows(other.train[0])


def test_random_labels_are_extra_real_examples_at_the_end():
    clean = data.load("digits", n_train=600, seed=2)
    corrupt = data.load("digits", n_train=600, random_labels=400, seed=2)
    truth = data.load("digits", n_train=1000, seed=2)
    np.testing.assert_array_equal(corrupt.train[0], truth.train[0])
    np.testing.assert_array_equal(corrupt.train[1][:600], clean.train[1])
    agree = np.mean(np.argmax(corrupt.train[1][600:], 1) == np.argmax(truth.train[1][600:], 1))
    # right by chance in one of ten: binomial of 400, standard deviation 0.015; five of them
    assert abs(agree - 0.1) < 0.075
    assert set(np.argmax(corrupt.train[1][600:], 1).tolist()) == set(range(10))
    again = data.load("digits", n_train=600, random_labels=400, seed=2)
    np.testing.assert_array_equal(corrupt.train[1], again.train[1])
    np.testing.assert_array_equal(corrupt.test[1], clean.test[1])


def test_digits_choice_of_classes_renumbers_in_the_order_asked():
    both = data.load("digits", classes=["7", 1])
    full = data.load("digits")
    assert both.classes == 2 and both.class_names == ("7", "1")
    sevens = set(rows(full.train[0][np.argmax(full.train[1], 1) == 7])) | set(
        rows(full.test[0][np.argmax(full.test[1], 1) == 7])
    )
    assert {row in sevens for row in rows(both.train[0][both.train[1][:, 0] == 1])} == {True}
    assert 300 < len(both.train[0]) + len(both.test[0]) < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, "did you mean 'digits'"),
        ({"name": "fashionmnist"}, "did you mean 'fashion_mnist'"),
        ({"name": "digits", "n_train": 2000}, "n_train is 2000, and digits less 397 test.* 1400"),
        ({"name": "digits", "n_train": 1401}, "1400"),
        ({"name": "digits", "n_train": 0}, "n_train must be at least 1"),
        ({"name": "digits", "n_test": 1797}, "n_test is 1797|has 0 examples|1797 examples"),
        ({"name": "digits", "n_train": 1300, "random_labels": 200}, r"n_train \+ random_labels"),
        ({"name": "digits", "random_labels": 1400}, "none would keep its label"),
        ({"name": "digits", "random_labels": -1}, "random_labels must be at least 0"),
        ({"name": "digits", "classes": ["11"]}, "unknown class '11'"),
        ({"name": "digits", "classes": [10]}, "no class 10"),
        ({"name": "digits", "classes": [1, "1"]}, "twice"),
        ({"name": "digits", "classes": []}, "sequence"),
        ({"name": "digits", "classes": "12"}, "sequence"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def test_n_train_of_a_wrong_type():
    with pytest.raises(TypeError, match="n_train must be an integer, got float"):
        data.load("digits", n_train=10.0)


# ---- TensorFlow Datasets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("mnist", (28, 28, 1), 10),
        ("fashion_mnist", (28, 28, 1), 10),
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
    ],
)
def test_prepared_tfds_data_are_read(tmp_path, name, shape, classes):
    testing.write_tfds(name, tmp_path, n_train=30, n_test=12, noise=0.0)
    loaded = data.load(name, n_train=20, n_test=6, data_dir=tmp_path)
    everything = data.load(name, data_dir=tmp_path)
    assert loaded.train[0].shape == (20, *shape) and loaded.test[0].shape == (6, *shape)
    assert loaded.train[1].shape == (20, classes) and loaded.classes == classes
    assert everything.train[0].shape == (30, *shape) and everything.test[0].shape == (12, *shape)
    assert loaded.train[0].dtype == np.float32
    assert float(loaded.train[0].min()) >= 0.0 and 0.9 < float(loaded.train[0].max()) <= 1.0
    np.testing.assert_array_equal(loaded.train[0], everything.train[0][:20])
    assert sorted(np.argmax(everything.train[1], 1)) == sorted(i % classes for i in range(30))
    # without noise two images are equal exactly when their labels are: x and y belong together
    x, y = np.asarray(everything.train[0]), np.argmax(everything.train[1], 1)
    same = np.abs(x[:, None] - x[None]).max(axis=(2, 3, 4)) == 0
    np.testing.assert_array_equal(same, y[:, None] == y[None])


def test_pixels_are_those_written(tmp_path):
    """An image goes through PNG and back bit by bit, channels in order."""
    testing.write_tfds("cifar10", tmp_path, n_train=1, n_test=1, noise=0.0, seed=4)
    x, _ = data.load("cifar10", data_dir=tmp_path).train
    prototype = np.random.default_rng(4).uniform(0, 255, (10, 32, 32, 3))[0].astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(x[0]) * 255, prototype)


def test_tfds_classes_by_name(tmp_path):
    testing.write_tfds("cifar10", tmp_path, n_train=40, n_test=20, noise=0.0, seed=2)
    two = data.load("cifar10", classes=["automobile", "airplane"], data_dir=tmp_path)
    prototypes = np.random.default_rng(2).uniform(0, 255, (10, 32, 32, 3)).astype(np.uint8)
    for image, y in zip(*map(np.asarray, two.train)):  # column 0 is automobile, TFDS's label 1
        np.testing.assert_array_equal(image * 255, prototypes[[1, 0][np.argmax(y)]])
    assert two.train[0].shape[0] == 8 and two.test[0].shape[0] == 4
    assert two.class_names == ("automobile", "airplane") and two.classes == 2
    with pytest.raises(ValueError, match=r"n_train is 9, and cifar10's split 'train' has 8"):
        data.load("cifar10", classes=[0, 1], n_train=9, data_dir=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'automobile'"):
        data.load("cifar10", classes=["automobil"], data_dir=tmp_path)


def test_tfds_random_labels_and_no_test_examples(tmp_path):
    testing.write_tfds("mnist", tmp_path, n_train=40, n_test=5)
    mixed = data.load("mnist", n_train=20, random_labels=20, n_test=0, data_dir=tmp_path)
    truth = data.load("mnist", data_dir=tmp_path)
    assert mixed.test[0].shape == (0, 28, 28, 1) and mixed.test[1].shape == (0, 10)
    np.testing.assert_array_equal(mixed.train[0], truth.train[0])
    np.testing.assert_array_equal(mixed.train[1][:20], truth.train[1][:20])
    assert (np.asarray(mixed.train[1][20:]) != np.asarray(truth.train[1][20:])).any()


def test_environment_names_the_data_directory(tmp_path, monkeypatch):
    testing.write_tfds("mnist", tmp_path, n_train=10, n_test=10)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert data.load("mnist").train[0].shape[0] == 10


def test_the_newest_finished_version_is_read(tmp_path):
    old = testing.write_tfds("mnist", tmp_path, n_train=10, n_test=10)
    old.rename(old.with_name("3.0.10"))
    testing.write_tfds("mnist", tmp_path, n_train=20, n_test=10)
    unfinished = testing.write_tfds("mnist", tmp_path / "other", n_train=30, n_test=10)
    unfinished.rename(tmp_path / "mnist" / "9.0.0.incompleteABC")
    assert data.load("mnist", data_dir=tmp_path).train[0].shape[0] == 10


def test_reading_needs_neither_tensorflow_nor_network(tmp_path):
    """In a process where importing TensorFlow and opening a socket both fail."""
    testing.write_tfds("fashion_mnist", tmp_path, n_train=10, n_test=10)
    program = f"""
import importlib.util, socket, sys
class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow": raise ModuleNotFoundError("no TensorFlow here")
sys.meta_path.insert(0, NoTensorFlow())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
def closed(*a, **k): raise AssertionError("the network was tried")
socket.socket.connect = socket.getaddrinfo = closed
from jaxstab import data
assert data.load("fashion_mnist", data_dir={str(tmp_path)!r}).train[0].shape == (10, 28, 28, 1)
"""
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )


@pytest.fixture
def closed_network(monkeypatch):
    """Any attempt to use the network fails the test, even where an error is expected."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("network is closed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return attempts


def test_missing_data_name_the_command_at_once(tmp_path, closed_network):
    start = time.monotonic()
    with pytest.raises(data.DatasetNotPreparedError) as caught:
        data.load("fashion_mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 2
    assert not closed_network
    assert f"python -m jaxstab.tfds fashion_mnist --data-dir {tmp_path}" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_data_prepared_in_another_format_are_refused(tmp_path):
    directory = testing.write_tfds("mnist", tmp_path, n_train=10, n_test=10)
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(data.DatasetNotPreparedError, match=r"format tfrecord.*TensorFlow"):
        data.load("mnist", data_dir=tmp_path)


def test_preparing_with_a_closed_network_fails_in_seconds(tmp_path, closed_network, monkeypatch):
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: object())
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"cannot reach https://www\.cs\.toronto\.edu"):
        data.prepare("cifar10", tmp_path)
    assert time.monotonic() - start < 5
    assert closed_network


def test_preparing_without_tensorflow_names_the_extra(tmp_path, closed_network, monkeypatch):
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxstab\[tfds\]'"):
        data.prepare("mnist", tmp_path)
    assert not closed_network


def test_what_is_prepared_is_not_prepared_again(tmp_path, closed_network):
    directory = testing.write_tfds("mnist", tmp_path, n_train=10, n_test=10)
    assert data.prepare("mnist", tmp_path) == directory
    assert not closed_network


def test_prepare_command(tmp_path, capsys):
    directory = testing.write_tfds("mnist", tmp_path, n_train=10, n_test=10)
    assert tfds.main(["mnist", "--data-dir", str(tmp_path)]) == 0
    assert str(directory) in capsys.readouterr().out
    assert tfds.main(["mnits", "--data-dir", str(tmp_path)]) == 1
    assert "did you mean 'mnist'" in capsys.readouterr().err


# ---- synthetic ----------------------------------------------------------------------------------


def test_synthetic_images():
    made = data.synthetic_images(2000, n_test=50, shape=(6, 5, 2), classes=3, noise=0.5, seed=1)
    x, y = np.asarray(made.train[0]), np.asarray(made.train[1])
    assert x.shape == (2000, 6, 5, 2) and made.test[0].shape == (50, 6, 5, 2) and y.shape[1] == 3
    means = np.stack([x[y[:, label] == 1].mean(0) for label in range(3)])
    inside = np.stack([x[i] - means[y[i].argmax()] for i in range(2000)])
    # 120,000 residuals with standard deviation 0.5: their own standard deviation is known to 0.001
    assert abs(inside.std() - 0.5) < 0.005
    # the test set has the same prototypes: nearest mean classifies it
    distance = np.square(np.asarray(made.test[0])[:, None] - means).sum(axis=(2, 3, 4))
    assert np.mean(distance.argmin(1) == np.argmax(made.test[1], 1)) == 1.0
    again = data.synthetic_images(2000, n_test=50, shape=(6, 5, 2), classes=3, noise=0.5, seed=1)
    np.testing.assert_array_equal(x, again.train[0])


def test_teacher():
    made = data.teacher(300, n_test=40, inputs=7, outputs=2, hidden=5, seed=2)
    assert made.train[0].shape == (300, 7) and made.train[1].shape == (300, 2)
    assert made.test[0].shape == (40, 7) and made.classes == 2
    # the noise is on y alone
    noisy = data.teacher(300, n_test=40, inputs=7, outputs=2, hidden=5, noise=0.1, seed=2)
    np.testing.assert_array_equal(noisy.train[0], made.train[0])
    # 600 Gaussians of standard deviation 0.1: theirs is known to 0.003; five of them
    assert abs(np.std(noisy.train[1] - made.train[1]) - 0.1) < 0.015


def test_second_moment_of_a_teacher_is_one_on_average():
    moments = [
        np.mean(np.square(data.teacher(500, inputs=10, outputs=1, hidden=30, seed=seed).train[1]))
        for seed in range(60)
    ]
    error = np.std(moments) / np.sqrt(len(moments))
    assert abs(np.mean(moments) - 1) < 4 * error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.synthetic_images(0), "n_train must be at least 1"),
        (lambda: data.synthetic_images(5, classes=0), "classes must be at least 1"),
        (lambda: data.synthetic_images(5, noise=-1.0), "noise must be finite"),
        (lambda: data.teacher(5, hidden=0), "hidden must be at least 1"),
        (lambda: data.teacher(5, noise=float("nan")), "noise must be finite"),
        (lambda: testing.write_tfds("mnits", "nowhere"), "did you mean 'mnist'"),
    ],
)
def test_wrong_synthetic_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_augmented_images_are_crops_and_flips():
    """Each is one of the 2 · 25 crops of its padded original, both kinds occur, labels stay."""
    x = jnp.arange(2 * 4 * 4, dtype=jnp.float32).reshape(2, 4, 4, 1) + 1
    y = jnp.eye(2)
    around = np.pad(np.asarray(x), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for seed in range(30):
        images, labels = data.crop_and_flip(2)(jax.random.key(seed), (x, y))
        np.testing.assert_array_equal(labels, y)
        for image, whole in zip(np.asarray(images), around):
            crops = [whole[i : i + 4, j : j + 4] for i in range(5) for j in range(5)]
            found = [k for k, c in enumerate([*crops, *[c[:, ::-1] for c in crops]])
                     if np.array_equal(c, image)]  # fmt: skip
            assert found
            seen.add(found[0])
    assert len(seen) > 20 and min(seen) < 25 <= max(seen)
    images, _ = data.crop_and_flip(0, flip=False)(jax.random.key(0), (x, y))
    np.testing.assert_array_equal(images, x)
    assert data.crop_and_flip(2) is data.crop_and_flip(2)  # so that it compiles once
