"""Finished runs of a sweep on disk: written at once, atomically, and found again.

    out/sweep.json               what the sweep is
    out/runs/<id>/record.json    configuration and metrics of one finished run
    out/runs/<id>/history.npz    steps and losses along the run
    out/runs/<id>/params/        parameters, as an orbax checkpoint

A run is written to a temporary folder beside its place and renamed into it when complete, so a
folder under its own name is always whole, whenever the process was killed.
"""

import logging
import math
import os
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstab import files

SWEEP_FILE = "sweep.json"


class Store:
    """The output folder of one sweep."""

    def __init__(self, folder: Path | str, description: Mapping[str, Any]):
        """Opens a folder for the sweep described, or a fresh one.

        Args:
          folder: the output folder; created if need be.
          description: what identifies the sweep: JSON values. Floats agree to 1e-3 relative.

        Raises:
          ValueError: if the folder holds a different sweep, with what differs, or other files
            where a sweep would be expected, or is a file.
        """
        self.folder = files.check_folder(folder)
        self.runs = self.folder / "runs"
        held = read_description(self.folder)
        if held is None:
            if self.runs.exists() and any(self.runs.iterdir()):
                raise ValueError(
                    f"{self.folder} has a folder of runs but no {SWEEP_FILE}, so it cannot be "
                    "told which sweep it is: give another output folder, or remove it"
                )
            self.runs.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / SWEEP_FILE, description)
        else:
            different = differences(held, dict(description))
            if different:
                raise ValueError(
                    f"{self.folder} holds a different sweep ({'; '.join(different)}): "
                    "give another output folder, or remove that one"
                )
            self.runs.mkdir(parents=True, exist_ok=True)
        self._remove_remains()

    def write(
        self, identifier: str, record: Mapping[str, Any], params: Any, history: Mapping[str, Any]
    ) -> None:
        """Writes one finished run; another process that was faster is left alone."""
        place = self.runs / identifier
        temporary = self.runs / f".{identifier}.{socket.gethostname()}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_params(temporary / "params", params)
        arrays: dict[str, Any] = {name: np.asarray(values) for name, values in history.items()}
        np.savez(temporary / "history.npz", **arrays)
        files.write_json(temporary / "record.json", record)
        try:
            temporary.rename(place)
        except OSError:
            if not (place / "record.json").exists():
                raise
            shutil.rmtree(temporary)

    def record(self, identifier: str) -> dict[str, Any] | None:
        """Returns the record of a finished run, or None."""
        path = self.runs / identifier / "record.json"
        return files.read_json(path) if path.exists() else None

    def _remove_remains(self) -> None:
        """Removes what killed processes of this machine left half written."""
        for path in self.runs.glob(f".*.{socket.gethostname()}.*"):
            pid = path.name.rpartition(".")[2]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)


def read_description(folder: Path | str) -> dict[str, Any] | None:
    """Returns what the sweep in a folder is, or None if it holds none."""
    path = Path(folder) / SWEEP_FILE
    return files.read_json(path) if path.exists() else None


def read_records(folder: Path | str) -> list[dict[str, Any]]:
    """Returns the records of all finished runs in a folder, by learning rate within batch size.

    Raises:
      ValueError: if the folder holds no sweep.
    """
    if read_description(folder) is None:
        raise ValueError(f"{folder} holds no sweep: {SWEEP_FILE} is missing")
    records = [files.read_json(path) for path in (Path(folder) / "runs").glob("[!.]*/record.json")]
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
      ValueError: if there is no checkpoint.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise ValueError(f"no checkpoint at {path}")
    with _checkpointer() as checkpointer:
        if like is None:
            return checkpointer.restore(path)
        # names, not positions, decide which array goes where
        template = jax.tree.map(lambda _: np.zeros(()), like)
        restored = checkpointer.restore(path, item=template)
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(restored))


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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
