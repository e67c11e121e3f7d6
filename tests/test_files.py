"""Whole files, and JSON that any reader parses and that gives every number back."""

import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import files


def test_json_gives_every_number_back(tmp_path):
    value = {
        "loss": math.nan,
        "interval": (-math.inf, np.float32(math.inf)),
        "rows": [{"a": jnp.float32(0.1), "b": np.array([[1.0, math.nan]]), "c": True, "d": None}],
        3: Path("runs") / "a",
        "text": "η ≤ 2/a",
        "steps": np.int64(2**53 + 1),
    }
    path = tmp_path / "value.json"
    files.write_json(path, value)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON
    back = files.read_json(path)
    assert math.isnan(back["loss"]) and back["interval"] == [-math.inf, math.inf]
    (row,) = back["rows"]
    assert row["a"] == float(np.float32(0.1)) and row["c"] is True and row["d"] is None
    assert row["b"][0][0] == 1.0 and math.isnan(row["b"][0][1])
    assert back["3"] == "runs/a" and back["text"] == value["text"]
    assert back["steps"] == 2**53 + 1


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_text_that_would_come_back_as_a_number_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="read back as a number"):
        files.write_json(tmp_path / "value.json", {"name": [text]})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    files.write_json(path, [1])

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, [2])
    assert files.read_json(path) == [1] and [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    path = tmp_path / "value.txt"
    files.write_atomically(path, "old")
    seen = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(path.read_text()), sync(fd)))
    files.write_atomically(path, "new")
    assert seen == ["old"] and path.read_text() == "new"
    files.write_atomically(path, b"\x89PNG\r\n")
    assert path.read_bytes() == b"\x89PNG\r\n"


@pytest.mark.parametrize("below", [(), ("runs", "a")])
def test_a_file_in_the_place_of_a_folder_is_named(below, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file, where a folder is wanted"):
        files.check_folder(tmp_path.joinpath("file", *below))
    assert files.check_folder(tmp_path.joinpath("new", *below)).parent.name
