"""Chains on a potential whose law is known: what double-well and degenerate share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import Estimate
from jaxstab.landscape import Channel, compare, diagnose, langevin_chains
from jaxstab.plots import Histogram
from jaxstab.stability.criteria import variance_factor

N_EXAMPLES, BATCH_SIZE = 16, 4  # of the losses V(x) + c_i·x that SGD draws from


@dataclass(frozen=True)
class ChainSettings:
    """Chains of Langevin dynamics."""

    dimensions: tuple[int, ...] = setting((2, 3, 4, 5), "dimensions d")
    temperature: float = setting(0.5, "temperature T over the height of the barrier")
    learning_rate: float = setting(0.01, "step size η; curvatures are at most 12")
    chains: int = setting(1024, "number of chains, half of them started in each well")
    burn_in: int = setting(8000, "steps before the first that counts")
    draws: int = setting(80, "points recorded of each chain")
    thin: int = setting(100, "steps from one recorded point to the next")
    bins: int = setting(30, "bins of the histograms")
    seed: int = setting(0, "seed of all random numbers")


def simulate(settings: ChainSettings, potential: Channel, *, dynamics: str) -> dict[str, Any]:
    """Runs chains and sets them beside the exact law; numbers that JSON knows.

    Langevin, SGDL and SGD get the same total temperature T: SGDL half of it from the noise of
    batches and half from Gaussian noise, SGD all of it from batches.
    """
    share = {"Langevin": 0.0, "SGDL": 0.5, "SGD": 1.0}[dynamics]
    key = jax.random.fold_in(jax.random.key(settings.seed), potential.dimension)
    chain_key, tilt_key = jax.random.split(key)
    batches: dict[str, Any] = {"data": None, "batch_size": None}
    if share:
        factor = settings.learning_rate * variance_factor(N_EXAMPLES, BATCH_SIZE) / 2
        scale = math.sqrt(share * settings.temperature / factor)
        data = potential.tilts(N_EXAMPLES, scale=scale, key=tilt_key)
        batches = {"data": data, "batch_size": BATCH_SIZE}
    half = settings.chains // 2
    places = jnp.stack([jnp.asarray(well.position, float) for well in potential.minima])
    draws = langevin_chains(
        potential,
        jnp.repeat(places, half, axis=0),
        learning_rate=settings.learning_rate,
        temperature=(1 - share) * settings.temperature,
        draws=settings.draws,
        burn_in=settings.burn_in,
        thin=settings.thin,
        observe=_first,
        key=chain_key,
        **batches,
    )
    values = np.asarray(draws.values)
    mixing = diagnose(values, groups=np.repeat([0, 1], half))
    return _beside_law(settings, potential, values) | {
        "dimension": potential.dimension,
        "dynamics": dynamics,
        "rhat": mixing.rhat,
        "effective_sample_size": mixing.effective_sample_size,
        "groups_p_value": mixing.p_value,
        "mixed": mixing.mixed,
    }


def _first(x: jax.Array) -> jax.Array:
    return x[0]


def _beside_law(settings: ChainSettings, potential: Channel, values: np.ndarray) -> dict[str, Any]:
    """Occupancies and histogram of x₁ with errors over chains, and what both should be."""
    law = potential.marginal(temperature=settings.temperature, learning_rate=settings.learning_rate)
    wells = [well.region for well in potential.minima]
    inside = np.stack([(values > low) & (values < high) for low, high in wells], axis=-1)
    means = inside.mean(axis=1)
    expected = [float(law.probability(*region)) for region in wells]
    # nine bins of equal probability, of which the last is left out
    edges = np.interp(np.linspace(0, 1, 10)[:-1], law.cumulative, law.x)
    edges[0] = -math.inf
    binned = (values[..., None] >= edges[:-1]) & (values[..., None] < edges[1:])
    histogram = compare(binned, np.full(8, 1 / 9))
    ends = np.interp([1e-4, 1 - 1e-4], law.cumulative, law.x)
    shown = np.linspace(ends[0], ends[1], settings.bins + 1)
    counts = np.stack([np.histogram(chain, shown)[0] for chain in values]) / values.shape[1]
    ratio, error = _ratio(means)
    exact = potential.occupancy_ratio(settings.temperature)
    return {
        "narrow": means[:, 0].mean(),
        "wide": means[:, 1].mean(),
        "ratio": ratio,
        "log_error": error,
        "ratio_exact": exact,
        "step_bias": expected[1] / expected[0] / exact,
        "histogram_p_value": histogram.p_value,
        "edges": shown.tolist(),
        "histogram": counts.mean(axis=0).tolist(),
        "histogram_error": (counts.std(axis=0, ddof=1) / math.sqrt(len(counts))).tolist(),
    }


def _ratio(means: np.ndarray) -> tuple[float, float]:
    """P(wide)/P(narrow) and the standard error of its logarithm, over chains."""
    narrow, wide = means.mean(axis=0)
    if not narrow or not wide:
        return math.nan, math.nan
    each = means[:, 1] / wide - means[:, 0] / narrow  # the linear part of the logarithm
    return float(wide / narrow), float(each.std(ddof=1) / math.sqrt(len(means)))


def ratio_estimate(row: Any) -> Estimate:
    """The ratio, freed of the known bias of the step to first order; NaN for an unmixed run."""
    how = "95 %, over chains; the bias of the step is taken out to first order"
    if not row["mixed"]:
        return Estimate(math.nan, math.nan, math.nan, how)
    value = row["ratio"] / row["step_bias"]
    reach = math.exp(float(stats.norm.isf(0.025)) * row["log_error"])
    return Estimate(value, value / reach, value * reach, how)


def panel(potential: Channel, settings: ChainSettings, found: Sequence[Any]) -> Histogram:
    """The histograms of x₁ on one potential, over the density of exp(−V/T)."""
    law = potential.marginal(temperature=settings.temperature)
    return Histogram(
        f"d = {potential.dimension}",
        found[0]["edges"],
        {row["dynamics"]: np.array(row["histogram"]) for row in found},
        law.x,
        law.density,
        {row["dynamics"]: np.array(row["histogram_error"]) for row in found},
    )
