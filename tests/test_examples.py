"""Data that are spread or streamed, and what is wrong with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab as js
from jaxstab import examples, operators


def loss(params, example):
    x, y = example
    return (jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=4)}
    return params, (rng.normal(size=(11, 3)), rng.normal(size=11))


class Pairs:
    """A sequence of examples, as of Grain or TensorFlow Datasets."""

    def __init__(self, data):
        self.data, self.asked = data, []

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, i):
        self.asked.append(i)
        if i >= len(self):
            raise IndexError(i)
        return {"image": self.data[0][i], "label": self.data[1][i]}


def as_pair(example):
    return example["image"], example["label"]


KINDS = {
    "arrays": lambda data, **options: js.data.stream(data, **options),
    "converted": lambda data, **options: js.data.stream(
        {"image": data[0], "label": data[1]}, convert=as_pair, **options
    ),
    "sequence": lambda data, **options: js.data.stream(Pairs(data), convert=as_pair, **options),
    "iterable": lambda data, **options: js.data.stream(
        InOrder(data), n=11, convert=as_pair, **options
    ),
}


class InOrder:
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        source = Pairs(self.data)
        return (source[i] for i in range(len(source)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ahead", [0, 2])
def test_products_over_streamed_data_are_those_over_arrays(kind, ahead, problem, x64):
    params, data = problem
    streamed = KINDS[kind](data, ahead=ahead)
    for make in (operators.hessian, operators.gradient_covariance):
        expected = make(loss, params, data)(params)
        found = make(loss, params, streamed, chunk_size=4)(params)  # chunks of 4, 4 and 3
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_product_reads_the_data_once_and_variance_twice(problem, x64):
    params, data = problem
    for make, passes in ((operators.hessian, 1), (operators.hessian_variance, 2)):
        streamed = js.data.stream(data, ahead=0)
        jax.block_until_ready(make(loss, params, streamed, chunk_size=4)(params))
        assert streamed.source.reads == passes * 11


def test_chunks_are_read_ahead_in_the_order_in_which_they_come(problem):
    _, data = problem
    source = js.data.stream(Pairs(data), convert=as_pair, ahead=1).source
    for start, size in ((0, 4), (4, 4), (8, 3), (0, 4)):
        chunk = source.get(start, size)
        np.testing.assert_allclose(chunk[0], data[0][start : start + size], rtol=1e-6)
    source._pool.shutdown(wait=True)
    # every chunk once, the next one included: nothing is read twice or in vain
    assert source.reads == 4 + 4 + 3 + 4 + 4


@pytest.mark.slow
def test_certified_values_of_streamed_data(problem, x64):
    params, data = problem
    expected = js.measure(loss, params, data, key=jax.random.key(0))
    found = js.measure(loss, params, js.data.stream(data), key=jax.random.key(0), chunk_size=4)
    np.testing.assert_allclose(found.sharpness.value, expected.sharpness.value, rtol=1e-9)
    np.testing.assert_allclose(found.nonuniformity.value, expected.nonuniformity.value, rtol=1e-9)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)
    assert found.n == 11 and found.sharpness.converged


def test_values_that_are_not_finite_are_named(problem):
    params, (x, y) = problem
    y = y.copy()
    y[6] = np.nan
    operator = operators.hessian(loss, params, js.data.stream((x, y)), chunk_size=4)
    with pytest.raises(Exception, match=r"data\[1\] holds values that are NaN.*examples 4 to 7"):
        jax.block_until_ready(operator(params))


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (InOrder((np.ones((2, 3)), np.ones(2))), {}, ValueError, "give n: an iterable does not"),
        (np.ones((3, 2)), {"n": 4}, ValueError, "n is 4, and the source has 3 examples"),
        (np.ones((3, 2)), {"ahead": -1}, ValueError, "ahead must be at least 0"),
        (7, {}, TypeError, "cannot read examples from int"),
    ],
)
def test_wrong_sources_say_what_to_do(source, options, error, message):
    with pytest.raises(error, match=message):
        js.data.stream(source, **options)


def test_an_iterable_that_ends_early_says_so():
    data = js.data.stream(InOrder((np.ones((3, 2)), np.ones(3))), n=5, convert=as_pair)
    with pytest.raises(ValueError, match="ended after 3 examples"):
        data.source.get(0, 5)


def test_wrong_meshes_say_what_to_do():
    mesh = jax.make_mesh((1,), ("d",))
    with pytest.raises(ValueError, match="axis 'e' is not one of the mesh"):
        js.data.shard(jnp.ones(4), mesh=mesh, axis="e")
    data = js.data.shard(jnp.ones((4, 2)), mesh=mesh, axis="d")
    assert examples.example_of(data).shape == (2,) and data.layout.parts == 1
