"""`list`, `run` and `sweep`: what there is to run, and running it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxstab.cli.folders import print_claims
from jaxstab.cli.options import SETTING, add_json, add_settings, complete, folder, worded

SWEEP_SUMMARY = "train a grid of learning rates and batch sizes and place its minima in eq. 9"


def add(commands: Any, argv: Sequence[str]) -> None:
    """Adds the commands; options of an experiment only for the one that is named."""
    from jaxstab.experiments import REGISTRY

    command, chosen = [*argv, "", ""][:2]
    listing = commands.add_parser("list", help="list the experiments")
    add_json(listing)
    listing.set_defaults(handler=command_list)

    run = commands.add_parser("run", help="run an experiment by name")
    experiments = run.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, listed in REGISTRY.listings.items():
        one = experiments.add_parser(name, help=listed.summary, description=listed.summary)
        if (command, chosen) == ("run", name):
            presets = REGISTRY[name].presets
            text = f"one of {', '.join(presets)} (default quick)"
            complete(one.add_argument("--preset", default="quick", help=text), presets.keys)
            _add_run_options(one, REGISTRY[name])

    sweep = commands.add_parser("sweep", help=SWEEP_SUMMARY, description=SWEEP_SUMMARY)
    if command == "sweep":
        from jaxstab.experiments.wu2018.selection import SWEEP

        sweep.set_defaults(preset="quick")
        _add_run_options(sweep, SWEEP, required=("learning_rates", "batch_sizes"))
        _add_job(sweep)


def _add_run_options(
    parser: argparse.ArgumentParser, experiment: Any, *, required: Sequence[str] = ()
) -> None:
    parser.set_defaults(handler=command_run, computes=True, experiment=experiment)
    default = Path("runs") / experiment.name
    parser.add_argument("--out", type=folder, default=default, help=f"output folder ({default})")
    parser.add_argument("--data-dir", type=Path, help="folder of prepared TFDS data")
    add_settings(parser, experiment.presets["quick"], required=required)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=command_sweep)
    job = parser.add_argument_group(
        "several processes",
        "The same command, started several times with one --out on a file system that all of them "
        "see, shares the runs. --distributed joins the processes of a job first, which gives each "
        "its devices: on Cloud TPU hosts, and where several processes of a host share its GPUs.",
    )
    add, whole = job.add_argument, worded(int)
    add("--distributed", action="store_true", help="join the processes of this job")
    text = "of process 0; this and the next two are found in a SLURM, Open MPI or Cloud TPU job"
    add("--coordinator-address", metavar="HOST:PORT", help=text)
    add("--num-processes", type=whole, metavar="N", help="how many processes there are")
    add("--process-id", type=whole, metavar="N", help="which one this is, from 0")


def command_list(given: argparse.Namespace) -> int:
    """Prints every experiment with one line and its source."""
    from jaxstab.experiments import REGISTRY

    if given.json:
        listed = [
            {"name": name, "summary": listing.summary, "source": listing.source}
            for name, listing in REGISTRY.listings.items()
        ]
        print(json.dumps(listed, indent=1, ensure_ascii=False))
        return 0
    width = max(map(len, REGISTRY), default=0)
    for name, listing in REGISTRY.listings.items():
        print(f"{name:<{width}}  {listing.summary} [{listing.source}]")
    return 0


def command_run(given: argparse.Namespace) -> int:
    """Runs one experiment or sweep; prints its table, its claims and where its files are."""
    from jaxstab import report
    from jaxstab.experiments import execute
    from jaxstab.progress import Bar

    experiment = given.experiment
    overrides = {
        name.removeprefix(SETTING): tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if name.startswith(SETTING)
    }
    settings = experiment.settings(given.preset, overrides=overrides)
    with Bar(experiment.name) as bar:
        execute(
            experiment,
            settings,
            out=given.out,
            preset=given.preset,
            progress=bar,
            data_dir=given.data_dir,
        )
    page = report.write(given.out)
    found = report.read(given.out)
    print(found.text)
    print_claims(found.claims)
    files = [*found.figures, given.out / "results.csv", given.out / "claims.json", page]
    print("\nfiles\n" + "\n".join(f"  {path}" for path in files))
    return 0


def command_sweep(given: argparse.Namespace) -> int:
    """Runs a sweep, in a job of several processes if that is asked for."""
    names = ("coordinator_address", "num_processes", "process_id")
    job = {name: getattr(given, name) for name in names}
    if not given.distributed:
        for name, value in job.items():
            if value is not None:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --distributed: give both")
        return command_run(given)
    from jaxstab.processes import joined

    with joined(given.out, **job):
        return command_run(given)
