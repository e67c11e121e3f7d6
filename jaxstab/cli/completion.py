"""`completion`: what a shell needs to complete commands, experiments, options and their values."""

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Any

SHELLS = ("bash", "zsh", "fish")
SUMMARY = "print what makes a shell complete the words of jaxstab"
USE = """put one line into the start-up file of your shell:
  bash, zsh   eval "$(jaxstab completion bash)"    (or zsh)
  fish        jaxstab completion fish | source
"""


def add(commands: Any, argv: Sequence[str]) -> None:
    """Adds the command."""
    del argv
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "completion", help=SUMMARY, description=SUMMARY, epilog=USE, formatter_class=raw
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(handler=command_completion)


def command_completion(given: argparse.Namespace) -> int:
    """Prints the code that a shell evaluates."""
    import argcomplete

    print(argcomplete.shellcode(["jaxstab"], shell=given.shell))
    return 0


def answer() -> None:
    """Answers the shell that asks for completions, and ends the process."""
    import argcomplete

    from jaxstab.cli.parser import build_parser

    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))]
    try:
        words = shlex.split(line)[1:]
    except ValueError:  # a quotation that is still open
        words = line.split()[1:]
    argcomplete.autocomplete(build_parser(words), always_complete_options="long")
