"""a and s of a transformer of GPT-2-small shape within one accelerator's memory."""

import argparse
from typing import Any

import jax

import jaxstab as js
from benchmarks import harness, transformer
from benchmarks.harness import Row


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
    """124 M parameters, tied embedding, 256 sequences of 256 tokens; tiny shapes run anywhere."""
    tiny = settings.size == "tiny"
    if jax.default_backend() == "cpu" and not tiny:
        print("bench_transformer: no accelerator here, nothing measured")
        return []
    shape, sequences, length, chunk = (
        (transformer.TINY, 4, 6, 2) if tiny else (transformer.SMALL, 256, 256, 4)
    )
    problem = transformer.problem(shape, sequences, length)
    key = jax.random.key(0)
    common = {"key": key, "tol": 1e-2, "max_matvecs": 60, "chunk_size": chunk}
    arguments = (problem.loss, problem.params, problem.data)
    label = f"{problem.label} sequences of {length} tokens"
    return [
        row_of("sharpness", label, lambda: js.sharpness(*arguments, **common)),
        row_of("non-uniformity", label, lambda: js.nonuniformity(*arguments, **common)),
    ]


if __name__ == "__main__":
    harness.main("bench_transformer", run)
