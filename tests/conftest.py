"""Shared fixtures: float64 that restores itself, and guards on what a process shares."""

import shutil
from pathlib import Path

import jax
import jax.flatten_util  # by whose full name tests call it, and which JAX loads only when asked
import pytest

MEMORY_MAPS = Path("/proc/self/maps")
COMPILED = Path(__file__).parents[1] / ".cache" / "jax"
COMPILED_LIMIT = 2**30  # bytes


def pytest_configure(config):
    """Keeps what XLA compiled on disk: for the other worker, and for the next run.

    An entry is found by the program itself with the versions and options of JAX and XLA, so what is
    read is what would be compiled. Processes that tests start (and kill) do not write to it.
    """
    worker = hasattr(config, "workerinput")
    if not worker and COMPILED.exists():
        size = sum(path.stat().st_size for path in COMPILED.iterdir())
        if size > COMPILED_LIMIT:
            shutil.rmtree(COMPILED)
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
