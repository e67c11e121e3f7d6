"""The command line: experiments by name, sweeps, measurements, reports.

Each command imports what it needs, so that `jaxstab list` and a typo are answered at once.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jaxstab.cli.options import add_settings, reader
from jaxstab.cli.parser import TRACEBACK, build_parser, check_names

__all__ = ["add_settings", "build_parser", "main", "reader"]

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
COMPLETING = "_ARGCOMPLETE"  # set by the shell that asks for completions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
      argv: the arguments. By default those of the process, which then belongs to this call: one
        JAX device per CPU core is made, so that a sweep trains one run on each.
    """
    if argv is None and COMPLETING in os.environ:
        from jaxstab.cli import completion

        completion.answer()
    try:
        words = sys.argv[1:] if argv is None else argv
        check_names(words)
        given = build_parser(words).parse_args(words)
        if argv is None:
            warnings.showwarning = _show_warning
            if given.computes:
                _use_all_cores()
        return given.handler(given)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted: the same command continues where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `jaxstab list | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"jaxstab: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"jaxstab: warning: {message}", file=sys.stderr)


def _use_all_cores() -> None:
    from jaxstab import sweeps

    sweeps.use_host_devices()


if __name__ == "__main__":
    sys.exit(main())
