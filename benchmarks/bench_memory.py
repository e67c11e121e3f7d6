"""Memory of one Σ-product against one HVP of the same chunk (at most 3 times)."""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp

import jaxstab as js
from benchmarks import harness, problems, transformer
from benchmarks.harness import Row
from jaxstab.operators import linearised
from jaxstab.operators.factored import linearise, read_structure

KINDS = ("HVP", "second moment", "variance", "variance by vmap")


def memory(
    problem: problems.Problem, chunk_size: int, kinds: tuple[str, ...] = KINDS
) -> dict[str, int]:
    """Temporary bytes of the compiled products, from XLA's assignment of buffers."""
    arguments = (problem.loss, problem.params, problem.data)
    v = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), problem.params)
    makes: dict[str, Any] = {
        "HVP": js.hessian,
        "second moment": js.hessian_second_moment,
        "variance": js.hessian_variance,
        "variance by vmap": functools.partial(js.hessian_variance, method="vmap"),
    }
    return {
        kind: harness.temporary_bytes(makes[kind](*arguments, chunk_size=chunk_size), v)
        for kind in kinds
    }


def rows_of(problem: problems.Problem, chunk_size: int) -> list[Row]:
    """The ratio, and as a check of the tool that it sees chunk × p where there is that much."""
    used = memory(problem, chunk_size)
    megabytes = {name + " (MB)": round(value / 1e6, 3) for name, value in used.items()}
    note = f"{used['variance'] / 1e6:.1f} MB / {used['HVP'] / 1e6:.1f} MB"
    products = 4 * chunk_size * problem.size
    return [
        Row(
            f"extra memory, variance / HVP, chunk {chunk_size}: {problem.label}",
            used["variance"] / used["HVP"],
            at_most=3.0,
            note=note,
            details=megabytes,
        ),
        Row(
            f"the same by vmap, over chunk × p floats (the tool sees them): {problem.label}",
            used["variance by vmap"] / products,
            at_least=1.0,
            note=f"{used['variance by vmap'] / 1e6:.0f} MB / {products / 1e6:.0f} MB",
        ),
    ]


def transformer_row(shape: transformer.Shape, length: int) -> Row:
    """Bytes that a Σ-product keeps for each sequence, over the activations of the forward pass.

    Both by shapes alone. Activations are what reverse differentiation of the loss keeps.
    """
    problem = jax.eval_shape(lambda: transformer.problem(shape, 2, length)[2:])
    params, data = problem
    loss = transformer.NextToken(transformer.Transformer(shape))
    loss = jax.tree_util.Partial(loss)
    structure = read_structure(loss, params, data)

    def grown(make: Any) -> int:
        one, two = (linearised.chunk_bytes(make, data, size) for size in (1, 2))
        return two - one  # what the weights add is there once

    total = lambda params, chunk: jnp.sum(jax.vmap(loss, (None, 0))(params, chunk))  # noqa: E731
    held = grown(lambda chunk: linearise(structure, params, chunk))
    activations = grown(lambda chunk: jax.vjp(lambda params: total(params, chunk), params))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Row(
        f"kept for each sequence of {length} tokens / its activations: transformer {size:,}",
        held / activations,
        at_most=4.0,
        note=f"{held / 1e6:.1f} MB / {activations / 1e6:.1f} MB; p floats: {size * 4 / 1e6:.1f} MB",
    )


def run(settings: argparse.Namespace) -> list[Row]:
    """Temporary memory of one product, as XLA assigns it; nothing is run."""
    tiny = settings.size == "tiny"
    n, chunk = (24, 8) if tiny else (1000, 100)
    makes = [problems.fnn] if tiny else [problems.fnn, problems.vgg, problems.resnet14]
    shape, length = (transformer.TINY, 6) if tiny else (transformer.SMALL, 256)
    rows = [row for make in makes for row in rows_of(make(n, tiny=tiny), chunk)]
    return [*rows, transformer_row(shape, length)]


if __name__ == "__main__":
    harness.main("bench_memory", run)
