"""The command line: `jaxstab list`, `jaxstab run NAME`.

Wrong input ends with one line that says what to do and exit status 2; an interrupted run ends with
130 and continues when the same command is given again.
"""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxstab.checks import check_name

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class Bar:
    """A progress bar with the time left, on standard error, for `experiments.base.Progress`."""

    def __init__(self, title: str):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._title = title
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Shows that `done` of `total` steps are finished."""
        text = f"{self._title}: {message}" if message else self._title
        self._progress.update(self._task, completed=done, total=total, description=text)


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


def add_settings(parser: argparse.ArgumentParser, settings: Any) -> None:
    """Adds one option per field of a settings dataclass; an absent option leaves no trace."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        option = "--" + field.name.replace("_", "-")
        default = getattr(settings, field.name)
        listed = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{field.metadata.get('help', field.name)} (quick: {listed})".replace("%", "%%")
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
        if hints[field.name] is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, **common)
            continue
        parse, several = field.metadata.get("parse"), isinstance(default, tuple)
        if parse is None:
            parse, several = reader(hints[field.name])
        metavar = field.name.rstrip("s").upper() if several else "N"
        nargs = "+" if several else None
        parser.add_argument(option, type=parse, nargs=nargs, metavar=metavar, **common)


def command_list(_: argparse.Namespace) -> int:
    """Prints every experiment with its source and one line."""
    from jaxstab.experiments import REGISTRY

    width = max((len(name) for name in REGISTRY), default=0)
    for name, experiment in REGISTRY.items():
        print(f"{name:<{width}}  {experiment.summary}  [{experiment.source}]")
    return 0


def command_run(given: argparse.Namespace) -> int:
    """Runs one experiment and prints its table, its claims and where its files are."""
    from jaxstab.experiments import REGISTRY, execute

    experiment = REGISTRY[given.name]
    names = {field.name for field in dataclasses.fields(experiment.presets["quick"])}
    overrides = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if name in names
    }
    settings = experiment.settings(given.preset, overrides=overrides)
    out = given.out or Path("runs") / experiment.name
    with Bar(experiment.name) as bar:
        outcome = execute(
            experiment,
            settings,
            out=out,
            preset=given.preset,
            progress=bar,
            data_dir=given.data_dir,
        )
    print(outcome.text)
    for claim in outcome.claims:
        print(
            f"{claim.status:>15}  {claim.statement} [{claim.kind}: {claim.statistic} = "
            f"{claim.measured}, predicted {claim.predicted}]"
        )
    print(f"files: {out}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` has one sub-command per experiment."""
    from jaxstab.experiments import REGISTRY

    parser = argparse.ArgumentParser(prog="jaxstab", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the experiments")
    listing.set_defaults(handler=command_list)

    run = commands.add_parser("run", help="run an experiment by name")
    run.set_defaults(handler=command_run)
    experiments = run.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, experiment in REGISTRY.items():
        one = experiments.add_parser(name, help=experiment.summary, description=experiment.summary)
        one.add_argument("--preset", default="quick", help="quick (default) or paper")
        one.add_argument("--out", type=Path, help=f"output folder (default runs/{name})")
        one.add_argument("--data-dir", type=Path, help="folder of prepared TFDS data")
        add_settings(one, experiment.presets["quick"])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser()
        _check_names(argv)
        given = parser.parse_args(argv)
        return given.handler(given)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted: the same command continues where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, TypeError, OSError) as error:
        print(f"jaxstab: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _check_names(argv: Sequence[str]) -> None:
    """Names the nearest command or experiment before argparse lists them all."""
    from jaxstab.experiments import REGISTRY

    if argv and not argv[0].startswith("-"):
        check_name("command", argv[0], ("list", "run"))
        if argv[0] == "run" and len(argv) > 1 and not argv[1].startswith("-"):
            check_name("experiment", argv[1], REGISTRY)


if __name__ == "__main__":
    sys.exit(main())
