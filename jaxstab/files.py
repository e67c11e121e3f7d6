"""Files that are whole whenever the process is killed, and JSON that gives its numbers back.

JSON has no NaN and no infinity, and readers disagree about what stands in their place. Here they
are written as the strings `nan`, `inf` and `-inf`, so that any reader can parse the file, and
`read_json` turns exactly these three back into numbers.
"""

import json
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def check_folder(path: Path | str) -> Path:
    """Returns the path of a folder that is there or can be made.

    Raises:
      ValueError: if the path, or a part of it, is a file.
    """
    path = Path(path)
    for place in (path, *path.parents):
        if place.is_dir():
            break
        if place.exists():
            raise ValueError(f"{place} is a file, where a folder is wanted: give another path")
    return path


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Writes a file so that a reader finds the old content or the new, never a part of it.

    The content goes to a temporary file in the same folder, reaches the disk, and is renamed.

    Args:
      path: where the file belongs; its folder must be there.
      content: text (written as UTF-8, its line ends untouched) or bytes.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Writes a value as strict JSON, atomically; see `to_json` for what may stand in it."""
    text = json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def read_json(path: Path | str) -> Any:
    """Reads what `write_json` wrote, NaN and infinities as numbers."""
    return from_json(json.loads(Path(path).read_text(encoding="utf-8")))


def to_json(value: Any) -> Any:
    """Returns a value in the types that strict JSON has; `from_json` is its inverse.

    Args:
      value: mappings, lists and tuples of numbers, texts, paths, booleans, None, and arrays of
        NumPy or JAX, which become nested lists.

    Raises:
      ValueError: if a text reads as one of the three numbers that JSON lacks.

    Example:
      >>> to_json({"loss": np.float32("nan"), "shape": (2, 3)})
      {'loss': 'nan', 'shape': [2, 3]}
      >>> from_json(to_json([-math.inf, 0.5]))
      [-inf, 0.5]
    """
    return _map_leaves(_mark, as_plain(value))


def from_json(value: Any) -> Any:
    """Returns a parsed JSON value with `nan`, `inf` and `-inf` as numbers."""
    return _map_leaves(lambda x: _NON_FINITE.get(x, x) if isinstance(x, str) else x, value)


def as_plain(value: Any) -> Any:
    """Returns arrays, tuples, paths and NumPy scalars as Python's own types; NaN stays a number."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    return np.asarray(value).tolist()


def _mark(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and value in _NON_FINITE:
        raise ValueError(
            f"the text {value!r} would be read back as a number: write the number itself, or "
            "another word"
        )
    return value


def _map_leaves(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_leaves(function, item) for item in value]
    return function(value)
