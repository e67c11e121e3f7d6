"""The experiments of the source papers, by name: `REGISTRY["selection"]`.

One package a paper, one module an experiment. The `__init__` of a package says which paper it is
(`PAPER`) and lists its experiments (`EXPERIMENTS`: name to module, place in the paper, summary);
packages are found by themselves, and a module is imported when its experiment is asked for.
"""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxstab.experiments.protocol import Experiment

_LAZY = {"Claim": "claims", "Context": "protocol", "Experiment": "protocol"}
_LAZY |= {"Outcome": "protocol", "execute": "protocol"}


class Listing(NamedTuple):
    """What `jaxstab list` shows of an experiment, known without importing it."""

    module: str
    source: str
    summary: str


class Registry(MutableMapping[str, "Experiment"]):
    """Experiments by name, each imported when it is asked for; others can be added.

    Attributes:
      listings: name to what is known before the import.
    """

    def __init__(self, listings: Mapping[str, Listing]):
        self.listings = dict(listings)
        self._loaded: dict[str, Experiment] = {}

    def __getitem__(self, name: str) -> "Experiment":
        from jaxstab.experiments.protocol import Experiment

        if name not in self._loaded:
            module, source, summary = self.listings[name]
            loaded = importlib.import_module(module)
            self._loaded[name] = Experiment(name, source, summary, loaded.run, loaded.PRESETS)
        return self._loaded[name]

    def __setitem__(self, name: str, experiment: "Experiment") -> None:
        self._loaded[name] = experiment
        self.listings[name] = Listing("", experiment.source, experiment.summary)

    def __delitem__(self, name: str) -> None:
        del self.listings[name]
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.listings)

    def __len__(self) -> int:
        return len(self.listings)


def find() -> Registry:
    """Collects the listings of all papers, in the order of their years, ours last."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    names = [name for name in found if name != "published"]  # tables, and no light import
    packages = [importlib.import_module(f"{__name__}.{name}") for name in names]
    papers = [package for package in packages if hasattr(package, "EXPERIMENTS")]
    listings = {}
    for paper in sorted(papers, key=lambda paper: _year(paper.__name__)):
        for name, (module, place, summary) in paper.EXPERIMENTS.items():
            source = f"{paper.PAPER}, {place}" if place else paper.PAPER
            path = importlib.util.resolve_name(module, paper.__name__)
            listings[name] = Listing(path, source, summary)
    return Registry(listings)


def _year(name: str) -> tuple[str, str]:
    found = re.search(r"\d{4}$", name)
    return (found[0] if found else "9999", name)


REGISTRY = find()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
