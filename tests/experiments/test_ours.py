"""Judgements of `criteria` on made-up cases."""

import numpy as np
import pandas as pd
import pytest

from jaxstab.experiments.ours import edge, judgement

THRESHOLDS = {
    "sharpest": 0.5, "eq8": 0.6, "eq9": 1.5, "eq27": 1.2, "eq17": 1.8, "edge": 2.0,
}  # fmt: skip


def cases(network):
    """Two starts, four learning rates around a threshold of 1; the network leaves as told."""
    told, seen = [], []
    for start in ("SGD-0", "GD-1"):
        for eta in (0.55, 0.9, 1.1, 2.2):
            row = {"start": start, "kind": start[:-2], "n": 100, "batch_size": 2, "multiple": eta}
            row |= {"learning_rate": eta, "threshold": 1.0, "growth": 0.5 + 0.5 * eta}
            for name, value in THRESHOLDS.items():
                row |= {f"{name}_lower": value, f"{name}_upper": value}
            row |= {"mean_square_lower": 0.7, "mean_square_upper": 1.05}
            row |= {"exponent": eta - 1.15, "exponent_margin": 0.1, "exponent_error": 0.01}
            row |= {f"{name}_products": 7 for name in judgement.CRITERIA}
            told.append(row)
            for seed in (0, 1):
                grew = eta > 1
                row = {"start": start, "batch_size": 2, "learning_rate": eta, "seed": seed}
                row |= {"rate": 0.4 if grew else -0.1, "rate_sign": 1 if grew else -1}
                row |= {"rate_error": 0.01, "rate_resolution": 0.01, "flattening": 0.0}
                row |= {"typical": "left" if eta > 1.15 else "stayed", "network": network(eta)}
                row |= {"typical_steps": 8.0 if eta > 1.15 else None, "network_steps": None}
                seen.append(row)
    return judgement.judge(pd.DataFrame(told), pd.DataFrame(seen), escape_factor=10.0)


def test_accuracies_by_question():
    rows = cases(lambda eta: "left" if eta > 2 else "burst" if eta > 1 else "stayed")
    found = judgement.accuracies(rows).set_index("name")
    right = found["grows"]
    assert right["mean_square"] == 1 and found["grows_cases"]["mean_square"] == 8  # once a cell
    assert right["sharpest"] == 0.5 and right["eq9"] == right["edge"] == 0.75
    assert found["typical_left"]["almost_sure"] == found["network_left"]["edge"] == 1
    assert found["network_left"]["mean_square"] == 0.75  # a burst that came back has not left
    # 0.9 lies inside the interval of the exact threshold, 1.1 inside that of the exponent.
    assert found["network_left_sure_cases"]["mean_square"] == 12
    assert found["network_left_sure"]["almost_sure"] == 1
    assert "network: eq. 9 (box), (27), (17), 2/η" in judgement.conclusion(rows)
    claims = {claim.name: claim for claim in judgement.claims(rows)}
    assert claims["exact-for-the-mean-square"].status == "holds"
    assert claims["better-than-the-edge"].measured == pytest.approx(-0.25)


def test_theorems_fail_where_the_mean_square_does_otherwise():
    rows = cases(lambda eta: "stayed")
    status = {claim.name: claim.status for claim in judgement.claims(rows)}
    assert status["mean-square-below"] == status["mean-square-above"] == "holds"
    rows.loc[rows["learning_rate"] < 0.7, "rate"] = 0.3
    rows.loc[rows["learning_rate"] > 2, "rate"] = -0.3
    status = {claim.name: claim.status for claim in judgement.claims(rows)}
    assert status["mean-square-below"] == status["mean-square-above"] == "does not hold"


def test_what_the_simulation_cannot_tell_is_undecided():
    rows = cases(lambda eta: "stayed")
    rows.loc[rows["learning_rate"] > 2, "rate_sign"] = 0
    rows = rows.assign(grows=(rows["rate"] > 0).where(rows["rate_sign"] != 0))
    found = judgement.accuracies(rows).set_index("name")
    assert found["grows_cases"]["mean_square"] == 6
    claims = {claim.name: claim for claim in judgement.claims(rows)}
    known = claims["exact-for-the-mean-square"]
    assert known.status == "inconclusive" and known.measured == pytest.approx(4 / 6)


def test_times_are_those_of_runs_told_to_leave():
    table = next(t for t in judgement.tables(cases(lambda eta: "left")) if t.name == "times")
    line = table.rows.iloc[0]
    assert line["runs"] == 4 and line["run"] == "linearised SGD"  # η = 2.2 alone left
    assert line["ratio"] == pytest.approx(8 / (np.log(10) / np.log(1.6)))


def test_edge_draws_the_certified_interval_averaged_over_seeds():
    rows = pd.DataFrame(
        {"batch_size": 2, "seed": seed, "step": step, "threshold_ratio": 1.0 + 0.1 * seed,
         "threshold_ratio_lower": 0.8, "threshold_ratio_upper": 1.4 + 0.2 * seed,
         "sharpness_ratio": 0.5, "exponent": -0.1}
        for seed in (0, 1) for step in (10, 100)
    )  # fmt: skip
    axes = edge.draw(rows, edge.PRESETS["tiny"], 40).axes[0]
    (bars,) = [c for c in axes.collections if hasattr(c, "get_segments")]
    expected = [[[step, 0.8], [step, 1.5]] for step in (10, 100)]
    np.testing.assert_allclose(bars.get_segments(), expected)
    alone = edge.draw(rows[["batch_size", "step", "sharpness_ratio"]], edge.PRESETS["tiny"], 40)
    assert not [c for c in alone.axes[0].collections if hasattr(c, "get_segments")]


def test_edge_names_the_quantity_nearest_to_its_edge_late_in_the_runs():
    settings = edge.PRESETS["tiny"]
    made_up = {2: (0.3, 0.97, 0.6), 8: (0.9, 0.8, 1.2)}
    rows = pd.DataFrame(
        {"batch_size": size, "seed": seed, "step": step, "loss": 1e-5, "gap_ratio": 1.0,
         "sharpness_ratio": a, "threshold_ratio": exact if late else 1.0, "batch_ratio": batch,
         "threshold_ratio_lower": 0.8, "threshold_ratio_upper": 1.2, "exponent": -0.1}
        for size, (a, exact, batch) in made_up.items() for seed in (0, 1)
        for step, late in ((10, False), (settings.max_steps, True))
    )  # fmt: skip
    lines = edge.table(rows, settings, 40).rows.set_index("batch_size")
    assert lines["nearest"].to_dict() == {2: "η / η*_var", 8: "a / (2/η)"}
