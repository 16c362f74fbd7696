"""A setting that has no effect is told at the start, and not silently ignored."""

from pathlib import Path

import pytest
from helpers import time_list, trip, write_trips
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scripts import make_mini_teacher, mini, run

from utils.config_sections import OptunaConfig
from utils.search.samplers import check_sampler

ONE_EPOCH = ("--set", "optimizer_config.max_epoch=1")


UNREAD = {
    "train.py": {
        "distill.lambda=1": "vanilla training has no teacher",
        "wandb.enable=true": "vanilla training is not tracked by W&B",
        "wandb.project=mine": "vanilla training is not tracked by W&B",
        "teacher.n_layer=3": "only tools/train_teacher.py reads it",
        "optuna.sampler=cmaes": "only tools/tune_hoser.py reads it",
    },
    "train_with_distill.py": {
        "wandb.tags=[a]": "wandb.enable is false",
        "teacher.dropout=0": "only tools/train_teacher.py reads it",
    },
    "train_with_distill.py --no-distill": {"distill.window=8": "distill.enable is false"},
    "tools/train_teacher.py": {
        "optimizer_config.batch_size=9": "only the training of the student reads it",
        "distill.window=2": "only the training of the student reads it",
    },
}


@pytest.mark.parametrize("script", UNREAD)
def test_keys_that_the_program_does_not_read(script: str, project: Path) -> None:
    make_mini_teacher(project)
    small = [w for part in ("n_layer=1", "n_head=1", "n_embd=8", "max_epoch=1") for w in ("--set", f"teacher.{part}")]
    options = small if "teacher" in script else ONE_EPOCH
    name, *flags = script.split()
    words = [word for setting in UNREAD[script] for word in ("--set", setting)]
    done = run(mini(name, *flags, *options, *words), project)
    assert done.returncode == 0, done.stderr
    told = sorted(line for line in done.stderr.splitlines() if "has no effect here" in line)
    expected = sorted((setting.partition("=")[0], reason) for setting, reason in UNREAD[script].items())
    for line, (key, reason) in zip(told, expected, strict=True):
        assert line.startswith(f"{key} has no effect here: {reason}")


def test_keys_that_are_read_are_not_told(project: Path) -> None:
    make_mini_teacher(project)
    settings = (
        "distill.lambda=0.1",
        "training.precision=float32",
        "data.on_bad_trip=skip",
        "optimizer_config.max_norm=2",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    done = run(mini("train_with_distill.py", *words, *ONE_EPOCH), project)
    assert done.returncode == 0, done.stderr
    assert "no effect" not in done.stderr


def test_wandb_in_the_file_is_told_in_vanilla_training(project: Path) -> None:
    with (project / "Mini.yaml").open("a") as file:
        file.write("wandb:\n  enable: true\n")
    done = run(mini("train.py", *ONE_EPOCH), project)
    assert done.stderr.count("wandb.enable has no effect here: vanilla training is not tracked by W&B") == 1


def test_the_last_step_of_trips_of_one_step(project: Path) -> None:
    make_mini_teacher(project)
    rows = (project / "data" / "Mini" / "train.csv").read_text().splitlines()
    assert rows
    pairs = [line.split(",") for line in (project / "data" / "Mini" / "roadmap.rel").read_text().splitlines()[1:]]
    for split in ("train", "val", "test"):
        trips = [trip(f"{pair[-2]},{pair[-1]}", time_list(2)) for pair in pairs[:60]]
        write_trips(project / "data" / "Mini" / f"{split}.csv", *trips)
    done = run(mini("train_with_distill.py", "--set", "distill.steps=last", *ONE_EPOCH), project)
    assert done.returncode == 0, done.stderr
    assert "distill.steps=last has no effect: the trips of train.csv have one step each" in done.stderr


def test_a_weight_of_zero(project: Path) -> None:
    make_mini_teacher(project)
    done = run(mini("train_with_distill.py", "--set", "distill.lambda=0", *ONE_EPOCH), project)
    assert "distill.lambda is 0: the teacher has no effect" in done.stderr


def test_last_steps_without_a_choice(project: Path) -> None:
    """Trips that end where the last road but one leads to one road only: no last step has anything to teach."""
    make_mini_teacher(project)
    data = project / "data" / "Mini"
    successors: dict[str, list[str]] = {}
    for line in (data / "roadmap.rel").read_text().splitlines()[1:]:
        *_, origin, destination = line.split(",")
        successors.setdefault(origin, []).append(destination)
    only = {road: following[0] for road, following in successors.items() if len(following) == 1}
    trips = [
        trip(f"{origin},{road},{only[road]}", time_list(3))
        for origin, following in successors.items()
        for road in following
        if road in only
    ]
    assert len(trips) > 20
    for split in ("train", "val", "test"):
        write_trips(data / f"{split}.csv", *trips)
    done = run(mini("train_with_distill.py", "--set", "distill.steps=last", *ONE_EPOCH), project)
    assert done.returncode == 0, done.stderr
    assert "the teacher has no effect: no last step of train.csv has two candidates or more" in done.stderr


def test_more_batches_in_a_step_than_an_epoch_has(project: Path) -> None:
    done = run(mini("train.py", "--set", "optimizer_config.accum_steps=99", *ONE_EPOCH), project)
    assert (
        "optimizer_config.accum_steps is 99, but an epoch has 5 batches only, which then make one step" in done.stderr
    )


# Search ----------------------------------------------------------------------------------------------------------

NUMBER, CHOICE = FloatDistribution(0, 1), CategoricalDistribution(["all", "last"])


@pytest.mark.parametrize(
    ("distributions", "told"),
    [
        ({"a": NUMBER, "b": NUMBER}, ""),
        ({"a": NUMBER, "b": NUMBER, "c": CHOICE}, "c is drawn at random"),
        ({"a": NUMBER}, "a is drawn at random"),
        ({"a": NUMBER, "c": CHOICE}, "c, a are drawn at random"),
    ],
)
def test_what_a_sampler_cannot_search(distributions: dict, told: str, messages: list[str]) -> None:
    check_sampler(OptunaConfig(sampler="cmaes", n_startup_trials=2), distributions, 20)
    assert [told in message for message in messages] == [True] * bool(told)
    messages.clear()
    check_sampler(OptunaConfig(sampler="tpe", n_startup_trials=2), distributions, 20)
    assert messages == []


def test_a_sampler_that_never_begins(messages: list[str]) -> None:
    check_sampler(OptunaConfig(n_startup_trials=10), {"a": NUMBER}, 10)
    [message] = messages
    assert message.startswith("optuna.sampler has no effect: all of 10 trials are drawn at random")
