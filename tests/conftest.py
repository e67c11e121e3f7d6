"""Shared fixtures: float64 that restores itself, and guards on what a process shares."""

from pathlib import Path

import jax
import pytest

MEMORY_MAPS = Path("/proc/self/maps")


@pytest.fixture
def x64():
    """Float64 for one test; the process-wide setting is never touched."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def configuration_unchanged():
    """No call of the library may leave the global JAX configuration changed (docs/peers.md, 11)."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


@pytest.fixture(autouse=True)
def few_memory_maps():
    """XLA maps memory for every compiled function and crashes at the system's limit, 65,530."""
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
