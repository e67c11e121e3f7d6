"""What a program decides about its process before JAX starts: devices, and other processes."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxstab import checks, files
from jaxstab.leases import Leases

MEETING_SECONDS = 60.0
_MEETING = "process"


def use_host_devices(count: int | None = None) -> int:
    """Makes JAX show one CPU device per core, so that a sweep trains one run on each.

    A process-wide choice of JAX that can be made only before its first computation, so a program
    makes it (the command line does, first thing), never a function of this library.

    Args:
      count: number of CPU devices; by default the cores that this process may use.

    Returns:
      The number of CPU devices asked for.

    Raises:
      RuntimeError: if JAX has already started with another number.
    """
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        count = count or os.cpu_count() or 1
    checks.check_at_least("count", count, 1)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.local_devices(backend="cpu")) != count:
            raise RuntimeError(
                "the number of host devices must be set before JAX's first computation: call "
                "use_host_devices() at the start of the program"
            ) from error
    return count


@contextlib.contextmanager
def joined(
    folder: Path | str,
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Joins the JAX processes of a job for a `with` block, in which they share sweeps.

    `jax.distributed.initialize` gives each process its devices: those of its host on a Cloud TPU,
    the one of its rank where SLURM or Open MPI started several on a host with GPUs. A sweep needs
    no more of it: its processes share the runs through the folder (`jaxstab.sweeps`). So they meet
    there first, and a folder that is not the same for all is refused, where each process would
    otherwise do all runs without a word.

    A process that dies leaves the others working. JAX makes one exception, process 0, which is the
    coordinator: without it the others end, and the same job, started again, continues. It therefore
    leaves the block last.

    Args:
      folder: the output folder, on a file system that all processes share.
      coordinator_address: HOST:PORT of process 0. All three are found in the environment of a
        SLURM, Open MPI or Cloud TPU job, as JAX finds them.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.

    Yields:
      `process_id` and `num_processes`.

    Raises:
      ValueError: if the environment does not tell and the arguments do not either, or the folder is
        not shared.
      RuntimeError: if JAX has already started.
    """
    place = files.check_folder(folder) / "leases"
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except ValueError as error:
        raise ValueError(
            f"this job does not tell its processes apart ({error}): give coordinator address, "
            "number of processes and process id; or start the same sweep several times without "
            "joining them, which needs only a shared folder"
        ) from error
    index, count = jax.process_index(), jax.process_count()
    with Leases(place) as leases:
        own = f"{_MEETING}-{index}-{uuid.uuid4().hex}"
        with files.writing(folder):
            leases.take(own)
        last = index == 0
        try:
            _meet(leases, index, count, Path(folder))
            yield index, count
        except BaseException as error:
            last = last and isinstance(error, Exception)  # who interrupts does not want to wait
            raise
        finally:
            while last and len(_present(leases)) > 1:
                time.sleep(0.1)
            leases.finish(own)
            leases.discard(_MEETING)
    jax.distributed.shutdown()


def _meet(leases: Leases, index: int, count: int, folder: Path) -> None:
    """Waits until all processes have been seen in the folder."""
    until = time.monotonic() + MEETING_SECONDS
    while missing := sorted(set(range(count)) - _present(leases)):
        if time.monotonic() > until:
            raise ValueError(
                f"process {index} sees no sign of processes {missing} in {folder}: give an output "
                "folder on a file system that all processes share"
            )
        time.sleep(0.1)


def _present(leases: Leases) -> set[int]:
    """The processes that are in the folder."""
    parts = [name.split("-") for name in leases.alive()]
    return {int(part[1]) for part in parts if part[0] == _MEETING and len(part) == 3}
