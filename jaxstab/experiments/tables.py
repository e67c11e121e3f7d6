"""Tables: columns are declared once and written to the terminal, as CSV and as HTML.

table = Table("minima", rows, [Column("learning_rate", "η", "step size"), Column("steps")])
print(table.text()); table.csv(path); page = to_html(table.rendered())
"""

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from jaxstab import files

MISSING = "–"
WIDTH = 220  # of text that goes to a file; a line that is longer is folded
GOOD, BAD = ("holds", "inside", "stable"), ("does not hold", "outside", "unstable")
_PARTS = {"": ("",), "std": ("", "_std"), "interval": ("", "_lower", "_upper")}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
      name: of the column of the rows.
      header: as shown; the name by default.
      unit: as shown.
      format: format specification of floats, or a function from a value to text.
      spread: "std" shows `name` ± `name_std`, "interval" shows `name` [`name_lower`, `name_upper`].
      infinite: what infinity means here.
      status: the values are words such as "holds" or "outside", shown in colour.
    """

    name: str
    header: str = ""
    unit: str = ""
    format: str | Callable[[Any], str] = ".4g"
    spread: Literal["", "std", "interval"] = ""
    infinite: str = "∞"
    status: bool = False

    @property
    def title(self) -> str:
        """The header, or the name in words."""
        return self.header or self.name.replace("_", " ")

    def show(self, row: Mapping[str, Any]) -> str:
        """The cell of one row."""
        parts = [row.get(self.name + part) for part in _PARTS[self.spread]]
        if _is_missing(parts[0]):
            return MISSING
        if self.spread == "std":
            return f"{self._number(parts[0])} ± {_number(parts[1], '.2g', self.infinite)}"
        if self.spread == "interval":
            return "{} [{}, {}]".format(*map(self._number, parts))
        return self._number(parts[0])

    def _number(self, value: Any) -> str:
        return _number(value, self.format, self.infinite)


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float | np.floating) and math.isnan(value)
    return value is None or value is pd.NA or is_nan or (isinstance(value, str) and value == "")


def _number(value: Any, form: str | Callable[[Any], str], infinite: str) -> str:
    if _is_missing(value):
        return MISSING
    if callable(form):
        return form(value)
    if isinstance(value, float | np.floating):
        if math.isinf(value):
            return infinite if value > 0 else f"-{infinite}"
        return format(float(value), form)
    return str(value)


def batch_size(n: int | None = None) -> Column:
    """The column of batch sizes, with "n" for the whole data set."""
    return Column("batch_size", "B", format=lambda size: "n" if size == n else f"{size:g}")


LEARNING_RATE = Column("learning_rate", "η", "step size")
SEED = Column("seed")
STEPS = Column("steps")
LOSS = Column("loss", format=".1e")
SHARPNESS = Column("sharpness", "a", "1/step size")
NONUNIFORMITY = Column("nonuniformity", "s", "1/step size")
MEAN_SHARPNESS = Column("sharpness", "a (mean ± std)", "1/step size", spread="std")
MEAN_NONUNIFORMITY = Column("nonuniformity", "s (mean ± std)", "1/step size", spread="std")


@dataclass(frozen=True)
class Table:
    """Rows under declared columns.

    Attributes:
      name: of the file; unique within an experiment.
      rows: one row per line.
      columns: what is shown, in order.
      title: above the table.
      note: below it.
    """

    name: str
    rows: pd.DataFrame
    columns: Sequence[Column]
    title: str = ""
    note: str = ""

    def csv(self, path: Path) -> None:
        """Writes the numbers as they are, with everything a cell is made of."""
        names = [
            column.name + part
            for column in self.columns
            for part in _PARTS[column.spread]
            if column.name + part in self.rows
        ]
        write_csv(path, self.rows[names])

    def rendered(self) -> dict[str, Any]:
        """The table as text cells, in types that JSON knows; `to_text` and `to_html` take it."""
        rows = self.rows.to_dict("records")
        return {
            "name": self.name,
            "title": self.title,
            "headers": [column.title for column in self.columns],
            "units": [column.unit for column in self.columns],
            "status": [column.status for column in self.columns],
            "words": [_is_words(self.rows, column) for column in self.columns],
            "cells": [[column.show(row) for column in self.columns] for row in rows],
            "note": self.note,
        }

    def text(self, *, width: int = WIDTH) -> str:
        """The table for a terminal or a text file."""
        return to_text(self.rendered(), width=width)


def _is_words(rows: pd.DataFrame, column: Column) -> bool:
    return not any(
        isinstance(value, int | float | np.number) for value in rows.get(column.name, ())
    )


def to_text(rendered: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """A rendered table as text."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for header, words in zip(rendered["headers"], rendered["words"], strict=True):
        table.add_column(header, justify="left" if words else "right", overflow="fold")
    for cells in rendered["cells"]:
        table.add_row(*cells)
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    body = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
    return "\n".join([*_present(rendered["title"]), *body, *_present(_legend(rendered))])


def to_html(rendered: Mapping[str, Any]) -> str:
    """A rendered table as an HTML fragment; words in status columns get the class good or bad."""
    titles = zip(rendered["headers"], rendered["units"], strict=True)
    heads = [f"{_text(h)}<br>[{_text(u)}]" if u else _text(h) for h, u in titles]
    lines = []
    for cells in rendered["cells"]:
        kinds = zip(cells, rendered["words"], rendered["status"], strict=True)
        lines.append("".join(_cell(cell, words, status) for cell, words, status in kinds))
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    parts = [f"<p>{_text(part)}</p>\n" for part in (rendered["title"], rendered["note"])]
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    table = f'<div class="wide"><table>{inner}</table></div>\n'
    return (parts[0] if rendered["title"] else "") + table + (parts[1] if rendered["note"] else "")


def _cell(cell: str, words: bool, status: bool) -> str:
    kind = "good" if status and cell in GOOD else "bad" if status and cell in BAD else ""
    return f'<td class="{kind or ("text" if words else "")}">{_text(cell)}</td>'


def _text(value: Any) -> str:
    return html.escape(str(value))


def _legend(rendered: Mapping[str, Any]) -> str:
    """Units of the columns, and the note."""
    by_unit: dict[str, list[str]] = {}
    for header, unit in zip(rendered["headers"], rendered["units"], strict=True):
        if unit:
            by_unit.setdefault(unit, []).append(header)
    units = "; ".join(
        f"{', '.join(dict.fromkeys(headers))} in {unit}" for unit, headers in by_unit.items()
    )
    return "\n".join(_present(units) + _present(rendered["note"]))


def _present(text: str) -> list[str]:
    return [text] if text else []


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    """Writes rows as CSV, atomically; missing values are empty, infinity is inf, NaN nan."""
    files.write_atomically(path, rows.to_csv(index=False, na_rep="nan", lineterminator="\n"))
