"""Results of the runs that were made, in `benchmarks/results`, as Markdown tables.

`python -m benchmarks --saved` prints them; a test sees that docs/speed.md holds them as printed.
A report comes from `python -m benchmarks.NAME --out benchmarks/results`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from jaxstab import files

RESULTS = Path(__file__).parent / "results"
_FULL = 0.5  # of the cells of a table that has a column for each subject


def reports(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """All reports by benchmark; one that was run in parts has several."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("bench_*.json")):
        report = files.read_json(path)
        found.setdefault(report["benchmark"], []).append(report)
    return found


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a report."""
    return [Row(**{k: v for k, v in row.items() if k != "met"}) for row in report["rows"]]


def where(report: Mapping[str, Any]) -> str:
    """What a run was made on, in one line."""
    found = report["environment"]
    load = "" if found["load"] is None else f", load {found['load'][0]:.1f} before it began"
    return (
        f"{found['date'][:10]}, {found['cores']} cores of {found['cpu']}, "
        f"jax {found['versions']['jax']}{load}, {report['seconds']:.0f} s"
    )


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as a Markdown table: one way by two where what is said has two parts.

    "quantity: subject" of a row is split at its last colon; of the two the fewer head columns. An
    aim that a whole column shares stands in its head. A value that misses its aim is bold.
    """
    split = [row.what.replace("|", "\\|").rpartition(": ")[::2] for row in rows]
    first, second = (list(dict.fromkeys(part)) for part in zip(*split, strict=True))
    if min(len(first), len(second)) > 1 and len(rows) >= _FULL * len(first) * len(second):
        cells = dict(zip(split, rows, strict=True))
        if len(first) < len(second):
            first, second = second, first
            cells = {pair[::-1]: row for pair, row in cells.items()}
        aims = {s: {cells[q, s].target for q in first if (q, s) in cells} for s in second}
        shared = {s: found.pop() for s, found in aims.items() if len(found) == 1}
        head = ["", *(s + (f" ({shared[s]})" if shared.get(s) else "") for s in second)]
        body = [
            [q, *(_cell(cells[q, s], s not in shared) if (q, s) in cells else "" for s in second)]
            for q in first
        ]
    else:
        head = ["", "", "aim"]
        body = [[row.what.replace("|", "\\|"), _cell(row), row.target] for row in rows]
    rule = ["---"] * len(head)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *body)]


def _cell(row: Row, aim: bool = False) -> str:
    said = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.3g}"
    said = f"**{said}**" if row.met is False else said
    said += f" {row.unit}" if row.unit not in ("", "x") else ""
    return said + (f" ({row.target})" if aim and row.target else "")


def section(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    """One benchmark: its command, its table, and what it was made on."""
    rows = [row for report in found for row in rows_of(report)]
    sizes = {report["size"] for report in found}
    command = f"`python -m benchmarks.{name} --size {'/'.join(sorted(sizes))}`"
    made = "\n".join(f"{'and ' * (i > 0)}{where(report)}" for i, report in enumerate(found))
    return "\n".join([f"{command}:", "", *table(rows), "", f"({made})"])


SUMMARY = (  # benchmark, how the row begins, how the README says it
    ("bench_operators", "variance / the faster HVP, run: FNN",
     "seconds of a Σ-product / Hessian-vector product, FNN of 898,510 (by operations: 2)"),
    ("bench_memory", "memory of Σ, chunk_size=100 / HVP: ResNet-14",
     "memory of the same, ResNet-14"),
    ("bench_transformer", "kept for each sequence / its activations: 124,439,808 parameters, 256",
     "kept for a sequence of 256 tokens / activations, GPT-2 small"),
    ("bench_devices", "weak scaling, 8 devices / 1", "Σ-product, 8 simulated devices / 1"),
    ("bench_devices", "Σ-product, data on the disk / on the device",
     "Σ-product, data read from disk / on the device"),
    ("bench_processes", "sweep, runs per second: 2 processes of 1 device / 1 process of 1 device",
     "runs per second of a sweep, 2 processes / 1 on two cores"),
)  # fmt: skip


def summary(folder: Path = RESULTS) -> list[str]:
    """The table of the README."""
    found = {
        name: [row for report in parts for row in rows_of(report)]
        for name, parts in reports(folder).items()
    }
    lines = ["| | | aim |", "|---|---|---|"]
    for name, start, said in SUMMARY:
        row = next(row for row in found[name] if row.what.startswith(start))
        lines.append(f"| {said} | {_cell(row)} | {row.target} |")
    return lines


def page(folder: Path = RESULTS) -> str:
    """All of them, and the table of the README."""
    parts = [section(name, found) for name, found in reports(folder).items()]
    return "\n\n".join([*parts, "\n".join(summary(folder))])
