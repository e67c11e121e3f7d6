"""What every experiment is made of: settings, a run, claims, and the folder that it writes.

An experiment module defines a frozen dataclass of settings, a function `run(settings, context) ->
Outcome`, and ends in `EXPERIMENT = Experiment(...)`; `jaxstab.experiments.REGISTRY` collects them.
The fields of the settings are what the command line lets a user override: see `jaxstab.cli`.

    @dataclass(frozen=True)
    class Settings:
        learning_rates: tuple[float, ...] = setting((0.1, 0.5), "learning rates of the grid")
        seeds: int = setting(5, "number of seeds")

    EXPERIMENT = Experiment(
        name="my-experiment", source="Author 2018, Fig. 1", summary="one line", run=run,
        presets={"quick": Settings(), "paper": Settings(seeds=50)},
    )
"""

import csv
import dataclasses
import io
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from matplotlib.figure import Figure

from jaxstab import files
from jaxstab.checks import check_at_least, check_name

KINDS = ("theorem", "observation")
STATUSES = ("holds", "does not hold", "inconclusive")
FULL_BATCH = "n"

T = TypeVar("T")


class Progress(Protocol):
    """Told how far a run is; the command line draws a bar with the time left from it."""

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Says that `done` of `total` steps are finished."""


def silent(done: int, total: int, message: str = "") -> None:
    """The progress of a run that nobody watches."""


@dataclass(frozen=True)
class Claim:
    """One claim of a paper beside what was measured, reported as it came out.

    A theorem must hold, and a test asserts it; an observation may fail on small data.

    Attributes:
      name: short identifier, unique within an experiment.
      statement: the claim in one sentence.
      kind: "theorem" or "observation".
      statistic: what was computed, in words, with its unit.
      predicted: predicted value or bound (number, or text such as "<= 1").
      measured: measured value.
      uncertainty: its uncertainty, over seeds unless the statistic says otherwise; None if exact.
      status: "holds", "does not hold" or "inconclusive".
    """

    name: str
    statement: str
    kind: Literal["theorem", "observation"]
    statistic: str
    predicted: Any
    measured: Any
    uncertainty: Any
    status: Literal["holds", "does not hold", "inconclusive"]

    def __post_init__(self):
        check_name("kind of claim", self.kind, KINDS)
        check_name("status of a claim", self.status, STATUSES)


def judge(holds: Any) -> Literal["holds", "does not hold", "inconclusive"]:
    """Returns the status of a claim from True, False or None (cannot be told)."""
    if holds is None:
        return "inconclusive"
    return "holds" if bool(holds) else "does not hold"


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
      rows: one dict per measured thing; written as results.csv.
      claims: every claim with its verdict; written as claims.json.
      figures: the PNG files, as `Context.save` returned them.
      text: the table and remarks that the command line prints at the end.
    """

    rows: Sequence[Mapping[str, Any]]
    claims: Sequence[Claim]
    figures: Sequence[Path] = ()
    text: str = ""


@dataclass(frozen=True)
class Context:
    """Where a run writes, whom it tells how far it is, and where prepared data lie."""

    out: Path
    progress: Progress = silent
    data_dir: Path | None = None

    def save(self, figure: Figure, name: str) -> Path:
        """Writes a figure to `out/name.png` and returns the path."""
        path = self.out / f"{name}.png"
        figure.savefig(path, dpi=150)
        return path

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


@dataclass(frozen=True)
class Experiment:
    """An experiment by name: where it comes from and how to run it.

    Attributes:
      name: name on the command line, with hyphens.
      source: paper and figure or table.
      summary: one line for `jaxstab list`.
      run: `run(settings, context) -> Outcome`.
      presets: "quick" (embedded data, minutes on a CPU) and "paper" to settings.
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


def setting(default: Any, text: str, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of a settings dataclass: default, help text, and how the command line reads it.

    Without `parse` the reader follows from the annotation: int, float, str, bool, `X | None`, or
    `tuple[X, ...]` of these, which takes any number of values.
    """
    return field(default=default, metadata={"help": text, "parse": parse})


def parse_batch_size(text: str) -> int | str:
    """Reads a batch size: a number, or `n` for the whole data set (gradient descent)."""
    return FULL_BATCH if text == FULL_BATCH else int(text)


def batch_sizes_for(batch_sizes: Sequence[int | str], n: int) -> tuple[int, ...]:
    """Replaces "n" by the number of examples."""
    return tuple(n if size == FULL_BATCH else int(size) for size in batch_sizes)


def seed_range(seeds: int) -> tuple[int, ...]:
    """The seeds 0 … seeds − 1."""
    return tuple(range(check_at_least("seeds", seeds, 1)))


def execute(
    experiment: Experiment,
    settings: Any,
    *,
    out: Path | str,
    preset: str = "quick",
    progress: Progress = silent,
    data_dir: Path | str | None = None,
) -> Outcome:
    """Runs an experiment and writes its folder: results.csv, claims.json, run.json, figures.

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
    fresh = _claim_folder(out, description)
    context = Context(out, progress, None if data_dir is None else Path(data_dir))
    started = time.time()
    try:
        outcome = experiment.run(settings, context)
    except Exception:
        if fresh and [path.name for path in out.iterdir()] == ["run.json"]:
            (out / "run.json").unlink()  # so that the corrected command finds a free folder
            out.rmdir()
        raise
    write_rows(out / "results.csv", outcome.rows)
    claims = [dataclasses.asdict(claim) for claim in outcome.claims]
    files.write_json(out / "claims.json", claims)
    files.write_atomically(out / "summary.txt", outcome.text.rstrip() + "\n")
    finished = {
        "status": "finished",
        "seconds": round(time.time() - started, 1),
        "figures": [path.name for path in outcome.figures],
        "environment": environment(),
    }
    files.write_json(out / "run.json", description | finished)
    return outcome


def _claim_folder(out: Path, description: dict[str, Any]) -> bool:
    """Marks `out` as belonging to this run, unless it holds another one; True if it is new."""
    marker = out / "run.json"
    if marker.exists():
        held = files.read_json(marker)
        theirs = {"experiment": held.get("experiment")} | held.get("settings", {})
        ours = {"experiment": description["experiment"]} | description["settings"]
        changed = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{out} holds a different run ({key} was {theirs.get(key)!r}, now "
                f"{ours.get(key)!r}): give another --out, or remove that folder"
            )
        return False
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(marker, description | {"status": "started"})
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


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV; the columns are the union of the keys, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(files.as_plain(row) for row in rows)
    files.write_atomically(path, text.getvalue())
