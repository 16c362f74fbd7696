"""Every setting that is changed on resume is in force from the next epoch on, or the run refuses and says why."""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error_of
from scripts import make_mini_project, make_mini_teacher, mini

import train_with_distill
from tools.train_teacher import main as train_teacher_main
from utils.config import Config, load_config
from utils.config_sections import DistillConfig, OptimizerConfig, TeacherConfig, TrainingConfig

pytestmark = pytest.mark.slow

# Another value of each key; what happens to a run of two epochs that trains a third with it.
CHANGED: dict[str, Any] = {
    "optimizer_config.max_epoch": 4,
    "optimizer_config.batch_size": 50,
    "optimizer_config.learning_rate": 0.05,
    "optimizer_config.weight_decay": 50.0,
    "optimizer_config.warmup_ratio": 0.9,
    "optimizer_config.max_norm": 0.001,
    "optimizer_config.accum_steps": 2,
    "training.precision": "bfloat16",
    "training.compile": True,
    "training.cuda_graph": False,
    "distill.enable": False,
    "distill.teacher": "other.pt",
    "distill.grid_size": 0.002,
    "distill.downsample": 2,
    "distill.window": 2,
    "distill.lambda": 5.0,
    "distill.temperature": 7.0,
    "distill.steps": "last",
    "distill.cache": False,
}
TEACHER_CHANGED: dict[str, Any] = {
    "teacher.tokens": "roads",
    "teacher.destination": True,
    "teacher.n_layer": 1,
    "teacher.n_head": 1,
    "teacher.n_embd": 8,
    "teacher.block_size": 12,
    "teacher.dropout": 0.5,
    "teacher.max_epoch": 4,
    "teacher.batch_size": 60,
    "teacher.learning_rate": 0.1,
    "teacher.weight_decay": 50.0,
    "teacher.warmup_ratio": 0.9,
    "teacher.max_norm": 0.001,
}
# Changes that make another run of it, those that a teacher with a recorded grid refuses, and those that leave the
# arithmetic as it is (torch.compile is off here, and there is no GPU; answers are rounded as a cache keeps them).
ANOTHER_RUN = {"distill.enable"}
REFUSED = {"distill.grid_size", "distill.downsample"}
SAME_RESULT = {"training.compile", "training.cuda_graph", "distill.cache"}
ANOTHER_TEACHER = {f"teacher.{name}" for name in ("tokens", "destination", "n_layer", "n_head", "n_embd", "block_size")}


def keys_of(section: str, kind: type) -> set[str]:
    return {f"{section}.{field.name.rstrip('_')}" for field in dataclasses.fields(kind)}


def test_no_key_is_left_out_below() -> None:
    sections = {"optimizer_config": OptimizerConfig, "training": TrainingConfig, "distill": DistillConfig}
    assert set(CHANGED) == set().union(*(keys_of(name, kind) for name, kind in sections.items()))
    assert set(TEACHER_CHANGED) == keys_of("teacher", TeacherConfig)


def sets(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def student(folder: Path, *settings: str, epochs: int, **options: Any) -> None:
    """Train, in this process: a run of one small epoch is shorter than the start of a program."""
    settings = (f"optimizer_config.max_epoch={epochs}", *settings)
    with contextlib.chdir(folder):
        train_with_distill.main("Mini", 1, -1, settings, **{"config_path": "Mini.yaml", **options})


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of three."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("interrupted")))
    shutil.copy(folder / "save" / "Mini" / "teacher" / "weights.pt", folder / "first.pt")
    make_mini_teacher(folder, seed=9)
    (folder / "save" / "Mini" / "teacher" / "weights.pt").rename(folder / "other.pt")
    (folder / "first.pt").rename(folder / "save" / "Mini" / "teacher" / "weights.pt")
    student(folder, epochs=2)
    return folder


@pytest.fixture(scope="module")
def unchanged(interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Its checkpoint after a third epoch with the same settings."""
    folder = Path(shutil.copytree(interrupted, tmp_path_factory.mktemp("unchanged") / "project"))
    student(folder, epochs=3)
    return torch.load(folder / "save" / "Mini" / "seed1_distill" / "checkpoint_latest.pth")


@pytest.fixture
def folder(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(interrupted, tmp_path / "project"))


@pytest.mark.parametrize("key", sorted(CHANGED))
def test_a_setting_of_the_student(
    key: str, folder: Path, unchanged: dict[str, Any], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # for training.compile
    path = folder / "save" / "Mini" / "seed1_distill" / "checkpoint_latest.pth"
    before, setting = path.read_bytes(), f"{key}={CHANGED[key]}"
    if key in ANOTHER_RUN:
        student(folder, setting, epochs=3)
        assert path.read_bytes() == before
        return
    if key in REFUSED:
        assert "distill.grid_size and distill.downsample make" in error_of(lambda: student(folder, setting, epochs=3))
        assert path.read_bytes() == before
        return
    student(folder, setting, epochs=3)
    [announced] = [message for message in messages if message.startswith(f"{key} was ")]
    assert announced.endswith(f" so far, and is {CHANGED[key]} now")
    content = torch.load(path)
    section, _, name = key.partition(".")
    assert content["resume_state"]["config"][section][name] == CHANGED[key]
    if key == "optimizer_config.max_epoch":
        assert content["epoch"] == 3
        return
    assert content["epoch"] == 2
    for option, value in content["optimizer_state_dict"]["param_groups"][0].items():
        if f"optimizer_config.{option}" == key:
            assert value == CHANGED[key]
    same = all(
        torch.equal(value, unchanged["model_state_dict"][name]) for name, value in content["model_state_dict"].items()
    )
    assert same is (key in SAME_RESULT)


def test_weight_decay_changes_the_weights_as_adamw_says(folder: Path, unchanged: dict[str, Any]) -> None:
    """Without it from the third epoch on, weights end larger."""
    path = folder / "save" / "Mini" / "seed1_distill" / "checkpoint_latest.pth"
    start = torch.load(path)
    student(folder, "optimizer_config.weight_decay=0.0", epochs=3)
    name = "trajectory_encoder.road_zone_fusion_mlp.0.weight"
    norms = [state["model_state_dict"][name].norm().item() for state in (start, unchanged, torch.load(path))]
    assert norms[2] > norms[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trajectory_encoder_config.num_layers", 2),
        ("trajectory_encoder_config.num_heads", 4),
        ("road_network_encoder_config.zone_id_num_embeddings", 9),
    ],
)
def test_another_size_of_the_model_is_refused_by_its_key(key: str, value: int, folder: Path) -> None:
    error = error_of(lambda: student(folder, f"{key}={value}", epochs=3))
    assert f"checkpoint_latest.pth: does not fit this model: {key} is {value} and was " in error
    assert "is of another architecture: to restart training from scratch, rm " in error


def test_settings_that_this_training_does_not_read_are_named_as_such_and_not_as_changed(
    folder: Path, messages: list[str]
) -> None:
    settings = {"teacher.n_layer": 2, "optuna.n_startup_trials": 3, "wandb.project": "other"}
    student(folder, *(f"{key}={value}" for key, value in settings.items()), epochs=3)
    for key in settings:
        assert any(message.startswith(f"{key} has no effect here: ") for message in messages)
        assert not any(message.startswith(f"{key} was") for message in messages)


# A run that is complete ------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.pt*"))}


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("distill.lambda=0.5", "distill.lambda is 0.5 and was 0.01"),
        ("distill.teacher=other.pt", "other teacher"),
        ("optimizer_config.weight_decay=0", "optimizer_config.weight_decay is 0.0 and was 0.1"),
        ("training.precision=bfloat16", "training.precision is bfloat16 and was auto"),
    ],
)
def test_a_finished_run_does_not_pass_its_result_off_as_that_of_other_settings(
    setting: str, difference: str, folder: Path, messages: list[str]
) -> None:
    before = files(folder / "save")
    error = error_of(lambda: student(folder, setting, epochs=2))
    assert f"training is complete (2 epochs), but not with these settings: {difference}. " in error
    for way_out in ("--run_name NAME", "optimizer_config.max_epoch=N", "rm save/Mini/seed1_distill/checkpoint_latest"):
        assert way_out in error
    assert not any("test: accuracy" in message for message in messages)
    assert files(folder / "save") == before


def test_a_finished_run_with_another_configuration_file_can_be_trained_in_another_folder(folder: Path) -> None:
    """The first way out of the error."""
    (folder / "Best.yaml").write_text((folder / "Mini.yaml").read_text().replace("0.005", "0.001"))
    error = error_of(lambda: student(folder, epochs=2, config_path="Best.yaml"))
    assert "optimizer_config.learning_rate is 0.001 and was 0.005" in error
    student(folder, epochs=2, config_path="Best.yaml", run_name="another")
    assert (folder / "save" / "Mini" / "another" / "best.pth").exists()


def test_a_finished_run_notices_other_data(folder: Path) -> None:
    val = folder / "data" / "Mini" / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    error = error_of(lambda: student(folder, epochs=2))
    assert "but not with these settings: other validation data" in error


def test_settings_that_do_not_shape_the_result_leave_a_finished_run_finished(folder: Path, messages: list[str]) -> None:
    settings = ("distill.cache=false", "training.precision=float32", "wandb.project=x", "teacher.n_layer=1")
    student(folder, *settings, epochs=2)
    assert "training is complete: all 2 epochs are done" in messages


def test_a_run_with_more_epochs_than_asked_for_says_what_is_there(folder: Path, messages: list[str]) -> None:
    student(folder, epochs=1)
    assert "training is complete: all 2 epochs are done, more than optimizer_config.max_epoch = 1" in messages


# The teacher -----------------------------------------------------------------------------------------------------

SMALL = {
    "teacher.n_layer": 2,
    "teacher.n_head": 2,
    "teacher.n_embd": 16,
    "teacher.block_size": 24,
    "teacher.dropout": 0.1,
    "teacher.batch_size": 30,
    "teacher.learning_rate": 0.003,
}


def teacher(folder: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, **changed: Any) -> None:
    settings = sets({**SMALL, "teacher.max_epoch": epochs, **changed})
    monkeypatch.setattr(sys, "argv", mini("tools/train_teacher.py", "--seed", "1", "--cuda", "-1", *settings))
    with contextlib.chdir(folder):
        train_teacher_main()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mini_project(tmp_path_factory.mktemp("taught"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        teacher(folder, monkeypatch, epochs=2)
    return folder


@pytest.fixture(scope="module")
def taught_on(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = Path(shutil.copytree(taught, tmp_path_factory.mktemp("taught_on") / "project"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        teacher(folder, monkeypatch, epochs=3)
    return torch.load(folder / "save" / "Mini" / "teacher" / "checkpoint_latest.pth")


@pytest.mark.parametrize("key", sorted(TEACHER_CHANGED))
def test_a_setting_of_the_teacher(
    key: str,
    taught: Path,
    taught_on: dict[str, Any],
    tmp_path: Path,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "project"))
    path, name = folder / "save" / "Mini" / "teacher" / "checkpoint_latest.pth", key.partition(".")[2]
    before = torch.load(path)["settings"]
    teacher(folder, monkeypatch, **{"epochs": 3, key: TEACHER_CHANGED[key]})
    content = torch.load(path)
    if key in ANOTHER_TEACHER:
        [mismatch] = [message for message in messages if message.startswith("⚠️  Checkpoint mismatch (")]
        assert f"{name}=" in mismatch
        assert content["identity"][name] == TEACHER_CHANGED[key]
        assert path.with_name("checkpoint_latest.earlier-1.pth").exists()
        return
    assert f"{key} was {before[name]} so far, and is {TEACHER_CHANGED[key]} now" in messages
    assert content["settings"][name] == TEACHER_CHANGED[key]
    if key == "teacher.max_epoch":
        assert len(content["val_perplexity"]) == 4
        return
    if key == "teacher.weight_decay":
        assert content["optimizer_state_dict"]["param_groups"][0]["weight_decay"] == 50.0
    weights = content["model_state_dict"].items()
    assert not all(torch.equal(value, taught_on["model_state_dict"][name]) for name, value in weights)


def test_a_finished_teacher_is_not_passed_off_as_one_of_other_settings(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "project"))
    before = files(folder / "save")
    error = error_of(lambda: teacher(folder, monkeypatch, **{"epochs": 2, "teacher.dropout": 0.5}))
    assert "training is complete (2 epochs), but not with these settings: teacher.dropout is 0.5 and was 0.1" in error
    assert "teacher.max_epoch=N" in error
    assert "rm save/Mini/teacher/checkpoint_latest.pth; save/Mini/teacher/weights.pt is kept" in error
    assert files(folder / "save") == before


def test_the_defaults_that_are_changed_here_are_others(interrupted: Path) -> None:
    config: Config = load_config("Mini", interrupted / "Mini.yaml")
    for key, value in (CHANGED | TEACHER_CHANGED).items():
        section, _, name = key.partition(".")
        part = getattr(config, section)
        assert getattr(part, "lambda_" if name == "lambda" else name) != value
