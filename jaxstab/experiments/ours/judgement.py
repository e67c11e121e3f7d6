"""What came of the predictions of `criteria`: which were right, in tables, claims and a figure."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxstab import plots
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.statistics import bootstrap, correlation, fraction, share
from jaxstab.experiments.tables import Column, Table

# name to what a table calls it, from the most to the least cautious one
CRITERIA = {
    "sharpest": "sharpest example",
    "eq8": "eq. 8",
    "eq9": "eq. 9 (box)",
    "mean_square": "exact mean-square threshold",
    "eq27": "(27)",
    "eq17": "(17)",
    "edge": "2/η",
    "almost_sure": "almost-sure exponent",
}
QUESTIONS = {"grows": "mean square", "typical_left": "typical run", "network_left": "network"}
BY = "start"  # runs from one start are not independent
SEEN = 1e3  # growth over a run that a simulation of it cannot miss


def judge(told: pd.DataFrame, seen: pd.DataFrame, *, escape_factor: float) -> pd.DataFrame:
    """One row per case: `NAME_unstable`, whether that is `NAME_sure`, and what happened.

    A threshold says unstable above the middle of its interval, the exact one above its value.
    """
    rows = seen.merge(told, on=["start", "batch_size", "learning_rate"])
    eta = rows["learning_rate"]
    for name in CRITERIA:
        if name == "almost_sure":
            rows[f"{name}_unstable"] = rows["exponent"] > 0
            rows[f"{name}_sure"] = rows["exponent"].abs() > rows["exponent_margin"]
            continue
        lower, upper = rows[f"{name}_lower"], rows[f"{name}_upper"]
        middle = rows["threshold"] if name == "mean_square" else (lower + upper) / 2
        rows[f"{name}_unstable"] = eta > middle
        rows[f"{name}_sure"] = (eta < lower) | (eta > upper)
    factor = np.log(escape_factor)
    rows["mean_square_steps"] = factor / np.log(rows["growth"].where(rows["growth"] > 1))
    rows["almost_sure_steps"] = factor / (2 * rows["exponent"].where(rows["exponent"] > 0))
    rows["grows"] = (rows["rate"] > 0).where(rows["rate_sign"] != 0)
    rows["typical_left"] = rows["typical"] == "left"
    rows["network_left"] = rows["network"] == "left"
    return rows


def once(rows: pd.DataFrame, question: str) -> pd.DataFrame:
    """The rows that answer a question; the mean square has one for all seeds."""
    if question == "grows":
        rows = rows[rows["seed"] == 0]
    return rows[rows[question].notna()]


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per criterion: for each question, how often it is right, and that where it is sure.

    The intervals are over starts.
    """
    lines = []
    for name, label in CRITERIA.items():
        line: dict[str, Any] = {"name": name, "criterion": label}
        for question in QUESTIONS:
            here = once(rows, question)
            right = here[f"{name}_unstable"] == here[question].astype(bool)
            here = here.assign(right=right)
            sure = here[here[f"{name}_sure"]]
            line |= fraction(here, "right", by=BY).columns(question)
            line |= fraction(sure, "right", by=BY).columns(f"{question}_sure")
            line |= {f"{question}_cases": len(here), f"{question}_sure_cases": len(sure)}
        lines.append(line)
    return pd.DataFrame(lines)


def tables(rows: pd.DataFrame) -> list[Table]:
    """All tables."""
    return [table(accuracies(rows)), confusion(rows), times(rows), costs(rows)]


def best(lines: pd.DataFrame, question: str) -> str:
    """The criterion, or criteria, right most often."""
    return ", ".join(lines.loc[lines[question] == lines[question].max(), "criterion"])


def conclusion(rows: pd.DataFrame) -> str:
    """The best criterion for each question, and what the network did besides."""
    lines = accuracies(rows)
    told = [f"{label}: {best(lines, question)}" for question, label in QUESTIONS.items()]
    counts = ", ".join(f"{kind} {count}" for kind, count in rows["network"].value_counts().items())
    text = f"right most often – {'; '.join(told)}\n{len(rows)} runs of the network: {counts}"
    wrong = rows[rows["mean_square_unstable"] != rows["network_left"]]
    if len(wrong):
        ends = wrong["multiple"].min(), wrong["multiple"].max()
        back = int((wrong["network"] == "burst").sum())
        text += (
            f"\nthe exact threshold is wrong about {len(wrong)} of them, at {ends[0]:g} to "
            f"{ends[1]:g} times η*_var; {back} of these left in a burst and came back"
        )
    return text


def table(lines: pd.DataFrame) -> Table:
    """Accuracy of every criterion about every question."""
    columns = [Column("criterion")]
    for question, label in QUESTIONS.items():
        columns.append(Column(question, label, format=".3f", spread="interval"))
        columns.append(Column(f"{question}_sure", "sure", format=".3f", spread="interval"))
        columns.append(Column(f"{question}_sure_cases", "of"))
    counts = ", ".join(
        f"{int(lines[f'{question}_cases'].iloc[0])} about the {label}"
        for question, label in QUESTIONS.items()
    )
    note = f"share of right predictions, 95 % over starts; sure: outside its own interval; {counts}"
    return Table("criteria", lines, columns, title="Which criterion is right?", note=note)


def confusion(rows: pd.DataFrame) -> Table:
    """Predictions against what happened, for each criterion and question."""
    lines = []
    for (name, label), (question, word) in product(CRITERIA.items(), QUESTIONS.items()):
        here = once(rows, question)
        line: dict[str, Any] = {"criterion": label, "question": word}
        for told, happened in product((False, True), repeat=2):
            both = (here[f"{name}_unstable"] == told) & (here[question].astype(bool) == happened)
            line[f"{told}-{happened}"] = int(both.sum())
        lines.append(line)
    heads = {
        "False-False": "stable, stayed",
        "False-True": "stable, left",
        "True-False": "unstable, stayed",
        "True-True": "unstable, left",
    }
    columns = [Column("criterion"), Column("question")]
    columns += [Column(name, head) for name, head in heads.items()]
    return Table("confusion", pd.DataFrame(lines), columns, title="predicted, happened")


def times(rows: pd.DataFrame) -> Table:
    """Observed over predicted steps to leave, of runs that were told to leave and did."""
    lines = []
    for (who, label), name in product(
        (("typical", "linearised SGD"), ("network", "network")), ("mean_square", "almost_sure")
    ):
        ratio = rows[f"{who}_steps"] / rows[f"{name}_steps"].clip(lower=1)
        here = rows.assign(ratio=ratio).dropna(subset=["ratio"])
        line = {"run": label, "criterion": CRITERIA[name], "runs": len(here)}
        line |= bootstrap(here, lambda some: some["ratio"].median(), by=BY).columns("ratio")
        found = correlation(here, f"{name}_steps", f"{who}_steps", by=BY, ranks=True)
        lines.append(line | found.columns("ranks"))
    columns = [Column("run"), Column("criterion"), Column("runs"),
               Column("ratio", "observed / predicted steps", format=".2f", spread="interval"),
               Column("ranks", "rank correlation", format=".2f", spread="interval")]  # fmt: skip
    return Table("times", pd.DataFrame(lines), columns, title="time to leave, median over runs")


def costs(rows: pd.DataFrame) -> Table:
    """Products with H, Σ or 𝒦 that each criterion took at a start, for all its predictions."""
    each = rows.drop_duplicates(["start", "batch_size"])
    lines = []
    for name, how in (
        ("edge", "with H"),
        ("eq9", "with H and Σ"),
        ("sharpest", "with H, and a gradient for each output"),
        ("eq8", "with the kernel, all batch sizes; (17) and (27) come with it"),
        ("mean_square", "with the kernel, all batch sizes, eq. 8 included"),
        ("almost_sure", "with H_B, in products over all examples, for all learning rates"),
    ):
        spent = each.groupby("start")[f"{name}_products"]
        mean = (spent.sum() if name == "almost_sure" else spent.first()).mean()
        lines.append({"criterion": CRITERIA[name], "products": round(mean), "what": how})
    columns = [Column("criterion"), Column("products"), Column("what")]
    return Table("costs", pd.DataFrame(lines), columns, title="products spent at one minimum")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What is a theorem for linearised SGD, and which criterion is right."""
    theorem = partial(claim, kind="theorem")
    cells = rows[rows["seed"] == 0]
    margin = 3 * cells["rate_error"] + cells["rate_resolution"]
    below = cells["learning_rate"] < cells["mean_square_lower"]
    counted = 1 / cells["rate_resolution"]
    above = (cells["learning_rate"] > cells["mean_square_upper"]) & (
        counted * np.log(cells["growth"].clip(lower=1e-12)) > np.log(SEEN)
    )
    exact = accuracies(rows).set_index("name").loc["mean_square"]
    answers = _answers(cells[cells["mean_square_sure"]])
    return [
        theorem("mean-square-below", "E |x|² of linearised SGD does not grow below the threshold",
                f"of {below.sum()} cells below its certified lower end, those that grow",
                int((below & (cells["rate"] > margin)).sum()), "<=", 0),
        theorem("mean-square-above", "E |x|² of linearised SGD grows above the threshold",
                f"of {above.sum()} cells above its upper end where the growth of the run is over "
                f"{SEEN:g}, those that do not grow",
                int((above & ~(cells["rate"] > margin)).sum()), "<=", 0),
        claim("exact-for-the-mean-square", "the exact threshold tells whether E |x|² grows",
              f"share of right answers in the {len(answers)} cells outside its own interval; where "
              "the simulation cannot tell, either", share(answers, "right"), ">=", 0.99),
        claim("exponent-for-typical-runs", "the exponent tells what a typical linear run does",
              "accuracy outside its own interval, over starts",
              _estimate(rows, "almost_sure", "typical_left"), ">=", 0.9),
        claim("exact-for-the-network", "the exact threshold tells which runs of the network leave",
              f"accuracy outside its own interval, {exact['network_left_sure_cases']} runs",
              _estimate(rows, "mean_square", "network_left"), ">=", 0.9),
        claim("better-than-the-box", "the exact threshold is right more often than eq. 9",
              "difference of their accuracies about the network, over starts",
              _gain(rows, "mean_square", "eq9"), ">", 0),
        claim("better-than-the-edge", "the exact threshold is right more often than 2/η",
              "difference of their accuracies about the network, over starts",
              _gain(rows, "mean_square", "edge"), ">", 0),
    ]  # fmt: skip


def _answers(cells: pd.DataFrame) -> list[str]:
    """Whether the exact threshold was right about the mean square of each cell."""
    words = np.where(cells["mean_square_unstable"] == (cells["rate"] > 0), "right", "wrong")
    return list(np.where(cells["rate_sign"] == 0, "undecided", words))


def _estimate(rows: pd.DataFrame, name: str, question: str) -> Any:
    here = once(rows, question)
    here = here[here[f"{name}_sure"]]
    right = here[f"{name}_unstable"] == here[question].astype(bool)
    return fraction(here.assign(right=right), "right", by=BY)


def _gain(rows: pd.DataFrame, name: str, other: str) -> Any:
    here = once(rows, "network_left")
    right = [here[f"{one}_unstable"] == here["network_left"] for one in (name, other)]
    difference = right[0].astype(float) - right[1].astype(float)
    here = here.assign(difference=difference)
    return bootstrap(here, lambda some: some["difference"].mean(), by=BY)


def draw(rows: pd.DataFrame) -> Figure:
    """Accuracies with intervals, and what happened against η/η*_var by batch size."""
    lines = accuracies(rows)
    return plots.criteria(
        labels=list(lines["criterion"]),
        accuracies={
            label: lines[[f"{question}{end}" for end in ("", "_lower", "_upper")]].to_numpy(float)
            for question, label in QUESTIONS.items()
        },
        shares={
            "B = n (GD)" if size == here["n"].iloc[0] else f"B = {size}": {
                label: once(here, question).groupby("multiple")[question]
                .agg(lambda flags: np.mean(flags.astype(float))).to_dict()
                for question, label in QUESTIONS.items()
            }
            for size, here in rows.groupby("batch_size")
        },
    )  # fmt: skip
