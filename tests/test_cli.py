"""The command line through `main(argv)`: what it prints, what it refuses, its exit status."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest

from jaxstab import cli, experiments, progress
from jaxstab.experiments.claims import claim
from jaxstab.experiments.protocol import Experiment, Outcome
from jaxstab.experiments.settings import parse_batch_size, setting
from jaxstab.experiments.statistics import Estimate

GRID = "--dataset digits --model fnn-small --n-train 40 --learning-rate 1 --batch-size 10 n"
STOP = "--seeds 1 --max-steps 2000 --loss-tolerance 0.02"
SWEEP = ["sweep", *GRID.split(), *STOP.split(), "--out"]


@dataclass(frozen=True)
class Settings:
    learning_rates: tuple[float, ...] = setting((0.1, 0.5), "learning rates, 100 % of them")
    batch_sizes: tuple[int | str, ...] = setting((4, "n"), "batch sizes", parse_batch_size)
    seeds: int = setting(5, "number of seeds")
    tolerance: float | None = setting(None, "tolerance")
    classes: tuple[str, ...] = setting((), "classes")
    name: str = setting("x", "a name")
    control: bool = setting(True, "with the control")


@pytest.fixture
def toy(monkeypatch):
    """An experiment named toy that records its settings, or raises what a test asks for."""
    seen = []

    def run(settings, context):
        seen.append(settings)
        context.progress(1, 2, "half")
        if settings.name == "interrupt":
            raise KeyboardInterrupt
        if settings.name == "wrong":
            raise ValueError("this value is wrong: give another")
        if settings.name == "bug":
            raise AssertionError("a bug")
        measured = Estimate(1.25, 1.0, 1.5, "over seeds")
        one = claim("c", "a claim", "statistic", measured, ">=", 1, kind="theorem")
        return Outcome(pd.DataFrame({"value": [1]}), [one], notes=["the table"])

    presets = {"quick": Settings(), "paper": Settings(seeds=50)}
    toy = Experiment("toy", "Author 2018, Fig. 1", "a toy", run, presets)
    monkeypatch.setitem(experiments.REGISTRY, "toy", toy)
    return seen


def run(tmp_path, *arguments):
    return cli.main(["run", "toy", "--out", str(tmp_path / "out"), *arguments])


def test_list_shows_every_experiment(toy, capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(experiments.REGISTRY)
    assert "a toy [Author 2018, Fig. 1]" in lines[-1]


def test_list_as_json(toy, capsys):
    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == list(experiments.REGISTRY)
    assert listed[-1] == {"name": "toy", "summary": "a toy", "source": "Author 2018, Fig. 1"}


def test_run_prints_the_table_the_claims_and_the_files(toy, tmp_path, capsys):
    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "the table" in printed and "holds: a claim" in printed
    assert "statistic: 1.25 [1, 1.5], predicted >= 1 (theorem)" in printed
    files = re.findall(r"^  (/.*)$", printed, re.MULTILINE)
    assert [Path(path).name for path in files] == ["results.csv", "claims.json", "report.html"]
    assert all(Path(path).exists() for path in files)
    assert toy == [Settings()]


def test_show_prints_a_finished_run_without_running_it(toy, tmp_path, capsys):
    assert run(tmp_path) == 0
    ran = capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    head, rest = shown.split("\n", 1)
    assert head.startswith("toy: a toy, [Author 2018, Fig. 1], preset quick, finished in")
    assert rest.strip() == ran.split("\nfiles\n")[0].strip()
    assert len(toy) == 1
    assert cli.main(["show", "--json", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["claims"][0]["status"] == "holds" and record["notes"] == ["the table"]
    assert record["run"]["settings"]["seeds"] == 5


def test_show_says_when_a_run_is_not_finished(toy, tmp_path, capsys):
    assert run(tmp_path, "--name", "interrupt") == cli.EXIT_INTERRUPTED
    assert cli.main(["show", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip().endswith("preset quick, started")


def test_every_setting_is_an_option(toy, tmp_path):
    options = "--learning-rates 1 2.5 --batch-size 7 n --seeds 3 --tolerance 1e-3 --name y"
    assert run(tmp_path, *options.split(), "--no-control", "--class", "a") == 0
    assert toy == [Settings((1.0, 2.5), (7, "n"), 3, 1e-3, ("a",), "y", False)]


def test_presets(toy, tmp_path):
    assert run(tmp_path, "--preset", "paper", "--name", "y") == 0
    assert toy == [Settings(seeds=50, name="y")]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["preset"] == "paper"


def test_help_names_defaults(toy, capsys):
    assert cli.main(["run", "toy", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--batch-sizes" in text and "batch sizes (quick: 4 n)" in text
    assert "--classes CLASS" in text and "CLASSE " not in text
    assert "100 % of them (quick: 0.1 0.5)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu", "toy"], "unknown command 'rnu': did you mean 'run'"),
        (["run", "tyo"], "unknown experiment 'tyo': did you mean 'toy'"),
        (["run", "toy", "--preset", "papre"], "unknown preset 'papre': did you mean 'paper'"),
        (["run", "toy", "--seeds", "many"], "argument --seeds: 'many' is not a whole number"),
        (["run", "toy", "--tolerance", "x"], "argument --tolerance: 'x' is not a number"),
        (["run", "toy", "--batch-size", "4", "N"], "batch size 'N' is neither a number nor n"),
        (["run", "toy", "--out", ""], "argument --out: is empty: give the name of a folder"),
        (["run", "toy", "--out", "file"], "file is a file, where a folder is wanted"),
        (["run", "toy", "--out", "file/out"], "file is a file, where a folder is wanted"),
        (["run", "toy", "--sedes", "3"], "unrecognized arguments: --sedes 3"),
        (["run", "toy", "--name", "wrong"], "error: this value is wrong: give another"),
        ([], "required: COMMAND"),
        (["run"], "required: NAME"),
        (["sweep"], "required: --learning-rates/--learning-rate, --batch-sizes/--batch-size"),
        (["measure", "--dataset", "digits"], "required: --checkpoint, --model"),
        (["report", "missing"], "no folder missing"),
        (["show", "missing"], "no folder missing"),
        (["show", "."], "holds neither an experiment (run.json) nor a sweep"),
        (
            ["measure", "--checkpoint", ".", "--dataset", "digits", "--model", "fnn-small"],
            "such as .../runs/B4-lr1.0-scale1.0-seed0",
        ),
        (["run", "diagram", "--minima", "missing"], "missing holds no sweep"),
        (["run", "factors", "--drops", "-1"], "drop must be at least 1, got -1"),
        (["run", "selection", "--n-train", "5000"], "has 1400 examples: give at most 1400"),
        (["completion", "csh"], "invalid choice: 'csh'"),
    ],
)
def test_wrong_arguments(toy, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert cli.main(arguments) == cli.EXIT_USER_ERROR
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "runs"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "fnn-smal"}, "unknown model 'fnn-smal': did you mean 'fnn-small'"),
        ({"--dataset": "digit"}, "unknown data set 'digit': did you mean 'digits'"),
        ({"--loss": "sqared"}, "unknown loss 'sqared': did you mean 'squared'"),
        ({"--dataset": "mnist"}, "mnist is not prepared in"),
        ({"--batch-size": "41"}, "batch_size 41 is above the number of examples 40"),
        ({"--batch-size": "0"}, "batch_size must be at least 1"),
        ({"--learning-rate": "-1"}, "learning_rate must be finite and positive"),
        ({"--learning-rate": "nan"}, "learning_rate must be finite and positive"),
        ({"--learning-rate": "0"}, "learning_rate must be finite and positive"),
        ({"--seeds": "0"}, "seeds must be at least 1"),
        ({"--max-steps": "0"}, "max_steps for batch size 10 must be at least 1"),
        ({"--loss-tolerance": "0"}, "loss_tolerance must be finite and positive"),
        ({"--tol": "0"}, "tol must be finite and positive"),
        ({"--max-matvecs": "0"}, "max_matvecs must be at least 1"),
        ({"--n-train": "0"}, "n_train must be at least 1"),
        ({"--n-train": "100000"}, "n_train is 100000"),
        ({"--init-scales": "-1"}, "init_scale must be finite and positive"),
    ],
)
def test_wrong_sweeps_end_before_any_training(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setattr("jaxstab.dispatch.ended_runs", lambda *_: pytest.fail("trained"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    options = {"--n-train": "40", "--learning-rate": "0.1", "--batch-size": "10", "--seeds": "1"}
    words = [word for pair in (options | change).items() for word in pair]
    assert cli.main(["sweep", "--out", str(tmp_path / "out"), *words]) == cli.EXIT_USER_ERROR
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_a_folder_of_another_run_is_refused(toy, tmp_path, capsys):
    assert run(tmp_path) == 0
    assert run(tmp_path, "--seeds", "3") == cli.EXIT_USER_ERROR
    assert "holds a different run (seeds was 5, now 3)" in capsys.readouterr().err


def test_an_interrupt_is_no_error(toy, tmp_path, capsys):
    assert run(tmp_path, "--name", "interrupt") == cli.EXIT_INTERRUPTED
    printed = capsys.readouterr().err
    assert "the same command continues" in printed and "Traceback" not in printed


def test_a_bug_keeps_its_traceback(toy, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="a bug"):
        run(tmp_path, "--name", "bug")
    assert not (tmp_path / "out").exists()  # nothing was done: the folder is free again
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError, match="this value is wrong"):
        run(tmp_path, "--name", "wrong")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    assert cli.main([*SWEEP, str(out)]) == 0
    return out


def test_sweep_writes_what_an_experiment_writes(swept, capsys):
    for name in ("results.csv", "claims.json", "run.json", "selection.png", "report.html"):
        assert (swept / name).stat().st_size > 0
    assert cli.main([*SWEEP, str(swept)]) == 0  # resumes: all is there
    printed = capsys.readouterr().out
    assert "2 runs: 2 ended at a minimum" in printed and str(swept / "report.html") in printed


def measure(swept, *more, model="fnn-small"):
    folder = next((swept / "sweep" / "runs").glob("B10-*"))
    words = f"measure --checkpoint {folder} --dataset digits --model {model} --n-train 40"
    return cli.main([*words.split(), *more]), json.loads((folder / "record.json").read_text())


def test_measure_agrees_with_the_sweep(swept, capsys):
    status, record = measure(swept, "--learning-rate", "1", "--batch-size", "10")
    assert status == 0
    printed = capsys.readouterr().out
    a = float(re.search(r"a = (\S+) in", printed)[1])
    s = float(re.search(r"s = (\S+) in", printed)[1])
    # both certified to 1e-3 relative
    assert a == pytest.approx(record["sharpness"], rel=2e-3)
    assert s == pytest.approx(record["nonuniformity"], rel=2e-3)
    assert "at learning rate 1, batch size 10 of 40" in printed
    assert f"train accuracy {record['train_accuracy']:.2%}" in printed


def test_measure_as_json(swept, capsys):
    status, record = measure(swept, "--learning-rate", "1", "--batch-size", "n", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert status == 0 and printed["n"] == 40
    assert printed["sharpness"] == pytest.approx(record["sharpness"], rel=2e-3)
    assert printed["sharpness_lower"] <= printed["sharpness"] <= printed["sharpness_upper"]
    assert printed["train_accuracy"] == pytest.approx(record["train_accuracy"])
    verdict = printed["verdict"]
    assert verdict["sharpness_bound"] == 2 and verdict["nonuniformity_bound"] == "inf"
    assert verdict["status"] in ("stable", "unstable", "undecided") and verdict["reasons"]


@pytest.mark.slow
def test_map_shows_the_chain_at_every_batch_size(swept, tmp_path, capsys):
    folder = next((swept / "sweep" / "runs").glob("B10-*"))
    words = f"map --checkpoint {folder} --dataset digits --model fnn-small --n-train 40"
    more = ["--batch-sizes", "4", "n", "--max-rank", "60", "--out", str(tmp_path)]
    assert cli.main([*words.split(), *more]) == 0
    printed = capsys.readouterr().out
    head, four, whole = printed.splitlines()[:3]
    assert head.split("  ")[0] == "" and "sharpest example" in head and "2/a" in head
    chain = [float(x) for x in four.replace("NOT CONVERGED", "").split()[1:]]
    assert chain == sorted(chain) and len(chain) == 6
    assert whole.split()[0] == "40" and "eq. 9" in printed and "largest share" in printed
    assert (tmp_path / "map.png").stat().st_size > 0


def test_measure_refuses_what_does_not_fit(swept, tmp_path, capsys):
    assert measure(swept, model="fnn")[0] == cli.EXIT_USER_ERROR
    assert "does not hold parameters of this model" in capsys.readouterr().err
    assert measure(swept, "--batch-size", "4")[0] == cli.EXIT_USER_ERROR
    assert "needs both" in capsys.readouterr().err
    words = ["measure", "--checkpoint", str(tmp_path / "none"), "--dataset", "digits"]
    assert cli.main([*words, "--model", "fnn-small"]) == cli.EXIT_USER_ERROR
    assert "no checkpoint at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--learning-rate -1 --batch-size 4", "learning_rate must be finite and positive"),
        ("--learning-rate 1 --batch-size 41", "batch_size 41 is above the number of examples 40"),
        ("--learning-rate 1 --batch-size N", "'N' is neither a number nor n"),
    ],
)
def test_measure_checks_before_it_measures(swept, monkeypatch, capsys, words, message):
    monkeypatch.setattr("jaxstab.measurement.measure", lambda *_, **__: pytest.fail("measured"))
    assert measure(swept, *words.split())[0] == cli.EXIT_USER_ERROR
    assert message in capsys.readouterr().err


def test_measure_says_when_the_problem_is_another(swept, monkeypatch):
    monkeypatch.setattr("jaxstab.measurement.measure", stop)
    for words, message in [
        ("--loss cross_entropy", "config.loss was 'squared', now 'cross_entropy'"),
        ("--n-train 30", "n was 40, now 30; data was"),
    ]:
        with pytest.warns(UserWarning, match=f"sweep of another problem .*{message}"):
            measure(swept, *words.split())
    measure(swept)  # the same: a warning would be an error


def stop(*_, **__):
    raise KeyboardInterrupt


def test_a_damaged_checkpoint_is_named(swept, tmp_path, capsys):
    run = next((swept / "sweep" / "runs").glob("B10-*"))
    shutil.copytree(run, tmp_path / run.name)
    (tmp_path / run.name / "record.json").write_text("")
    words = ["--dataset", "digits", "--model", "fnn-small", "--n-train", "40", "--checkpoint"]
    assert cli.main(["measure", *words, str(tmp_path / run.name)]) == cli.EXIT_USER_ERROR
    assert "is damaged (the contents of record.json differ" in capsys.readouterr().err


def test_a_job_is_described_together(tmp_path, capsys):
    grid = ["sweep", "--learning-rate", "1", "--batch-size", "4", "--num-processes", "2", "--out"]
    assert cli.main([*grid, str(tmp_path / "out")]) == cli.EXIT_USER_ERROR
    assert "--num-processes belongs to --distributed" in capsys.readouterr().err


def test_report_on_both_kinds_of_folder(swept, capsys):
    for folder in (swept, swept / "sweep"):
        assert cli.main(["report", str(folder)]) == 0
        assert capsys.readouterr().out.strip() == str(folder / "report.html")
        assert "inside the region of eq. 9" in (folder / "report.html").read_text()
        assert cli.main(["show", str(folder)]) == 0
        assert "inside the region of eq. 9" in capsys.readouterr().out


def test_reader_of_annotations():
    assert cli.reader(int) == (int, False)
    assert cli.reader(tuple[float, ...]) == (float, True)
    assert cli.reader(int | None) == (int, False)
    with pytest.raises(TypeError, match="give `parse`"):
        cli.reader(tuple[int | str, ...])
    with pytest.raises(TypeError, match="give `parse`"):
        cli.reader(dict)


def test_every_experiment_has_readable_settings():
    for name, experiment in experiments.REGISTRY.items():
        given = cli.build_parser(["run", name]).parse_args(["run", name])
        assert given.experiment is experiment and given.out == Path("runs") / name


def test_doctor_says_what_an_issue_report_needs(capsys, monkeypatch):
    monkeypatch.setenv("XLA_EXAMPLE", "1")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for text in ("jaxlib", "devices", "compilation cache", "XLA_EXAMPLE", "right          True"):
        assert text in printed
    monkeypatch.setattr("jaxstab.cli.doctor.TOLERANCE", -1.0)
    assert cli.main(["doctor", "--json"]) == cli.EXIT_FAILED
    facts = json.loads(capsys.readouterr().out)
    assert facts["known case"]["right"] is False and facts["versions"]["jax"]


def complete(line):
    """What a shell would be offered at the end of a line."""
    given = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    environment = dict(os.environ) | given | {"_ARGCOMPLETE_IFS": "\n"}
    code = "from jaxstab.cli import main; main()"
    redirected = ["bash", "-c", f'exec {sys.executable} -c "$0" 8>&1 9>/dev/null', code]
    done = subprocess.run(redirected, capture_output=True, text=True, env=environment, timeout=300)
    return [word.strip() for word in done.stdout.splitlines()]


def test_a_shell_completes_commands_experiments_options_and_values(capsys):
    assert complete("jaxstab sh") == ["show"]
    assert complete("jaxstab run gd-") == ["gd-sharpness"]
    assert "--loss-tolerance" in complete("jaxstab run selection --loss-")
    assert complete("jaxstab measure --dataset dig") == ["digits"]
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        assert "jaxstab" in capsys.readouterr().out


def test_the_help_says_what_an_exit_status_means(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for status in (0, cli.EXIT_FAILED, cli.EXIT_USER_ERROR, cli.EXIT_INTERRUPTED):
        assert re.search(rf"^  {status} ", text, re.MULTILINE)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxstab {metadata.version('jaxstab')}\n"


def test_listing_and_typos_import_nothing_heavy_and_no_experiment_starts_jax():
    code = """
import sys
from jaxstab import cli
for words in ("--help", "list --json", "completion x", "run --help", "rnu", "run selectoin"):
    cli.main(words.split())
heavy = {"jax", "numpy", "scipy", "pandas", "matplotlib", "flax", "bokeh", "argcomplete"}
heavy &= set(sys.modules)
assert not heavy, heavy
from jaxstab.experiments import REGISTRY
experiments = [REGISTRY[name] for name in REGISTRY]
from jaxstab.sweeps import use_host_devices
use_host_devices(3)  # too late once anything has started JAX's devices
import jax
assert len(jax.devices()) == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "jaxstab", "list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert "selection" in done.stdout


@pytest.mark.parametrize(
    ("done", "missing", "seconds", "text"),
    [(0, 5, 9.0, ""), (2, 4, 60.0, "2:00 left"), (1, 100, 90.0, "2:30:00 left")],
)
def test_time_left(done, missing, seconds, text):
    assert progress.time_left(done, missing, seconds) == text


def test_bar_on_a_terminal_and_in_a_log(capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for terminal in (True, False):
        console = Console(force_terminal=terminal, width=120, stderr=True)
        with progress.Bar("title", console=console) as bar:
            bar(30, 60)
            bar(45, 60, "B 4")
        printed = capsys.readouterr().err
        assert "title" in printed and "45/60" in printed and "left" in printed
