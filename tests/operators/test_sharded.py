"""Operators over data spread on eight devices, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sharded_script.py")
ROOT = SCRIPT.parents[2]


def on_eight_devices(what):
    flags = "--xla_force_host_platform_device_count=8"
    environment = dict(os.environ, XLA_FLAGS=flags, PYTHONPATH=str(ROOT))
    command = [sys.executable, str(SCRIPT), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr  # XLA: laid out as it cannot be moved, so copied
    return json.loads(done.stdout)


def test_products_agree_and_send_one_sum_of_p_numbers():
    """Six examples a device, in chunks of four and two: cut within a device, nothing is gathered.

    Rounding in float64: a few hundred terms, 1e-13. C_g sends its mean slope besides, twice as
    `combine` takes any weights; Σ has two sums, the mean H v and the result. Random vectors are the
    same however they are spread, and no device has more of one than a leaf.
    """
    report = on_eight_devices("products")
    p = report.pop("p")
    sums = {"H": [p], "second moment": [p], "C_g": [1, 1, p]}
    sums["variance"] = [p, p]
    for name, (error, sent) in report.items():
        assert error < 1e-13, name
        for kind, numbers in sums.items():
            if name.startswith(kind + ","):
                assert sent == [["all-reduce", count] for count in numbers], name
    assert {kind for kind, _ in report["ordered"][1]} == {"all-gather"}
    assert sum(count for _, count in report["ordered"][1]) == 8 * p
    assert report["per example"][1] == []
    for axis in ("d", "m"):
        sent = report[f"start over {axis}"][1]
        assert max(numbers for _, numbers in sent) < p, "a device has all of a vector"


@pytest.mark.slow
def test_solvers_agree_and_the_basis_is_spread_as_the_parameters_are():
    """What the script asserts of the basis, and the values: certified to 1e-3, equal far below."""
    for name, error in on_eight_devices("solvers").items():
        assert error < 1e-6, name


@pytest.mark.slow
def test_annotations_of_linen_and_nnx_are_kept():
    for name, error in on_eight_devices("annotations").items():
        assert error < 1e-13, name
