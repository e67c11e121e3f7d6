"""The status of a claim follows from the whole interval, in every relation."""

import math

import pytest

from jaxstab.experiments.claims import claim
from jaxstab.experiments.statistics import Estimate, share

ABOVE, BELOW, ACROSS = (Estimate(x, x - 0.125, x + 0.125, "how") for x in (1.25, 0.75, 1.0))
UNKNOWN = Estimate(1.2, math.nan, math.nan)


def status(measured, relation, target, **options):
    return claim("c", "a claim", "a statistic", measured, relation, target, **options).status


@pytest.mark.parametrize(
    ("measured", "relation", "target", "within", "expected"),
    [
        (ABOVE, ">", 1, 0, "holds"),
        (BELOW, ">", 1, 0, "does not hold"),
        (ACROSS, ">", 1, 0, "inconclusive"),
        (ABOVE, "<", 1, 0, "does not hold"),
        (BELOW, "<", 1, 0, "holds"),
        (ACROSS, "<", 1, 0, "inconclusive"),
        # an interval that touches the bound: part of it satisfies "<=", all of it or none "<"
        (Estimate(0.9, 0.8, 1.0), "<=", 1, 0, "holds"),
        (Estimate(0.9, 0.8, 1.0), "<", 1, 0, "inconclusive"),
        (Estimate(1.1, 1.0, 1.2), "<=", 1, 0, "inconclusive"),
        (Estimate(1.1, 1.0, 1.2), "<", 1, 0, "does not hold"),
        (Estimate(1.1, 1.0, 1.2), ">=", 1, 0, "holds"),
        (ACROSS, "=", 1, 0.2, "holds"),
        (ACROSS, "=", 1, 0.05, "inconclusive"),
        (ABOVE, "=", 1, 0.05, "does not hold"),
        (1.05, "=", 1, 0.1, "holds"),
        (1.0, "=", 1, 0, "holds"),
        (1.0 + 1e-12, "<=", 1, 1e-9, "holds"),
        (1.0 - 1e-12, ">=", 1, 1e-9, "holds"),
        (math.inf, ">", 1, 0, "holds"),
        (UNKNOWN, ">", 1, 0, "inconclusive"),
        (math.nan, ">", 1, 0, "inconclusive"),
        (ABOVE, ">", None, 0, "inconclusive"),
    ],
)
def test_status(measured, relation, target, within, expected):
    assert status(measured, relation, target, within=within) == expected


def test_an_undecided_fraction_is_an_interval():
    assert status(share(["inside"] * 3, "inside"), "=", 1) == "holds"
    assert status(share(["inside", "undecided"], "inside"), "=", 1) == "inconclusive"
    assert status(share(["inside", "undecided", "outside"], "inside"), "=", 1) == "does not hold"
    assert status(share([], "inside"), "=", 1) == "inconclusive"


def test_what_is_written_follows_from_the_arguments():
    found = claim("c", "a claim", "a statistic", ABOVE, "=", 1, within=0.5, kind="theorem")
    assert (found.predicted, found.measured, found.kind) == ("1 ± 0.5", 1.25, "theorem")
    assert found.uncertainty == {"interval": [1.125, 1.375], "how": "how"}
    assert claim("c", "s", "t", 3, "<=", 1.05).predicted == "<= 1.05"
    assert claim("c", "s", "t", 3, "=", 1).predicted == 1.0
    assert claim("c", "s", "t", 3, "=", 1).uncertainty is None
    assert claim("c", "s", "t", 3, "<=", None).predicted == "nothing"


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="unknown relation '=='"):
        status(1, "==", 1)
    with pytest.raises(ValueError, match="did you mean 'theorem'"):
        status(1, "<", 1, kind="theory")
    with pytest.raises(ValueError, match="within must not be negative"):
        status(1, "=", 1, within=-1)
