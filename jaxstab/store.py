"""Finished runs of a sweep on disk: written at once, atomically, and found again.

    out/sweep.json                what the sweep is
    out/runs/<id>/record.json     configuration and metrics of one finished run
    out/runs/<id>/history.npz     steps and losses along the run
    out/runs/<id>/params/         parameters, as an orbax checkpoint
    out/runs/<id>/SHA256SUMS      checksums of all these
    out/leases/                   which process is at which run (`jaxstab.leases`)
    out/damaged/<id>              a run that was found damaged, moved here and computed again

A run is written to a temporary folder beside its place and renamed into it when complete, so a
folder under its own name is whole, whenever the process was killed, until something else damages
it; its checksums tell. Several processes may have the folder open and write to it.
"""

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstab import checksums, files
from jaxstab.leases import Leases, is_dead, machine, owner

SWEEP_FILE = "sweep.json"
_RUN_WANTED = "give the folder of one run, such as .../runs/B4-lr1.0-scale1.0-seed0, or its params"
FORMAT = 1  # of the folder; another one is another sweep
_RECORD, _HISTORY, _PARAMS = "record.json", "history.npz", "params"


class Store:
    """The output folder of one sweep."""

    def __init__(self, folder: Path | str, description: Mapping[str, Any]):
        """Opens a folder for the sweep described, or a fresh one.

        Args:
          folder: the output folder; created if need be.
          description: what identifies the sweep: JSON values. Floats agree to 1e-3 relative.

        Raises:
          ValueError: if the folder holds a different sweep, with what differs, or other files
            where a sweep would be expected, or is a file, or its description is damaged.
          OSError: if the folder cannot be made.
        """
        self.folder = files.check_folder(folder)
        self.runs = self.folder / "runs"
        wanted = {"format": FORMAT, **description}
        held = read_description(self.folder)
        if held is None:
            if self.runs.exists() and any(self.runs.iterdir()):
                raise ValueError(
                    f"{self.folder} has a folder of runs but no {SWEEP_FILE}, so it cannot be "
                    "told which sweep it is: give another output folder, or remove it"
                )
            with files.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            created = files.create_json(self.folder / SWEEP_FILE, wanted)
            held = wanted if created else read_description(self.folder)
        different = differences(held, wanted)
        if different:
            raise ValueError(
                f"{self.folder} holds a different sweep ({'; '.join(different)}): "
                "give another output folder, or remove that one"
            )
        with files.writing(self.folder):
            self.runs.mkdir(parents=True, exist_ok=True)
        for path in self.runs.glob(f".*.{machine()}.*"):  # what killed processes left half written
            if is_dead(f"{machine()}{path.suffix}"):
                shutil.rmtree(path, ignore_errors=True)

    def leases(self) -> Leases:
        """Leases on runs: who holds one may compute the run and write it."""
        return Leases(self.folder / "leases")

    def names(self) -> set[str]:
        """Identifiers of all runs in the folder, whole or not."""
        return {name for name in os.listdir(self.runs) if not name.startswith(".")}

    def record(
        self, identifier: str, expected: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Returns the record of a finished run, or None if there is none or it is damaged.

        Args:
          identifier: of the run.
          expected: entries that the record must have, so that no run passes for another one.

        Cost: all files of the run are read, for their checksums.
        """
        place = self.runs / identifier
        if not os.path.lexists(place) or _damage(place, expected):
            return None
        return files.read_json(place / _RECORD)

    def make_room(self, identifier: str, expected: Mapping[str, Any] | None = None) -> None:
        """Sets a damaged run aside, with a warning, and removes what another process began.

        For the holder of the run's lease.
        """
        for path in self.runs.glob(f".{identifier}.*"):
            shutil.rmtree(path, ignore_errors=True)
        place = self.runs / identifier
        damage = _damage(place, expected) if os.path.lexists(place) else None
        if damage is None:
            return
        aside = self.folder / "damaged" / identifier
        for count in range(2, 1000):
            if not os.path.lexists(aside):
                break
            aside = aside.with_name(f"{identifier}.{count}")
        with files.writing(aside):
            aside.parent.mkdir(exist_ok=True)
            place.rename(aside)
        warnings.warn(
            f"{place} is damaged ({damage}): it is set aside as {aside} and computed again",
            stacklevel=2,
        )

    def write(
        self,
        identifier: str,
        record: Mapping[str, Any],
        params: Any,
        history: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Writes one finished run and returns its record as it is read back.

        If a process that took this one for dead was faster, its run stays, and is returned.

        Raises:
          OSError: if it cannot be written; what was there before is untouched.
        """
        place = self.runs / identifier
        temporary = self.runs / f".{identifier}.{owner()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with files.writing(place):
                temporary.mkdir()
                save_params(temporary / _PARAMS, params)
                arrays: dict[str, Any] = {name: np.asarray(x) for name, x in history.items()}
                np.savez(temporary / _HISTORY, **arrays)
                files.write_json(temporary / _RECORD, record)
                checksums.seal(temporary)
            try:
                temporary.rename(place)
            except OSError:
                if _damage(place, None):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return files.read_json(place / _RECORD)


def _damage(place: Path, expected: Mapping[str, Any] | None) -> str | None:
    """Returns what is wrong with the folder of a run, or None."""
    found = checksums.find_damage(place)
    if found:
        return found
    if not ((place / _RECORD).is_file() and (place / _HISTORY).is_file()):
        return f"{_RECORD} or {_HISTORY} is missing"
    record = files.read_json(place / _RECORD)
    wrong = [name for name, value in (expected or {}).items() if record.get(name) != value]
    return f"its record is of another run: {wrong[0]} {record.get(wrong[0])!r}" if wrong else None


def read_description(folder: Path | str) -> dict[str, Any] | None:
    """Returns what the sweep in a folder is, or None if it holds none."""
    path = Path(folder) / SWEEP_FILE
    return files.read_json(path) if path.exists() else None


def read_records(folder: Path | str) -> list[dict[str, Any]]:
    """Returns the records of all finished runs in a folder, by learning rate within batch size.

    Raises:
      ValueError: if the folder holds no sweep, or a record in it is damaged.
    """
    if read_description(folder) is None:
        raise ValueError(f"{folder} holds no sweep: {SWEEP_FILE} is missing")
    records = []
    for place in (Path(folder) / "runs").glob("[!.]*"):
        _check_whole(place, only=_RECORD)
        records.append(files.read_json(place / _RECORD))
    names = ("batch_size", "learning_rate", "init_scale", "seed")
    return sorted(records, key=lambda record: tuple(record[name] for name in names))


def read_minima(folder: Path | str) -> tuple[int, list[dict[str, Any]]]:
    """Returns n and the records of the measured minima of a sweep, or of an experiment's sweep.

    Args:
      folder: of a sweep, or of an experiment that holds one in its folder `sweep`.

    Raises:
      ValueError: if there is no sweep in the folder, or it measured no minima.
    """
    folder = Path(folder)
    if not (folder / SWEEP_FILE).exists() and (folder / "sweep").is_dir():
        folder = folder / "sweep"
    records = read_records(folder)
    found = [row for row in records if row["status"] == "converged" and "sharpness" in row]
    if not found:
        raise ValueError(f"{folder} holds no measured minima: run its sweep with measurement")
    return int((read_description(folder) or {}).get("n", 0)), found


def save_params(path: Path, params: Any) -> None:
    """Writes parameters as an orbax checkpoint, by this process alone."""
    with _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), jax.tree.map(np.asarray, params))


def replace_params(path: Path, params: Any) -> None:
    """Writes parameters where there may be some already."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_params(path, params)


def load_params(path: Path | str, like: Any = None) -> Any:
    """Reads the parameters of a finished run.

    Args:
      path: the folder of the checkpoint, `out/runs/<id>/params`.
      like: pytree of the same structure (its leaves are ignored); without it dicts and lists come
        back as such, and other containers as dicts.

    Raises:
      ValueError: if there is no checkpoint, or it is damaged.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise ValueError(f"no checkpoint at {path}: {_RUN_WANTED}")
    if (path.parent / checksums.SEAL).exists():
        _check_whole(path.parent)
    template = None if like is None else jax.tree.map(lambda _: np.zeros(()), like)
    with _checkpointer() as checkpointer:
        try:
            # names, not positions, decide which array goes where
            restored = checkpointer.restore(path, item=template)
        except Exception as error:  # orbax and tensorstore have many types for it
            raise ValueError(
                f"{path} cannot be read as a checkpoint ({error}): {_RUN_WANTED}"
            ) from error
    if like is None:
        return restored
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(restored))


def load_history(folder: Path | str) -> dict[str, np.ndarray]:
    """Reads the arrays along a finished run, `out/runs/<id>`.

    Raises:
      ValueError: if the run is damaged.
    """
    _check_whole(Path(folder), only=_HISTORY)
    with np.load(Path(folder) / _HISTORY) as file:
        return dict(file)


def _check_whole(place: Path, *, only: str | None = None) -> None:
    damage = checksums.find_damage(place, only=only)
    if damage:
        raise ValueError(
            f"{place} is damaged ({damage}): the same sweep, called again, sets it aside and "
            "computes it again"
        )


def differences(held: Any, wanted: Any) -> list[str]:
    """Returns one line for each entry of two descriptions that differs."""
    return _differences(files.to_json(held), files.to_json(wanted), "")


def _differences(held: Any, wanted: Any, name: str) -> list[str]:
    if isinstance(held, dict) and isinstance(wanted, dict):
        lines = []
        for key in [*held, *(key for key in wanted if key not in held)]:
            inner = f"{name}.{key}" if name else key
            lines += _differences(held.get(key), wanted.get(key), inner)
        return lines
    numbers = isinstance(held, float) and isinstance(wanted, float)
    # the same sum in another order, on another device: far below what a change of sweep does
    same = math.isclose(held, wanted, rel_tol=1e-3) if numbers else held == wanted
    return [] if same else [f"{name} was {held!r}, now {wanted!r}"]


@contextmanager
def _checkpointer() -> Iterator[Any]:
    """An orbax checkpointer for one process, that keeps its reports off the terminal."""
    import orbax.checkpoint as ocp  # costs a second to import: only who writes pays

    process = jax.process_index()
    # by default every process of a job would wait for all others at each file
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process-{process}",
    )
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                yield checkpointer
    finally:
        logger.setLevel(level)
