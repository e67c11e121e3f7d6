"""The command line: experiments by name, sweeps, measurements, reports.

Each command imports what it needs, so that `jaxstab list` and a typo are answered at once. Wrong
input ends with one line that says what to do and exit status 2; an interrupted run ends with
130 and continues when the same command is given again.
"""

import argparse
import dataclasses
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxstab.names import check_name

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
COMMANDS = ("list", "run", "sweep", "measure", "map", "report")
SWEEP_SUMMARY = "train a grid of learning rates and batch sizes and place its minima in eq. 9"
TRACEBACK = "JAXSTAB_TRACEBACK"
_SETTING = "setting "


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
      argv: the arguments. By default those of the process, which then belongs to this call: one
        JAX device per CPU core is made, so that a sweep trains one run on each.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        _check_names(words)
        given = build_parser(words).parse_args(words)
        if argv is None and given.handler in (command_run, command_measure, command_map):
            _use_all_cores()
        return given.handler(given)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted: the same command continues where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"jaxstab: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _use_all_cores() -> None:
    from jaxstab import sweeps

    sweeps.use_host_devices()


def _check_names(argv: Sequence[str]) -> None:
    """Names the nearest command or experiment, which argparse does not."""
    from jaxstab.experiments import REGISTRY

    if argv and not argv[0].startswith("-"):
        check_name("command", argv[0], COMMANDS)
        if argv[0] == "run" and len(argv) > 1 and not argv[1].startswith("-"):
            check_name("experiment", argv[1], REGISTRY)


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; `run` has one sub-command per experiment.

    Args:
      argv: the arguments to come: options of an experiment, which need its module, are added for
        the one that is named here.
    """
    from jaxstab.experiments import REGISTRY

    command, chosen = [*argv, "", ""][:2]
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="jaxstab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"set {TRACEBACK}=1 to see where an error arose",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the experiments")
    listing.set_defaults(handler=command_list)

    run = commands.add_parser("run", help="run an experiment by name")
    experiments = run.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, listed in REGISTRY.listings.items():
        one = experiments.add_parser(name, help=listed.summary, description=listed.summary)
        if (command, chosen) == ("run", name):
            presets = ", ".join(REGISTRY[name].presets)
            one.add_argument("--preset", default="quick", help=f"one of {presets} (default quick)")
            _add_run_options(one, REGISTRY[name])

    sweep = commands.add_parser("sweep", help=SWEEP_SUMMARY, description=SWEEP_SUMMARY)
    if command == "sweep":
        from jaxstab.experiments.wu2018.selection import SWEEP

        sweep.set_defaults(preset="quick")
        _add_run_options(sweep, SWEEP, required=("learning_rates", "batch_sizes"))

    _add_measure(commands)
    _add_map(commands)
    report = commands.add_parser("report", help="write one HTML page for an output folder")
    report.add_argument("folder", type=Path, help="output folder of a run or of a sweep")
    report.set_defaults(handler=command_report)
    return parser


def _add_run_options(
    parser: argparse.ArgumentParser, experiment: Any, *, required: Sequence[str] = ()
) -> None:
    parser.set_defaults(handler=command_run, experiment=experiment)
    default = Path("runs") / experiment.name
    parser.add_argument("--out", type=_folder, default=default, help=f"output folder ({default})")
    parser.add_argument("--data-dir", type=Path, help="folder of prepared TFDS data")
    add_settings(parser, experiment.presets["quick"], required=required)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a run of a sweep, or its params")
    add("--dataset", required=True, help="data set")
    add("--model", required=True, help="model")
    add("--loss", default="squared", help="squared (default), cross_entropy or kl")
    add("--classes", nargs="+", default=[], help="classes of the data set; all by default")
    add("--n-train", type=_worded(int), metavar="N", default=1000, help="training examples (1000)")
    add("--data-dir", type=Path, help="folder of prepared TFDS data")


def _add_measure(commands: Any) -> None:
    measure = commands.add_parser("measure", help="measure a and s at a checkpoint")
    _add_checkpoint(measure)
    add, whole, number = measure.add_argument, _worded(int), _worded(float)
    add("--tol", type=number, default=1e-3, help="relative accuracy (1e-3)")
    add("--max-matvecs", type=whole, metavar="N", default=1000, help="products for each (1000)")
    add("--learning-rate", type=number, help="for a verdict, with --batch-size")
    add("--batch-size", help="for a verdict, with --learning-rate; n is the whole data set")
    measure.set_defaults(handler=command_measure)


def _add_map(commands: Any) -> None:
    text = "learning rates that can hold a checkpoint, by batch size, with all bounds"
    parser = commands.add_parser("map", help=text, description=text)
    _add_checkpoint(parser)
    add = parser.add_argument
    sizes = ("1", "4", "10", "25", "100", "n")
    add("--batch-sizes", nargs="+", default=sizes, help="batch sizes (1 4 10 25 100 n)")
    add("--tol", type=_worded(float), default=1e-2, help="change that counts as converged (1e-2)")
    add("--max-rank", type=_worded(int), metavar="N", help="dimension to stop at (400)")
    add("--out", type=Path, default=Path("runs/map"), help="folder of the figure (runs/map)")
    parser.set_defaults(handler=command_map)


def add_settings(
    parser: argparse.ArgumentParser, settings: Any, *, required: Sequence[str] = ()
) -> None:
    """Adds one option per field of a settings dataclass; an absent option leaves no trace.

    `learning_rates: tuple[float, ...]` becomes `--learning-rates X [X ...]`, also spelled
    `--learning-rate`; how a word is read follows from the annotation, or from `setting(parse=...)`.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        option = "--" + field.name.replace("_", "-")
        default = getattr(settings, field.name)
        text = str(field.metadata.get("help", field.name))
        if field.name not in required:
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (quick: {shown})" if shown not in ("", None) else ""
        common: dict[str, Any] = {
            "dest": _SETTING + field.name,  # apart from the options that all commands share
            "default": argparse.SUPPRESS,
            "required": field.name in required,
            "help": text.replace("%", "%%"),
        }
        if hints[field.name] is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, **common)
            continue
        parse, several = field.metadata.get("parse"), isinstance(default, tuple)
        if parse is None:
            parse, several = reader(hints[field.name])
        if several:
            singular = re.sub(r"(?<=ss)es$|(?<!s)s$", "", option)
            names = (option,) if singular == option else (option, singular)
            metavar = singular.lstrip("-").replace("-", "_").upper()
            parser.add_argument(*names, type=_worded(parse), nargs="+", metavar=metavar, **common)
        else:
            metavar = "N" if parse is int else "X" if parse is float else "NAME"
            parser.add_argument(option, type=_worded(parse), metavar=metavar, **common)


def _worded(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader whose errors say what is accepted; argparse would name the function."""

    def parse(word: str) -> Any:
        try:
            return read(word)
        except ValueError as error:
            wanted = {int: "a whole number", float: "a number"}.get(read)  # type: ignore[call-overload]
            text = f"{word!r} is not {wanted}" if wanted else str(error)
            raise argparse.ArgumentTypeError(text) from None

    return parse


def _folder(word: str) -> Path:
    """Reads the name of an output folder."""
    from jaxstab.files import check_folder

    if not word:
        raise argparse.ArgumentTypeError("is empty: give the name of a folder")
    try:
        return check_folder(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def reader(annotation: Any) -> tuple[Callable[[str], Any], bool]:
    """How to read one word of a setting with this annotation, and whether it takes several.

    Raises:
      TypeError: if the annotation is not int, float, str, `X | None` or `tuple[X, ...]` of these.
    """
    if annotation in (int, float, str, Path):
        return annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return reader(arguments[0])[0], True
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1:
            return reader(inner[0])
    raise TypeError(f"no way to read {annotation} from the command line: give `parse` to setting()")


def command_list(_: argparse.Namespace) -> int:
    """Prints every experiment with one line and its source."""
    from jaxstab.experiments import REGISTRY

    width = max(map(len, REGISTRY), default=0)
    for name, listing in REGISTRY.listings.items():
        print(f"{name:<{width}}  {listing.summary} [{listing.source}]")
    return 0


def command_run(given: argparse.Namespace) -> int:
    """Runs one experiment or sweep; prints its table, its claims and where its files are."""
    from jaxstab import report
    from jaxstab.experiments import execute
    from jaxstab.progress import Bar

    experiment = given.experiment
    overrides = {
        name.removeprefix(_SETTING): tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if name.startswith(_SETTING)
    }
    settings = experiment.settings(given.preset, overrides=overrides)
    with Bar(experiment.name) as bar:
        outcome = execute(
            experiment,
            settings,
            out=given.out,
            preset=given.preset,
            progress=bar,
            data_dir=given.data_dir,
        )
    page = report.write(given.out)
    print(outcome.text)
    if outcome.claims:
        print("\nclaims")
    for claim in outcome.claims:
        print(f"  {claim.status:>13}: {claim.statement}")
        print(f"{'':>17}{report.show_claim(claim)}")
    figures = sorted(given.out.glob("*.png"))
    files = [*figures, given.out / "results.csv", given.out / "claims.json", page]
    print("\nfiles\n" + "\n".join(f"  {path}" for path in files))
    return 0


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
    return problem, params


def command_measure(given: argparse.Namespace) -> int:
    """Prints a and s at stored parameters, and the verdict if learning rate and batch are given."""
    import jax

    from jaxstab.experiments.settings import batch_sizes_for, parse_batch_size
    from jaxstab.measurement import measure
    from jaxstab.stability.criteria import verdict

    if (given.learning_rate is None) != (given.batch_size is None):
        raise ValueError("a verdict needs both --learning-rate and --batch-size")
    problem, params = _load_checkpoint(given)
    key = jax.random.key(0)
    found = measure(
        problem.loss,
        params,
        problem.dataset.train,
        key=key,
        tol=given.tol,
        max_matvecs=given.max_matvecs,
    )
    print(f"sharpness       a = {found.sharpness.summary}")
    print(f"non-uniformity  s = {found.nonuniformity.summary}")
    print(f"loss {float(found.loss):.6g}, gradient norm {float(found.gradient_norm):.3g}")
    for name, value in problem.evaluate(params).items():
        print(f"{name.replace('_', ' ')} {float(value):.2%}")
    if given.learning_rate is not None:
        size = batch_sizes_for([parse_batch_size(given.batch_size)], found.n)[0]
        print(
            verdict(found, learning_rate=given.learning_rate, batch_size=size, loss_kind=given.loss)
        )
    return 0


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


def command_report(given: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    from jaxstab import report

    print(report.write(given.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
