"""The runs of a stored sweep, shared by the processes that have its folder open.

Each process drives its own devices, on one host or many, and they share nothing but the folder. A
process leases a run when a device of it is free (`jaxstab.leases`), so faster ones do more, and
what a dead one had in hand is done by others. They need not know of each other: the same call in
each, at any time, is enough, with or without `jax.distributed`. No collective operation is used,
which would tie all processes to the slowest, and to the life of each.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxstab import dispatch, files, training
from jaxstab.dispatch import Ended, Point
from jaxstab.leases import Leases
from jaxstab.store import Store

POLL_SECONDS = 0.2  # between two looks at what other processes have finished

Record = dict[str, Any]


def run(
    work: dispatch.Work,
    loops: Mapping[int, training.Loop],
    points: Sequence[Point],
    folder: Store,
    progress: Callable[[int, int, Record | None], None],
) -> list[Record]:
    """Does the runs that the folder does not hold, beside others who do so.

    Args:
      work: what all runs share.
      loops: the compiled loop of each batch size.
      points: all runs of the sweep.
      folder: where finished ones are.
      progress: told of each run once, whoever did it, and first with None.

    Returns:
      The records of all runs, those of other processes among them, in the order of `points`.
    """
    records: dict[Point, Record] = {}
    with folder.leases() as leases:
        ours = _Ours(points, records, folder, leases, progress)
        ours.find_new()
        progress(len(records), len(points), None)
        if len(records) < len(points):
            work = work.place()
        while len(records) < len(points):
            by_name = {point.identifier: point for point in points if point not in records}
            free = [by_name[name] for name in leases.available(by_name)]
            for ended in dispatch.ended_runs(work, loops, free, ours.take):
                ours.put(ended)
                ours.tell(ours.find_new())
            new = ours.find_new()
            ours.tell(new)
            if not (free or new):
                time.sleep(POLL_SECONDS)
    return [records[point] for point in points]


class _Ours:
    """The part of this process in a shared sweep; it adds to `records` what is finished."""

    def __init__(
        self,
        points: Sequence[Point],
        records: dict[Point, Record],
        folder: Store,
        leases: Leases,
        progress: Callable[[int, int, Record | None], None],
    ):
        self._points, self._records, self._progress = points, records, progress
        self._folder, self._leases = folder, leases
        self._known: set[Point] = set()  # to be in the folder, whole or damaged

    def find_new(self) -> list[Point]:
        """Reads what has come into the folder since the last call."""
        names = self._folder.names()
        new = [p for p in self._points if p not in self._known and p.identifier in names]
        return [point for point in new if self._read(point)]

    def tell(self, finished: Sequence[Point]) -> None:
        """Tells the progress of the last ones in `records`."""
        for done, point in enumerate(finished, len(self._records) - len(finished) + 1):
            self._progress(done, len(self._points), self._records[point])

    def take(self, point: Point) -> bool:
        """Leases a run for this process; False if another has it or has finished it."""
        if point in self._records:
            return False
        with files.writing(self._folder.folder):
            if not self._leases.take(point.identifier):
                return False
        if self._read(point):  # finished since we looked
            self._leases.finish(point.identifier)
            self.tell([point])
            return False
        self._folder.make_room(point.identifier, point._asdict())
        return True

    def put(self, ended: Ended) -> None:
        """Stores a run, unless another process took this one, held up, for dead and does it."""
        point, record, params, history = ended
        name = point.identifier
        try:
            if self._leases.holds(name):
                self._records[point] = self._folder.write(name, record, params, history)
        except Exception:
            if self._leases.holds(name):
                raise
        if point not in self._records:
            self._leases.give_up(name)
            return
        self._known.add(point)
        self._leases.finish(name)
        self.tell([point])

    def _read(self, point: Point) -> bool:
        """Adds the record of a run, if it is in the folder and whole."""
        self._known.add(point)
        record = self._folder.record(point.identifier, point._asdict())
        if record is not None:
            self._records[point] = record
        return record is not None
