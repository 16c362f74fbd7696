"""A search survives kills, shares its trials among processes and machines, and ends with files people can use."""

import csv
import json
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from database import postgresql
from helpers import error_of
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from scripts import Script, copy_of_the_project, make_mini_project, make_mini_teacher, mini, run

from tools.tune_hoser import parse_arguments
from utils.config import Config, load_config
from utils.search.preflight import digests_of_inputs
from utils.search.space import SearchSpace
from utils.search.storage import open_journal
from utils.search.study import SharedStudy, replacements

EPOCHS = 2
TRIALS = 5
TIMEOUT_S = 600
DATABASE = "sqlite:///study.db"

# Rates from useless to good, so that Hyperband has something to prune.
SEARCH = """\
optuna:
  n_startup_trials: 3
  heartbeat_interval: 1
  grace_period: 3
  search_space:
    optimizer_config.learning_rate: {low: 1.0e-7, high: 0.02, log: true}
    distill.lambda: {low: 0.001, high: 0.1, log: true}
    distill.window: {choices: [2, 4]}
"""


def tune_command(*arguments: str, trials: int = TRIALS, epochs: int | None = None) -> list[str]:
    length = () if epochs is None else ("--set", f"optimizer_config.max_epoch={epochs}")
    return mini("tools/tune_hoser.py", "--cuda", "-1", "--seed", "11", "--n_trials", str(trials), *length, *arguments)


FINISHED = tune_command("--keep", "2", "--final_seeds", "7", "8")


class TunedStudy:
    """A study named `distill` below a project folder."""

    stdout, stderr = "", ""  # of the command that made it

    def __init__(self, folder: Path):
        self.project, self.folder = folder, folder / "save" / "Mini" / "tune" / "distill"

    def best(self) -> FrozenTrial:
        return optuna.load_study(study_name="distill", storage=open_journal(self.folder)).best_trial

    def trials(self) -> list[FrozenTrial]:
        storage = open_journal(self.folder)
        return optuna.load_study(study_name="distill", storage=storage).trials

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials()]

    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    def log(self, number: int) -> str:
        folder = self.project / "log" / "Mini" / "tune" / "distill" / f"trial_{number}"
        return "".join(path.read_text() for path in sorted(folder.glob("*.log")))

    def files(self, pattern: str) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.glob(pattern)}


def tune(command: list[str], study: TunedStudy) -> subprocess.CompletedProcess[str]:
    return run(command, study.project, TIMEOUT_S)


def open_study(
    url: str | None = None, overrides: Sequence[str] = (), seed: int = 11, data_dir: str | None = None
) -> SharedStudy:
    """The study of the project in the working folder, opened in this process as the command opens it."""

    def load(more: Sequence[str]) -> Config:
        return load_config("Mini", "Mini.yaml", [*overrides, *more])

    config = load([])
    space = SearchSpace(config, load)
    inputs = digests_of_inputs("Mini", data_dir, config, space)
    return SharedStudy("distill", "Mini", url, config, space, seed, inputs)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher, its cache, and a search space; no study yet."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("template")))
    config = folder / "Mini.yaml"
    config.write_text(config.read_text().replace("max_epoch: 3", f"max_epoch: {EPOCHS}") + SEARCH)
    return folder


@pytest.fixture(scope="module")
def finished(template: Path, tmp_path_factory: pytest.TempPathFactory) -> TunedStudy:
    """A study that one process ran from its start to its end, with final runs. Tests only read it, or copy it."""
    study = TunedStudy(Path(shutil.copytree(template, tmp_path_factory.mktemp("finished") / "project")))
    done = tune(FINISHED, study)
    assert done.returncode == 0, done.stderr
    study.stdout, study.stderr = done.stdout, done.stderr
    return study


@pytest.fixture
def fresh(template: Path, tmp_path: Path) -> TunedStudy:
    shutil.copytree(template, tmp_path / "project")
    return TunedStudy(tmp_path / "project")


def facts(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """What two equal studies have in common."""
    return [(t.number, t.state.name, t.value, t.params, t.intermediate_values) for t in trials]


# A finished study and its results ------------------------------------------------------------------------------


def test_a_study_has_exactly_the_trials_asked_for_each_ended(finished: TunedStudy) -> None:
    trials = finished.trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({trial.params["optimizer_config.learning_rate"] for trial in trials}) == TRIALS
    for trial in trials:
        assert 1e-7 <= trial.params["optimizer_config.learning_rate"] <= 0.02
        assert trial.params["distill.window"] in (2, 4)
        # Every epoch is reported, from 0.
        assert list(trial.intermediate_values) == list(range(len(trial.intermediate_values)))
        if trial.state == TrialState.COMPLETE:
            assert len(trial.intermediate_values) == EPOCHS
            assert trial.value == max(trial.intermediate_values.values())


def test_the_baseline_comes_first_without_a_teacher_and_is_no_trial(finished: TunedStudy) -> None:
    first = next(line for line in finished.stderr.splitlines() if "baseline: training" in line or "started" in line)
    assert first.startswith("baseline")
    config = yaml.safe_load((finished.project / "log/Mini/tune/distill/baseline/config.yaml").read_text())
    assert config["distill"]["enable"] is False
    assert [row["trial"] for row in finished.rows()] == ["baseline", *map(str, range(TRIALS))]


def test_trials_log_to_their_own_files_and_take_a_line_of_the_terminal(finished: TunedStudy) -> None:
    assert "val_next_step_acc" not in finished.stderr
    assert "Warning" not in finished.stderr
    assert len(re.findall(r"^trial \d+: (0\.\d{4} \(epoch|pruned after epoch)", finished.stderr, re.M)) == TRIALS
    assert all("val_next_step_acc" in finished.log(number) for number in range(TRIALS))


def test_curves_of_trials_are_not_beside_those_of_other_runs(finished: TunedStudy) -> None:
    folder = finished.project / "tensorboard_log"
    assert not list(folder.glob("Mini/**/*tfevents*"))
    assert len(list(folder.glob("Mini_tune/distill/trial_*/*tfevents*"))) == TRIALS


def test_trials_share_the_cache_of_the_teachers_answers(finished: TunedStudy) -> None:
    caches = list((finished.project / "data" / "Mini" / ".cache").glob("teacher-*.pt"))
    # of train and of val
    assert len(caches) == 2 * len({trial.params["distill.window"] for trial in finished.trials()})


def test_best_pth_is_kept_for_the_best_trials_and_no_rolling_checkpoint(finished: TunedStudy) -> None:
    trials = finished.trials()
    ranked = sorted(trials, key=lambda t: (t.state != TrialState.COMPLETE, -max(t.intermediate_values.values())))
    kept = {f"trial_{trial.number}/best.pth" for trial in ranked[:2]}
    assert finished.files("trial_*/*.pth") == kept
    assert f"trial_{finished.best().number}/best.pth" in kept
    assert finished.files("baseline/*.pth") == {"baseline/best.pth"}


def test_table_and_csv_have_what_the_study_has(finished: TunedStudy) -> None:
    best = finished.best()
    assert len(re.findall(r"^\*? +(\d+|baseline)  (finished|pruned) ", finished.stdout, re.M)) == TRIALS + 1
    assert re.search(rf"^\* +{best.number} ", finished.stdout, re.M)
    assert f"best: trial {best.number}, validation accuracy {best.value:.4f}" in finished.stdout
    for row, trial in zip(finished.rows()[1:], finished.trials(), strict=True):
        assert row["trial"] == str(trial.number)
        assert row["state"] == {"COMPLETE": "finished", "PRUNED": "pruned"}[trial.state.name]
        assert row["epochs"] == str(len(trial.intermediate_values))
        assert float(row["val_acc"]) == max(trial.intermediate_values.values())
        assert float(row["distill.lambda"]) == trial.params["distill.lambda"]


def test_final_runs_compare_best_and_baseline_with_each_seed(finished: TunedStudy) -> None:
    with (finished.folder / "final.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["7", "8", "mean", "deviation"]
    differences = [float(row["difference_test"]) for row in rows[:2]]
    assert float(rows[2]["difference_test"]) == pytest.approx(sum(differences) / 2)
    assert float(rows[3]["difference_test"]) == pytest.approx(abs(differences[0] - differences[1]) / 2**0.5)
    assert "standard deviation" in finished.stdout
    runs = {f"{kind}_seed{seed}" for kind in ("vanilla", "distill") for seed in (7, 8)}
    assert finished.files("final/*/*.pth") == {f"final/{name}/best.pth" for name in runs}
    # Without a teacher, but with the best learning rate.
    config = yaml.safe_load((finished.project / "log/Mini/tune/distill/final/vanilla_seed7/config.yaml").read_text())
    rate = finished.best().params["optimizer_config.learning_rate"]
    assert (config["optimizer_config"]["learning_rate"], config["distill"]["enable"]) == (rate, False)


def test_final_runs_generate_trips_that_are_compared_query_by_query(finished: TunedStudy) -> None:
    comparison = json.loads((finished.folder / "comparison" / "comparison.json").read_text())
    assert (comparison["first"], comparison["second"]) == ("undistilled", "distilled")
    assert (finished.folder / "comparison" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    by_key = {row["key"]: row for row in comparison["differences"]}
    assert set(by_key) == {"accuracy", "reached", "f1", "dtw_km", "edr", "duration_error_s"}
    test = (finished.project / "data" / "Mini" / "test.csv").read_text().splitlines()[1:]
    for row in by_key.values():
        assert (row["n"], row["seeds"], len(row["by_seed"])) == (len(test), 2, 2)
        assert row["mean"] == pytest.approx(sum(row["by_seed"]) / 2)
        assert row["low"] <= row["mean"] <= row["high"] and 0 <= row["p_holm"] <= 1
    # Each model's own trips: their share that arrives is that of the table.
    for kind, name in (("vanilla", "first_mean"), ("distill", "second_mean")):
        shares = []
        for seed in (7, 8):
            folder = finished.folder / "final" / f"{kind}_seed{seed}" / "generated"
            with (folder / "trips.csv").open() as file:
                statuses = [row["status"] for row in csv.DictReader(file)]
            shares.append(statuses.count("reached") / len(statuses))
        assert by_key["reached"][name] == pytest.approx(sum(shares) / 2)
    assert "next-road accuracy, mean of trips" in finished.stdout and comparison["verdict"] in finished.stdout


def test_the_printed_command_trains_the_best_trial_again(finished: TunedStudy) -> None:
    [line] = [line for line in finished.stdout.splitlines() if "--run_name" in line]
    command = line.removeprefix("to train its model again: uv run python ").split()
    assert f"# uv run python {' '.join(command)}" in (finished.folder / "best_config.yaml").read_text()
    number = finished.best().number
    assert command[command.index("--run_name") + 1] == f"distill_trial{number}"  # no other run is there
    done = run(command, finished.project, TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    made = finished.project / "save" / "Mini" / f"distill_trial{number}" / "best.pth"
    assert made.read_bytes() == (finished.folder / f"trial_{number}" / "best.pth").read_bytes()


def test_the_same_command_again_trains_nothing_and_more_trials_extend_a_study(
    finished: TunedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of version 1, which has one id for all folders, facts of trials that are no longer used, and curves
    below the dataset's folder; one of its trials was killed.
    """
    copy = TunedStudy(Path(shutil.copytree(finished.project, tmp_path / "copy")))
    done = tune(FINISHED, copy)
    assert done.returncode == 0
    assert "started" not in done.stderr and "final run" not in done.stderr
    final = finished.stdout.index("\nseed ")
    assert done.stdout[done.stdout.index("\nseed ") :] == finished.stdout[final:]
    assert facts(copy.trials()) == facts(finished.trials())
    monkeypatch.chdir(copy.project)
    study = optuna.load_study(study_name="distill", storage=open_journal(copy.folder))
    study.set_user_attr("id", "0123")
    (copy.folder / ".study_id").write_text("0123")
    trial = study.ask()
    for key, value in (("owner", "someone"), ("place", "somewhere"), ("pid", 1)):
        trial.set_user_attr(key, value)
    curves = Path("tensorboard_log", "Mini", "tune", "distill", f"trial_{trial.number}")
    curves.mkdir(parents=True)
    done = tune(tune_command(trials=TRIALS + 2), copy)
    assert done.returncode == 0, done.stderr
    assert f"trial {trial.number}: resumed" in done.stderr
    assert list(curves.glob("*tfevents*"))
    assert facts(copy.trials()[:TRIALS]) == facts(finished.trials())
    assert [item.state.is_finished() for item in copy.trials()] == [True] * (TRIALS + 2)


def test_a_study_of_one_trial_without_a_baseline(fresh: TunedStudy) -> None:
    (fresh.folder).mkdir(parents=True)
    (fresh.folder / "history.png").write_bytes(b"of an earlier study")
    done = tune(tune_command("--no-baseline", "--set", "distill.lambda=3", trials=1), fresh)
    assert done.returncode == 0, done.stderr
    assert not (fresh.folder / "baseline").exists()
    assert [row["trial"] for row in fresh.rows()] == ["0"]
    assert "distill.lambda has no effect here: it is searched (optuna.search_space)" in done.stderr
    assert "optuna.sampler has no effect: all of 1 trials are drawn at random" in done.stderr
    assert fresh.files("*.png") == {"intermediate.png"}
    assert "too few trials for some pictures: history.png (from 2 finished trials on)" in done.stderr


# What trials must have in common -------------------------------------------------------------------------------


def test_a_study_refuses_other_data_and_another_teacher(
    finished: TunedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content: the same files in another place are the same."""
    project = Path(shutil.copytree(finished.project, tmp_path / "copy"))
    monkeypatch.chdir(project)
    moved = Path(shutil.copytree(project / "data" / "Mini", "moved"))
    open_study(data_dir="moved")
    val = moved / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    assert re.search(
        r"study 'distill': other data or another teacher than its trials had: val\.csv \(hash was [0-9a-f]{12}, is "
        r"[0-9a-f]{12}\), so trials would not be comparable",
        error_of(lambda: open_study(data_dir="moved")),
    )
    make_mini_teacher(project, seed=8)
    assert re.search(r"teacher save/Mini/teacher/weights\.pt \(hash was [0-9a-f]{12}, is", error_of(open_study))


def test_a_study_is_not_mixed_with_another(finished: TunedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.project)
    before = facts(finished.trials())
    assert "seed was 11 and is now 4" in error_of(lambda: open_study(seed=4))
    changed = ["optimizer_config.batch_size=20"]
    assert "optimizer_config.batch_size was 25 and is now 20" in error_of(lambda: open_study(overrides=changed))
    assert "holds a study with a journal of its own" in error_of(lambda: open_study("sqlite:///other.db"))
    assert facts(finished.trials()) == before


def test_a_folder_belongs_to_one_study(fresh: TunedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh.project)
    open_study(DATABASE)
    assert "a study that is kept in a database; name it with --storage" in error_of(open_study)
    assert "holds the trials of another study of this name" in error_of(lambda: open_study("sqlite:///other.db"))
    shutil.rmtree(fresh.folder)  # as on another machine
    open_study(DATABASE)
    open_study(DATABASE)


# Killed and started again --------------------------------------------------------------------------------------


def duration_s(study: TunedStudy) -> float:
    """From the start of its first trial to the end of its last one."""
    trials = study.trials()
    return (trials[-1].datetime_complete - trials[0].datetime_start).total_seconds()


def test_kills_at_random_moments_change_nothing(fresh: TunedStudy, finished: TunedStudy) -> None:
    rng, kills = random.Random(5), 0
    whole_s = duration_s(finished)
    while kills < 3:
        shutil.rmtree(fresh.folder, ignore_errors=True)  # it came to its end before it was killed often enough
        kills, code = 0, None
        while code is None:
            with Script(tune_command("--keep", "2"), fresh.project) as worker:
                code = worker.wait(rng.uniform(0.1, 0.3) * whole_s if kills < 4 else TIMEOUT_S)
                assert not code, worker.stderr
                kills += code is None
    assert facts(fresh.trials()) == facts(finished.trials())
    assert [row["val_acc"] for row in fresh.rows()] == [row["val_acc"] for row in finished.rows()]
    models = finished.files("trial_*/*.pth") | finished.files("baseline/*.pth")
    assert fresh.files("**/*.pth") == models
    for name in sorted(models):
        assert (fresh.folder / name).read_bytes() == (finished.folder / name).read_bytes()


def epochs_done(study: TunedStudy, number: int = 0) -> int:
    """Epochs in the checkpoint of a trial."""
    checkpoint = study.folder / f"trial_{number}" / "checkpoint_latest.pth"
    return torch.load(checkpoint)["epoch"] + 1 if checkpoint.exists() else 0


def test_a_trial_that_is_terminated_and_killed_is_resumed_under_its_number(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", epochs=9, trials=1)
    with Script(command, fresh.project) as worker:
        worker.wait_until(lambda: epochs_done(fresh) >= 1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(TIMEOUT_S) == 143
        last = worker.stderr.splitlines()[-1]
        assert last == "terminated: the study is kept; run the same command again to continue"
    with Script(command, fresh.project) as worker:
        worker.wait_until(lambda: epochs_done(fresh) >= 3)
        worker.kill()
    (before,) = fresh.trials()
    assert before.state == TrialState.RUNNING
    done_before = epochs_done(fresh)
    done = tune(command, fresh)
    assert done.returncode == 0, done.stderr
    assert "trial 0: resumed" in done.stderr
    assert f"✅ Resumed from checkpoint: epoch {done_before + 1}," in fresh.log(0)
    (after,) = fresh.trials()
    assert (after.number, after.params, after.state) == (0, before.params, TrialState.COMPLETE)
    assert len(after.intermediate_values) == 9
    assert {step: after.intermediate_values[step] for step in before.intermediate_values} == before.intermediate_values


def started(worker: Script) -> list[str]:
    return re.findall(r"^trial (\d+): started", worker.stderr, re.M)


def test_processes_share_a_journal_and_resume_the_trial_of_one_that_is_killed(fresh: TunedStudy) -> None:
    command = tune_command(epochs=4, trials=3)
    with Script(command, fresh.project) as killed, Script(command, fresh.project) as living:
        killed.wait_until(lambda: started(killed) and started(living), TIMEOUT_S)
        killed.kill()
        mine = started(killed)[-1]
        assert living.wait(TIMEOUT_S) == 0, living.stderr
        assert re.findall(r"^trial (\d+): resumed", living.stderr, re.M) == [mine]  # and no trial of the living one
        assert (killed.stderr + living.stderr).count("baseline: training") == 1
    trials = fresh.trials()
    assert len(trials) == 3
    assert all(trial.state.is_finished() and "error" not in trial.user_attrs for trial in trials)
    assert len({trial.params["optimizer_config.learning_rate"] for trial in trials}) == 3


def test_a_full_disk_ends_the_search_and_not_its_trials(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", epochs=8, trials=2)
    with Script(command, fresh.project) as worker:
        worker.wait_until(lambda: epochs_done(fresh) >= 1)
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
        assert worker.wait(TIMEOUT_S) == 1
        last = worker.stderr.splitlines()[-1]
        assert last.startswith("error: save/Mini/tune/distill/trial_0/")
        assert "cannot be written (OSError: [Errno 27]" in last
    assert fresh.states() == ["RUNNING"]
    done = tune(command, fresh)
    assert done.returncode == 0, done.stderr
    assert all(state in ("COMPLETE", "PRUNED") for state in fresh.states())


# Several machines ----------------------------------------------------------------------------------------------


def stored(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="distill", storage=url).trials


def test_machines_share_a_postgresql_server_and_repeat_the_trial_of_one_that_is_killed(
    template: Path, tmp_path: Path
) -> None:
    """Two folders that do not see each other's files stand for two machines."""
    here, there = (TunedStudy(Path(shutil.copytree(template, tmp_path / name))) for name in ("here", "there"))
    with postgresql() as url:
        command = tune_command("--no-baseline", "--storage", url, epochs=12, trials=3)
        with Script(command, here.project) as killed:
            killed.wait_until(lambda: started(killed), TIMEOUT_S)
            with Script(command, there.project) as living:
                living.wait_until(lambda: started(living), TIMEOUT_S)
                killed.kill()
                lost = int(started(killed)[-1])
                assert living.wait(TIMEOUT_S) == 0, living.stderr
        trials = stored(url)
        replaced = replacements(trials)
        assert list(replaced) == [lost]
        assert trials[lost].state == TrialState.FAIL
        assert trials[replaced[lost]].params == trials[lost].params
        others = [trial for trial in trials if trial.number != lost]
        assert len(others) == 3
        assert {trial.state for trial in others} <= {TrialState.COMPLETE, TrialState.PRUNED}
        row = there.rows()[lost]
        assert row["error"] == f"its process died; trial {replaced[lost]} repeats its values"


def test_a_trial_without_heartbeats_is_repeated_and_no_longer_its_first_owners(
    fresh: TunedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh.project)
    here = open_study(DATABASE)
    with here.claim(total=1) as claim:
        claim.trial.report(0.5, 0)
        time.sleep(here.config.optuna.grace_period + 1.5)
        with open_study(DATABASE).claim(total=1) as nothing:  # the heartbeats continue
            assert nothing is None
    time.sleep(here.config.optuna.grace_period + 1.5)
    with open_study(DATABASE).claim(total=1) as repeated:
        assert (repeated.number, repeated.values, repeated.is_resumed) == (1, claim.values, False)
        with pytest.raises(UpdateFinishedTrialError):
            claim.trial.report(0.9, 1)
        with pytest.raises(UpdateFinishedTrialError):
            here.end(claim, TrialState.COMPLETE, 0.9)
        here.end(repeated, TrialState.COMPLETE, 0.7)
    with here.claim(total=1) as nothing:
        assert nothing is None


def test_a_database_that_is_away_ends_the_search_with_one_line(fresh: TunedStudy) -> None:
    def rename(old: str, new: str) -> None:
        with sqlite3.connect(fresh.project / "study.db") as connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

    command = tune_command("--no-baseline", "--storage", DATABASE, epochs=6, trials=1)
    with Script(command, fresh.project) as worker:
        worker.wait_until(lambda: epochs_done(fresh) >= 1)
        rename("trial_intermediate_values", "gone")
        assert worker.wait(TIMEOUT_S) == 1
        assert "the study's database cannot be reached" in worker.stderr.splitlines()[-1]
        assert "Traceback" not in worker.stderr
    rename("gone", "trial_intermediate_values")
    done = tune(command, fresh)
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in stored(f"sqlite:///{fresh.project}/study.db")] == [
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]


# Failures and mistakes -----------------------------------------------------------------------------------------


def test_a_trial_that_crashes_is_failed_not_pruned_and_the_search_continues(fresh: TunedStudy) -> None:
    space = "optuna.search_space={optimizer_config.learning_rate: {choices: [1.0e+30, 0.005]}}"
    done = tune(tune_command("--no-baseline", "--set", space, epochs=1, trials=4), fresh)
    assert done.returncode == 0, done.stderr
    trials = fresh.trials()
    assert {trial.state.name for trial in trials} == {"COMPLETE", "FAIL"}
    for trial in trials:
        failed = trial.params["optimizer_config.learning_rate"] == 1e30
        assert (trial.state == TrialState.FAIL) == failed
        assert ("error" in trial.user_attrs) == failed
        if failed:
            assert f"trial {trial.number}: failed: " in done.stderr
            assert fresh.files(f"trial_{trial.number}/*.pth") == set()


def test_a_mistake_in_somebodys_code_is_in_the_log_of_its_trial_and_ends_a_study_without_results(
    fresh: TunedStudy,
) -> None:
    code = copy_of_the_project(fresh.project / "code")
    losses = code / "utils" / "training" / "losses.py"
    losses.write_text(losses.read_text() + "\n\ndef relative_error(*_): raise TypeError('a mistake in my loss')\n")
    command = tune_command(trials=2)
    done = tune([str(code / command[0]), *command[1:]], fresh)
    assert done.returncode == 1
    where = "log/Mini/tune/distill/trial_0"
    assert "baseline: failed: TypeError: a mistake in my loss" in done.stderr
    assert f"trial 0: failed: TypeError: a mistake in my loss (traceback in {where})" in done.stderr
    assert "Traceback (most recent call last)" in fresh.log(0)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: study 'distill': 2 of 2 trials failed and none finished; the last one: TypeError")
    assert fresh.states() == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "distill.teacher=absent.pt"], "absent.pt: no teacher"),
        (["--set", "optuna.min_resource=9"], "optuna.min_resource: found 9, expected at most optimizer_config"),
        (["--set", "optuna.search_space={distill.window: {low: 2, high: 30}}"], "distill.window: up to 30"),
    ],
)
def test_what_would_stop_every_trial_is_an_error_before_the_first(
    fresh: TunedStudy, arguments: list[str], message: str
) -> None:
    done = tune(tune_command(*arguments), fresh)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert not list(fresh.folder.glob("trial_*"))


@pytest.mark.parametrize(
    "arguments",
    [["--study_name", "a/b"], ["--study_name", ".."], ["--study_name", ""], ["--n_trials", "0"], ["--keep", "0"],
     ["--final_seeds", "-1"], ["--storage", ""]],
)  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", tune_command(*arguments))
    with pytest.raises(SystemExit) as ended:
        parse_arguments()
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err.splitlines()[-1]
