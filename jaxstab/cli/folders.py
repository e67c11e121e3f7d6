"""`show` and `report`: what a finished run found, without running it."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxstab.cli.options import add_json, print_json


def add(commands: Any, argv: Sequence[str]) -> None:
    """Adds the commands."""
    del argv
    text = "print the tables and claims of a finished run, without running anything"
    show = commands.add_parser("show", help=text, description=text)
    add_json(show)
    show.set_defaults(handler=command_show)
    report = commands.add_parser("report", help="write one HTML page for an output folder")
    report.set_defaults(handler=command_report)
    for parser in (show, report):
        parser.add_argument("folder", type=Path, help="output folder of a run or of a sweep")


def command_show(given: argparse.Namespace) -> int:
    """Prints what a run printed when it ended."""
    from jaxstab import report

    found = report.read(given.folder)
    if given.json:
        print_json(found.to_record())
        return 0
    print(found.headline, end="\n\n")
    if found.text:
        print(found.text)
    print_claims(found.claims)
    return 0


def command_report(given: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    from jaxstab import report

    print(report.write(given.folder))
    return 0


def print_claims(claims: Sequence[Mapping[str, Any]]) -> None:
    """Prints each claim with its verdict, and what was measured below it."""
    from jaxstab import report

    if claims:
        print("\nclaims")
    for claim in claims:
        print(f"  {claim['status']:>13}: {claim['statement']}")
        print(f"{'':>17}{report.show_claim(claim)}")
