"""Shared fixtures: float64 that restores itself, and a guard on process-wide configuration."""

import jax
import pytest


@pytest.fixture
def x64():
    """Float64 for one test; the process-wide setting is never touched."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def configuration_unchanged():
    """No call of the library may leave the global JAX configuration changed (PEERS.md, 11)."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before
