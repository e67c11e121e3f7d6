"""What a Σ-product keeps for each sequence of transformers, by shapes alone, on any machine.

On an accelerator also a and s of a transformer of GPT-2-small shape, within its memory.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

import jaxstab as js
from benchmarks import harness, transformer
from benchmarks.harness import Row
from jaxstab.operators import linearised
from jaxstab.operators.factored import linearise, read_structure

SHAPES = (  # and tokens a sequence
    (transformer.NARROW, 32),
    (transformer.SMALL, 64),
    (transformer.SMALL, 256),
    (transformer.SMALL, 1023),
)


def kept_row(shape: transformer.Shape, length: int) -> Row:
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
        f"kept for each sequence / its activations: {size:,} parameters, {length:,} tokens",
        held / activations,
        at_most=4.0,
        note=f"{held / 1e6:.1f} MB / {activations / 1e6:.1f} MB; p floats: {size * 4 / 1e6:.1f} MB",
        details={"bytes": held, "bytes of activations": activations, "bytes of p": 4 * size},
    )


def peak_bytes() -> int | None:
    """The most memory that the device has held, where it says so."""
    stats = jax.devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def row_of(name: str, label: str, solve: Any) -> Row:
    """One solve from scratch, compilation included in the first and not in the second."""
    result = jax.block_until_ready(solve())
    timing = harness.time_in_turn({name: solve}, rounds=1)[name]
    memory = peak_bytes()
    used = "" if memory is None else f", {memory / 1e9:.1f} GB at the peak"
    lower, upper = (float(end) for end in result.interval)
    return Row(
        f"{name}: {label}",
        timing.median,
        unit="s",
        note=f"{float(result.value):.4g} in [{lower:.4g}, {upper:.4g}], "
        f"{'certified' if result.converged else 'NOT certified'}, "
        f"{int(result.matvecs)} products{used}",
        details={"value": float(result.value), "peak bytes": memory},
    )


def run(settings: argparse.Namespace) -> list[Row]:
    """Bytes kept; and 124 M parameters, tied embedding, 256 sequences of 256 tokens, timed."""
    tiny = settings.size == "tiny"
    rows = [kept_row(*shape) for shape in ([(transformer.TINY, 6)] if tiny else SHAPES)]
    if jax.default_backend() == "cpu" and not tiny:
        print("bench_transformer: no accelerator here, nothing is timed")
        return rows
    shape, sequences, length, chunk = (
        (transformer.TINY, 4, 6, 2) if tiny else (transformer.SMALL, 256, 256, 4)
    )
    problem = transformer.problem(shape, sequences, length)
    key = jax.random.key(0)
    common = {"key": key, "tol": 1e-2, "max_matvecs": 60, "chunk_size": chunk}
    arguments = (problem.loss, problem.params, problem.data)
    label = f"{problem.label} sequences of {length} tokens"
    return [
        *rows,
        row_of("sharpness", label, lambda: js.sharpness(*arguments, **common)),
        row_of("non-uniformity", label, lambda: js.nonuniformity(*arguments, **common)),
    ]


if __name__ == "__main__":
    harness.main("bench_transformer", run)
