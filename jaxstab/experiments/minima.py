"""What a sweep found, judged: on which side of each bound of eq. 9 a run ended, by what margin."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxstab import plots
from jaxstab.eigen import EigenResult, Interval
from jaxstab.measurement import Measurement
from jaxstab.stability.criteria import box, verdict

# Beyond this relative distance outside a bound, a minimum is a reason to look for an error.
SUSPICIOUS = 0.05
CONVERGED = "converged"
_MEASURED = ("sharpness", "nonuniformity")


def judge(
    record: Mapping[str, Any], n: int, *, loss_kind: str = "squared", replacement: bool = False
) -> dict[str, Any]:
    """Returns the record of a run with its bounds, margins, sides and verdict added.

    For both q = sharpness and nonuniformity: `q_bound` is the bound of eq. 9 (infinite for s at
    B = n), `q_margin` = 1 − q / bound (positive inside, as a fraction of the bound), and `q_side`
    is "inside", "outside" or "undecided", judged by the certified interval and not by the value.
    `side` sums both up; it and `verdict` are empty for a run that ended at no minimum.

    Args:
      record: of one run, as `jaxstab.sweep` returns it.
      n: number of training examples.
      loss_kind: "squared", "cross_entropy" or "kl"; see `jaxstab.verdict`.
      replacement: whether batches were drawn with replacement.
    """
    row = dict(record)
    bounds = box(row["learning_rate"], row["batch_size"], n, replacement)
    for name, bound in zip(_MEASURED, bounds):
        row |= _place(name, row, bound)
    reached = row["status"] == CONVERGED and all(_known(row, name) for name in _MEASURED)
    row |= {"side": "", "verdict": "", "reasons": ""}
    if reached:
        sides = {row[f"{name}_side"] for name in _MEASURED}
        worst = [side for side in ("outside", "undecided", "inside") if side in sides]
        found = verdict(
            _measurement(row, n),
            learning_rate=row["learning_rate"],
            batch_size=row["batch_size"],
            replacement=replacement,
            loss_kind=loss_kind,
        )
        row |= {"side": worst[0], "verdict": found.status, "reasons": "; ".join(found.reasons)}
    return row


def _known(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return value is not None and math.isfinite(value)


def _place(name: str, row: Mapping[str, Any], bound: float) -> dict[str, Any]:
    """Bound, margin and side of one quantity."""
    placed = {f"{name}_bound": bound, f"{name}_margin": math.nan, f"{name}_side": ""}
    if not _known(row, name):
        return placed
    lower, upper = row[f"{name}_lower"], row[f"{name}_upper"]
    if lower > bound:
        side = "outside"
    elif upper <= bound and row[f"{name}_converged"]:
        side = "inside"
    else:
        side = "undecided"
    return placed | {f"{name}_margin": 1 - row[name] / bound, f"{name}_side": side}


def _measurement(row: Mapping[str, Any], n: int) -> Measurement:
    """The stored numbers as a `Measurement`; vectors are not stored."""
    results = [
        EigenResult(
            value=row[name],
            vector=None,
            residual=row[f"{name}_residual"],
            interval=Interval(row[f"{name}_lower"], row[f"{name}_upper"]),
            matvecs=row[f"{name}_matvecs"],
            converged=row[f"{name}_converged"],
        )
        for name in _MEASURED
    ]
    return Measurement(results[0], results[1], n, row["loss"], row["gradient_norm"])


def reached(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs that ended at a minimum that was measured."""
    return [row for row in rows if row["side"]]


def certified(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the runs have both a and s converged to the tolerance."""
    return sum(all(row[f"{name}_converged"] for name in _MEASURED) for row in rows)


def worst_margin(row: Mapping[str, Any]) -> float:
    """The smaller of the two margins: negative outside."""
    return min(row["sharpness_margin"], row["nonuniformity_margin"])


def table(rows: Sequence[Mapping[str, Any]], *, n: int) -> str:
    """One line per run: where it ended, on which side of each bound, and by what margin."""
    head = (
        f"{'eta':>7} {'B':>5} {'scale':>5} {'seed':>4} {'status':>10} {'steps':>7} {'loss':>8}"
        f" | {'a':>8} {'bound':>7} {'margin':>7} {'side':>9}"
        f" | {'s':>8} {'bound':>7} {'margin':>7} {'side':>9} | {'verdict':>9}"
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        size = "n" if row["batch_size"] == n else row["batch_size"]
        line = (
            f"{row['learning_rate']:>7.4g} {size:>5} {row['init_scale']:>5.3g} {row['seed']:>4}"
            f" {row['status']:>10} {row['steps']:>7} {row['loss']:>8.1e}"
        )
        for name in _MEASURED:
            line += " | " + _cells(row, name)
        lines.append(f"{line} | {row['verdict'] or '–':>9}")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], name: str) -> str:
    if not _known(row, name):
        return f"{'–':>8} {row[f'{name}_bound']:>7.4g} {'–':>7} {'–':>9}"
    bound, side = row[f"{name}_bound"], row[f"{name}_side"]
    if math.isinf(bound):
        return f"{row[name]:>8.4g} {'none':>7} {'':>7} {side:>9}"
    return f"{row[name]:>8.4g} {bound:>7.4g} {row[f'{name}_margin']:>+7.1%} {side:>9}"


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many minima are inside, how accurately that is known, and every one that is not."""
    found = reached(rows)
    inside = [row for row in found if row["side"] == "inside"]
    lines = [
        f"{len(rows)} runs: {len(found)} ended at a minimum, {len(rows) - len(found)} did not; "
        f"{certified(found)} of {len(found)} have a and s certified",
    ]
    if found:
        share = len(inside) / len(found)
        lines.append(f"inside the region of eq. 9: {len(inside)} of {len(found)} ({share:.1%})")
    for row in found:
        if row["side"] == "inside":
            continue
        far = (
            "; MORE THAN 5 % OUTSIDE: look for an error" if worst_margin(row) < -SUSPICIOUS else ""
        )
        of_s = row["nonuniformity_margin"]
        lines.append(
            f"  {row['side']}: eta {row['learning_rate']:g}, B {row['batch_size']}, scale "
            f"{row['init_scale']:g}, seed {row['seed']}: margin of a "
            f"{row['sharpness_margin']:+.2%}"
            + (f", of s {of_s:+.2%}" if math.isfinite(row["nonuniformity_bound"]) else "")
            + far
        )
    return "\n".join(lines)


def diagrams(
    rows: Sequence[Mapping[str, Any]], *, n: int, title: str = ""
) -> list[tuple[float, Figure]]:
    """The (a, s) plane with the minima and the bounds, for each learning rate."""
    columns = ("sharpness", "nonuniformity", "batch_size", "init_scale")
    figures = []
    for eta in sorted({row["learning_rate"] for row in rows}):
        here = [row for row in rows if row["learning_rate"] == eta]
        found = reached(here)
        figure = plots.selection(
            **{name: [row[name] for row in found] for name in columns},
            learning_rate=eta,
            boxes={size: box(eta, size, n) for size in sorted({r["batch_size"] for r in here})},
            n=n,
            title=f"{title}, η = {eta:g}" if title else f"η = {eta:g}",
        )
        figures.append((eta, figure))
    return figures
