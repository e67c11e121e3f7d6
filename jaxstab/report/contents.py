"""What an output folder holds, read once: for the page, and for `jaxstab show`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from jaxstab import files
from jaxstab.experiments import tables


@dataclass(frozen=True)
class Contents:
    """What was run and what it found.

    Attributes:
      title: name of the experiment or of the folder.
      run: what the run says about itself: source, preset, settings, environment, ...
      claims: as claims.json has them.
      tables: rendered; see `jaxstab.experiments.tables`.
      notes: lines below the tables.
      rows: one per measured thing.
      figures: files of pictures.
      n: number of training examples where rows are minima of a sweep, to place them by.
      loss_kind: of that sweep.
    """

    title: str
    run: Mapping[str, Any]
    claims: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    figures: Sequence[Path] = ()
    n: int | None = None
    loss_kind: str = "squared"

    @property
    def headline(self) -> str:
        """What it is, on one line."""
        run = self.run
        took = f" in {run['seconds']} s" if "seconds" in run else ""
        parts = [run.get("summary", ""), f"[{run['source']}]" if "source" in run else ""]
        parts += [f"preset {run['preset']}" if "preset" in run else ""]
        parts += [f"{run['status']}{took}" if "status" in run else ""]
        return f"{self.title}: " + ", ".join(part for part in parts if part)

    @property
    def text(self) -> str:
        """Tables and notes, as the command line prints them."""
        parts = [*map(tables.to_text, self.tables), "\n".join(self.notes)]
        return "\n\n".join(part for part in parts if part)

    def to_record(self) -> dict[str, Any]:
        """Run, claims, tables (columns and cells as shown) and notes, in types that JSON knows."""
        return {
            "title": self.title,
            "run": dict(self.run),
            "claims": list(self.claims),
            "tables": list(self.tables),
            "notes": list(self.notes),
        }


def read(folder: Path | str) -> Contents:
    """Reads the output folder of a run or of a sweep.

    Raises:
      ValueError: if the folder is not there, or holds neither an experiment nor a sweep.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the output folder of a run or of a sweep")
    if (folder / "run.json").exists():
        return _experiment(folder)
    if (folder / "sweep.json").exists():
        return _sweep(folder)
    raise ValueError(
        f"{folder} holds neither an experiment (run.json) nor a sweep (sweep.json): give the "
        "folder that was its --out"
    )


def _experiment(folder: Path) -> Contents:
    run = files.read_json(folder / "run.json")
    found = _read_json(folder / "tables.json", None) or _summary(folder)
    results = folder / "results.csv"
    named = [folder / name for name in run.get("figures", [])]
    return Contents(
        title=run.get("experiment", folder.name),
        run=run,
        claims=_read_json(folder / "claims.json", []),
        tables=found["tables"],
        notes=found["notes"],
        rows=pd.read_csv(results) if results.exists() else pd.DataFrame(),
        figures=[path for path in named if path.exists()] or sorted(folder.glob("*.png")),
    )


def _sweep(folder: Path) -> Contents:
    """A sweep that was run from Python: placed here as the experiments place theirs."""
    from jaxstab import store
    from jaxstab.experiments import minima

    description = store.read_description(folder) or {}
    records = store.read_records(folder)
    n = description.get("n")
    loss_kind = description.get("config", {}).get("loss", "squared")
    title, run = f"Sweep {folder.resolve().name}", {"settings": description}
    rows = pd.DataFrame(records)
    if not n or "sharpness" not in rows:
        return Contents(title, run, rows=rows)
    rows = minima.place(records, n, loss_kind=loss_kind)
    return Contents(
        title,
        run,
        tables=[minima.table(rows, n=n).rendered()],
        notes=minima.conclusion(rows),
        rows=rows,
        n=n,
        loss_kind=loss_kind,
    )


def _summary(folder: Path) -> dict[str, Any]:
    """What an unfinished run, or a folder written before there were tables.json, has instead."""
    path = folder / "summary.txt"
    return {"tables": [], "notes": [path.read_text()] if path.exists() else []}


def _read_json(path: Path, default: Any) -> Any:
    return files.read_json(path) if path.exists() else default
