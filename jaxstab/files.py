"""Files that are whole whenever the process is killed, and JSON that gives its numbers back.

JSON has no NaN and no infinity, and readers disagree about what stands in their place. Here they
are written as the strings `nan`, `inf` and `-inf`, so that any reader can parse the file, and
`read_json` turns exactly these three back into numbers.
"""

import contextlib
import errno
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ROOM = "make room and repeat the call, which continues with what is finished"
_RIGHTS = "give another folder, or write access to this one"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
}
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP)
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

    Raises:
      OSError: if it cannot be written; the old content is still there.
    """
    with writing(path), _written_beside(Path(path), content) as temporary:
        temporary.replace(path)


def create_json(path: Path | str, value: Any) -> bool:
    """Writes a JSON file unless it is there; of several processes that try, one is told True."""
    path = Path(path)
    with writing(path), _written_beside(path, _as_text(value)) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links on this file system: two that start in the same instant both pass.
            if path.exists():
                return False
            temporary.replace(path)
    return True


@contextlib.contextmanager
def _written_beside(path: Path, content: str | bytes) -> Iterator[Path]:
    """A temporary file with this content, on the disk; removed afterwards if it is still there."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Says what to do where the block fails because the disk is full or the folder read-only.

    Libraries below report these as errors of many types; here all become an OSError.

    Args:
      path: what the block writes, for the message.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # tensorstore, beneath orbax, has the system's words in an error of its own
        found = [code for code in _REMEDIES if code == number or os.strerror(code) in str(error)]
        if not found:
            raise
        clear = OSError(f"cannot write {path}: {os.strerror(found[0])}: {_REMEDIES[found[0]]}")
        clear.errno = found[0]
        raise clear from error


def write_json(path: Path | str, value: Any) -> None:
    """Writes a value as strict JSON, atomically; see `to_json` for what may stand in it."""
    write_atomically(path, _as_text(value))


def read_json(path: Path | str) -> Any:
    """Reads what `write_json` wrote, NaN and infinities as numbers.

    Raises:
      ValueError: if the file is no JSON, with its name.
    """
    try:
        return from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, it is no JSON ({error}): restore it, or give another folder"
        ) from error


def _as_text(value: Any) -> str:
    return json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
