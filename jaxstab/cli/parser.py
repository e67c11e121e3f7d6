"""The parser of all commands, built for the arguments to come."""

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from jaxstab.cli import checkpoints, completion, doctor, folders, runs
from jaxstab.names import check_name

TRACEBACK = "JAXSTAB_TRACEBACK"
DESCRIPTION = "Which minima can SGD stay at? Experiments by name, sweeps, measurements, reports."
EPILOG = f"""exit status:
  0    done, whatever the claims of an experiment came to
  1    a fault in jaxstab, with its traceback, or a check of `jaxstab doctor` that failed
  2    wrong input: one line says what came and what to do
  130  interrupted: the same command continues where it stopped

set {TRACEBACK}=1 to see where an error arose
"""
# Each has `add(commands, argv)`, which adds its commands; in the order of the help.
MODULES = (runs, checkpoints, folders, doctor, completion)


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; `run` has one sub-command per experiment.

    Args:
      argv: the arguments to come: options of an experiment, which need its module, are added for
        the one that is named here.
    """
    parser, _ = _build(argv)
    return parser


def check_names(argv: Sequence[str]) -> None:
    """Names the nearest command or experiment, which argparse does not."""
    from jaxstab.experiments import REGISTRY

    if argv and not argv[0].startswith("-"):
        _, commands = _build(())
        check_name("command", argv[0], commands.choices)
        if argv[0] == "run" and len(argv) > 1 and not argv[1].startswith("-"):
            check_name("experiment", argv[1], REGISTRY)


class _Version(argparse.Action):
    """Prints the version of the package, which is read only here."""

    def __call__(self, *_: object) -> None:
        print(f"jaxstab {metadata.version('jaxstab')}")
        sys.exit(0)


def _build(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    parser = argparse.ArgumentParser(
        prog="jaxstab",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.set_defaults(computes=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in MODULES:
        module.add(commands, argv)
    return parser, commands
