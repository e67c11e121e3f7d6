"""Memory of one Σ-product against one HVP of the same chunk (at most 3 times)."""

import argparse
import functools
from typing import Any

import jax

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row

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
    """The ratios, and as a check of the tool that it sees chunk × p where there is that much.

    Asked for a chunk, a Σ-product takes half of it at a time; asked for two, a whole one.
    """
    used = memory(problem, chunk_size)
    used["variance, a whole chunk"] = memory(problem, 2 * chunk_size, ("variance",))["variance"]
    megabytes = {name + " (MB)": round(value / 1e6, 3) for name, value in used.items()}
    products = 4 * chunk_size * problem.size
    label = f"{problem.name} {problem.size:,}"

    def against(what: str, name: str, aim: float | None) -> Row:
        return Row(
            f"{what} / HVP: {label}",
            used[name] / used["HVP"],
            at_most=aim,
            note=f"{used[name] / 1e6:.1f} MB / {used['HVP'] / 1e6:.1f} MB",
            details=megabytes,
        )

    return [
        against(f"memory of Σ, chunk_size={chunk_size}", "variance", 3.0),
        against("the same, made to take a whole chunk at a time", "variance, a whole chunk", None),
        Row(
            f"by vmap, over chunk × p floats (the tool sees them): {label}",
            used["variance by vmap"] / products,
            at_least=1.0,
            note=f"{used['variance by vmap'] / 1e6:.0f} MB / {products / 1e6:.0f} MB",
        ),
    ]


def run(settings: argparse.Namespace) -> list[Row]:
    """Temporary memory of one product, as XLA assigns it; nothing is run."""
    tiny = settings.size == "tiny"
    n, chunk = (24, 8) if tiny else (1000, 100)
    makes = [problems.fnn] if tiny else [problems.fnn, problems.vgg, problems.resnet14]
    return [row for make in makes for row in rows_of(make(n, tiny=tiny), chunk)]


if __name__ == "__main__":
    harness.main("bench_memory", run)
