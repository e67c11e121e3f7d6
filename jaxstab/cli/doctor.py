"""`doctor`: what an issue report needs, and whether a known problem comes out right here."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxstab.cli.options import add_json, print_json

SUMMARY = (
    "print versions, devices, precision and caches for an issue report, and check a known case"
)
# Packages that results or a failure may depend on; those that are not there are left out.
PACKAGES = (
    "jaxstab", "jax", "jaxlib", "flax", "optax", "chex", "blackjax", "numpy", "scipy", "pandas",
    "scikit-learn", "orbax-checkpoint", "matplotlib", "bokeh", "rich", "tensorflow-datasets",
    "tensorflow", "tensorflow-cpu", "equinox", "dm-haiku",
)  # fmt: skip
TOLERANCE = 1e-3


def add(commands: Any, argv: Sequence[str]) -> None:
    """Adds the command."""
    del argv
    parser = commands.add_parser("doctor", help=SUMMARY, description=SUMMARY)
    add_json(parser)
    parser.set_defaults(handler=command_doctor, computes=True)


def command_doctor(given: argparse.Namespace) -> int:
    """Prints the facts; returns 1 if the known case comes out wrong."""
    facts = look()
    if given.json:
        print_json(facts)
    else:
        for title, values in facts.items():
            print(title)
            width = max(map(len, values), default=0)
            for name, value in values.items():
                print(f"  {name:<{width}}  {_show(value)}")
    return 0 if facts["known case"]["right"] else 1


def look() -> dict[str, dict[str, Any]]:
    """Returns everything that the command prints, by heading."""
    import jax

    from jaxstab import tfds
    from jaxstab.experiments.protocol import environment

    here = environment()
    names = ("python", "machine", "cpu_count", "backend", "devices", "x64")
    settings = {name: here[name] for name in names}
    settings["processes"] = jax.process_count()
    settings |= {name: os.environ[name] for name in sorted(os.environ) if _matters(name)}
    return {
        "versions": _versions(),
        "machine": settings,
        "precision": {
            "of JAX's products": _option("jax_default_matmul_precision") or "default",
            "of jaxstab's products": "highest, unless a call says otherwise",
        },
        "folders": {
            "package": _short(Path(__file__).parents[1]),
            "interpreter": _short(Path(sys.prefix)),
            "compilation cache": _short(_option("jax_compilation_cache_dir")) or "off",
            "prepared data": _short(tfds.data_folder()),
            "prepared": tfds.prepared() or "none",
        },
        "known case": _known_case(),
    }


def _known_case() -> dict[str, Any]:
    """Two parabolas of curvatures 1 and 3: a = 2, s = 1."""
    import jax
    import jax.numpy as jnp

    from jaxstab.measurement import measure

    curvatures = jnp.array([1.0, 3.0])
    found = measure(_parabola, jnp.zeros(()), curvatures, key=jax.random.key(0))
    a, s = float(found.sharpness.value), float(found.nonuniformity.value)
    right = abs(a - 2) <= TOLERANCE * 2 and abs(s - 1) <= TOLERANCE
    return {"sharpness": a, "nonuniformity": s, "expected": [2.0, 1.0], "right": right}


def _parabola(x: Any, curvature: Any) -> Any:
    return curvature * x**2 / 2


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _matters(name: str) -> bool:
    return name.startswith(("JAX_", "XLA_", "CUDA_VISIBLE")) or name == "TFDS_DATA_DIR"


def _option(name: str) -> Any:
    import jax

    return getattr(jax.config, name)


def _short(path: Any) -> str:
    """A path without the name of the user."""
    home = str(Path.home())
    text = str(path or "")
    return "~" + text[len(home) :] if home != "/" and text.startswith(home) else text


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} × {name}" for name, count in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
