"""The benchmarks run at their smallest size, and the harness measures what it says."""

import argparse
import importlib
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab as js
from benchmarks import __main__ as everything
from benchmarks import bench_memory, harness, peering, problems, saved, transformer

FOLDER = Path(harness.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
# These ask a PyTorch environment that is not part of the test environment.
WITH_PEERS = {"bench_protocol", "bench_solvers", "bench_sweep"}
LONG = {  # to start, or to compile
    "bench_accelerator", "bench_compile", "bench_operators", "bench_processes", "bench_protocol",
    "bench_patterns", "bench_scaling", "bench_solvers", "bench_threshold",
    "bench_transformer",
}  # fmt: skip


def settings(out):
    return argparse.Namespace(size="tiny", out=out, peers=None, only=None)


def fake_peer(script, problem, *, python=None, **extra):
    """What a peer would say; the problem is really exported."""
    peering.layers(problem.loss.model)
    if script == "sgd":
        return {"runs_per_second": 1.0, "processes": 2, "loss": 0.1}
    if script == "sharpness":
        found = {"seconds": 1.0, "value": 1.0, "dial": 1e-3, "relative_error": 0.0}
        return {"results": {"a library": found}}
    assert extra["v"].shape == extra["reference"].shape == (problem.size,)
    return {
        "seconds_per_example": 1.0,
        "seconds_hvp": 1.0,
        "seconds_step": 12.0,
        "examples": extra["examples"],
        "relative_difference": 0.0,
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in NAMES],
)
def test_benchmark_runs_at_tiny_size(name, tmp_path, monkeypatch):
    monkeypatch.setattr(peering, "ask", fake_peer)
    # One host device here: the number of devices of this process is chosen already.
    module = importlib.import_module(f"benchmarks.{name}")
    if hasattr(module, "use_host_devices"):
        monkeypatch.setattr(module, "use_host_devices", lambda: 1)
    rows = module.run(settings(tmp_path))
    assert rows and all(np.isfinite(row.value) and row.value > 0 for row in rows)
    harness.write_report(tmp_path / f"{name}.json", name, "tiny", rows, 1.0)
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["environment"]["versions"]["jax"] == jax.__version__
    assert report["environment"]["devices"] and report["environment"]["date"]
    assert [row["what"] for row in report["rows"]] == [row.what for row in rows]
    if name == "bench_scaling":
        assert (tmp_path / "sigma_product_cost.png").stat().st_size > 10_000


def test_benchmarks_are_found_by_name():
    assert everything.names() == NAMES and NAMES
    assert set(NAMES) >= WITH_PEERS


def test_docs_hold_the_saved_runs():
    """As `python -m benchmarks --saved` prints them, of full size, and no others."""
    root = FOLDER.parent
    pages = "\n".join(page.read_text() for page in (root / "docs").rglob("*.md"))
    found = saved.reports()
    assert set(found) <= set(NAMES) and found
    for name, parts in found.items():
        assert saved.section(name, parts) in pages, f"docs differ from benchmarks/results: {name}"
        assert {report["size"] for report in parts} == {"small"}
    assert "\n".join(saved.summary()) in (root / "README.md").read_text()


def test_saved_rows_are_a_table_of_two_ways_and_misses_are_bold():
    row = harness.Row
    rows = [row(f"{q}: {s}", 1.5, at_most=a) for q, a in (("x", 2), ("y", 1)) for s in "abc"]
    assert saved.table(rows) == [
        "|  | x (≤ 2) | y (≤ 1) |", "| --- | --- | --- |",
        "| a | 1.5 | **1.5** |", "| b | 1.5 | **1.5** |", "| c | 1.5 | **1.5** |",
    ]  # fmt: skip
    assert (
        saved.table([row("|a|", 2500.0, unit="s", at_least=1)])[2] == "| \\|a\\| | 2,500 s | ≥ 1 |"
    )


def test_warm_up_is_not_counted_and_calls_take_turns():
    ticks = itertools.count()
    seen = []
    clock = lambda: float(next(ticks))  # noqa: E731
    calls = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    timings = harness.time_in_turn(calls, rounds=3, clock=clock)
    assert seen == ["a", "b", *["a", "b"] * 3]
    assert all(timing.rounds == (1.0, 1.0, 1.0) for timing in timings.values())


def test_result_is_waited_for():
    waited = []

    class Result:
        def block_until_ready(self):
            waited.append(True)
            return self

    harness.time_in_turn({"a": Result}, rounds=2)
    assert len(waited) == 3


def test_medians_and_ratio_of_neighbours():
    a, b = harness.Timing((1.0, 100.0, 3.0)), harness.Timing((1.0, 50.0, 1.0))
    assert a.median == 3.0 and a.best == 1.0
    # The slow round is slow for both, so it does not count as a difference.
    assert harness.ratio(a, b) == 2.0
    assert a.per(2).rounds == (0.5, 50.0, 1.5)


def test_random_input_is_non_zero_of_norm_one():
    v = harness.random_like({"w": jnp.zeros((3, 4)), "b": jnp.zeros(2)})
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(v))
    assert squares == pytest.approx(1.0, rel=1e-5)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(v))


def test_run_of_products_depends_on_every_product():
    problem = problems.fnn(6, tiny=True)
    operator = js.hessian(problem.loss, problem.params, problem.data)
    v = harness.random_like(problem.params)
    expected = v
    for _ in range(3):
        expected = harness._normalise(operator(expected))
    for keep in (True, False):
        found = harness.run_of_products(operator, v, products=3, keep=keep)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_row_says_whether_the_target_is_met():
    assert harness.Row("a", 1.0, at_most=1.0).met is True
    assert harness.Row("a", 1.1, at_most=1.0).met is False
    assert harness.Row("a", 0.9, at_least=1.0).met is False
    assert harness.Row("a", 0.9).met is None
    table = harness.as_table("t", [harness.Row("a", 1.1, at_most=1.0)])
    assert table.row_count == 1


def test_memory_of_a_product_does_not_grow_with_n_and_is_seen():
    """Fails if the factored product ever holds chunk × p numbers; the vmapped one shows them."""
    problem = problems.fnn(64, tiny=True)
    wide = problems.fnn(128, tiny=True)
    used = bench_memory.memory(problem, 16)
    more = bench_memory.memory(wide, 16, ("variance",))
    explicit = 4 * 16 * problem.size
    assert used["variance by vmap"] >= explicit
    assert used["variance"] <= 3 * used["HVP"] + 8 * 4 * problem.size
    # Twice the data in the same chunks: the same memory, to the bytes of a loop counter.
    assert more["variance"] <= 1.1 * used["variance"]
    # A larger chunk takes more, so a growth would be seen.
    assert bench_memory.memory(wide, 64, ("variance",))["variance"] > 2 * used["variance"]


def test_flat_vector_has_the_layout_of_pytorch(tmp_path):
    problem = problems.vgg(2, tiny=True)
    ids = iter(range(10**6))
    count = lambda leaf: np.array([next(ids) for _ in range(leaf.size)]).reshape(leaf.shape)  # noqa: E731
    v = jax.tree.map(count, problem.params)
    flat = peering.flat_vector(problem, v)
    kernel = v["Conv_0"]["kernel"]
    assert sorted(flat) == list(range(problem.size))
    assert flat[:9].tolist() == kernel[:, :, 0, 0].ravel().tolist()
    peering.export(problem, tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as arrays:
        kinds = arrays["layers"].tolist()
        assert kinds == [*["conv", "relu", "pool"] * 2, "flatten", "dense", "relu", "dense"]
        assert arrays["kernel0"].shape == (3, 3, 3, 4)


def test_missing_peers_say_how_to_get_them(tmp_path):
    with pytest.raises(peering.NoPeersError, match="make bench-peers"):
        peering.interpreter(str(tmp_path / "python"))


def test_transformer_of_gpt2_shape_has_its_parameters():
    model = transformer.Transformer(transformer.SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(4, jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 124_439_808


def test_transformer_looks_at_no_later_token():
    problem = transformer.problem(transformer.TINY, 1, 6)
    tokens = problem.data[0][:-1]
    model = problem.loss.model
    logits = model.apply({"params": problem.params}, tokens)
    changed = model.apply({"params": problem.params}, tokens.at[-1].set((tokens[-1] + 1) % 31))
    np.testing.assert_array_equal(logits[:-1], changed[:-1])
    assert not np.allclose(logits[-1], changed[-1])
