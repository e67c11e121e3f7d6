"""A folder sealed with the checksums of its files, so that damage is told from contents.

The seal is a file `SHA256SUMS` in the format of coreutils: `sha256sum -c SHA256SUMS` checks it too.
"""

import hashlib
import re
from pathlib import Path

from jaxstab import files

SEAL = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def seal(folder: Path) -> None:
    """Writes the checksums of all files below a folder into it."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in sorted(_names(folder) - {SEAL})]
    files.write_atomically(folder / SEAL, "".join(lines))


def find_damage(folder: Path, *, only: str | None = None) -> str | None:
    """Returns what is wrong with a sealed folder, or None if it is whole.

    Files that were put beside the sealed ones are no damage; in a folder of sealed ones they are.

    Args:
      folder: that `seal` sealed.
      only: name of one file, to check that one alone.

    Raises:
      OSError: if a file is there and cannot be read; that is no damage.
    """
    if not folder.is_dir():
        return "it is no folder"
    try:
        lines = (folder / SEAL).read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        return f"{SEAL} is missing or not text"
    matches = [_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    if not sums or not all(matches):
        return f"{SEAL} is cut off or garbled"
    if only is not None:
        if only not in sums:
            return f"{only} is not in {SEAL}"
        sums = {only: sums[only]}
    held = _names(folder)
    for name in sums:
        if name not in held:
            return f"{name} is missing"
    unknown = [name for name in sorted(held - set(sums)) if "/" in name and only is None]
    if unknown:
        return f"{unknown[0]} is not in {SEAL}"
    wrong = [name for name, expected in sums.items() if _digest(folder / name) != expected]
    return f"the contents of {wrong[0]} differ from {SEAL}" if wrong else None


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
