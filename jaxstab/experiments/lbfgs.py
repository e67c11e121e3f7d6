"""Minima of L-BFGS, Adam and RMSProp: how sharp, and whether GD and SGD stay (2018 paper, Fig. 9).

L-BFGS corrects every step by the curvature, so nothing keeps it from sharp minima: GD and SGD that
start there leave. For methods x <- x - eta D^-1 grad the condition is lambda_max(D^-1 H) <= 2/eta
(Wu, Ma, E 2018, section 5), with momentum 2 (1 + b1) / ((1 - b1) eta) for Adam.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxstab import dispatch, files, plots, store, tracking, training
from jaxstab.eigen import lanczos
from jaxstab.experiments import departure, departure_summary
from jaxstab.experiments.base import (
    Claim,
    Context,
    Experiment,
    Outcome,
    judge,
    mean_interval,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.departure import Start
from jaxstab.experiments.problems import Problem, load_problem
from jaxstab.experiments.settings import describe
from jaxstab.operators import hessian
from jaxstab.stability import edges

TOLERANCE = 0.05  # beyond an edge by more than this, relative, counts as outside
B1, B2, DECAY, EPS = 0.9, 0.999, 0.99, 1e-8


@dataclass(frozen=True)
class Settings:
    """Settings of `lbfgs`."""

    dataset: str = setting("digits", "data set")
    model: str = setting("fnn-small", "model")
    n_train: int = setting(500, "number of training examples n")
    starts: int = setting(4, "initialisations")
    loss_tolerance: float = setting(1e-3, "a minimum is reached below this training loss")
    max_steps: int = setting(20_000, "step limit of every optimizer that looks for a minimum")
    gd_learning_rate: float = setting(2.0, "learning rate of the GD and SGD minima")
    sgd_batch_size: int = setting(4, "batch size of the SGD minima")
    adam_learning_rate: float = setting(1e-3, "learning rate of Adam (full batch)")
    rmsprop_learning_rate: float = setting(1e-3, "learning rate of RMSProp (full batch)")
    learning_rates: tuple[float, ...] = setting(
        (0.02, 0.2, 2.0), "learning rates of GD and SGD from the L-BFGS minimum"
    )
    batch_sizes: tuple[int | str, ...] = setting(
        (4, "n"), "their batch sizes; n is the whole training set", parse_batch_size
    )
    seeds: int = setting(2, "runs of SGD for each of these")
    sgd_steps: int = setting(10_000, "steps of a run of SGD")
    gd_steps: int = setting(1000, "steps of a run of GD")
    burst_steps: int = setting(60, "first steps, whose loss is recorded one by one")
    escape_factor: float = setting(10.0, "a run has left when its loss exceeds so many times that")
    tol: float = setting(1e-3, "relative accuracy to which a and s of the minima are certified")
    max_matvecs: int = setting(1000, "products that each of these may cost")


class Method(NamedTuple):
    """An optimizer that looks for a minimum.

    `diagonal` returns D from the state, where the update is D^-1 times the gradient; `edge` is the
    largest stable eigenvalue of D^-1 H, and for methods without D that of H.
    """

    name: str
    optimizer: Any
    batch_size: int
    diagonal: Any = None
    edge: float = np.nan


def methods(settings: Settings, n: int) -> list[Method]:
    """The optimizers that are compared."""
    rate = settings.gd_learning_rate
    adam, rmsprop = settings.adam_learning_rate, settings.rmsprop_learning_rate
    return [
        Method("L-BFGS", optax.lbfgs(), n),
        Method("GD", optax.sgd(rate), n, edge=edges.gradient_descent(rate)),
        Method("SGD", optax.sgd(rate), settings.sgd_batch_size, edge=2 / rate),
        Method(
            "Adam",
            optax.adam(adam, B1, B2, EPS),
            n,
            tracking.adam_preconditioner(b2=B2, eps=EPS),
            edges.adam(adam, B1),
        ),
        Method(
            "RMSProp",
            optax.rmsprop(rmsprop, DECAY, EPS, eps_in_sqrt=False, bias_correction=True),
            n,
            tracking.rmsprop_preconditioner(decay=DECAY, eps=EPS, eps_in_sqrt=False),
            edges.gradient_descent(rmsprop),
        ),
    ]


def run(settings: Settings, context: Context) -> Outcome:
    """Finds the minima, predicts what GD and SGD do at those of L-BFGS, and runs them."""
    problem = load_problem(
        settings.dataset, settings.model, n_train=settings.n_train, data_dir=context.data_dir
    )
    n = len(problem.dataset.train[0])
    trial = departure.make_trial(settings, n)
    found, starts = find_minima(settings, problem, methods(settings, n), context)
    predictions = [p for start in starts for p in departure.predict(start, trial)]
    files.write_json(context.out / "predictions.json", predictions)  # before any of the runs
    rows: list[dict[str, Any]] = []
    for index, start in enumerate(starts):
        context.progress(2 * len(starts) + index, 3 * len(starts), f"runs from {start.name}")
        own = [p for p in predictions if p["start"] == start.name]
        rows += departure.depart(start, own, trial, context)
    followed = departure.follow_some(
        {"L-BFGS": starts[0]},
        {starts[0].name: trial},
        rows,
        context,
        near=max(trial.learning_rates),
    )
    figures = [
        context.save(draw_minima(found), "minima"),
        context.save(
            departure_summary.draw_trajectories(followed, "Leaving a minimum of L-BFGS"),
            "trajectories",
        ),
    ]
    parts = [
        describe(settings),
        table(found),
        departure_summary.table(rows),
        departure_summary.confusion(rows),
    ]
    return Outcome([*found, *rows], claims(found, rows), figures, "\n\n".join(parts))


def find_minima(
    settings: Settings, problem: Problem, all_methods: Sequence[Method], context: Context
) -> tuple[list[dict[str, Any]], list[Start]]:
    """Returns one row per minimum, and the starts: those of L-BFGS."""
    rows: list[dict[str, Any]] = []
    starts: list[Start] = []
    total = 3 * settings.starts * len(all_methods)
    for seed in seed_range(settings.starts):
        for method in all_methods:
            context.progress(2 * len(rows), total, f"{method.name}, initialisation {seed}")
            run = _train(settings, problem, method, seed, context)
            start = departure.make_start(
                f"{method.name} {seed}",
                problem.loss,
                problem.dataset.train,
                run["params"],
                evaluate=problem.evaluate,
                found={"status": run["status"], "steps": run["steps"]},
                tol=settings.tol,
                max_matvecs=settings.max_matvecs,
            )
            rows.append(
                {
                    "optimizer": method.name,
                    "seed": seed,
                    "sharpness": float(start.measurement.sharpness.value),
                    "nonuniformity": float(start.measurement.nonuniformity.value),
                    "loss": float(start.measurement.loss),
                    "edge": method.edge,
                    "preconditioned_sharpness": _preconditioned(
                        method, start, run["diagonal"], settings
                    ),
                }
                | dict(start.found)
            )
            if method.name == "L-BFGS":
                starts.append(start)
    return rows, starts


def _train(
    settings: Settings, problem: Problem, method: Method, seed: int, context: Context
) -> dict[str, Any]:
    """Trains to the tolerance, or reads what an earlier call found."""
    path = context.out / "minima" / f"{method.name}-{seed}"
    init_key, batch_key = dispatch.run_keys(seed)
    initial = problem.init(init_key, 1.0)

    def compute() -> dict[str, Any]:
        run = training.train(
            problem.loss,
            initial,
            problem.dataset.train,
            optimizer=method.optimizer,
            batch_size=method.batch_size,
            key=batch_key,
            max_steps=settings.max_steps,
            loss_tolerance=settings.loss_tolerance,
        )
        if run.status is training.Status.DIVERGED:
            raise ValueError(
                f"{method.name} diverged after {run.steps} steps: give it a smaller learning rate"
            )
        diagonal = run.params if method.diagonal is None else method.diagonal(run.opt_state)
        store.replace_params(path, {"params": run.params, "diagonal": diagonal})
        return {"status": run.status.name.lower(), "steps": run.steps}

    done = context.remember(f"{method.name}-{seed}", compute)
    return done | store.load_params(path, {"params": initial, "diagonal": initial})


def _preconditioned(method: Method, start: Start, diagonal: Any, settings: Settings) -> float:
    """lambda_max(D^-1 H) at the end of an adaptive method; NaN for others."""
    if method.diagonal is None:
        return np.nan
    operator = edges.preconditioned(hessian(start.loss, start.params, start.data), diagonal)
    solve = lanczos(tol=settings.tol, max_matvecs=settings.max_matvecs)
    return float(solve(operator, start.params, key=jax.random.key(0)).value)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line per minimum."""
    head = (
        f"{'minimum of':>12} {'seed':>4} {'status':>10} {'steps':>7} {'loss':>9} {'a':>9} {'s':>9}"
        f" {'condition':>14} {'value':>9} {'edge':>9} {'ratio':>6}"
    )
    lines = [head, "-" * len(head)]
    for row in found:
        value = _conditioned(row)
        name = "λmax(D⁻¹H)" if np.isfinite(row["preconditioned_sharpness"]) else "a"
        condition = (
            f"{name:>14} {value:>9.4g} {row['edge']:>9.4g} {value / row['edge']:>6.2f}"
            if np.isfinite(row["edge"])
            else f"{'none':>14}"
        )
        lines.append(
            f"{row['optimizer']:>12} {row['seed']:>4} {row['status']:>10} {row['steps']:>7}"
            f" {row['loss']:>9.2e} {row['sharpness']:>9.4g} {row['nonuniformity']:>9.4g}"
            f" {condition}"
        )
    return "\n".join(lines)


def _conditioned(row: Mapping[str, Any]) -> float:
    """The eigenvalue that the method's edge bounds."""
    scaled = row["preconditioned_sharpness"]
    return scaled if np.isfinite(scaled) else row["sharpness"]


@plots.styled
def draw_minima(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Sharpness and non-uniformity by optimizer, and each stability condition against its edge."""
    figure, axes = plots.new_figure(1, 2, width=5.6, height=4.2)
    plane, ratios = axes[0]
    names = list(dict.fromkeys(row["optimizer"] for row in found))
    bounded = [name for name in names if name != "L-BFGS"]
    for i, name in enumerate(names):
        here = [row for row in found if row["optimizer"] == name]
        options = {"color": plots.COLORS[i], "marker": plots.MARKERS[i]}
        plane.scatter(
            [row["sharpness"] for row in here],
            [row["nonuniformity"] for row in here],
            label=name,
            **options,
        )
        if name in bounded:
            values = [_conditioned(row) / row["edge"] for row in here]
            ratios.scatter([bounded.index(name)] * len(here), values, **options)
    ratios.axhline(1, ls="--", color="#444444", label="edge of stability")
    ratios.set_xticks(
        range(len(bounded)),
        [name + ("\nλmax(D⁻¹H)" if name in ("Adam", "RMSProp") else "\na") for name in bounded],
    )
    plots.label_axes(
        plane, plots.SHARPNESS, plots.NONUNIFORMITY, title="minima", log_x=True, log_y=True
    )
    plots.label_axes(ratios, "", "eigenvalue / edge", title="stability condition", log_y=True)
    departure_summary.plain_ticks(plane.xaxis, plane.yaxis, ratios.yaxis)
    return figure


def claims(found: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What the paper says of these minima, as it came out."""
    sharp = {(row["optimizer"], row["seed"]): row["sharpness"] for row in found}
    seeds = sorted({row["seed"] for row in found})
    logs = [np.log(sharp["L-BFGS", seed] / sharp["GD", seed]) for seed in seeds]
    sharper = mean_interval(logs)
    adaptive = [row for row in found if np.isfinite(row["preconditioned_sharpness"])]
    worst = [row["preconditioned_sharpness"] / row["edge"] for row in adaptive]
    gone = [row for row in rows if row["outcome"] == "left"]
    own = [
        Claim(
            "lbfgs-sharper",
            "L-BFGS ends at sharper minima than gradient descent",
            "observation",
            f"geometric mean of the ratio of sharpness over {len(seeds)} initialisations",
            "> 1",
            float(np.exp(sharper.value)),
            {"95% interval": [float(np.exp(sharper.lower)), float(np.exp(sharper.upper))]},
            judge(True if sharper.lower > 0 else False if sharper.upper < 0 else None),
        ),
        Claim(
            "adaptive-condition",
            "Adam and RMSProp end where lambda_max(D^-1 H) is below their edge",
            "observation",
            f"largest ratio of lambda_max(D^-1 H) to the edge over {len(worst)} minima "
            f"(up to {1 + TOLERANCE:.2f} counts)",
            "<= 1",
            float(max(worst)) if worst else np.nan,
            None,
            judge(max(worst) <= 1 + TOLERANCE if worst else None),
        ),
        Claim(
            "leave-lbfgs",
            "GD and SGD with a large learning rate leave the minimum of L-BFGS",
            "observation",
            f"runs that left, of {len(rows)}, and of those predicted unstable",
            "> 0",
            len(gone),
            {"predicted unstable": sum(row["verdict"] == "unstable" for row in rows)},
            judge(len(gone) > 0 if rows else None),
        ),
    ]
    return own + departure_summary.agreement_claims(rows)


EXPERIMENT = Experiment(
    name="lbfgs",
    source="Wu, Ma, E 2018, Fig. 9 and section 5",
    summary="minima of L-BFGS, Adam and RMSProp: GD and SGD from there; lambda_max(D^-1 H)",
    run=run,
    presets={
        "quick": Settings(),
        "paper": Settings(
            dataset="fashion_mnist",
            model="fnn",
            n_train=1000,
            loss_tolerance=1e-4,
            max_steps=400_000,
            gd_learning_rate=0.1,
            learning_rates=(0.01, 0.1, 0.5),
            sgd_steps=50_000,
            gd_steps=20_000,
        ),
    },
)
