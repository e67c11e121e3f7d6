"""Finished runs on disk: whole or named, set aside and computed again, whoever wrote them."""

import contextlib
import errno
import math
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from jaxstab import dispatch, files, leases, store, sweeps

DATA = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
RUN = "B2-lr0.1-scale1.0-seed1"
SEEDS = (0, 1, 2)


def loss(params, x):
    return (params["w"][0] - x) ** 2


def init(key, scale):
    return {"w": scale * jax.random.normal(key, (2,))}


def sweep(out, **changed):
    arguments = {"learning_rates": [0.1], "batch_sizes": [2], "seeds": SEEDS} | changed
    return sweeps.sweep(
        loss, init, DATA, optimizer=optax.sgd, max_steps=4, measure=False, out=out, **arguments
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of three runs; tests damage copies of it."""
    out = tmp_path_factory.mktemp("store") / "sweep"
    sweep(out)
    return out


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy, and the runs that are computed from now on, by a driver that trains nothing."""
    out = tmp_path / "sweep"
    shutil.copytree(finished, out)
    computed = []

    def ended_runs(work, loops, points, take):
        for point in filter(take, points):
            computed.append(point.identifier)
            params = {"w": np.full(2, point.seed, np.float32)}
            history = {"steps": np.arange(2), "loss": np.ones(2)}
            yield dispatch.Ended(point, point._asdict() | {"status": "new"}, params, history)

    monkeypatch.setattr(dispatch, "ended_runs", ended_runs)
    return out, computed


def largest(run):
    return max((run / "params").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def be_a_link(run):
    shutil.rmtree(run)
    run.symlink_to("nowhere")


def be_another(run):
    shutil.rmtree(run)
    shutil.copytree(run.with_name(RUN.replace("seed1", "seed2")), run)


DAMAGE = {
    "record cut": (lambda run: cut(run / "record.json"), "record.json differ"),
    "record empty": (lambda run: (run / "record.json").write_text(""), "record.json differ"),
    "record missing": (lambda run: (run / "record.json").unlink(), "record.json is missing"),
    "record no JSON": (lambda run: (run / "record.json").write_text("{"), "record.json differ"),
    "record no text": (lambda run: (run / "record.json").write_bytes(b"\xff"), "json differ"),
    "record a list": (lambda run: (run / "record.json").write_text("[]"), "record.json differ"),
    "record edited": (lambda run: replace(run / "record.json", "steps", "step"), "json differ"),
    "record a folder": (
        lambda run: ((run / "record.json").unlink(), (run / "record.json").mkdir()),
        "record.json is missing",
    ),
    "record of another run": (be_another, "its record is of another run: seed 2"),
    "history cut": (lambda run: cut(run / "history.npz"), "history.npz differ"),
    "history empty": (lambda run: (run / "history.npz").write_text(""), "history.npz differ"),
    "history missing": (lambda run: (run / "history.npz").unlink(), "history.npz is missing"),
    "history flipped": (lambda run: flip(run / "history.npz"), "history.npz differ"),
    "no parameters": (lambda run: shutil.rmtree(run / "params"), "params/.* is missing"),
    "parameters empty": (
        lambda run: (shutil.rmtree(run / "params"), (run / "params").mkdir()),
        "params/.* is missing",
    ),
    "parameters cut": (lambda run: cut(largest(run)), "params/.* differ"),
    "parameters emptied": (lambda run: largest(run).write_text(""), "params/.* differ"),
    "parameters flipped": (lambda run: flip(largest(run)), "params/.* differ"),
    "a file of the parameters missing": (lambda run: largest(run).unlink(), "params/.* is missing"),
    "a file more in the parameters": (
        lambda run: (run / "params" / "more").write_text(""),
        "params/more is not in SHA256SUMS",
    ),
    "parameters a file": (
        lambda run: (shutil.rmtree(run / "params"), (run / "params").write_text("")),
        "params/.* is missing",
    ),
    "no checksums": (lambda run: (run / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    "checksums empty": (lambda run: (run / "SHA256SUMS").write_text(""), "cut off or garbled"),
    "checksums cut": (lambda run: cut(run / "SHA256SUMS"), "garbled|not in SHA256SUMS|is missing"),
    "checksums binary": (lambda run: (run / "SHA256SUMS").write_bytes(b"\xff"), "or not text"),
    "one checksum less": (
        lambda run: replace(run / "SHA256SUMS", "record.json", "another.json"),
        "another.json is missing",
    ),
    "folder empty": (lambda run: (shutil.rmtree(run), run.mkdir()), "SHA256SUMS is missing"),
    "folder a file": (lambda run: (shutil.rmtree(run), run.write_text("")), "is no folder"),
    "folder a broken link": (be_a_link, "is no folder"),
}


def contents(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_named_set_aside_and_computed_again(case, copy):
    damage, message = DAMAGE[case]
    out, computed = copy
    run = out / "runs" / RUN
    damage(run)
    others = {path: contents(path) for path in (out / "runs").iterdir() if path != run}
    was = sorted(run.rglob("*"))
    with pytest.warns(
        UserWarning, match=rf"{RUN} is damaged \(.*(?:{message}).*set aside as"
    ) as seen:
        result = sweep(out)
    assert len(seen) == 1 and computed == [RUN]
    assert [record["seed"] for record in result.records] == list(SEEDS)
    assert [record["status"] == "new" for record in result.records] == [False, True, False]
    assert result.load_params(result.records[1])["w"].tolist() == [1.0, 1.0]
    assert {path: contents(path) for path in others} == others
    aside = out / "damaged" / RUN
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == [
        path.relative_to(run) for path in was
    ]
    assert not list((out / "leases").iterdir())
    assert [record["status"] for record in sweep(out).records][1] == "new"  # and now only reads
    assert computed == [RUN]


def test_damaged_twice_is_kept_twice(copy):
    out, computed = copy
    for _ in range(2):
        cut(out / "runs" / RUN / "record.json")
        with pytest.warns(UserWarning, match="is damaged"):
            sweep(out)
    assert sorted(os.listdir(out / "damaged")) == [RUN, f"{RUN}.2"] and computed == [RUN, RUN]


def test_a_note_beside_the_files_of_a_run_is_no_damage(copy):
    out, computed = copy
    (out / "runs" / RUN / "notes.txt").write_text("the one of Figure 3")
    sweep(out)
    assert not computed


def test_what_was_finished_between_the_look_and_the_lease_is_not_computed(copy, monkeypatch):
    out, computed = copy
    (out / "runs" / RUN).rename(out / "moved")
    take = leases.Leases.take

    def later(held, name):
        taken = take(held, name)
        (out / "moved").rename(out / "runs" / RUN)  # its holder finished, and removed its lease
        return taken

    monkeypatch.setattr(leases.Leases, "take", later)
    told = []
    result = sweep(out, progress=lambda *told_now: told.append(told_now[:2]))
    assert not computed and [record["seed"] for record in result.records] == list(SEEDS)
    assert told == [(2, 3), (3, 3)] and not list((out / "leases").iterdir())


def test_what_another_process_finishes_during_ours_is_told_once(copy, monkeypatch):
    out, computed = copy
    other = out / "runs" / RUN.replace("seed1", "seed2")
    (out / "runs" / RUN).rename(out / "gone")
    other.rename(out / "moved")
    trained = dispatch.ended_runs

    def slow(*arguments):
        for ended in trained(*arguments):
            (out / "moved").rename(other)
            yield ended

    monkeypatch.setattr(dispatch, "ended_runs", slow)
    told = []
    result = sweep(out, progress=lambda *told_now: told.append(told_now[:2]))
    assert computed == [RUN] and told == [(1, 3), (2, 3), (3, 3)]
    assert [record["seed"] for record in result.records] == list(SEEDS)


def test_who_was_taken_for_dead_leaves_the_run_to_the_other(copy, monkeypatch):
    out, computed = copy
    (out / "runs" / RUN).rename(out / "moved")
    trained = dispatch.ended_runs

    def held_up(*arguments):
        for ended in trained(*arguments):
            (out / "leases" / f"{RUN}.1").write_text("another-machine.1")
            yield ended
            assert not (out / "runs" / RUN).exists()
            (out / "moved").rename(out / "runs" / RUN)
            (out / "leases" / f"{RUN}.1").unlink()

    monkeypatch.setattr(dispatch, "ended_runs", held_up)
    result = sweep(out)
    assert computed == [RUN] and result.records[1]["status"] != "new"


def test_an_interrupt_frees_the_runs_in_hand_at_once(copy, monkeypatch):
    out, computed = copy
    shutil.rmtree(out / "runs" / RUN)
    trained = dispatch.ended_runs

    def interrupted(*arguments):
        for _ in trained(*arguments):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "ended_runs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(out)
    assert len(sweep(out).records) == 3 and computed == [RUN, RUN]


def test_readers_name_what_is_damaged(copy):
    out, _ = copy
    result = sweep(out)
    cut(out / "runs" / RUN / "history.npz")
    with pytest.raises(ValueError, match=rf"{RUN} is damaged \(the contents of history.npz"):
        result.load_history(result.records[1])
    with pytest.raises(ValueError, match=rf"{RUN} is damaged .* called again, sets it aside"):
        result.load_params(result.records[1])
    assert len(store.read_records(out)) == 3  # reads the records alone
    cut(out / "runs" / RUN / "record.json")
    with pytest.raises(ValueError, match=rf"{RUN} is damaged \(the contents of record.json"):
        store.read_records(out)
    shutil.rmtree(out / "runs" / RUN / "params" / "d")
    (out / "runs" / RUN / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="params cannot be read as a checkpoint"):
        store.load_params(out / "runs" / RUN / "params")


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_damaged_description_is_named_and_nothing_is_touched(text, copy):
    out, computed = copy
    (out / "sweep.json").write_text(text, encoding="latin-1")
    before = contents(out)
    with pytest.raises(ValueError, match=r"sweep\.json is damaged, it is no JSON"):
        sweep(out)
    assert contents(out) == before and not computed


def test_checksums_are_those_of_coreutils(finished):
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=finished / "runs" / RUN, check=True
    )


def test_only_what_dead_processes_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = leases.machine()
    store.Store(tmp_path, {"a": 1})
    left = [tmp_path / "runs" / f".run-0.1.{here}.{pid}" for pid in (dead.pid, os.getpid())]
    left.append(tmp_path / "runs" / f".run.another-host.{dead.pid}")
    left.append(tmp_path / "runs" / f".run.{socket.gethostname()}.{dead.pid}")  # another container
    for path in left:
        path.mkdir()
    store.Store(tmp_path, {"a": 1})
    assert [path.exists() for path in left] == [False, True, True, True]


def test_a_run_that_another_process_wrote_first_stays(tmp_path):
    folder = store.Store(tmp_path, {})
    folder.write("run", {"loss": 1.0}, {"w": np.zeros(2)}, {"loss": [1.0]})
    kept = folder.write("run", {"loss": 2.0}, {"w": np.ones(2)}, {"loss": [2.0]})
    assert kept == folder.record("run") == {"loss": 1.0}
    assert [path.name for path in folder.runs.iterdir()] == ["run"]


def test_a_sweep_without_a_tolerance_is_recognised(tmp_path):
    description = {"loss_tolerance": -math.inf, "config": {"rate": math.inf}, "n": 3}
    store.Store(tmp_path, description)
    store.Store(tmp_path, description)
    with pytest.raises(ValueError, match=r"config\.rate was 'inf', now 1\.0"):
        store.Store(tmp_path, description | {"config": {"rate": 1.0}})


def test_of_two_sweeps_that_start_at_once_one_is_refused(tmp_path, monkeypatch):
    write = files.create_json

    def slower(path, value):
        monkeypatch.undo()
        store.Store(tmp_path, {"a": 2})  # between our look and our writing
        return write(path, value)

    monkeypatch.setattr(files, "create_json", slower)
    with pytest.raises(ValueError, match="a was 2, now 1"):
        store.Store(tmp_path, {"a": 1})


def full(*_, **__):
    raise ValueError(f"RESOURCE_EXHAUSTED: Error writing [{os.strerror(errno.ENOSPC)}]")


@pytest.mark.parametrize("where", ["save_params", "files.write_json", "checksums.seal"])
def test_a_full_disk_is_said_and_nothing_finished_is_lost(where, copy, monkeypatch):
    out, computed = copy
    shutil.rmtree(out / "runs" / RUN)
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(f"jaxstab.store.{where}", full)
        with pytest.raises(OSError, match=rf"cannot write .*{RUN}: No space left .*make room") as e:
            sweep(out)
        assert e.value.errno == errno.ENOSPC
    after = {path: found for path, found in contents(out).items() if path.parts[0] != "leases"}
    assert after == before and not list((out / "runs").glob(".*"))
    assert [record["seed"] for record in sweep(out).records] == list(SEEDS)
    assert computed == [RUN, RUN] and not list((out / "leases").iterdir())


@contextlib.contextmanager
def mounted(tmp_path, options):
    """A folder on a small disk of its own, until the test ends."""
    place = tmp_path / "mount"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no rights to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk(copy, tmp_path):
    out, _ = copy
    with mounted(tmp_path, "size=512k") as place:
        held = place / "sweep"
        shutil.copytree(out, held)
        shutil.rmtree(held / "runs" / RUN)
        before = contents(held)
        with open(place / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(OSError, match=r"cannot write .*: No space left on device: make room"):
            sweep(held)
        after = {
            path: found for path, found in contents(held).items() if "leases" not in path.parts
        }
        assert after == before
        (place / "filler").unlink()
        assert len(sweep(held).records) == 3


def test_a_read_only_folder(copy, tmp_path):
    out, computed = copy
    with mounted(tmp_path, "size=2m") as place:
        held = place / "sweep"
        shutil.copytree(out, held)
        shutil.copytree(out, place / "open")
        shutil.rmtree(place / "open" / "runs" / RUN)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert len(sweep(held).records) == 3  # reading is all that is wanted
        for folder in ("open", "new"):
            with pytest.raises(OSError, match=r"cannot write .*: Read-only file system: give"):
                sweep(place / folder)
        assert not computed
