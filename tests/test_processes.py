"""Real processes that share a sweep: same table, no run twice, whoever is killed."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from jaxstab import cli, dispatch, leases, processes
from tests import sweep_script

SCRIPT = Path(__file__).with_name("sweep_script.py")
RUNS = 12


def start(out, devices, pause=0.0, job="", **variables):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | variables
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(out), str(devices), str(pause), job],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def slurm(count, index, port):
    """What JAX reads in a step of a SLURM job."""
    return {
        "SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count), "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": port,
    }  # fmt: skip


def open_mpi(count, index, port):
    """What JAX reads in a process that mpirun started."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count), "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index), "JAX_COORDINATOR_PORT": port,
    }  # fmt: skip


def start_job(out, count, devices, pause=0.0, cluster=None):
    """Processes that are told of each other, by their environment or by arguments."""
    port = free_port()
    if cluster is not None:
        environments = [cluster(count, index, port) for index in range(count)]
        return [start(out, devices, pause, "found", **each) for each in environments]
    jobs = [f"localhost:{port},{count},{index}" for index in range(count)]
    return [start(out, devices, pause, job) for job in jobs]


def read(output):
    """The runs that a process computed, its lines of progress, and its table if it came to one."""
    lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
    computed = [line.split()[1] for line in lines if line.startswith("computed ")]
    told = [line for line in lines if re.fullmatch(rf"\d+ {RUNS} \d+\.\d+", line)]
    tables = [json.loads(line) for line in lines if line.startswith("[")]
    return computed, told, tables[0] if tables else None


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return read(output)


def written(out):
    """When each run was put into place."""
    paths = Path(out).glob("runs/[!.]*/record.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in paths}


def check_complete(out, tables, whole):
    """Every process has the whole table, no run was computed twice, nothing else is left."""
    for table in tables:
        sweep_script.same_records(table, whole)
    assert len(written(out)) == RUNS
    assert not list(Path(out).glob("runs/.*")) and not list(Path(out).glob("leases/B*"))
    assert not Path(out, "damaged").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of one process, this one."""
    records = sweep_script.run(tmp_path_factory.mktemp("whole"), 0.0).records
    assert sum(record["status"] == "diverged" for record in records) == 4
    return records


@pytest.mark.slow
def test_a_kill_loses_only_runs_in_hand_on_any_number_of_devices(whole, tmp_path):
    killed = start(tmp_path, 1, pause=0.3)
    while not killed.stdout.readline().startswith("4 "):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    before = written(tmp_path)
    assert 4 <= len(before) < RUNS
    computed, told, (devices, records) = finish(start(tmp_path, 8))
    assert devices == 8 and told[0].startswith(f"{len(before)} {RUNS} ")
    assert len(computed) == RUNS - len(before) and not before.keys() & set(computed)
    check_complete(tmp_path, [records], whole)
    assert before.items() <= written(tmp_path).items()


@pytest.mark.parametrize(
    ("count", "how"),
    [
        (2, slurm),
        pytest.param(2, open_mpi, marks=pytest.mark.slow),
        pytest.param(2, "alone", marks=pytest.mark.slow),
        pytest.param(4, "told", marks=pytest.mark.slow),
        pytest.param(4, "alone", marks=pytest.mark.slow),
    ],
)
def test_processes_share_the_work_and_each_has_all_of_it(count, how, whole, tmp_path):
    joined = how != "alone"
    if joined:
        cluster = None if how == "told" else how
        started = start_job(tmp_path, count, 8 // count, pause=0.05, cluster=cluster)
    else:
        started = [start(tmp_path, 8 // count, pause=0.05) for _ in range(count)]
    found = [finish(process) for process in started]
    assert [table[0] for *_, table in found] == [8 if joined else 8 // count] * count
    tables = [table[1] for *_, table in found]
    check_complete(tmp_path, tables, whole)
    assert all(table == tables[0] for table in tables)  # to the last digit
    assert not list(Path(tmp_path).glob("leases/*"))
    computed = [name for names, *_ in found for name in names]
    assert len(set(computed)) == len(computed) == RUNS
    for _, told, _ in found:  # of every run once, whoever did it
        done = [int(line.split()[0]) for line in told]
        assert done == list(range(done[0], RUNS + 1))


def kill_one_and_resume(out, count, joined, seed, whole):
    """Returns how many runs were finished when one of the processes was killed."""
    choose = random.Random(seed)
    started = start_job(out, count, 1, 0.1) if joined else [
        start(out, 1, 0.1) for _ in range(count)
    ]  # fmt: skip
    while not (out / "sweep.json").exists():  # all before is Python's and JAX's start
        assert started[0].poll() is None
        time.sleep(0.02)
    time.sleep(choose.uniform(0, 4))
    victim = choose.choice(started)
    victim.kill()
    before = written(out)
    ended = [process.communicate(timeout=300) for process in started]
    survivors = [process for process in started if process is not victim]
    if not joined or victim is not started[0]:  # JAX ends all if its coordinator dies
        assert not any(process.returncode for process in survivors), ended
        assert not list(Path(out).glob("leases/*"))
    survived = written(out)
    assert before.items() <= survived.items()  # nothing lost, nothing written again
    with pytest.MonkeyPatch.context() as patch:
        last = []
        patch.setattr(dispatch, "ended_runs", sweep_script.noting(last, dispatch.ended_runs))
        records = sweep_script.run(out, 0.0).records
    assert len(last) == RUNS - len(survived)
    assert survived.items() <= written(out).items()
    tables = [table[1] for output, _ in ended if (table := read(output)[2])]
    check_complete(out, [*tables, records], whole)
    # computed again is only what was lost with a process: computed there, and not yet in place
    computed = last + [name for output, _ in ended for name in read(output)[0]]
    twice = {name for name in computed if computed.count(name) > 1}
    assert not twice & before.keys() and len(set(computed)) == RUNS
    return len(before)


def test_a_killed_process_leaves_its_runs_to_the_others(whole, tmp_path):
    kill_one_and_resume(tmp_path, 2, False, 1, whole)


@pytest.mark.slow
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_twenty_kills(seed, joined, whole, tmp_path):
    kill_one_and_resume(tmp_path, 2, joined, seed, whole)


def test_host_devices_are_set_before_jax_starts():
    code = """
from jaxstab import sweeps
assert sweeps.use_host_devices(3) == 3
import jax
assert len(jax.devices()) == 3
assert sweeps.use_host_devices(3) == 3
try:
    sweeps.use_host_devices(2)
except RuntimeError as error:
    assert "first computation" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_job_that_does_not_tell_its_processes_apart_is_refused(tmp_path, monkeypatch):
    def initialize(address, count, index):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    before = jax.config.jax_enable_recoverability
    try:
        match = "start the same sweep several times without joining"
        with pytest.raises(ValueError, match=match), processes.joined(tmp_path):
            pass
    finally:
        jax.config.update("jax_enable_recoverability", before)


def test_a_folder_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MEETING_SECONDS", 0.2)
    with leases.Leases(tmp_path / "leases") as own:
        own.take("process-0-aa")
        own.take("B2-lr0.1-scale1.0-seed1")
        with pytest.raises(ValueError, match=r"process 0 sees no sign of processes \[1, 2\]"):
            processes._meet(own, 0, 3, tmp_path)
        with leases.Leases(tmp_path / "leases") as others:
            others.take("process-1-bb"), others.take("process-2-cc")
            processes._meet(own, 0, 3, tmp_path)


@pytest.fixture
def first_of_two(monkeypatch, tmp_path):
    """This process as process 0 of two, the other one being a lease that the test holds."""
    before = jax.config.jax_enable_recoverability
    ended = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: ended.append("shutdown"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with leases.Leases(tmp_path / "leases") as other:
        other.take("process-1-bb")
        yield other, ended
    jax.config.update("jax_enable_recoverability", before)


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_coordinator_leaves_last(error, first_of_two, tmp_path):
    other, ended = first_of_two
    leaving = threading.Timer(0.3, lambda: (ended.append("other"), other.finish("process-1-bb")))
    expected = pytest.raises(error) if error else contextlib.nullcontext()
    with expected, processes.joined(tmp_path) as place:
        assert place == (0, 2)
        leaving.start()
        if error:
            raise error
    assert ended == (["other"] if error else ["other", "shutdown"])
    assert not list((tmp_path / "leases").iterdir())


def test_an_interrupt_does_not_wait(first_of_two, tmp_path):
    other, _ = first_of_two
    with pytest.raises(KeyboardInterrupt), processes.joined(tmp_path):
        raise KeyboardInterrupt
    assert other.alive() == ["process-1-bb"]


def documented_command():
    """The sweep that docs/how-to/hosts.md starts several times, as words after `jaxstab`."""
    section = (Path(__file__).parents[1] / "docs" / "how-to" / "hosts.md").read_text()
    first, second = re.findall(r"^jaxstab (sweep .*) &$", section, re.MULTILINE)
    (third,) = re.findall(r"^srun --ntasks 8 jaxstab (sweep .*)$", section, re.MULTILINE)
    assert first == second and third == f"{first} --distributed"
    return third.split()


def test_the_commands_of_the_documentation_are_understood():
    words = documented_command()
    given = cli.build_parser(words).parse_args(words)
    assert given.distributed and given.out == Path("DIR")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [None, slurm])
def test_the_commands_of_the_documentation_share_a_sweep(cluster, tmp_path):
    words = [word.replace("DIR", str(tmp_path / "out")) for word in documented_command()]
    words += ["--n-train", "40", "--max-steps", "2000", "--loss-tolerance", "0.02", "--seeds", "1"]
    if cluster is None:
        words.remove("--distributed")
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxstab", *words], stdout=subprocess.PIPE, text=True,
            env=os.environ | (cluster(2, index, port) if cluster else {}),
        )
        for index in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    tables = [text.split("claims")[0] for text in printed]
    assert tables[0] == tables[1] and "9 runs: " in tables[0]
    assert (tmp_path / "out" / "report.html").exists()


def test_the_commands_of_the_page_on_hosts_are_understood():
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "hosts.md").read_text()
    first, second = re.findall(r"^jaxstab (sweep .*) &$", page, re.MULTILINE)
    (third,) = re.findall(r"^srun --ntasks 8 jaxstab (sweep .*)$", page, re.MULTILINE)
    assert first == second and third == f"{first} --distributed"
    given = cli.build_parser(third.split()).parse_args(third.split())
    assert given.distributed and given.out == Path("DIR")
