"""Pages that are written from the code and from saved runs, so that they cannot go stale.

API reference, command line, one page per experiment of the registry, and copies of the notebooks.
`make docs` writes them; none is in the repository.
"""

import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import shutil
import types
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
SAVED = ROOT / "docs" / "experiments"
# Modules of the reference, in the order of the data flow; None for one section.
API = {
    "data and losses": ("data", "losses", "sampling", "models"),
    "operators": ("operators", "precision"),
    "eigenvalues": ("eigen",),
    "measurement": ("measurement", "tracking"),
    "stability": (
        "stability", "stability.exact", "stability.boundary", "stability.linearized",
        "stability.diffusion", "stability.edges", "stability.escape", "stability.two_wells",
    ),
    "transforms and training": ("transforms", "training", "sweeps", "store", "snapshots"),
    "landscape": ("landscape",),
    "figures and reports": ("plots", "report"),
    "experiments": (
        "experiments.protocol", "experiments.settings", "experiments.claims",
        "experiments.statistics", "experiments.tables", "experiments.problems", "experiments.grid",
        "experiments.minima",
    ),
}  # fmt: skip
# Links as they hold in the repository, and what they are on the site.
LINKS = (
    (r"\]\(((?:\.\./)*)\.\./notebooks/", r"](\1notebooks/"),
    (r"\]\(((?:\.\./)?experiments/[\w-]+)/\)", r"](\1.md)"),
    (r"\]\(((?:\.\./)?(?:experiments|api))\.txt\)", r"](\1/index.md)"),
    (r"\]\(((?:\.\./)?command-line)\.txt\)", r"](\1.md)"),
    (r"\]\(((?:\.\./)*)\.\./CONTRIBUTING\.md\)", r"](\1contributing.md)"),
)
FILES = ("run.json", "claims.json", "tables.json")
LONGEST = 60  # rows of a table that are shown


def write(docs: pathlib.Path) -> None:
    """Writes everything below `docs`."""
    for name in ("api", "notebooks"):
        shutil.rmtree(docs / name, ignore_errors=True)
        (docs / name).mkdir()
    for title, text in _api():
        (docs / "api" / f"{title.replace(' ', '-')}.md").write_text(text)
    (docs / "command-line.md").write_text(_command_line())
    (docs / "contributing.md").write_text(_elsewhere("CONTRIBUTING.md"))
    (docs / "changelog.md").write_text(_elsewhere("CHANGELOG.md"))
    for name, text in _experiments():
        (docs / "experiments" / f"{name}.md").write_text(text)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(path, docs / "notebooks" / path.name)


def site_links(text: str) -> str:
    """A page whose links into the repository lead to pages of the site."""
    for pattern, page in LINKS:
        text = re.sub(pattern, page, text)
    return text


def _elsewhere(name: str) -> str:
    """A page of the root, whose links into docs/ are links beside it now."""
    return (ROOT / name).read_text().replace("](docs/", "](")


# API reference


def _api() -> Iterator[tuple[str, str]]:
    seen: set[int] = set()
    toc = "\n".join(title.replace(" ", "-") for title in API)
    for title, modules in API.items():
        sections = [_module(f"jaxstab.{name}", seen) for name in modules]
        yield title, f"# {title.capitalize()}\n\n" + "\n".join(sections)
    yield "index", (
        "# API reference\n\n" + (ROOT / "docs" / "api.txt").read_text()
        + f"\n```{{toctree}}\n:hidden:\n{toc}\n```\n"
    )  # fmt: skip


def _module(name: str, seen: set[int]) -> str:
    module = importlib.import_module(name)
    lines = [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:", ""]
    for public, thing in _members(module):
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {name}.{public}", "   :members:", ""]
        else:
            lines += [f".. autofunction:: {name}.{public}", ""]
    return "\n".join([*lines, "```", ""])


def _members(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes: those of `__all__`, or those that are made there."""
    listed = getattr(module, "__all__", None)
    for name in listed or vars(module):
        thing = getattr(module, name)
        here = getattr(thing, "__module__", None) == module.__name__
        if name.startswith("_") or not (listed or here) or isinstance(thing, types.ModuleType):
            continue
        if inspect.isclass(thing) or (callable(thing) and inspect.getdoc(thing)):
            yield name, thing


# Command line


def _command_line() -> str:
    from jaxstab import cli

    parser = cli.build_parser(["run", "selection"])
    commands = next(a for a in parser._actions if hasattr(a, "choices") and a.choices)
    text = (ROOT / "docs" / "command-line.txt").read_text()
    parts = [text, "## All options\n", _console("jaxstab --help", parser.format_help())]
    for name, command in commands.choices.items():
        if name == "sweep":
            given = cli.build_parser(["sweep"])
            action = next(a for a in given._actions if hasattr(a, "choices") and a.choices)
            command = action.choices["sweep"]
        parts += [
            f"### jaxstab {name}\n",
            _console(f"jaxstab {name} --help", command.format_help()),
        ]
        if name == "run":
            inner = next(a for a in command._actions if hasattr(a, "choices") and a.choices)
            shown = inner.choices["selection"].format_help()
            parts.append(_console("jaxstab run selection --help", shown))
    return "\n".join(parts)


def _console(command: str, text: str) -> str:
    return f"```console\n$ {command}\n{text.rstrip()}\n```\n"


# Experiments


def saved(folder: pathlib.Path = SAVED) -> dict[str, pathlib.Path]:
    """Folders with the output of a run, by experiment."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/run.json"))}


def disagreements(folder: pathlib.Path = SAVED) -> list[str]:
    """What the registry and the saved outputs do not agree on, one line each."""
    from jaxstab import files
    from jaxstab.experiments import REGISTRY

    found = []
    for name, path in saved(folder).items():
        if name not in REGISTRY.listings:
            found.append(f"{name}: saved, but no experiment: remove docs/experiments/{name}")
            continue
        missing = [file for file in FILES if not (path / file).exists()]
        run = files.read_json(path / "run.json")
        missing += [figure for figure in run["figures"] if not (path / figure).exists()]
        if missing:
            found.append(f"{name}: without {', '.join(missing)}: make gallery NAME={name}")
        settings = files.as_plain(dataclasses.asdict(REGISTRY[name].settings(run["preset"])))
        now, then = files.to_json(settings), files.to_json(run["settings"])
        changed = sorted(key for key in {*now, *then} if now.get(key) != then.get(key))
        if changed:
            found.append(
                f"{name}: {', '.join(changed)} of the preset {run['preset']} changed since the "
                f"saved run: make gallery NAME={name}"
            )
    return found


def _experiments() -> Iterator[tuple[str, str]]:
    from jaxstab.experiments import REGISTRY

    have = saved()
    for name, listing in REGISTRY.listings.items():
        yield name, _experiment(name, listing, have.get(name))
    yield "index", _overview(have, REGISTRY.listings)


def _overview(have: dict[str, pathlib.Path], listings: Any) -> str:
    text = (ROOT / "docs" / "experiments.txt").read_text()
    lines = ["| name | source | in a line | claims of the saved run |", "|---|---|---|---|"]
    for name, listing in listings.items():
        claims = "not saved yet"
        if name in have:
            found = json.loads((have[name] / "claims.json").read_text())
            hold = sum(claim["status"] == "holds" for claim in found)
            claims = f"{hold} of {len(found)} hold"
        summary = listing.summary.replace("|", "\\|")
        lines.append(f"| [{name}]({name}.md) | {listing.source} | {summary} | {claims} |")
    toc = "\n".join(listings)
    return f"{text}\n" + "\n".join(lines) + f"\n\n```{{toctree}}\n:hidden:\n{toc}\n```\n"


def _experiment(name: str, listing: Any, folder: pathlib.Path | None) -> str:
    from jaxstab import files
    from jaxstab.experiments import tables

    summary = listing.summary[0].upper() + listing.summary[1:]
    parts = [f"# {name}\n", f"{summary} ({listing.source}).\n"]
    parts += [f"```console\n$ jaxstab run {name}\n```\n", f"{_module_doc(listing.module)}\n"]
    if folder is None:
        parts.append("No output of this experiment is saved with the documentation yet.\n")
        return "\n".join(parts)
    run = files.read_json(folder / "run.json")
    where = run["environment"]
    versions = where["versions"]
    parts.append(
        f"What follows is the output of one run of the preset `{run['preset']}`, as it came out "
        f"(jaxstab {versions['jaxstab']}, JAX {versions['jax']}, {where['backend']}).\n"
    )
    for figure in run["figures"]:
        parts.append(f"![{pathlib.Path(figure).stem} of {name}]({name}/{figure})\n")
    claims = files.read_json(folder / "claims.json")
    if claims:
        parts.append("## Claims\n")
        parts.append(_html(_claims(claims)))
    found = files.read_json(folder / "tables.json")
    if found["tables"] or found["notes"]:
        parts.append("## Tables\n")
    for table in found["tables"]:
        cells = table["cells"]
        cut = {**table, "cells": cells[:LONGEST]}
        if len(cells) > LONGEST:
            cut["note"] = f"{table['note']} The first {LONGEST} of {len(cells)} rows.".strip()
        parts.append(_html(tables.to_html(cut)))
    if found["notes"]:
        parts.append("```text\n" + "\n".join(found["notes"]) + "\n```\n")
    settings = [f"| `{key}` | {_short(value)} |" for key, value in run["settings"].items()]
    parts += ["## Settings\n", "| setting | value |\n|---|---|\n" + "\n".join(settings) + "\n"]
    return "\n".join(parts)


def _module_doc(module: str) -> str:
    """What the module of an experiment says about itself after its first line."""
    doc = inspect.getdoc(importlib.import_module(module)) or ""
    rest = doc.partition("\n")[2].strip()
    return f"```text\n{rest}\n```\n" if rest else ""


def _claims(claims: list[dict[str, Any]]) -> str:
    import pandas as pd

    from jaxstab import report
    from jaxstab.experiments.tables import Column, Table, to_html

    rows = pd.DataFrame(
        {
            "status": [claim["status"] for claim in claims],
            "statement": [claim["statement"] for claim in claims],
            "measured": [report.show_claim(claim) for claim in claims],
        }
    )
    columns = [Column("status", status=True), Column("statement"), Column("measured")]
    return to_html(Table("claims", rows, columns).rendered())


def _html(text: str) -> str:
    return f"````{{raw}} html\n{text}\n````\n"


def _short(value: Any) -> str:
    from jaxstab import report

    text = report.show(value).replace("|", "\\|")
    return text if len(text) < 200 else text[:200] + " …"
