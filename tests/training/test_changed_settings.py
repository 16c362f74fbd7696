"""Every setting that is changed on resume is in force from the next epoch on, or the run refuses and says why."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import make_mini_project, make_mini_teacher, mini, run

from utils.config import Config, load_config
from utils.config_sections import DistillConfig, OptimizerConfig, TeacherConfig, TrainingConfig

# Another value of each key; what happens to a run of two epochs that goes on to a third with it.
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
# arithmetic as it is (torch.compile is off here; answers are rounded as a cache keeps them).
ANOTHER_RUN = {"distill.enable"}
REFUSED = {"distill.grid_size", "distill.downsample"}
SAME_RESULT = {"training.compile", "distill.cache"}
TEACHER_SIZES = {f"teacher.{name}" for name in ("n_layer", "n_head", "n_embd", "block_size")}


def keys_of(section: str, kind: type) -> set[str]:
    return {f"{section}.{field.name.rstrip('_')}" for field in dataclasses.fields(kind)}


def test_no_key_is_left_out_below() -> None:
    sections = {"optimizer_config": OptimizerConfig, "training": TrainingConfig, "distill": DistillConfig}
    assert set(CHANGED) == set().union(*(keys_of(name, kind) for name, kind in sections.items()))
    assert set(TEACHER_CHANGED) == keys_of("teacher", TeacherConfig)


def sets(**values: Any) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def student(*arguments: str, epochs: int) -> list[str]:
    # A decay that shows; epochs before the key under test, which may be the number of epochs.
    return mini("train_with_distill.py", "--seed", "1", *sets(**{"optimizer_config.max_epoch": epochs}), *arguments)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of three."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("interrupted")))
    shutil.copy(folder / "save" / "Mini" / "teacher" / "weights.pt", folder / "first.pt")
    make_mini_teacher(folder, seed=9)
    (folder / "save" / "Mini" / "teacher" / "weights.pt").rename(folder / "other.pt")
    (folder / "first.pt").rename(folder / "save" / "Mini" / "teacher" / "weights.pt")
    assert run(student(epochs=2), folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def unchanged(interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Its checkpoint after a third epoch with the same settings."""
    folder = Path(shutil.copytree(interrupted, tmp_path_factory.mktemp("unchanged") / "project"))
    assert run(student(epochs=3), folder).returncode == 0
    return torch.load(folder / "save" / "Mini" / "seed1_distill" / "checkpoint_latest.pth")


@pytest.mark.parametrize("key", sorted(CHANGED))
def test_a_setting_of_the_student(
    key: str, interrupted: Path, unchanged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key == "training.compile":
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    path = folder / "save" / "Mini" / "seed1_distill" / "checkpoint_latest.pth"
    before = path.read_bytes()
    done = run(student(*sets(**{key: CHANGED[key]}), epochs=3), folder)
    if key in ANOTHER_RUN:
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == before
        return
    if key in REFUSED:
        assert done.returncode == 1
        assert "distill.grid_size and distill.downsample make" in done.stderr.splitlines()[-1]
        assert path.read_bytes() == before
        return
    assert done.returncode == 0, done.stderr
    [told] = re.findall(rf"^{re.escape(key)} was (.*) so far, and is (.*) now$", done.stderr, re.MULTILINE)
    assert told[1] == str(CHANGED[key])
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


def test_weight_decay_changes_the_weights_as_adamw_says(interrupted: Path, unchanged: dict, tmp_path: Path) -> None:
    """Without it from the third epoch on, weights end larger."""
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    path = folder / "save" / "Mini" / "seed1_distill" / "checkpoint_latest.pth"
    start = torch.load(path)
    assert run(student(*sets(**{"optimizer_config.weight_decay": 0.0}), epochs=3), folder).returncode == 0
    name = "trajectory_encoder.road_zone_fusion_mlp.0.weight"
    norms = [state["model_state_dict"][name].norm().item() for state in (start, unchanged, torch.load(path))]
    assert norms[2] > norms[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trajectory_encoder_config.num_layers", 1),
        ("trajectory_encoder_config.num_heads", 4),
        ("road_network_encoder_config.zone_id_num_embeddings", 9),
    ],
)
def test_another_size_of_the_model_is_refused_by_its_key(
    key: str, value: int, interrupted: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    done = run(student(*sets(**{key: value}), epochs=3), folder)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"checkpoint_latest.pth: does not fit this model: {key} is {value} and was " in last
    assert "is of another architecture: to restart training from scratch, rm " in last


@pytest.mark.parametrize("setting", ["teacher.n_layer=2", "optuna.n_startup_trials=3", "wandb.project=other"])
def test_settings_that_this_training_does_not_read_are_told_as_such_and_not_as_changed(
    setting: str, interrupted: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    done = run(student("--set", setting, epochs=3), folder)
    assert done.returncode == 0, done.stderr
    key = setting.partition("=")[0]
    assert f"{key} has no effect here: " in done.stderr
    assert f"{key} was" not in done.stderr


# A run that is complete ------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.pt*"))}


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--set", "distill.lambda=0.5"], "distill.lambda is 0.5 and was 0.01"),
        (["--set", "distill.teacher=other.pt"], "other teacher"),
        (["--set", "optimizer_config.weight_decay=0"], "optimizer_config.weight_decay is 0.0 and was 0.1"),
        (["--set", "training.precision=bfloat16"], "training.precision is bfloat16 and was auto"),
        (["--config", "Best.yaml"], "optimizer_config.learning_rate is 0.001 and was 0.005"),
    ],
)
def test_a_finished_run_does_not_pass_its_result_off_as_that_of_other_settings(
    arguments: list[str], difference: str, interrupted: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    (folder / "Best.yaml").write_text((folder / "Mini.yaml").read_text().replace("0.005", "0.001"))
    before = files(folder / "save")
    done = run(student(*arguments, epochs=2), folder)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"training is complete (2 epochs), but not with these settings: {difference}" in last
    for way_out in ("--run_name NAME", "optimizer_config.max_epoch=N", "rm save/Mini/seed1_distill/checkpoint_latest"):
        assert way_out in last
    assert "test: accuracy" not in done.stderr
    assert files(folder / "save") == before
    done = run(student(*arguments, "--run_name", "another", epochs=2), folder)  # the first way out
    assert done.returncode == 0, done.stderr
    assert (folder / "save" / "Mini" / "another" / "best.pth").exists()


def test_a_finished_run_notices_other_data(interrupted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    val = folder / "data" / "Mini" / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    done = run(student(epochs=2), folder)
    assert done.returncode == 1
    assert "but not with these settings: other validation data" in done.stderr


@pytest.mark.parametrize(
    "settings", [["distill.cache=false"], ["training.precision=float32"], ["wandb.project=x"], ["teacher.n_layer=1"]]
)
def test_settings_that_do_not_shape_the_result_leave_a_finished_run_finished(
    settings: list[str], interrupted: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    done = run(student("--set", *settings, epochs=2), folder)
    assert done.returncode == 0, done.stderr
    assert "training is complete: all 2 epochs are done\n" in done.stderr


def test_a_run_with_more_epochs_than_asked_for_says_what_is_there(interrupted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "project"))
    done = run(student(epochs=1), folder)
    assert done.returncode == 0, done.stderr
    assert "training is complete: all 2 epochs are done, more than optimizer_config.max_epoch = 1\n" in done.stderr


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


def teacher(*arguments: str, epochs: int) -> list[str]:
    settings = sets(**SMALL, **{"teacher.max_epoch": epochs})
    return mini("tools/train_teacher.py", "--seed", "1", *settings, *arguments)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mini_project(tmp_path_factory.mktemp("taught"))
    assert run(teacher(epochs=2), folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def taught_on(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = Path(shutil.copytree(taught, tmp_path_factory.mktemp("taught_on") / "project"))
    assert run(teacher(epochs=3), folder).returncode == 0
    return torch.load(folder / "save" / "Mini" / "teacher" / "checkpoint_latest.pth")


@pytest.mark.parametrize("key", sorted(TEACHER_CHANGED))
def test_a_setting_of_the_teacher(key: str, taught: Path, taught_on: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "project"))
    path, name = folder / "save" / "Mini" / "teacher" / "checkpoint_latest.pth", key.partition(".")[2]
    done = run(teacher(*sets(**{key: TEACHER_CHANGED[key]}), epochs=3), folder)
    assert done.returncode == 0, done.stderr
    content = torch.load(path)
    if key in TEACHER_SIZES:
        assert f"⚠️  Checkpoint mismatch ({name}=" in done.stderr
        assert content["identity"][name] == TEACHER_CHANGED[key]
        assert path.with_name("checkpoint_latest.earlier-1.pth").exists()
        return
    assert f"{key} was {taught_settings(taught)[name]} so far, and is {TEACHER_CHANGED[key]} now" in done.stderr
    assert content["settings"][name] == TEACHER_CHANGED[key]
    if key == "teacher.max_epoch":
        assert len(content["val_perplexity"]) == 4
        return
    if key == "teacher.weight_decay":
        assert content["optimizer_state_dict"]["param_groups"][0]["weight_decay"] == 50.0
    weights = content["model_state_dict"].items()
    assert not all(torch.equal(value, taught_on["model_state_dict"][name]) for name, value in weights)


def taught_settings(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "save" / "Mini" / "teacher" / "checkpoint_latest.pth")["settings"]


def test_a_finished_teacher_is_not_passed_off_as_one_of_other_settings(taught: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "project"))
    before = files(folder / "save")
    done = run(teacher(*sets(**{"teacher.dropout": 0.5}), epochs=2), folder)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "the teacher is trained (2 epochs), but not with these settings: teacher.dropout is 0.5 and was 0.1" in last
    assert "teacher.max_epoch=N" in last and "rm save/Mini/teacher/checkpoint_latest.pth" in last
    assert files(folder / "save") == before


def test_the_defaults_that_are_changed_here_are_others(interrupted: Path) -> None:
    config: Config = load_config("Mini", interrupted / "Mini.yaml")
    for key, value in (CHANGED | TEACHER_CHANGED).items():
        section, _, name = key.partition(".")
        part = getattr(config, section)
        assert getattr(part, "lambda_" if name == "lambda" else name) != value
