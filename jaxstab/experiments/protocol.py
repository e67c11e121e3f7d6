"""What every experiment is made of: settings, a run, its outcome, and the folder that it writes.

A module of an experiment defines a frozen dataclass of settings, `run(settings, context) ->
Outcome` and `PRESETS`; the `__init__` of its paper names it. CONTRIBUTING.md shows a whole one.
"""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from jaxstab import files, plots
from jaxstab.checks import check_name
from jaxstab.experiments.claims import Claim
from jaxstab.experiments.settings import describe
from jaxstab.experiments.tables import Table, write_csv

T = TypeVar("T")


class Progress(Protocol):
    """Told how far a run is; the command line draws a bar with the time left from it."""

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Says that `done` of `total` steps are finished."""


def silent(done: int, total: int, message: str = "") -> None:
    """The progress of a run that nobody watches."""


@dataclass(frozen=True)
class Outcome:
    """What a run found; `execute` writes all of it.

    Attributes:
      rows: one row per measured thing, as results.csv.
      claims: every claim with its verdict, as claims.json.
      tables: what the command line prints, each also as tables/NAME.csv.
      figures: file name without ending to figure, as NAME.png.
      notes: lines below the tables.
    """

    rows: pd.DataFrame
    claims: Sequence[Claim]
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def text(self) -> str:
        """Tables and notes, as the command line prints them."""
        parts = [*(table.text() for table in self.tables), "\n".join(self.notes)]
        return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Context:
    """Where a run writes, whom it tells how far it is, and where prepared data lie."""

    out: Path
    progress: Progress = silent
    data_dir: Path | None = None

    def part(self, name: str, index: int, parts: int) -> "Context":
        """The context of one of several equal parts: a folder of its own, a share of the progress.

        Args:
          name: of the folder and in the progress; characters that no folder may have are replaced.
          index: which part, from 0.
          parts: how many.
        """

        def progress(done: int, total: int, message: str = "") -> None:
            self.progress(index * total + done, parts * total, f"{name} {message}".strip())

        folder = name.replace("/", "_").replace(",", "+").replace(" ", "-")
        return Context(self.out / folder, progress, self.data_dir)

    def remember(self, name: str, compute: Callable[[], T]) -> T:
        """Returns `compute()`, or what it returned when this step was finished before.

        For experiments whose steps are not runs of a sweep (a sweep stores its own). The result
        must be made of numbers, strings, lists and dicts with string keys. It is written
        atomically, so an interrupted run loses at most the step in hand; `execute` refuses a
        folder with other settings, so a stored step always belongs to the same run.
        """
        path = self.out / "steps" / f"{name}.json"
        if path.exists():
            return files.read_json(path)
        value = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, value)
        return files.read_json(path)

    def remember_all(self, steps: Mapping[str, Callable[[], T]]) -> list[T]:
        """Returns `remember(name, compute)` of every step in order, and tells the progress."""
        found = []
        for done, (name, compute) in enumerate(steps.items()):
            self.progress(done, len(steps), name)
            found.append(self.remember(name, compute))
        self.progress(len(steps), len(steps), "done")
        return found


@dataclass(frozen=True)
class Experiment:
    """An experiment by name: where it comes from and how to run it.

    Attributes:
      name: name on the command line, with hyphens.
      source: paper and figure or table.
      summary: one line for `jaxstab list`.
      run: `run(settings, context) -> Outcome`.
      presets: by name: "quick" (embedded data, minutes on a CPU), "paper" (the paper's own network
        and data) and "tiny" (seconds, for the tests: everything is run, nothing is learnt).
    """

    name: str
    source: str
    summary: str
    run: Callable[[Any, Context], Outcome]
    presets: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, preset: str = "quick", *, overrides: Mapping[str, Any] | None = None) -> Any:
        """Returns the settings of a preset with some fields replaced.

        Raises:
          ValueError: if the preset or a field is unknown; the message names the nearest one.
        """
        settings = self.presets[check_name("preset", preset, self.presets)]
        names = [f.name for f in dataclasses.fields(settings)]
        overrides = overrides or {}
        for name in overrides:
            check_name(f"setting of {self.name}", name, names)
        return dataclasses.replace(settings, **overrides)


def execute(
    experiment: Experiment,
    settings: Any,
    *,
    out: Path | str,
    preset: str = "quick",
    progress: Progress = silent,
    data_dir: Path | str | None = None,
) -> Outcome:
    """Runs an experiment and writes its folder.

    results.csv, claims.json, summary.txt (settings, tables, notes), NAME.png for every figure,
    tables/NAME.csv and tables.json for the tables and notes, run.json.

    A repeated call with the same settings continues where the last one stopped.

    Raises:
      ValueError: if `out` holds a run of another experiment or with other settings.
    """
    out = Path(out)
    plain_settings = files.as_plain(dataclasses.asdict(settings))
    description = {
        "experiment": experiment.name,
        "source": experiment.source,
        "summary": experiment.summary,
        "preset": preset,
        "settings": plain_settings,
    }
    defaults = {f.name: files.as_plain(f.default) for f in dataclasses.fields(settings)}
    fresh = _claim_folder(out, description, defaults)
    context = Context(out, progress, None if data_dir is None else Path(data_dir))
    started = time.time()
    try:
        outcome = experiment.run(settings, context)
    except Exception:
        if fresh and {path.name for path in out.iterdir()} <= {"run.json", "leases"}:
            (out / "run.json").unlink()  # so that the corrected command finds a free folder
            with contextlib.suppress(OSError):  # the processes of a job leave it themselves
                out.rmdir()
        raise
    figures = _write(out, settings, outcome)
    finished = {
        "status": "finished",
        "seconds": round(time.time() - started, 1),
        "figures": figures,
        "environment": environment(),
    }
    files.write_json(out / "run.json", description | finished)
    return outcome


def _write(out: Path, settings: Any, outcome: Outcome) -> list[str]:
    """Writes everything that was found and returns the names of the figures' files."""
    write_csv(out / "results.csv", outcome.rows)
    for table in outcome.tables:
        (out / "tables").mkdir(exist_ok=True)
        table.csv(out / "tables" / f"{table.name}.csv")
    rendered = [table.rendered() for table in outcome.tables]
    files.write_json(out / "tables.json", {"tables": rendered, "notes": list(outcome.notes)})
    files.write_json(out / "claims.json", [dataclasses.asdict(claim) for claim in outcome.claims])
    files.write_atomically(
        out / "summary.txt", f"{describe(settings)}\n\n{outcome.text.rstrip()}\n"
    )
    for name, figure in outcome.figures.items():
        files.write_atomically(out / f"{name}.png", plots.png(figure))
    return [f"{name}.png" for name in outcome.figures]


def _claim_folder(out: Path, description: dict[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Marks `out` as belonging to this run, unless it holds another one; True if it is new.

    A setting that did not exist when the folder was written had its default then.
    """
    marker = files.check_folder(out) / "run.json"
    if not marker.exists():
        with files.writing(out):
            out.mkdir(parents=True, exist_ok=True)
    if marker.exists() or not files.create_json(marker, description | {"status": "started"}):
        held = files.read_json(marker)
        theirs = {"experiment": held.get("experiment"), **defaults} | held.get("settings", {})
        ours = {"experiment": description["experiment"]} | description["settings"]
        changed = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{out} holds a different run ({key} was {theirs.get(key)!r}, now "
                f"{ours.get(key)!r}): give another --out, or remove that folder"
            )
        return False
    return True


def environment() -> dict[str, Any]:
    """Versions and devices that a result depends on."""
    import jax

    packages = ("jaxstab", "jax", "jaxlib", "flax", "optax", "numpy")
    devices = [device.device_kind for device in jax.devices()]
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
        "x64": bool(jax.config.read("jax_enable_x64")),
        "versions": {name: metadata.version(name) for name in packages},
        "finished_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
