"""`measure` and `map`: numbers and verdicts at stored parameters."""

import argparse
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxstab.cli.options import add_checkpoint, add_json, print_json, worded


def add(commands: Any, argv: Sequence[str]) -> None:
    """Adds the commands."""
    del argv
    _add_measure(commands)
    _add_map(commands)


def _add_measure(commands: Any) -> None:
    measure = commands.add_parser("measure", help="measure a and s at a checkpoint")
    add_checkpoint(measure)
    add, whole, number = measure.add_argument, worded(int), worded(float)
    add("--tol", type=number, default=1e-3, help="relative accuracy (1e-3)")
    add("--max-matvecs", type=whole, metavar="N", default=1000, help="products for each (1000)")
    add("--learning-rate", type=number, help="for a verdict, with --batch-size")
    add("--batch-size", help="for a verdict, with --learning-rate; n is the whole data set")
    add_json(measure)
    measure.set_defaults(handler=command_measure, computes=True)


def _add_map(commands: Any) -> None:
    text = "learning rates that can hold a checkpoint, by batch size, with all bounds"
    parser = commands.add_parser("map", help=text, description=text)
    add_checkpoint(parser)
    add = parser.add_argument
    sizes = ("1", "4", "10", "25", "100", "n")
    add("--batch-sizes", nargs="+", default=sizes, help="batch sizes (1 4 10 25 100 n)")
    add("--tol", type=worded(float), default=1e-2, help="change that counts as converged (1e-2)")
    add("--max-rank", type=worded(int), metavar="N", help="dimension to stop at (400)")
    add("--out", type=Path, default=Path("runs/map"), help="folder of the figure (runs/map)")
    parser.set_defaults(handler=command_map, computes=True)


def _load_checkpoint(given: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the problem and the stored parameters that the options name."""
    import jax

    from jaxstab import store
    from jaxstab.experiments import problems

    problem = problems.load_problem(
        given.dataset,
        given.model,
        loss=given.loss,
        n_train=given.n_train,
        classes=given.classes,
        data_dir=given.data_dir,
    )
    folder = given.checkpoint
    folder = folder / "params" if (folder / "params").is_dir() else folder
    like = jax.eval_shape(problem.init, jax.random.key(0), 1.0)
    params = problems.check_like(store.load_params(folder), like, folder)
    _compare_with_sweep(given, problem, folder)
    return problem, params


def _compare_with_sweep(given: argparse.Namespace, problem: Any, params: Path) -> None:
    """Warns where the options name something else than the sweep that the parameters are of."""
    from jaxstab import store, sweeps

    held = store.read_description(params.absolute().parents[2]) or {}
    config = held.get("config", {})
    named = {name: getattr(given, name) for name in ("dataset", "model", "loss") if name in config}
    ours = {"config": named, "n": problem.n, "data": sweeps.digest(problem.train)}
    theirs = {"config": {name: config[name] for name in named}}
    theirs |= {name: held[name] for name in ("n", "data") if name in held}
    different = store.differences(theirs, {name: ours[name] for name in theirs})
    if different:
        warnings.warn(
            f"{params} is of a sweep of another problem ({'; '.join(different)}): what follows is "
            "measured on the problem that the options name",
            stacklevel=2,
        )


def command_measure(given: argparse.Namespace) -> int:
    """Prints a and s at stored parameters, and the verdict if learning rate and batch are given."""
    import jax

    from jaxstab.checks import check_positive
    from jaxstab.experiments.settings import numbers_for, parse_batch_size
    from jaxstab.measurement import measure
    from jaxstab.stability.criteria import verdict

    if (given.learning_rate is None) != (given.batch_size is None):
        raise ValueError("a verdict needs both --learning-rate and --batch-size")
    size: Any = None
    if given.learning_rate is not None:
        check_positive("learning_rate", given.learning_rate)
        size = parse_batch_size(given.batch_size)
    problem, params = _load_checkpoint(given)
    if size is not None:
        (size,) = numbers_for([size], problem.n)
    key = jax.random.key(0)
    found = measure(
        problem.loss,
        params,
        problem.dataset.train,
        key=key,
        tol=given.tol,
        max_matvecs=given.max_matvecs,
    )
    accuracies = {name: float(value) for name, value in problem.evaluate(params).items()}
    judged = None
    if size is not None:
        judged = verdict(
            found, learning_rate=given.learning_rate, batch_size=size, loss_kind=given.loss
        )
    if given.json:
        record = found.to_record() | accuracies
        print_json(record | ({"verdict": _to_record(judged)} if judged else {}))
        return 0
    print(f"sharpness       a = {found.sharpness.summary}")
    print(f"non-uniformity  s = {found.nonuniformity.summary}")
    print(f"loss {float(found.loss):.6g}, gradient norm {float(found.gradient_norm):.3g}")
    for name, value in accuracies.items():
        print(f"{name.replace('_', ' ')} {value:.2%}")
    if judged:
        print(judged)
    return 0


def _to_record(judged: Any) -> dict[str, Any]:
    """A verdict as one flat dict, the bounds under names of their own."""
    record = dataclasses.asdict(judged)
    bounds = record.pop("box")
    return record | {f"{name}_bound": bound for name, bound in zip(bounds._fields, bounds)}


def command_map(given: argparse.Namespace) -> int:
    """Prints the learning rates that can hold a checkpoint at every batch size; draws them."""
    import jax
    import numpy as np

    from jaxstab import plots
    from jaxstab.experiments.settings import batch_sizes_for, parse_batch_size
    from jaxstab.measurement import measure
    from jaxstab.stability import box, mean_square_threshold

    problem, params = _load_checkpoint(given)
    train, key = problem.dataset.train, jax.random.key(0)
    sizes = sorted(
        set(batch_sizes_for([parse_batch_size(b) for b in given.batch_sizes], len(train[0])))
    )
    options = {"batch_sizes": sizes, "tol": given.tol, "max_rank": given.max_rank}
    found = mean_square_threshold(problem.loss, params, train, key=key, **options)
    measured = measure(problem.loss, params, train, key=key)
    print(found)
    # Eq. 9 as a learning rate: both bounds are proportional to 1/η.
    unit = np.array([box(1.0, size, found.n) for size in sizes])
    of = np.array([float(measured.sharpness.value), float(measured.nonuniformity.value)])
    bounds = {**found.bounds, "eq. 9": np.min(unit / of, axis=1)}
    print("eq. 9  " + "  ".join(f"B {b}: {x:.5g}" for b, x in zip(sizes, bounds["eq. 9"])))
    for size, shares in zip(sizes, found.shares):
        top = np.argsort(-shares)[:3]
        listed = ", ".join(f"{i} ({shares[i]:.0%})" for i in top)
        print(f"B {size}: examples with the largest share in the growth at the edge: {listed}")
    given.out.mkdir(parents=True, exist_ok=True)
    figure = plots.stability_map(
        batch_sizes=sizes,
        value=found.value,
        lower=found.interval.lower,
        upper=found.interval.upper,
        bounds=bounds,
        n=found.n,
        title=f"Learning rates that can hold {given.checkpoint.name}",
    )
    path = given.out / "map.png"
    path.write_bytes(plots.png(figure))
    print(path)
    return 0
