"""One Σ-product of a network written in many ways, against the same network written plainly."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax

import jaxstab as js
from benchmarks import harness, patterns
from benchmarks.harness import Row
from jaxstab.operators.factored import read_structure


def per_example_entries(pattern: patterns.Pattern) -> int:
    """Numbers that a product holds for each example: rows and arrays of all blocks."""
    structure = read_structure(jax.tree_util.Partial(pattern.loss), pattern.params, pattern.data)
    return sum(block.entries for block in structure.blocks)


def rows_of(
    plain: Callable[..., Any], written: dict[Callable[..., Any], float], sizes: Any, rounds: int
) -> list[Row]:
    """Σ of the plain form and of all patterns that are compared with it, in turn."""
    made = {make: make(sizes) for make in (plain, *written)}
    calls, held = {}, {}
    for make, pattern in made.items():
        v = harness.random_like(pattern.params)
        calls[make.__name__] = functools.partial(
            harness.single_product, js.hessian_variance(*pattern), v
        )
        calls[make.__name__ + ", HVP"] = functools.partial(
            harness.single_product, js.hessian(*pattern), v
        )
        held[make] = per_example_entries(pattern)
    timings = harness.time_in_turn(calls, rounds=rounds)
    rows = []
    for make, bound in written.items():
        # The best of many rounds: a product takes a millisecond, and what else runs only adds.
        mine, base = timings[make.__name__].best, timings[plain.__name__].best
        hvp = mine / timings[make.__name__ + ", HVP"].best
        rows.append(
            Row(
                f"{make.__name__} / {plain.__name__}",
                mine / base,
                at_most=bound,
                note=f"{1e3 * mine:.2f} ms / {1e3 * base:.2f} ms, "
                f"{hvp:.2f} × its HVP, {held[make]:,} numbers an example, plain {held[plain]:,}",
                details=harness.milliseconds(timings),
            )
        )
    return rows


def run(settings: argparse.Namespace) -> list[Row]:
    """Σ-products of networks as people write them, over the plain form (single calls)."""
    tiny = settings.size == "tiny"
    sizes = patterns.TINY if tiny else patterns.Sizes()
    rounds = 2 if tiny else 6 * harness.ROUNDS
    chosen = list(patterns.PATTERNS.items())
    if tiny:
        chosen = [chosen[0], chosen[-1]]
    groups: dict[Any, dict[Any, float]] = {}
    for make, (plain, bound) in chosen:
        groups.setdefault(plain, {})[make] = bound
    return [row for plain, made in groups.items() for row in rows_of(plain, made, sizes, rounds)]


if __name__ == "__main__":
    harness.main("bench_patterns", run)
