"""Leases: one holder at a time, whoever dies, is held up, or asks in the same instant."""

import os
import subprocess
import sys
import threading
import time

import pytest

from jaxstab import leases
from jaxstab.leases import Leases

QUICK = {"expiry": 0.3, "renewal": 0.02}


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_of_many_that_ask_at_once_one_gets_it(tmp_path):
    names = [f"B1-lr0.{i}-seed{i}" for i in range(40)]
    got, ready = [], threading.Barrier(6)

    def ask():
        with Leases(tmp_path, **QUICK) as mine:
            ready.wait()
            got.extend(name for name in names if mine.take(name))
            ready.wait()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(names)


def test_a_lease_is_renewed_and_comes_back(tmp_path):
    with Leases(tmp_path, **QUICK) as mine, Leases(tmp_path, **QUICK) as other:
        assert mine.take("run") and mine.holds("run")
        until = time.monotonic() + 3 * QUICK["expiry"]
        while time.monotonic() < until:
            assert not other.take("run") and not other.available(["run"])
            time.sleep(0.02)
        assert other.available(["run", "free"]) == ["free"] and other.alive() == ["run"]
        mine.finish("run")
        assert not list(tmp_path.iterdir()) and other.take("run")
        (tmp_path / "runner.0").write_text("released")
        mine.discard("run")  # those that have expired, and no others
        assert [path.name for path in tmp_path.iterdir()] == ["run.0"]


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path):
    code = f"""
import os, signal, pathlib
from jaxstab.leases import Leases
assert Leases(pathlib.Path({str(tmp_path)!r})).take("run")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    assert left.name == "run.0" and left.read_text().startswith(leases.machine())
    with Leases(tmp_path) as mine:  # no waiting for a minute
        assert mine.available(["run"]) == ["run"] and mine.take("run")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.0", "run.1"]
        mine.finish("run")
    assert not list(tmp_path.iterdir())


def test_a_killed_process_whose_parent_has_not_asked_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{leases.machine()}.{process.pid}"
    assert not leases.is_dead(name) and not leases.is_dead(leases.owner())
    process.kill()
    wait_for(lambda: leases.is_dead(name))
    process.communicate()
    assert leases.is_dead(name)


@pytest.mark.parametrize("content", ["another-machine.1", "", "\x00 garbage"])
def test_the_lease_of_another_machine_expires(content, tmp_path):
    (tmp_path / "run.0").write_text(content)
    with Leases(tmp_path, **QUICK) as mine:
        assert not mine.take("run")
        os.utime(tmp_path / "run.0", (0, 0))  # whatever the clock of the other machine says
        time.sleep(QUICK["expiry"] / 2)
        assert not mine.take("run")
        wait_for(lambda: mine.take("run"))
        assert mine.holds("run")


def test_who_was_held_up_knows_that_the_lease_is_lost(tmp_path):
    slow = Leases(tmp_path, **QUICK)  # never renews: not entered
    assert slow.take("run")
    with Leases(tmp_path, **QUICK) as quick:
        wait_for(lambda: quick.take("run"))
        assert quick.holds("run") and not slow.holds("run")
        slow.give_up("run")
        assert quick.holds("run") and not slow.take("run")


def test_what_was_given_up_is_free_and_its_generation_is_not_used_again(tmp_path):
    with Leases(tmp_path) as first:
        assert first.take("run")
    with Leases(tmp_path) as second:
        assert second.take("run")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.0", "run.1"]


@pytest.mark.parametrize("before", [(), ("run.0",)])
def test_a_decision_on_an_old_look_loses(before, tmp_path, monkeypatch):
    for name in before:
        (tmp_path / name).write_text("released")
    with Leases(tmp_path) as late, Leases(tmp_path) as early:
        latest = late._latest

        def look():
            found = latest()
            if not early._held:
                assert early.take("run")  # between the look and the creation
            return found

        monkeypatch.setattr(late, "_latest", look)
        assert not late.take("run")
        assert early.holds("run") and not late._held


def test_a_lease_that_a_listing_missed_is_respected(tmp_path, monkeypatch):
    (tmp_path / "run.1").write_text("another-machine.1")
    with Leases(tmp_path) as mine:
        looks = iter([{}, {"run": 1}])
        monkeypatch.setattr(mine, "_latest", lambda: next(looks))
        assert not mine.take("run")
    assert [path.name for path in tmp_path.iterdir()] == ["run.1"]


def test_a_full_disk_leaves_no_lease(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Leases(tmp_path) as mine:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space"):
                mine.take("run")
        assert not list(tmp_path.iterdir()) and mine.take("run")
