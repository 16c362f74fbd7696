"""A search survives everything, shares its work among processes, and ends with files a person can use."""

import contextlib
import csv
import random
import re
import resource
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from database import postgresql
from optuna.trial import FrozenTrial, TrialState
from scripts import Script, copy_of_the_project, make_mini_project, make_mini_teacher, mini, run, run_fresh
from sqlalchemy.exc import SQLAlchemyError

from utils.config import load_config
from utils.search.preflight import digests_of_inputs
from utils.search.space import SearchSpace
from utils.search.storage import open_journal
from utils.search.study import SharedStudy, TakenOverError

EPOCHS = 3
TRIALS = 6

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


def tune_command(*arguments: str, trials: int = TRIALS, seed: int = 11) -> list[str]:
    return mini("tools/tune_hoser.py", "--cuda", "-1", "--seed", str(seed), "--n_trials", str(trials), *arguments)


class TunedStudy:
    """A study named `distill` below a project folder."""

    def __init__(self, folder: Path):
        self.project, self.folder = folder, folder / "save" / "Mini" / "tune" / "distill"

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


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher, its cache, and a search space; no study yet."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("template")))
    config = folder / "Mini.yaml"
    config.write_text(config.read_text() + SEARCH)
    return folder


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> TunedStudy:
    """A study that one process ran from its begin to its end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(template, folder)
    done = run(tune_command("--keep", "2"), folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return TunedStudy(folder)


@pytest.fixture
def fresh(template: Path, tmp_path: Path) -> TunedStudy:
    shutil.copytree(template, tmp_path / "project")
    return TunedStudy(tmp_path / "project")


def facts(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """What two equal studies have in common."""
    return [(t.number, t.state.name, t.value, t.params, t.intermediate_values) for t in trials]


# A study and its results ---------------------------------------------------------------------------------------


def test_a_study_has_exactly_the_trials_asked_for_each_ended(undisturbed: TunedStudy) -> None:
    trials = undisturbed.trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        assert 1e-7 <= trial.params["optimizer_config.learning_rate"] <= 0.02
        assert trial.params["distill.window"] in (2, 4)
        # Every epoch is reported, from 0.
        assert list(trial.intermediate_values) == list(range(len(trial.intermediate_values)))
        if trial.state == TrialState.COMPLETE:
            assert len(trial.intermediate_values) == EPOCHS
            assert trial.value == max(trial.intermediate_values.values())


def test_no_two_trials_have_the_same_values(undisturbed: TunedStudy) -> None:
    assert len({trial.params["optimizer_config.learning_rate"] for trial in undisturbed.trials()}) == TRIALS


def test_the_baseline_comes_first_learns_without_a_teacher_and_is_no_trial(undisturbed: TunedStudy) -> None:
    lines = (undisturbed.project / "stderr").read_text().splitlines()
    begins = [line for line in lines if "baseline: training" in line or "begins" in line]
    assert begins[0].startswith("baseline")
    log = "".join(p.read_text() for p in (undisturbed.project / "log/Mini/tune/distill/baseline").glob("*.log"))
    assert "'enable': False" in log
    assert undisturbed.rows()[0]["trial"] == "baseline"
    assert len(undisturbed.rows()) == 1 + TRIALS


def test_trials_log_to_their_own_files_and_take_a_line_of_the_terminal(undisturbed: TunedStudy) -> None:
    stderr = (undisturbed.project / "stderr").read_text()
    assert "val_next_step_acc" not in stderr
    assert "Warning" not in stderr
    assert len(re.findall(r"^trial \d+: (0\.\d{4} \(epoch|pruned after epoch)", stderr, re.M)) == TRIALS
    assert all("val_next_step_acc" in undisturbed.log(number) for number in range(TRIALS))
    assert (undisturbed.project / "tensorboard_log/Mini/tune/distill/trial_0").is_dir()


def test_trials_share_the_cache_of_the_teachers_answers(undisturbed: TunedStudy) -> None:
    caches = list((undisturbed.project / "data" / "Mini" / ".cache").glob("teacher-*.pt"))
    # of train and of val
    assert len(caches) == 2 * len({trial.params["distill.window"] for trial in undisturbed.trials()})


def test_best_pth_is_kept_for_the_best_trials_and_no_rolling_checkpoint(undisturbed: TunedStudy) -> None:
    trials = undisturbed.trials()
    ranked = sorted(trials, key=lambda t: (t.state != TrialState.COMPLETE, -max(t.intermediate_values.values())))
    kept = {f"trial_{trial.number}/best.pth" for trial in ranked[:2]}
    assert undisturbed.files("trial_*/*.pth") == kept
    best = optuna.load_study(study_name="distill", storage=open_journal(undisturbed.folder)).best_trial
    assert f"trial_{best.number}/best.pth" in kept
    assert undisturbed.files("baseline/*.pth") == {"baseline/best.pth"}


def test_the_table_has_all_trials_and_marks_the_best(undisturbed: TunedStudy) -> None:
    table = (undisturbed.project / "stdout").read_text()
    study = optuna.load_study(study_name="distill", storage=open_journal(undisturbed.folder))
    assert len(re.findall(r"^\*? +(\d+|baseline)  (finished|pruned) ", table, re.M)) == TRIALS + 1
    assert re.search(rf"^\* +{study.best_trial.number} ", table, re.M)
    assert f"best: trial {study.best_trial.number}, validation accuracy {study.best_value:.4f}" in table


def test_trials_csv_has_what_the_study_has(undisturbed: TunedStudy) -> None:
    for row, trial in zip(undisturbed.rows()[1:], undisturbed.trials(), strict=True):
        assert row["trial"] == str(trial.number)
        assert row["state"] == {"COMPLETE": "finished", "PRUNED": "pruned"}[trial.state.name]
        assert row["epochs"] == str(len(trial.intermediate_values))
        assert float(row["val_acc"]) == max(trial.intermediate_values.values())
        assert float(row["distill.lambda"]) == trial.params["distill.lambda"]


def test_best_config_trains_the_best_trial_again_as_it_is(undisturbed: TunedStudy) -> None:
    study = optuna.load_study(study_name="distill", storage=open_journal(undisturbed.folder))
    path = undisturbed.folder / "best_config.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["distill"]["lambda"] == study.best_params["distill.lambda"]
    assert config["optimizer_config"]["max_epoch"] == EPOCHS
    command = ["train_with_distill.py", "--dataset", "Mini", "--seed", "11", "--cuda", "-1", "--config", str(path)]
    done = run(command, undisturbed.project)
    assert done.returncode == 0, done.stderr
    best = undisturbed.project / "save" / "Mini" / "seed11_distill" / "best.pth"
    kept = undisturbed.folder / f"trial_{study.best_trial.number}" / "best.pth"
    assert best.read_bytes() == kept.read_bytes()


def test_the_printed_command_repeats_the_best_trial_where_another_run_of_the_seed_is(
    undisturbed: TunedStudy, tmp_path: Path
) -> None:
    """The README's own order: distil, search, train with the best settings. It leads to a fresh run."""
    copy = TunedStudy(Path(shutil.copytree(undisturbed.project, tmp_path / "copy")))
    shutil.rmtree(copy.project / "save" / "Mini" / "seed11_distill", ignore_errors=True)
    earlier = mini("train_with_distill.py", "--seed", "11", "--cuda", "-1", "--set", "optimizer_config.max_epoch=3")
    assert run(earlier, copy.project).returncode == 0
    [line] = [line for line in (undisturbed.project / "stdout").read_text().splitlines() if "--run_name" in line]
    command = line.removeprefix("to train its model again: uv run python ").split()
    assert f"# uv run python {' '.join(command)}" in (copy.folder / "best_config.yaml").read_text()
    best = optuna.load_study(study_name="distill", storage=open_journal(copy.folder)).best_trial
    assert command[command.index("--run_name") + 1] == f"distill_trial{best.number}"
    done = run(command, copy.project)
    assert done.returncode == 0, done.stderr
    made = copy.project / "save" / "Mini" / f"distill_trial{best.number}" / "best.pth"
    assert made.read_bytes() == (copy.folder / f"trial_{best.number}" / "best.pth").read_bytes()
    without = [word for word in command if word not in ("--run_name", f"distill_trial{best.number}")]
    done = run(without, copy.project)
    assert done.returncode == 1
    assert "training is complete (3 epochs), but not with these settings: " in done.stderr


def test_a_study_refuses_other_data_and_another_teacher(undisturbed: TunedStudy, tmp_path: Path) -> None:
    """By their content, wherever it lies; and takes the same content from elsewhere."""
    project = Path(shutil.copytree(undisturbed.project, tmp_path / "copy"))
    before = facts(TunedStudy(project).trials())
    moved = Path(shutil.copytree(project / "data" / "Mini", project / "moved"))
    assert run(tune_command("--keep", "2", "--data_dir", "moved"), project).returncode == 0
    val = moved / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    done = run(tune_command("--data_dir", "moved"), project)
    assert done.returncode == 1
    assert re.search(
        r"study 'distill': other data or another teacher than its trials had: val\.csv \(hash [0-9a-f]{12} in it, "
        r"[0-9a-f]{12} now\), so trials would not be comparable",
        done.stderr.splitlines()[-1],
    )
    make_mini_teacher(project, seed=8)
    done = run(tune_command(), project)
    assert done.returncode == 1
    assert re.search(
        r"teacher save/Mini/teacher/weights\.pt \(hash [0-9a-f]{12} in it, [0-9a-f]{12} now\)",
        done.stderr.splitlines()[-1],
    )
    assert facts(TunedStudy(project).trials()) == before


def test_a_key_that_is_searched_is_not_set_besides(fresh: TunedStudy) -> None:
    done = run(tune_command("--no-baseline", "--set", "distill.lambda=3", trials=1), fresh.project)
    assert done.returncode == 0, done.stderr
    assert "distill.lambda has no effect here: it is searched (optuna.search_space)" in done.stderr
    assert "optuna.sampler has no effect: all of 1 trials are drawn at random" in done.stderr


def test_a_mistake_in_somebodys_code_is_in_the_log_of_its_trial(fresh: TunedStudy) -> None:
    """The trial is failed, and the terminal says where the traceback is."""
    code = copy_of_the_project(fresh.project / "code")
    losses = code / "utils" / "training" / "losses.py"
    losses.write_text(losses.read_text() + "\n\ndef relative_error(*_): raise TypeError('a mistake in my loss')\n")
    done = run_fresh(tune_command("--no-baseline", trials=1), fresh.project, code=code)
    assert done.returncode == 1
    where = "log/Mini/tune/distill/trial_0"
    assert f"trial 0: failed: TypeError: a mistake in my loss (traceback in {where})" in done.stderr
    assert "Traceback (most recent call last)" in fresh.log(0)
    single = run_fresh(mini("train.py"), fresh.project, code=code)
    assert single.returncode == 1
    assert single.stderr.splitlines()[-1] == "TypeError: a mistake in my loss"
    assert "Traceback (most recent call last)" in single.stderr


def test_the_pictures_are_there(undisturbed: TunedStudy) -> None:
    names = {"history", "intermediate", "importance", "parallel_coordinates", "slices"}
    assert undisturbed.files("*.png") == {f"{name}.png" for name in names}
    for path in undisturbed.folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_finished_study_says_so_and_trains_nothing(undisturbed: TunedStudy, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.project, tmp_path / "copy")
    copy = TunedStudy(tmp_path / "copy")
    done = run(tune_command("--keep", "2"), copy.project)
    assert done.returncode == 0
    assert "begins" not in done.stderr
    assert done.stdout == (undisturbed.project / "stdout").read_text()
    assert facts(copy.trials()) == facts(undisturbed.trials())


def test_more_trials_extend_a_study(undisturbed: TunedStudy, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.project, tmp_path / "copy")
    copy = TunedStudy(tmp_path / "copy")
    assert run(tune_command(trials=TRIALS + 1), copy.project).returncode == 0
    assert facts(copy.trials()[:TRIALS]) == facts(undisturbed.trials())
    assert len(copy.trials()) == TRIALS + 1


def test_without_a_baseline(fresh: TunedStudy) -> None:
    done = run(tune_command("--no-baseline", trials=1), fresh.project)
    assert done.returncode == 0
    assert not (fresh.folder / "baseline").exists()
    assert [row["trial"] for row in fresh.rows()] == ["0"]


# Killed and started again --------------------------------------------------------------------------------------


def test_kills_at_random_moments_change_nothing(fresh: TunedStudy, undisturbed: TunedStudy) -> None:
    rng, command, kills = random.Random(5), tune_command("--keep", "2"), 0
    while True:
        with Script(command, fresh.project) as worker:
            code = worker.wait(rng.uniform(0.4, 1.5) if kills < 6 else 120)
            if code is None:
                worker.kill()
                kills += 1
                continue
            assert code == 0, worker.stderr
            break
    assert kills >= 3
    assert facts(fresh.trials()) == facts(undisturbed.trials())
    assert [row["val_acc"] for row in fresh.rows()] == [row["val_acc"] for row in undisturbed.rows()]
    for name in sorted(undisturbed.files("**/*.pth")):
        assert (fresh.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes()
    assert fresh.files("**/*.pth") == undisturbed.files("**/*.pth")


def wait_for_checkpoint(worker: Script, study: TunedStudy, number: int = 0) -> None:
    worker.wait_until((study.folder / f"trial_{number}" / "checkpoint_latest.pth").exists)


def kill_in_trial(worker: Script, study: TunedStudy, number: int = 0, epochs: int = 1) -> FrozenTrial:
    """Kill a worker when a trial has finished so many epochs; returns the trial as it stands then."""
    checkpoint = study.folder / f"trial_{number}" / "checkpoint_latest.pth"
    worker.wait_until(lambda: checkpoint.exists() and torch.load(checkpoint)["epoch"] + 1 >= epochs)
    worker.kill()
    return study.trials()[number]


def test_a_killed_trial_goes_on_under_its_number_from_its_checkpoint(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", "--set", "optimizer_config.max_epoch=15", trials=1)
    with Script(command, fresh.project) as worker:
        before = kill_in_trial(worker, fresh, epochs=3)
    assert before.state == TrialState.RUNNING
    done_before = torch.load(fresh.folder / "trial_0" / "checkpoint_latest.pth")["epoch"] + 1
    done = run(command, fresh.project)
    assert done.returncode == 0, done.stderr
    assert "trial 0: taken up again" in done.stderr
    assert f"✅ Resumed from checkpoint: epoch {done_before + 1}," in fresh.log(0)
    (after,) = fresh.trials()
    assert (after.number, after.params, after.state) == (0, before.params, TrialState.COMPLETE)
    assert len(after.intermediate_values) == 15
    assert {step: after.intermediate_values[step] for step in before.intermediate_values} == before.intermediate_values


def has_begun(worker: Script, trial: int, timeout_s: float = 4) -> bool:
    with contextlib.suppress(AssertionError):
        worker.wait_until(lambda: f"trial {trial}: begins" in worker.stderr, timeout_s)
    return f"trial {trial}: begins" in worker.stderr


def test_a_living_process_takes_up_what_another_left(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", "--set", "optimizer_config.max_epoch=40", trials=2)
    with Script(command, fresh.project) as killed:
        wait_for_checkpoint(killed, fresh)
        with Script(command, fresh.project) as living:
            # Stopped in the middle of a report, it would hold the journal: another try, then.
            for _ in range(20):
                killed.send_signal(signal.SIGSTOP)
                if has_begun(living, trial=1):  # and not the first one, whose process is alive
                    break
                killed.send_signal(signal.SIGCONT)
                time.sleep(0.02)
            assert has_begun(living, trial=1), living.stderr
            killed.kill()
            assert living.wait() == 0, living.stderr
            assert "trial 0: taken up again" in living.stderr
    assert all(trial.state.is_finished() and "error" not in trial.user_attrs for trial in fresh.trials())
    assert "Resumed from checkpoint" in fresh.log(0)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_leaves_the_trial_to_be_taken_up(fresh: TunedStudy, number: int, code: int, word: str) -> None:
    command = tune_command("--no-baseline", "--set", "optimizer_config.max_epoch=15", trials=1)
    with Script(command, fresh.project) as worker:
        wait_for_checkpoint(worker, fresh)
        worker.send_signal(number)
        assert worker.wait() == code
        assert worker.stderr.splitlines()[-1] == f"{word}: the study is kept; run the same command again to go on"
    assert fresh.states() == ["RUNNING"]


# Several processes ---------------------------------------------------------------------------------------------


def test_workers_on_one_journal_share_the_trials(fresh: TunedStudy) -> None:
    with Script(tune_command(), fresh.project) as one, Script(tune_command(), fresh.project) as two:
        assert [one.wait(), two.wait()] == [0, 0], one.stderr + two.stderr
        pids = {one.pid, two.pid}
        baselines = (one.stderr + two.stderr).count("baseline: training")
    trials = fresh.trials()
    assert len(trials) == TRIALS
    assert {trial.user_attrs["pid"] for trial in trials} == pids
    assert all(trial.state.is_finished() and "error" not in trial.user_attrs for trial in trials)
    assert len({trial.params["optimizer_config.learning_rate"] for trial in trials}) == TRIALS
    assert baselines == 1


def stored(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="distill", storage=url).trials


def test_workers_on_one_postgresql_server_share_the_trials(template: Path, tmp_path: Path) -> None:
    """Two folders that do not see each other's files stand for two machines. One is killed, and comes back."""
    machines = [TunedStudy(tmp_path / name) for name in ("here", "there")]
    for machine in machines:
        shutil.copytree(template, machine.project)
    with postgresql() as url:
        command = tune_command("--no-baseline", "--storage", url)
        # At once: both create tables and study.
        with Script(command, machines[0].project) as here, Script(command, machines[1].project) as there:
            here.wait_until(lambda: any(trial.user_attrs.get("pid") == here.pid for trial in stored_so_far(url)))
            here.kill()
            left = [trial for trial in stored(url) if trial.state == TrialState.RUNNING]
            left = [trial.number for trial in left if trial.user_attrs.get("pid") in (here.pid, None)]
            with Script(command, machines[0].project) as again:
                assert [again.wait(), there.wait()] == [0, 0], again.stderr + there.stderr
                pids = {again.pid, there.pid}
        trials = stored(url)
        assert len(trials) == TRIALS
        assert all(trials[number].user_attrs["pid"] in pids for number in left)
        assert all(trial.state.is_finished() and "error" not in trial.user_attrs for trial in trials)
        assert len({trial.params["optimizer_config.learning_rate"] for trial in trials}) == TRIALS
        for machine in machines:
            assert [row["trial"] for row in machine.rows()] == [str(number) for number in range(TRIALS)]


def stored_so_far(url: str) -> list[FrozenTrial]:
    """The trials of a study that may not be there yet."""
    try:
        return stored(url)
    except (KeyError, RuntimeError, SQLAlchemyError, optuna.exceptions.StorageInternalError, AssertionError):
        return []


def test_another_machine_takes_a_trial_up_when_its_signs_of_life_end(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders that do not see each other's files stand for two machines; on the first we work ourselves."""
    here, there = (TunedStudy(tmp_path / name) for name in ("here", "there"))
    for machine in (here, there):
        shutil.copytree(template, machine.project)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    monkeypatch.chdir(here.project)
    config = load_config("Mini", "Mini.yaml")
    space = SearchSpace(config, lambda more: load_config("Mini", "Mini.yaml", more))
    inputs = digests_of_inputs("Mini", None, config, space)
    study = SharedStudy("distill", "Mini", url, config, space, seed=11, inputs=inputs)
    with Script(tune_command("--no-baseline", "--storage", url, trials=1), there.project) as other:
        with study.claim(total=1) as claim:
            claim.trial.report(0.5, 0)
            other.wait_until(lambda: "waiting for 1 trial" in other.stderr)
            time.sleep(config.optuna.grace_period + 1.0)
            assert "taken up" not in other.stderr
        # Our signs of life have ended, as if we had been killed.
        assert other.wait() == 0, other.stderr
        assert "trial 0: taken up again" in other.stderr
    (trial,) = stored(url)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, claim.values)
    assert trial.intermediate_values[0] == 0.5  # what was reported stays
    # Should we come back, the trial is not ours any more.
    with pytest.raises(TakenOverError):
        claim.trial.report(0.9, 1)
    with pytest.raises(TakenOverError):
        study.end(claim, TrialState.FAIL)


# Failures ------------------------------------------------------------------------------------------------------


def test_a_trial_that_crashes_is_failed_not_pruned_and_the_study_goes_on(fresh: TunedStudy) -> None:
    space = "optuna.search_space={optimizer_config.learning_rate: {choices: [1.0e+30, 0.005]}}"
    done = run(tune_command("--set", space, trials=4), fresh.project)
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


def test_a_study_whose_trials_all_fail_is_an_error(fresh: TunedStudy) -> None:
    space = "optuna.search_space={optimizer_config.learning_rate: {choices: [1.0e+30, 2.0e+30]}}"
    done = run(tune_command("--no-baseline", "--set", space, trials=2), fresh.project)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: study 'distill': 2 of 2 trials failed and none finished;")
    assert fresh.states() == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optuna.search_space={distill.lamda: {low: 0.1, high: 1}}"], "did you mean 'distill.lambda'?"),
        (["--set", "distill.teacher=absent.pt"], "absent.pt: no teacher"),
        (["--data_dir", "nowhere"], "nowhere: no such folder"),
        (["--set", "optuna.min_resource=9"], "optuna.min_resource: found 9, expected at most optimizer_config"),
        (["--storage", "nonsense"], "--storage: found no database URL"),
        (["--storage", "sqlite:////nowhere/at/all.db"], "cannot be opened"),
        (["--storage", "sqlite://"], "--storage sqlite://: is a database in memory, expected a file"),
        (
            ["--storage", "sqlite:///x.db", "--set", "optuna.heartbeat_interval=2"],
            "optuna.grace_period: found 3, expected at least 3 times optuna.heartbeat_interval = 2",
        ),
        (["--set", "optuna.search_space={distill.window: {low: 2, high: 30}}"], "distill.window: up to 30"),
    ],
)
def test_what_would_stop_every_trial_is_an_error_before_the_first(
    fresh: TunedStudy, arguments: list[str], message: str
) -> None:
    done = run(tune_command(*arguments), fresh.project)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert not list(fresh.folder.glob("trial_*"))


@pytest.mark.parametrize(
    "arguments",
    [["--study_name", "a/b"], ["--study_name", ".."], ["--study_name", ""], ["--n_trials", "0"], ["--keep", "0"],
     ["--final_seeds", "-1"], ["--storage", ""]],
)  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error(fresh: TunedStudy, arguments: list[str]) -> None:
    done = run(tune_command(*arguments), fresh.project)
    assert done.returncode == 2
    assert "expected" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "4"], "seed is 11 in it and 4 now"),
        (["--set", "optimizer_config.batch_size=20"], "optimizer_config.batch_size is 25 in it and 20 now"),
        (["--storage", "sqlite:///other.db"], "holds a study with a journal of its own"),
    ],
)
def test_a_study_is_not_mixed_with_another(undisturbed: TunedStudy, arguments: list[str], message: str) -> None:
    before = facts(undisturbed.trials())
    done = run(tune_command(*arguments), undisturbed.project)
    assert done.returncode == 1
    assert message in done.stderr
    assert facts(undisturbed.trials()) == before


def test_a_study_in_a_database_is_not_begun_again_in_a_journal(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", trials=1)
    assert run([*command, "--storage", "sqlite:///study.db"], fresh.project).returncode == 0
    forgotten = run(command, fresh.project)
    assert forgotten.returncode == 1
    assert "a study that is kept in a database; name it with --storage" in forgotten.stderr.splitlines()[-1]
    assert run([*command, "--storage", "sqlite:///study.db"], fresh.project).returncode == 0


def test_a_study_whose_creation_was_cut_off_is_gone_on_with(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", "--storage", "sqlite:///study.db", trials=1)
    assert run(command, fresh.project).returncode == 0
    shutil.rmtree(fresh.folder)
    with sqlite3.connect(fresh.project / "study.db") as connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = 'id'")
    assert run(command, fresh.project).returncode == 0
    assert run(command, fresh.project).returncode == 0


def test_a_full_disk_ends_the_search_and_not_its_trials(fresh: TunedStudy) -> None:
    command = tune_command("--no-baseline", "--set", "optimizer_config.max_epoch=20", trials=2)
    with Script(command, fresh.project) as worker:
        wait_for_checkpoint(worker, fresh)
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
        assert worker.wait() == 1
        last = worker.stderr.splitlines()[-1]
        assert last.startswith("error: save/Mini/tune/distill/trial_0/")
        assert "cannot be written (OSError: [Errno 27]" in last
    assert fresh.states() == ["RUNNING"]
    done = run(command, fresh.project)
    assert done.returncode == 0, done.stderr
    assert all(state in ("COMPLETE", "PRUNED") for state in fresh.states())


def test_a_database_that_is_away_for_a_moment_costs_nothing(fresh: TunedStudy) -> None:
    database = fresh.project / "study.db"
    command = tune_command(
        "--no-baseline", "--set", "optimizer_config.max_epoch=20", "--storage", f"sqlite:///{database}", trials=1
    )
    with Script(command, fresh.project) as worker:
        wait_for_checkpoint(worker, fresh)
        with sqlite3.connect(database) as connection:
            connection.execute("ALTER TABLE trial_intermediate_values RENAME TO gone")
        worker.wait_until(lambda: "trying again for 3 s" in worker.stderr)
        with sqlite3.connect(database) as connection:
            connection.execute("ALTER TABLE gone RENAME TO trial_intermediate_values")
        assert worker.wait() == 0, worker.stderr
    (trial,) = stored(f"sqlite:///{database}")
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.COMPLETE, 20)


def test_a_model_of_a_trial_that_ended_elsewhere_is_not_kept(template: Path, tmp_path: Path) -> None:
    """Two folders that do not see each other's files stand for two machines."""
    here, there = (TunedStudy(tmp_path / name) for name in ("here", "there"))
    for machine in (here, there):
        shutil.copytree(template, machine.project)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    command = tune_command("--no-baseline", "--storage", url, "--set", "optimizer_config.max_epoch=40", trials=1)
    with Script(command, here.project) as worker:
        worker.wait_until((here.folder / "trial_0" / "best.pth").exists)
        worker.kill()
    # Its folder is not seen there, so the trial's signs of life must end first; in this one it would be resumed.
    done = run(command, there.project)
    assert done.returncode == 0, done.stderr
    assert run(command, here.project).returncode == 0
    assert there.files("trial_0/*.pth") == {"trial_0/best.pth"}
    assert here.files("trial_0/*.pth") == set()


def test_a_storage_that_fails_in_a_trial_leaves_the_trial_to_be_taken_up(fresh: TunedStudy) -> None:
    database = fresh.project / "study.db"
    command = tune_command(
        "--no-baseline", "--set", "optimizer_config.max_epoch=20", "--storage", f"sqlite:///{database}", trials=1
    )
    with Script(command, fresh.project) as worker:
        wait_for_checkpoint(worker, fresh)
        with sqlite3.connect(database) as connection:
            connection.execute("ALTER TABLE trial_intermediate_values RENAME TO gone")
        assert worker.wait() == 1
        assert "storage cannot be reached" in worker.stderr.splitlines()[-1]
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE gone RENAME TO trial_intermediate_values")
    assert [trial.state for trial in stored(f"sqlite:///{database}")] == [TrialState.RUNNING]
    done = run(command, fresh.project)
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in stored(f"sqlite:///{database}")] == [TrialState.COMPLETE]


# Final runs ----------------------------------------------------------------------------------------------------


def test_final_runs_compare_best_and_baseline_with_each_seed(undisturbed: TunedStudy, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.project, tmp_path / "copy")
    copy = TunedStudy(tmp_path / "copy")
    command = tune_command("--keep", "2", "--final_seeds", "7", "8")
    done = run(command, copy.project)
    assert done.returncode == 0, done.stderr
    with (copy.folder / "final.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["7", "8", "mean", "deviation"]
    differences = [float(row["difference_test"]) for row in rows[:2]]
    assert float(rows[2]["difference_test"]) == pytest.approx(sum(differences) / 2)
    assert float(rows[3]["difference_test"]) == pytest.approx(abs(differences[0] - differences[1]) / 2**0.5)
    assert "standard deviation" in done.stdout
    assert copy.files("final/*/*.pth") == {
        f"final/{k}_seed{s}/best.pth" for k in ("vanilla", "distill") for s in (7, 8)
    }
    # Without a teacher, but with the best learning rate.
    best = max((t for t in copy.trials() if t.value is not None), key=lambda t: t.value).params
    log = "".join(p.read_text() for p in (copy.project / "log/Mini/tune/distill/final/vanilla_seed7").glob("*.log"))
    assert f"'learning_rate': {best['optimizer_config.learning_rate']}" in log and "'enable': False" in log
    # A second time nothing is trained.
    again = run(command, copy.project)
    assert "final run" not in again.stderr
    assert again.stdout == done.stdout
