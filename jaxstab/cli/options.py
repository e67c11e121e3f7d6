"""Options: settings dataclasses as options, and readers whose errors say what is accepted."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

SETTING = "setting "
JSON_HELP = "print JSON; nan, inf and -inf are strings"


def _datasets() -> Iterable[str]:
    from jaxstab import data

    return data.NAMES


def _models() -> Iterable[str]:
    from jaxstab import models

    return models.MODELS


def _losses() -> Iterable[str]:
    from jaxstab.stability.criteria import LOSS_KINDS

    return LOSS_KINDS


# What a shell may complete, by the name of the option.
_KNOWN = {"dataset": _datasets, "model": _models, "loss": _losses}


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def print_json(value: Any) -> None:
    """Prints a value as strict JSON; see `jaxstab.files.to_json`."""
    import json

    from jaxstab import files

    print(json.dumps(files.to_json(value), indent=1, ensure_ascii=False, allow_nan=False))


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds what names stored parameters and the problem that they belong to."""
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a run of a sweep, or its params")
    complete(add("--dataset", required=True, help="data set"), _datasets)
    complete(add("--model", required=True, help="model"), _models)
    loss = add("--loss", default="squared", help="squared (default), cross_entropy or kl")
    complete(loss, _losses)
    add("--classes", nargs="+", default=[], help="classes of the data set; all by default")
    add("--n-train", type=worded(int), metavar="N", default=1000, help="training examples (1000)")
    add("--data-dir", type=Path, help="folder of prepared TFDS data")


def add_settings(
    parser: argparse.ArgumentParser, settings: Any, *, required: Sequence[str] = ()
) -> None:
    """Adds one option per field of a settings dataclass; an absent option leaves no trace.

    `learning_rates: tuple[float, ...]` becomes `--learning-rates X [X ...]`, also spelled
    `--learning-rate`; how a word is read follows from the annotation, or from `setting(parse=...)`.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        option = "--" + field.name.replace("_", "-")
        default = getattr(settings, field.name)
        text = str(field.metadata.get("help", field.name))
        if field.name not in required:
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (quick: {shown})" if shown not in ("", None) else ""
        common: dict[str, Any] = {
            "dest": SETTING + field.name,  # apart from the options that all commands share
            "default": argparse.SUPPRESS,
            "required": field.name in required,
            "help": text.replace("%", "%%"),
        }
        if hints[field.name] is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, **common)
            continue
        parse, several = field.metadata.get("parse"), isinstance(default, tuple)
        if parse is None:
            parse, several = reader(hints[field.name])
        if several:
            singular = re.sub(r"(?<=ss)es$|(?<!s)s$", "", option)
            names = (option,) if singular == option else (option, singular)
            metavar = singular.lstrip("-").replace("-", "_").upper()
            common |= {"nargs": "+", "metavar": metavar}
        else:
            names = (option,)
            common |= {"metavar": "N" if parse is int else "X" if parse is float else "NAME"}
        added = parser.add_argument(*names, type=worded(parse), **common)
        if field.name in _KNOWN:
            complete(added, _KNOWN[field.name])


def complete(action: argparse.Action, known: Callable[[], Iterable[str]]) -> None:
    """Lets a shell complete the words of an option."""
    action.completer = lambda **_: sorted(known())  # type: ignore[attr-defined]


def worded(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader whose errors say what is accepted; argparse would name the function."""

    def parse(word: str) -> Any:
        try:
            return read(word)
        except ValueError as error:
            wanted = {int: "a whole number", float: "a number"}.get(read)  # type: ignore[call-overload]
            text = f"{word!r} is not {wanted}" if wanted else str(error)
            raise argparse.ArgumentTypeError(text) from None

    return parse


def folder(word: str) -> Path:
    """Reads the name of an output folder."""
    from jaxstab.files import check_folder

    if not word:
        raise argparse.ArgumentTypeError("is empty: give the name of a folder")
    try:
        return check_folder(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def reader(annotation: Any) -> tuple[Callable[[str], Any], bool]:
    """How to read one word of a setting with this annotation, and whether it takes several.

    Raises:
      TypeError: if the annotation is not int, float, str, `X | None` or `tuple[X, ...]` of these.
    """
    if annotation in (int, float, str, Path):
        return annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return reader(arguments[0])[0], True
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1:
            return reader(inner[0])
    raise TypeError(f"no way to read {annotation} from the command line: give `parse` to setting()")
