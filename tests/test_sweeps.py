"""A grid of runs: right numbers on any devices, resumable, killable, and wrong input refused."""

import json
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import dispatch, sweeps, training
from jaxstab.eigen import EigenResult, Interval
from jaxstab.measurement import Measurement
from tests.sweep_script import same_records

X = jax.random.normal(jax.random.key(0), (12, 3))
DATA = X, X @ jnp.array([1.0, -1.0, 0.5])


def loss(params, example):
    return (example[0] @ params["w"] + params["parts"][0] - example[1]) ** 2


def init(key, scale):
    return {"w": scale * jax.random.normal(key, (3,)), "parts": (jnp.zeros(()),)}


def small(out=None, **changed):
    arguments = {
        "optimizer": optax.sgd, "learning_rates": [0.05, 0.1], "batch_sizes": [3, 12],
        "seeds": [0, 1], "max_steps": 40, "check_every": 10, "measure": False,
    } | changed  # fmt: skip
    grid_data = arguments.pop("data", DATA)
    return sweeps.sweep(arguments.pop("loss", loss), arguments.pop("init", init), grid_data,
                        out=out, **arguments)  # fmt: skip


@pytest.mark.parametrize("runs_per_device", [1, 3])
def test_a_sweep_is_its_runs(runs_per_device):
    result = small(runs_per_device=runs_per_device)
    assert [(r["batch_size"], r["learning_rate"], r["seed"]) for r in result.records] == [
        (b, lr, seed) for b in (3, 12) for lr in (0.05, 0.1) for seed in (0, 1)
    ]
    for record in result.records:
        init_key, batch_key = jax.random.split(jax.random.key(record["seed"]))
        run = training.train(
            loss, init(init_key, 1.0), DATA, optimizer=optax.sgd, key=batch_key, max_steps=40,
            learning_rate=record["learning_rate"], batch_size=record["batch_size"], check_every=10,
        )  # fmt: skip
        assert record["steps"] == run.steps
        assert record["status"] == run.status.name.lower()
        assert record["loss"] == pytest.approx(run.loss, rel=1e-4)
        params = result.load_params(record)
        np.testing.assert_allclose(params["w"], run.params["w"], rtol=1e-4)
        history = result.load_history(record)
        np.testing.assert_array_equal(history["steps"], run.history_steps)
        np.testing.assert_allclose(history["loss"], run.history, rtol=1e-3)


def test_measures_and_evaluates_every_run():
    evaluate = jax.tree_util.Partial(lambda x, params: {"fit": x @ params["w"]}, jnp.ones(3))
    result = small(measure=True, batch_sizes=[12], evaluate=evaluate)
    # a linear model: H = (2/n) sum of (x, 1)(x, 1)^T wherever it ends
    rows = np.concatenate([X, np.ones((12, 1))], axis=1)
    hessians = 2 * rows[:, :, None] * rows[:, None, :]
    hessian = hessians.mean(0)
    variance = (hessians @ hessians).mean(0) - hessian @ hessian
    for record in result.records:
        assert record["sharpness_converged"] and record["nonuniformity_converged"]
        assert record["sharpness"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)
        s = math.sqrt(np.linalg.eigvalsh(variance)[-1])
        assert record["nonuniformity"] == pytest.approx(s, rel=1e-3)
        assert record["sharpness_lower"] <= record["sharpness"] <= record["sharpness_upper"]
        assert record["fit"] == pytest.approx(float(result.load_params(record)["w"].sum()), 1e-4)
    names = list(result.records[0])
    assert names.index("sharpness") < names.index("nonuniformity") < names.index("fit")


def constant_measure(loss, params, data, *, key):
    value = jnp.sum(params["w"])
    result = EigenResult(value, params, value, Interval(value, value), jnp.int32(7), True)
    return Measurement(result, result, 12, value, value)


def test_diverged_runs_are_results(tmp_path):
    result = small(
        tmp_path, learning_rates=[0.1, 1e20], measure=constant_measure, batch_sizes=[3],
        evaluate=lambda params: {"count": jnp.int32(3), "norm": optax.tree.norm(params)},
    )  # fmt: skip
    fine, diverged = result.records[0], result.records[-1]
    assert fine["status"] != "diverged" and fine["sharpness_matvecs"] == 7 and fine["count"] == 3
    assert diverged["status"] == "diverged"
    assert math.isnan(diverged["sharpness"]) and math.isnan(diverged["norm"])
    assert diverged["sharpness_converged"] is False
    again = small(tmp_path, learning_rates=[0.1, 1e20], measure=constant_measure, batch_sizes=[3],
                  evaluate=lambda p: {"count": 3, "norm": 0.0})  # fmt: skip
    same_records(result.records, again.records)
    text = next((tmp_path / "runs").glob("*lr1e+20*/record.json")).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_repeated_call_only_reads(tmp_path):
    first = small(tmp_path)
    seen = []
    second = small(tmp_path, progress=lambda *arguments: seen.append(arguments))
    assert seen == [(8, 8, None)]
    assert second.records == first.records
    for record in first.records:
        a, b = first.load_params(record), second.load_params(record)
        chex.assert_trees_all_equal(a, b)


def test_an_interrupted_sweep_goes_on(tmp_path):
    def interrupt(done, total, record):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, progress=interrupt)
    assert len(list((tmp_path / "runs").glob("[!.]*"))) == 3
    seen = []
    result = small(tmp_path, progress=lambda done, *_: seen.append(done))
    assert seen == [3, 4, 5, 6, 7, 8]
    same_records(result.records, small().records)


def test_devices_go_on_while_a_run_is_stored(monkeypatch):
    seen = []
    advance = dispatch._advance_lanes

    def noted(*arguments):
        seen.append("slice")
        return advance(*arguments)

    monkeypatch.setattr(dispatch, "_advance_lanes", noted)
    small(
        batch_sizes=[12], learning_rates=[0.1], max_steps=10, loss_tolerance=None,
        devices=jax.devices()[:1], progress=lambda done, *_: seen.append(done),
    )  # fmt: skip
    assert seen == [0, "slice", "slice", 1, 2]


def test_compiles_once_per_batch_size():
    traces = []

    def counted(params, example):
        traces.append(1)
        return loss(params, example)

    small(loss=counted, learning_rates=[0.1], seeds=[0], max_steps=30)
    once = len(traces)
    small(loss=counted, learning_rates=[0.03, 0.07], seeds=[3, 4, 5], max_steps=30)
    assert len(traces) == once


def test_the_step_limit_may_depend_on_the_batch_size():
    result = small(max_steps={3: 30, 12: 10}, loss_tolerance=None, seeds=[0])
    assert {(r["batch_size"], r["steps"]) for r in result.records} == {(3, 30), (12, 10)}


DIFFERENT = {
    "learning rates": ({"learning_rates": [0.05, 0.2]}, r"learning_rates was \[0.05, 0.1\]"),
    "seeds": ({"seeds": [0]}, "seeds"),
    "step limit": ({"max_steps": 50}, "max_steps.3 was 40, now 50"),
    "tolerance": ({"loss_tolerance": 1e-3}, "loss_tolerance"),
    "data": ({"data": (X, X[:, 0])}, "data"),
    "optimizer": ({"optimizer": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True)}, "update"),
    "loss": ({"loss": lambda p, e: 2 * loss(p, e)}, "first initial loss"),
    "initialisation": ({"init": lambda key, scale: init(key, 2 * scale)}, "first initial loss"),
    "measure": ({"measure": partial(constant_measure)}, "measure"),
    "config": ({"config": {"model": "fnn"}}, "config.model was None, now 'fnn'"),
}


def test_another_sweep_is_refused(tmp_path):
    small(tmp_path, batch_sizes=[3])
    for changed, match in DIFFERENT.values():
        with pytest.raises(ValueError, match=f"different sweep.*{match}"):
            small(tmp_path, batch_sizes=[3], **changed)
    small(tmp_path, batch_sizes=[3])


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no sweep\.json"):
        small(tmp_path)


WRONG = {
    "no learning rates": ({"learning_rates": []}, ValueError, "learning_rates is empty"),
    "seeds a number": ({"seeds": 3}, TypeError, "seeds must be a list of at least one value"),
    "no seeds": ({"seeds": []}, ValueError, "seeds is empty"),
    "repeated values": ({"batch_sizes": [3, 3]}, ValueError, "batch_sizes has repeated"),
    "learning rate zero": ({"learning_rates": [0.1, 0.0]}, ValueError, "learning_rate"),
    "batch size above n": ({"batch_sizes": [3, 13]}, ValueError, "batch_size 13"),
    "seed not an integer": ({"seeds": [0.5]}, TypeError, "seed"),
    "scale": ({"init_scales": [-1.0]}, ValueError, "init_scale"),
    "tolerance": ({"loss_tolerance": 0.0}, ValueError, "loss_tolerance"),
    "no steps": ({"max_steps": 0}, ValueError, "max_steps"),
    "no step limit": ({"max_steps": {3: 10}}, TypeError, "max_steps for batch size 12"),
    "no devices": ({"devices": []}, ValueError, "devices is empty"),
    "runs per device": ({"runs_per_device": 0}, ValueError, "runs_per_device"),
    "integer parameters": ({"init": lambda key, scale: jnp.arange(3)}, TypeError, "int32"),
    "no factory": ({"optimizer": optax.sgd(0.1)}, TypeError, "optimizer"),
    "NaN in data": ({"data": (X, DATA[1].at[0].set(jnp.nan))}, ValueError, "data"),
    "loss of several numbers": ({"loss": lambda params, x: x[0]}, ValueError, "a scalar"),
    "empty data": ({"data": (X[:0], DATA[1][:0])}, ValueError, "empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_before_any_training(case, tmp_path):
    changed, error, match = WRONG[case]
    with pytest.raises(error, match=match):
        small(tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_an_error_in_init_says_what_is_wanted_of_it():
    for init in (lambda key: jnp.ones(3), lambda key, scale: {"activation": jnp.tanh}):
        with pytest.raises(TypeError) as caught:
            small(init=init)
        assert "this came from init(key, scale)" in " ".join(caught.value.__notes__)


def test_several_processes_need_a_folder(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 JAX processes share a sweep through its folder"):
        small()
    assert len(small(devices=jax.local_devices()).records) == 8
