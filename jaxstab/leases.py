"""Which process does what, agreed on through files in a folder that all of them see.

A *lease* on a name is a file `NAME.GENERATION` that only one process can have created (`O_EXCL`,
which file systems of one machine and shared ones, NFS 3 and later among them, all do). Its owner
renews it by touching it. Another process sees that it has *expired* when its owner was a process
of the same machine which is no more, or when its time stamp has not changed for `EXPIRY` seconds
of that other process's own clock: clocks of two machines are never compared. It then creates the
next generation, again exclusively: the owner of the highest one holds the lease. Nothing is
renamed or removed to take a lease over, and no generation comes twice while the work is open, so
that whoever decided on what it saw a moment ago loses to whoever was faster.

A process that was only held up (a suspended machine) finds that it has lost its lease: `holds`.
What a lease protects therefore has to be put into place atomically, and looked for once more
after a lease was got: it may have been finished, and its leases removed, in between.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

EXPIRY = 60.0  # seconds
RENEWAL = 5.0
_RELEASED = b"released"


@cache
def machine() -> str:
    """Name of this machine, as process numbers count here: host, boot and container."""
    parts = [socket.gethostname().replace("/", "_")]
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        parts += [boot.split("-")[0], str(os.stat("/proc/self/ns/pid").st_ino)]
    return "-".join(parts)


def owner() -> str:
    """Name of this process, `MACHINE.PID`."""
    return f"{machine()}.{os.getpid()}"


def is_dead(name: str) -> bool:
    """Whether a name that `owner` gave is of this machine and its process is no more."""
    place, _, pid = name.strip().rpartition(".")
    if place != machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # of another user, or a system without /proc
        return False
    return state in ("Z", "X")  # killed, and its parent has not asked yet


class Leases:
    """The leases of one folder; those taken are renewed inside a `with` block, then released.

    Args:
      folder: on a file system that all processes share; made when the first lease is taken.
      expiry: seconds without renewal after which a lease may be taken over.
      renewal: seconds between renewals.
    """

    def __init__(self, folder: Path, *, expiry: float = EXPIRY, renewal: float = RENEWAL):
        self._folder, self._expiry, self._renewal = folder, expiry, renewal
        self._held: dict[str, Path] = {}
        self._seen: dict[Path, tuple[int, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        for name in list(self._held):
            self.give_up(name)

    def take(self, name: str) -> bool:
        """Tries to take a lease; False if another process holds it, or was faster."""
        held = self._latest().get(name)
        if held is not None and not self._expired(self._path(name, held)):
            return False
        generation = 0 if held is None else held + 1
        path = self._path(name, generation)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(handle, owner().encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        # a listing can miss what is made and removed while it is read
        if self._latest().get(name, generation) > generation:
            path.unlink(missing_ok=True)
            return False
        self._held[name] = path
        return True

    def holds(self, name: str) -> bool:
        """Whether a lease is still held: it may have expired and been taken over."""
        path = self._held.get(name)
        latest = self._latest().get(name)
        return path is not None and latest is not None and path == self._path(name, latest)

    def finish(self, name: str) -> None:
        """Removes a lease, and what earlier owners left of it, after its work was put in place."""
        path = self._held.pop(name)
        for generation in range(int(path.suffix[1:]) + 1):
            self._path(name, generation).unlink(missing_ok=True)

    def give_up(self, name: str) -> None:
        """Releases a lease whose work is not done; its generation stays used."""
        path = self._held.pop(name)
        with contextlib.suppress(OSError), path.open("r+b") as file:  # at worst it will expire
            file.write(_RELEASED)
            file.truncate()

    def available(self, names: Iterable[str]) -> list[str]:
        """Returns those of the names that nobody holds, or whose lease has expired."""
        latest = self._latest()
        return [
            name
            for name in names
            if name not in latest or self._expired(self._path(name, latest[name]))
        ]

    def alive(self) -> list[str]:
        """Returns the names of all leases that have not expired, held here or elsewhere."""
        latest = self._latest()
        return sorted(set(latest) - set(self.available(set(latest) - set(self._held))))

    def discard(self, prefix: str) -> None:
        """Removes expired leases on names that begin so and that nobody will ask for again."""
        for name in self.available([name for name in self._latest() if name.startswith(prefix)]):
            self._path(name, 0).unlink(missing_ok=True)

    def _path(self, name: str, generation: int) -> Path:
        return self._folder / f"{name}.{generation}"

    def _latest(self) -> dict[str, int]:
        """The highest generation of every name. Listing asks the server, unlike `exists`."""
        latest: dict[str, int] = {}
        try:
            entries = os.listdir(self._folder)
        except FileNotFoundError:
            return latest
        for entry in entries:
            name, _, generation = entry.rpartition(".")
            if name and generation.isdigit():
                latest[name] = max(latest.get(name, 0), int(generation))
        return latest

    def _expired(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:  # to open a file asks the server, too
                content = file.read(1024)
                stamp = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False  # released this moment: the next look will tell
        if content == _RELEASED or is_dead(content.decode(errors="replace")):
            return True
        now = time.monotonic()
        last, since = self._seen.get(path, (None, now))
        if stamp != last:
            since = now
        self._seen[path] = stamp, since
        return now - since >= self._expiry

    def _renew(self) -> None:
        while not self._stop.wait(self._renewal):
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):  # lost: `holds` tells
                    os.utime(path)
