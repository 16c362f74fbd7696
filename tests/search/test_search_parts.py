"""What a search may vary, which trials it prunes, how its journal survives, and pictures of any study."""

import io
import itertools
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import error_of
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState, create_trial

from utils.config import Config, load_config
from utils.config_sections import OptunaConfig
from utils.search.report import final_lines, format_final
from utils.search.samplers import PRUNED_AFTER, EpochHyperband, check_sampler, make_sampler
from utils.search.space import SearchSpace, column_names, override_texts
from utils.search.storage import Journal, open_database, open_journal
from utils.search.worker import RunMetrics
from utils.tracking.run import curves_folder

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space_of(space: Any, *overrides: str) -> SearchSpace:
    """The search space of a configuration with this section."""

    def load(more: list[str]) -> Config:
        return load_config("Mini", None, [*overrides, *more])

    return SearchSpace(load(override_texts({"optuna.search_space": space})), load)


# The search space ----------------------------------------------------------------------------------------------


def test_by_default_lambda_temperature_and_window_are_searched() -> None:
    config = load_config("Mini")
    space = SearchSpace(config, lambda more: load_config("Mini", None, more))
    assert space.distributions == {
        "distill.lambda": FloatDistribution(0.001, 0.1, log=True),
        "distill.temperature": FloatDistribution(1.0, 5.0),
        "distill.window": IntDistribution(2, 8),
    }


@pytest.mark.parametrize(
    ("key", "entry", "expected"),
    [
        ("distill.lambda", {"low": "1e-4", "high": 1, "log": True}, FloatDistribution(1e-4, 1, log=True)),
        ("optimizer_config.batch_size", {"low": 32, "high": 128, "step": 32}, IntDistribution(32, 128, step=32)),
        ("optimizer_config.batch_size", {"low": 1, "high": 9, "log": True}, IntDistribution(1, 9, log=True)),
        ("distill.temperature", {"low": 1, "high": 3, "step": 0.5}, FloatDistribution(1, 3, step=0.5)),
        ("distill.temperature", {"low": 2, "high": 2}, FloatDistribution(2, 2)),
        ("distill.steps", {"choices": ["all", "last"]}, CategoricalDistribution(["all", "last"])),
        ("distill.enable", {"choices": [True, False]}, CategoricalDistribution([True, False])),
        ("trajectory_encoder_config.num_layers", {"choices": [1, 2]}, CategoricalDistribution([1, 2])),
    ],
)  # fmt: skip
def test_any_key_of_training_can_be_searched(key: str, entry: dict[str, Any], expected: Any) -> None:
    assert space_of({key: entry}).distributions == {key: expected}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "found nothing, expected one key or more"),
        ({"distill.lamda": {"low": 0, "high": 1}}, "did you mean 'distill.lambda'?"),
        ({"distill": {"low": 0, "high": 1}}, "distill is a section"),
        ({"distill.lambda": 3}, "distill.lambda: found 3, expected {low: ..., high: ...}"),
        ({"distill.lambda": {"low": 0.1}}, 'found {"low": 0.1}, expected'),
        ({"distill.lambda": {"low": 0.1, "high": 1, "lgo": True}}, "unknown key 'lgo'"),
        ({"distill.lambda": {"low": 0.1, "high": 1, "choices": [1]}}, "unknown key 'choices'"),
        ({"distill.lambda": {"low": 1, "high": 0.1}}, "low is 1.0 and high is 0.1"),
        ({"distill.lambda": {"low": 0, "high": 1, "log": True}}, "low is 0.0, expected more than 0, as log is true"),
        ({"distill.lambda": {"low": -1, "high": 1}}, "distill.lambda: found -1.0, expected at least 0.0"),
        ({"distill.lambda": {"low": "x", "high": 1}}, "found 'x' (text), expected a number"),
        ({"distill.lambda": {"low": [1], "high": 1}}, "found a list, expected a number"),
        ({"distill.lambda": {"low": 0.1, "high": 1, "log": 1}}, "log: found 1, expected true or false"),
        ({"distill.lambda": {"low": 0.1, "high": 1, "step": 0.4}}, "step: 0.4 does not lead from 0.1 to 1.0"),
        ({"distill.lambda": {"low": 0.1, "high": 1, "step": 0}}, "step: found 0, expected a number above 0"),
        ({"distill.lambda": {"low": 0.1, "high": 1, "step": 0.1, "log": True}}, "found both log and step"),
        ({"distill.window": {"low": 2.5, "high": 4}}, "found 2.5 (a number), expected a whole number"),
        ({"distill.window": {"low": 2, "high": 4, "step": 0.5}}, "expected a whole number above 0"),
        ({"distill.window": {"choices": []}}, "choices: found [], expected a list of values"),
        ({"distill.window": {"choices": [2, 2]}}, "choices: a value occurs twice"),
        ({"distill.window": {"choices": [0]}}, "found 0, expected at least 1"),
        ({"distill.steps": {"low": 1, "high": 2}}, "expected {choices: [...]} (its values are no numbers)"),
        ({"distill.steps": {"choices": ["some"]}}, "expected one of all, last"),
        ({"distill.enable": {"low": False, "high": True}}, "expected {choices: [...]}"),
        ({"optimizer_config.max_epoch": {"low": 1, "high": 9}}, "cannot be searched, it is the resource"),
        ({"wandb.tags": {"choices": [["a"]]}}, "cannot be searched, it changes no training"),
        ({"teacher.n_layer": {"low": 1, "high": 3}}, "cannot be searched, only tools/train_teacher.py reads it"),
        ({"optuna.sampler": {"choices": ["tpe"]}}, "cannot be searched, it is the search itself"),
        ({"navigator_config.hidden_dim": {"choices": [64, 128]}}, "found 64, expected 128"),
    ],
)  # fmt: skip
def test_a_search_space_that_makes_no_sense_is_an_error(space: Any, message: str) -> None:
    text = error_of(space_of, space)
    assert text.startswith("optuna.search_space: ")
    assert message in text


@pytest.mark.parametrize("space", [3, [1], None])
def test_a_search_space_is_a_section(space: Any) -> None:
    text = error_of(load_config, "Mini", None, {"optuna.search_space": space})
    assert "optuna.search_space: found" in text
    assert "expected a section of configuration keys" in text


def test_searching_distillation_that_is_off_is_an_error() -> None:
    text = error_of(space_of, {"distill.lambda": {"low": 0.1, "high": 1}}, "distill.enable=false")
    assert "distill.lambda: has no effect while distill.enable is false" in text


def test_values_reach_the_configuration_to_the_last_digit() -> None:
    values = {"distill.lambda": 0.1 + 0.2, "optimizer_config.learning_rate": 1e-07, "distill.steps": "last"}
    config = load_config("Mini", None, override_texts({**values, "distill.enable": False}))
    assert (config.distill.lambda_, config.optimizer_config.learning_rate) == (0.1 + 0.2, 1e-07)
    assert (config.distill.steps, config.distill.enable) == ("last", False)


# Samplers and the pruner ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_a_study_suggests_the_same_however_often_its_process_is_started(name: str) -> None:
    settings = OptunaConfig(sampler=name, n_startup_trials=2)
    check_sampler(settings, {}, 8)
    studies = [optuna.create_study(direction="maximize") for _ in range(2)]
    for number in range(8):
        for study in studies:
            study.sampler = make_sampler(settings, 1, number, {})
            trial = study.ask()
            study.tell(trial, -((trial.suggest_float("x", 0, 1) - 0.3) ** 2) - trial.suggest_int("n", 0, 5))
    assert [trial.params for trial in studies[0].trials] == [trial.params for trial in studies[1].trials]
    assert len({trial.params["x"] for trial in studies[0].trials}) == 8


def test_a_grid_has_each_combination_of_choices_once(messages: list[str]) -> None:
    lambdas, windows = (CategoricalDistribution(choices) for choices in ([0.03, 0.1, 1], [2, 8]))
    distributions = {"distill.lambda": lambdas, "distill.window": windows}
    settings = OptunaConfig(sampler="grid")
    check_sampler(settings, distributions, 6)
    assert not messages
    check_sampler(settings, distributions, 5)
    assert "optuna.sampler grid has 6 combinations, and --n_trials is 5" in messages[0]
    study = optuna.create_study(direction="maximize")
    for number in range(6):
        study.sampler = make_sampler(settings, 1, number, distributions)
        trial = study.ask()
        study.tell(trial, sum(trial.suggest_categorical(key, item.choices) for key, item in distributions.items()))
    found = {tuple(trial.params.values()) for trial in study.trials}
    assert found == set(itertools.product(lambdas.choices, windows.choices))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_grid_leaves_nothing_out_where_machines_ask_at_once_and_a_dead_trial_is_repeated() -> None:
    distributions = {"distill.window": CategoricalDistribution([2, 4, 8])}
    study = optuna.create_study(direction="maximize")
    study.sampler = make_sampler(OptunaConfig(sampler="grid"), 1, 0, distributions)
    dead, other = study.ask(), study.ask()  # by machines that both saw an empty study
    study.tell(dead, state=TrialState.FAIL)  # before it had its value
    RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    for trial in (other, study.ask(), study.ask()):
        study.tell(trial, trial.suggest_categorical("distill.window", [2, 4, 8]))
    finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert [trial.params["distill.window"] for trial in finished] == [4, 2, 8]


def test_a_grid_of_a_range_is_an_error() -> None:
    distributions = {"distill.lambda": FloatDistribution(0.1, 1), "distill.window": CategoricalDistribution([2])}
    message = error_of(check_sampler, OptunaConfig(sampler="grid"), distributions, 20)
    assert "grid needs choices; found a range for distill.lambda" in message


def test_cmaes_without_its_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "uv sync --extra cmaes" in error_of(check_sampler, OptunaConfig(sampler="cmaes"), {}, 20)


def pruned_after(max_epoch: int, curves: list[list[float]], settings: OptunaConfig) -> list[int | None]:
    """After how many epochs trials with these curves, one after the other, are pruned; None: not at all."""
    study = optuna.create_study(study_name="rungs", direction="maximize", pruner=EpochHyperband(settings, max_epoch))
    study.pruner.prepare(study)
    after: list[int | None] = []
    for curve in curves:
        trial, state = study.ask(), TrialState.COMPLETE
        for epoch_id, value in enumerate(curve):
            trial.report(value, epoch_id)
            if trial.should_prune():
                state = TrialState.PRUNED
                assert study.trials[-1].user_attrs[PRUNED_AFTER] == epoch_id + 1
                break
        after.append(epoch_id + 1 if state == TrialState.PRUNED else None)
        study.tell(trial, curve[-1] if state == TrialState.COMPLETE else None, state=state)
    return after


def test_trials_are_compared_after_one_three_and_nine_epochs_of_twelve() -> None:
    falling = [[1.0 - 0.01 * number] * 12 for number in range(60)]
    after = pruned_after(12, falling, OptunaConfig())
    assert set(after) == {None, 1, 3, 9}


def test_min_resource_is_the_number_of_epochs_before_the_first_comparison() -> None:
    falling = [[1.0 - 0.01 * number] * 12 for number in range(60)]
    after = pruned_after(12, falling, OptunaConfig(min_resource=4, reduction_factor=2))
    assert set(after) == {None, 4, 8}


@pytest.mark.parametrize("epochs", [1, 2, 3, 9])
def test_a_trial_is_never_pruned_after_its_last_epoch(epochs: int) -> None:
    falling = [[1.0 - 0.01 * number] * epochs for number in range(40)]
    assert epochs not in pruned_after(epochs, falling, OptunaConfig())


def test_a_better_trial_is_not_pruned() -> None:
    rising = [[0.01 * number] * 12 for number in range(30)]
    assert set(pruned_after(12, rising, OptunaConfig())) == {None}


# The journal ---------------------------------------------------------------------------------------------------


def _die_with_the_lock(path: Path) -> None:
    Journal(path)._lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_in_the_middle_of_writing_does_not_block_others(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=open_journal(tmp_path))
    victim = get_context("fork").Process(target=_die_with_the_lock, args=(tmp_path / "study.journal",))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"half a li')
    study.ask()
    assert len(optuna.load_study(study_name="s", storage=open_journal(tmp_path)).trials) == 1


def test_a_damaged_journal_is_an_error(tmp_path: Path) -> None:
    optuna.create_study(study_name="s", storage=open_journal(tmp_path))
    path = tmp_path / "study.journal"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    assert "not the journal of a study, or damaged" in error_of(open_journal, tmp_path)


# A database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "interval", "message"),
    [
        ("nonsense", 1, "--storage: found no database URL"),
        ("sqlite:////nowhere/at/all.db", 1, "cannot be opened"),
        ("sqlite://", 1, "--storage sqlite://: is a database in memory, expected a file"),
        ("nobody://host/database", 1, "no driver for this kind of database"),
        ("sqlite:///x.db", 2, "grace_period: found 3, expected at least 3 times optuna.heartbeat_interval = 2"),
    ],
)
def test_a_database_that_cannot_be_used_is_an_error(url: str, interval: int, message: str) -> None:
    assert message in error_of(open_database, url, OptunaConfig(heartbeat_interval=interval, grace_period=3))


def test_curves_of_a_search_have_a_folder_beside_the_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert curves_folder("Demo", "seed0") == Path("tensorboard_log/Demo/seed0")
    assert curves_folder("Demo", "tune/s/trial_0") == Path("tensorboard_log/Demo_tune/s/trial_0")
    earlier = Path("tensorboard_log/Demo/tune/s/trial_0")  # of version 1
    earlier.mkdir(parents=True)
    assert curves_folder("Demo", "tune/s/trial_0") == earlier


# Pictures and tables -------------------------------------------------------------------------------------------

SPACE = {
    "distill.lambda": FloatDistribution(0.001, 0.1, log=True),
    "distill.window": IntDistribution(2, 8),
    "distill.steps": CategoricalDistribution(["all", "last"]),
    "distill.temperature": FloatDistribution(2.0, 2.0),
}
BASELINE = RunMetrics(0.5, 1, 0.5, [0.5])
ALL = {"history", "intermediate", "importance", "parallel_coordinates", "slices"}


def some_trial(number: int, value: float, state: TrialState = TrialState.COMPLETE) -> optuna.trial.FrozenTrial:
    params = {
        "distill.lambda": 0.001 * (1 + number % 90),
        "distill.window": 2 + number % 7,
        "distill.steps": ["all", "last"][number % 2],
        "distill.temperature": 2.0,
    }
    return create_trial(
        state=state,
        value=None if state in (TrialState.FAIL, TrialState.RUNNING) else value,
        params=params,
        distributions=SPACE,
        intermediate_values={} if state == TrialState.FAIL else {0: value / 2, 1: value},
    )


STUDIES = {
    "empty": [],
    "one": [some_trial(0, 0.5)],
    "failed": [some_trial(0, 0.0, TrialState.FAIL)],
    "pruned": [some_trial(0, 0.5, TrialState.PRUNED)],
    "equal": [some_trial(number, 0.5) for number in range(5)],
    "mixed": [
        some_trial(number, 0.3 + 0.01 * number, state)
        for number, state in enumerate([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL] * 4)
    ]
    + [
        some_trial(12, 0.2, TrialState.RUNNING),
        create_trial(state=TrialState.WAITING, params={}, distributions={}),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.filterwarnings("error")
def test_every_study_can_be_drawn_and_no_picture_is_blank(name: str) -> None:
    from matplotlib.image import imread

    from utils.search.plots import draw

    expected = {
        "empty": set(),
        "one": {"intermediate"},
        "failed": set(),
        "pruned": {"intermediate"},
        "equal": ALL - {"importance"},
        "mixed": ALL,
    }[name]
    pictures, missing = draw(STUDIES[name], SPACE, BASELINE if name == "mixed" else None, "a $title^$")
    assert pictures.keys() == expected
    assert {text.partition(".png (from ")[0] for text in missing} == ALL - expected
    for picture in pictures.values():
        pixels = imread(io.BytesIO(picture))[..., :3]
        assert pixels.shape[1] < 1300 and pixels.std() > 0.03


def test_keys_of_one_name_are_told_apart() -> None:
    keys = ["distill.lambda", "teacher.dropout", "trajectory_encoder_config.dropout"]
    assert list(column_names(keys).values()) == ["lambda", *keys[1:]]


def test_mean_and_deviation_of_the_final_runs() -> None:
    runs = {("vanilla", 1): 0.5, ("distill", 1): 0.6, ("vanilla", 2): 0.5, ("distill", 2): 0.8}
    metrics = {key: RunMetrics(value, 1, value, [value]) for key, value in runs.items()}
    heading, *rows = final_lines(metrics)
    assert [row[0] for row in rows] == [1, 2, "mean", "deviation"]
    assert [row[heading.index("difference_test")] for row in rows[:3]] == pytest.approx([0.1, 0.3, 0.2])
    text = "test: distillation changes the accuracy by +0.2000, standard deviation 0.1414 over 2 seeds"
    assert text in format_final([heading, *rows])
    single = final_lines({key: item for key, item in metrics.items() if key[1] == 1})
    assert single[-1] == ["deviation", *[None] * 6]
    assert "test: distillation changes the accuracy by +0.1000 (one seed: no deviation)" in format_final(single)
