"""Examples that are not one array on one device: spread over devices, or read in pieces.

Both are pytrees with a leading axis n that go wherever data go. `Sharded` says over which axes of a
mesh its arrays are spread, which inside compiled code no array says; `Streamed` holds numbers of
examples, and compiled code fetches the examples themselves from the host, a chunk at a time.
Functions that sum over examples (`jaxstab.operators.chunks`) know both; nothing else has to.
"""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxstab.callables import register, static
from jaxstab.checks import check_at_least, data_size


class Layout(NamedTuple):
    """Which axes of a mesh examples are spread over.

    Attributes:
      mesh: of the devices.
      axes: their names.
      ordered: whether partial sums are added in the order of the devices.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    ordered: bool = False

    @property
    def parts(self) -> int:
        """How many parts the examples are in."""
        size = 1
        for axis in self.axes:
            size *= self.mesh.shape[axis]
        return size


@register
@dataclasses.dataclass(frozen=True)
class Sharded:
    """Arrays with a leading axis n that is spread over devices; see `shard`."""

    arrays: Any
    layout: Layout = static()


@register
@dataclasses.dataclass(frozen=True)
class Streamed:
    """Examples that stay on the host; see `stream`. `index` holds their numbers, (n,)."""

    index: Any
    source: "Source" = static()


def _is_held(x: Any) -> bool:
    return isinstance(x, Sharded | Streamed)


def is_held(data: Any) -> bool:
    """Whether some of `data` are spread over devices or streamed, and not plain arrays."""
    return any(map(_is_held, jax.tree.leaves(data, is_leaf=_is_held)))


def layout_of(data: Any) -> Layout | None:
    """Returns the layout of `data`, or of the first part of a pytree that has one."""
    nodes = jax.tree.leaves(data, is_leaf=lambda x: isinstance(x, Sharded))
    return next((x.layout for x in nodes if isinstance(x, Sharded)), None)


def local(data: Any) -> Any:
    """Returns `data` without its layout: what one device sees inside `shard_map`."""
    return jax.tree.map(
        lambda x: x.arrays if isinstance(x, Sharded) else x,
        data,
        is_leaf=lambda x: isinstance(x, Sharded),
    )


def fetched(data: Any) -> Any:
    """Returns `data` as arrays; inside compiled code what is streamed is read from the host."""
    return jax.tree.map(
        lambda x: x.source.fetch(x.index) if isinstance(x, Streamed) else x,
        local(data),
        is_leaf=lambda x: isinstance(x, Streamed),
    )


def shapes_of(data: Any, n: int | None = None) -> Any:
    """Returns `data` as shapes and dtypes; n: in place of its leading axis."""

    def shape(x: Any) -> Any:
        if isinstance(x, Streamed):
            size = x.index.shape[0] if n is None else n
            return jax.tree.map(
                lambda s: jax.ShapeDtypeStruct((size, *s.shape), s.dtype), x.source.example
            )
        size = jnp.shape(x)[0] if n is None else n
        return jax.ShapeDtypeStruct((size, *jnp.shape(x)[1:]), jnp.result_type(x))

    return jax.tree.map(shape, local(data), is_leaf=lambda x: isinstance(x, Streamed))


def example_of(data: Any) -> Any:
    """Returns one example of `data` as shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes_of(data))


def with_layout(data: Any) -> Any:
    """Returns arrays that are spread over devices along their leading axis as `Sharded`.

    Everything else is returned as it is: arrays on one device or copied to all, traced arrays
    (which do not say where they are), data that are `Sharded` or `Streamed` already.

    Raises:
      ValueError: if some arrays are spread and others are not, or over other axes.
    """
    nodes = jax.tree_util.tree_leaves_with_path(data, is_leaf=_is_held)
    if any(_is_held(x) for _, x in nodes):
        return data
    found = {"data" + jax.tree_util.keystr(path): _leading(x) for path, x in nodes}
    if not any(found.values()):
        return data
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name}: {axes[1] if axes else None}" for name, axes in found.items())
        raise ValueError(
            f"the arrays of data lie differently on the devices ({said}): give all of them the "
            "same sharding along the leading axis, for example by jaxstab.data.shard"
        )
    mesh, axes = next(axes for axes in found.values() if axes)
    return _place(data, mesh, axes, False)


def _leading(x: Any) -> tuple[Mesh, tuple[str, ...]] | None:
    """Mesh and axes over which the leading axis of an array is spread, if it is."""
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return None
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding) or not x.ndim or not len(sharding.spec):
        return None
    axes = sharding.spec[0]
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    axes = tuple(axis for axis in axes if sharding.mesh.shape[axis] > 1)
    return (sharding.mesh, axes) if axes else None  # type: ignore[return-value]


def _place(data: Any, mesh: Mesh, axes: tuple[str, ...], ordered: bool) -> Sharded:
    # Within compiled code all axes are XLA's to place, whatever the user's mesh says of them.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    arrays = jax.device_put(data, NamedSharding(mesh, P(axes)))
    return Sharded(arrays, Layout(mesh, axes, ordered))


def shard(
    data: Any,
    *,
    mesh: Mesh | None = None,
    axis: str | Sequence[str] | None = None,
    ordered: bool = False,
) -> Sharded:
    """Spreads examples over devices; the result goes wherever data go.

    Every device then sums over its own examples, chunk by chunk, and what crosses devices in one
    product with an operator is one sum of p numbers (two for Σ: its mean, and the result). Arrays
    that are spread along their leading axis already (`jax.device_put` with a `NamedSharding`) are
    recognised by every function of the library and need no call of this; inside `jit`, where arrays
    do not say where they are, they do.

    Args:
      data: pytree of arrays with a common leading axis n, a multiple of the number of parts.
      mesh: one axis "examples" over all devices by default.
      axis: of the mesh, or several; the first by default. Parameters may be spread over the others.
      ordered: add the partial sums in the order of the devices, so that the result does not depend
        on how the machine adds them up; the sums of all devices, parts · p numbers, then reach
        every device.

    Raises:
      ValueError: for an unknown axis, or an n that the number of parts does not divide.

    Example:
      >>> data = shard(jnp.arange(6.0), mesh=jax.make_mesh((1,), ("d",)))
      >>> data.layout.parts, data_size(data)
      (1, 6)
    """
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()), ("examples",))
    axes = (mesh.axis_names[0],) if axis is None else (axis,) if isinstance(axis, str) else axis
    unknown = [name for name in axes if name not in mesh.axis_names]
    if unknown:
        raise ValueError(f"axis {unknown[0]!r} is not one of the mesh: {mesh.axis_names}")
    parts, n = Layout(mesh, tuple(axes)).parts, data_size(data)
    if n % parts:
        raise ValueError(
            f"{n} examples cannot be spread evenly over {parts} parts: take {n // parts * parts}"
        )
    return _place(data, mesh, tuple(axes), ordered)


def check_in_memory(name: str, data: Any, why: str = "it draws examples at random") -> None:
    """Raises if `data` are streamed, for what cannot do with reading them in order."""
    nodes = jax.tree.leaves(data, is_leaf=lambda x: isinstance(x, Streamed))
    if any(isinstance(x, Streamed) for x in nodes):
        raise ValueError(
            f"{name} takes data as arrays, not js.data.stream: {why}; give arrays, those of a part "
            "of the examples if not all fit"
        )


# --- Examples on the host ----------------------------------------------------------------------


class Source:
    """Chunks of examples on the host, read ahead in a thread; compared by identity.

    Attributes:
      n: number of examples.
      example: one, as shapes and dtypes.
      reads: examples read so far, those read ahead included.
      ordered: whether they can be read in their own order only.
    """

    def __init__(self, read: Callable[[int, int], Any], n: int, example: Any, ahead: int) -> None:
        self.n, self.reads = n, 0
        self.ordered = isinstance(read, _InOrder)
        self.example = jax.tree.map(_struct, example)
        self._read, self._ahead = read, ahead
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "jaxstab-stream")
        self._waiting: dict[tuple[int, int], Future[Any]] = {}
        self._checked: set[int] = set()
        self._size = 1  # of a full chunk, as last asked for

    def fetch(self, index: Any) -> Any:
        """Returns the examples of consecutive numbers; inside compiled code by a call back."""
        size = index.shape[0]
        shapes = shapes_of(Streamed(index, self))
        halves = jax.pure_callback(
            lambda first: jax.tree.map(_in_halves, self.get(int(first), size)),
            jax.tree.map(_halves_of, shapes),
            index[0],
        )
        return jax.tree.map(_whole, halves, shapes)

    def get(self, start: int, size: int) -> Any:
        """Returns examples start … start + size − 1 and has the following ones read."""
        with self._lock:
            self._size = max(self._size, size) if start else size
            chunk = self._ask(start, size)
            del self._waiting[start, size]
            for _ in range(self._ahead):
                start, size = self._following(start, size)
                self._ask(start, size)
            while len(self._waiting) > 4 * (self._ahead + 1):
                self._waiting.pop(next(iter(self._waiting))).cancel()
        return chunk.result()

    def take(self, numbers: np.ndarray) -> Any:
        """Returns the examples of any numbers, in this order."""
        order = np.argsort(numbers)
        chunks = [self._load(int(i), 1) for i in numbers[order]]
        back = np.argsort(order)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *chunks)

    def _following(self, start: int, size: int) -> tuple[int, int]:
        """What a pass over the data asks for next; after its end the next pass begins."""
        start += size
        return (start, min(self._size, self.n - start)) if start < self.n else (0, self._size)

    def _ask(self, start: int, size: int) -> "Future[Any]":
        if (start, size) not in self._waiting:
            self._waiting[start, size] = self._pool.submit(self._load, start, size)
        return self._waiting[start, size]

    def _load(self, start: int, size: int) -> Any:
        chunk = jax.tree.map(
            lambda s, x: np.ascontiguousarray(x, s.dtype),
            self.example,
            self._read(start, start + size),
        )
        self.reads += size
        if start not in self._checked:  # in the first pass
            for path, x in jax.tree_util.tree_leaves_with_path(chunk):
                if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(x).all():
                    name = "data" + jax.tree_util.keystr(path)
                    raise ValueError(
                        f"{name} holds values that are NaN or infinite in examples {start} to "
                        f"{start + size - 1}"
                    )
            self._checked.add(start)
        return chunk


# A call back may run in a thread that does not know of `jax.enable_x64`, and JAX then cuts what is
# 64 bits wide: such numbers travel as two halves.


def _in_halves(x: np.ndarray) -> np.ndarray:
    return x[..., None].view(np.uint32) if x.dtype.itemsize == 8 else x


def _halves_of(s: Any) -> Any:
    wide = s.dtype.itemsize == 8
    return jax.ShapeDtypeStruct((*s.shape, 2), np.uint32) if wide else s


def _whole(x: jax.Array, s: Any) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, s.dtype) if s.dtype.itemsize == 8 else x


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(np.result_type(x)))


def stream(
    source: Any,
    *,
    n: int | None = None,
    convert: Callable[[Any], Any] | None = None,
    ahead: int = 2,
) -> Streamed:
    """Examples that do not fit a device: read in chunks while the last chunk is computed with.

    The result goes wherever data are read in order: operators, measurements, thresholds, slices.
    What draws examples at random, such as training, asks for arrays instead. `chunk_size` says how
    many examples there are on the device at once. Every product reads the data once (Σ twice: it
    needs the mean H v before the deviations from it), unless what products share fits the memory
    and is kept.

    Args:
      source: a pytree of NumPy arrays with a common leading axis, memory-mapped ones among them; or
        anything with `len()` and `source[i]`, such as a Grain `MapDataset` or a data source of
        TensorFlow Datasets; or an iterable that starts anew at each `iter()` and gives examples in
        the same order every time, such as a Grain `IterDataset`, with its length n.
      n: number of examples to use; all by default.
      convert: applied to every example that was read, to make a pytree of arrays of it.
      ahead: chunks read ahead, which the host holds.

    Returns:
      `Streamed`, a pytree with leading axis n.

    Raises:
      ValueError: if n is not known, or above the number of examples.

    Example:
      >>> data = stream({"x": np.arange(6.0), "y": np.ones((6, 2))})
      >>> fetched(data)["x"].tolist()
      [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    check_at_least("ahead", ahead, 0)
    leaves = jax.tree.leaves(source)
    apply = convert or (lambda example: example)
    if leaves and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves):
        known = data_size(source)
        read = _slices(source, convert)
        example = apply(jax.tree.map(lambda x: np.asarray(x[0]), source))
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        known = len(source)
        read = lambda start, stop: _stack([apply(source[i]) for i in range(start, stop)])  # noqa: E731
        example = apply(source[0])
    elif isinstance(source, Iterable):
        if n is None:
            raise ValueError("give n: an iterable does not say how many examples it has")
        known, read = check_at_least("n", n, 1), _InOrder(source, apply)
        example = apply(next(iter(source)))
    else:
        raise TypeError(
            f"cannot read examples from {type(source).__name__}: give arrays, a sequence or an "
            "iterable of examples"
        )
    count = known if n is None else check_at_least("n", n, 1)
    if count > known:
        raise ValueError(f"n is {count}, and the source has {known} examples")
    return Streamed(jnp.arange(count), Source(read, count, example, ahead))


def _stack(examples: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _slices(arrays: Any, convert: Callable[[Any], Any] | None) -> Callable[[int, int], Any]:
    def read(start: int, stop: int) -> Any:
        chunk = jax.tree.map(lambda x: np.asarray(x[start:stop]), arrays)
        if convert is None:
            return chunk
        take = lambda i: jax.tree.map(lambda x: x[i], chunk)  # noqa: E731
        return _stack([convert(take(i)) for i in range(stop - start)])

    return read


class _InOrder:
    """Reads an iterable from its beginning; what lies before the examples asked for is dropped."""

    def __init__(self, source: Iterable[Any], convert: Callable[[Any], Any]) -> None:
        self.source, self.convert = source, convert
        self.position, self.iterator = 0, iter(source)

    def __call__(self, start: int, stop: int) -> Any:
        if start < self.position:
            self.position, self.iterator = 0, iter(self.source)
        for _ in itertools.islice(self.iterator, start - self.position):
            pass
        examples = list(itertools.islice(self.iterator, stop - start))
        self.position = stop
        if len(examples) < stop - start:
            raise ValueError(
                f"the iterable ended after {start + len(examples)} examples, n says that there "
                f"are more"
            )
        return _stack([self.convert(example) for example in examples])
