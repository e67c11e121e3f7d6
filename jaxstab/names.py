"""Names that a user may mistype; without imports, so that a command line can use it at once."""

import difflib
from collections.abc import Iterable


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is known, else raises a ValueError that names the nearest known one."""
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")
