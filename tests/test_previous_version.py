"""Files that the version before wrote still load: checkpoints, teacher, caches, a study, a tracked run.

golden/previous_version.tar.gz holds what that version wrote for the mini city: an epoch of a teacher, one of
distillation (tracked by W&B, offline) and a study of two trials, with the caches beside the data.
"""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from scripts import MINI_CITY, PROJECT, mini, run, scalars

ARCHIVE = PROJECT / "tests" / "golden" / "previous_version.tar.gz"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A working folder as the version before left it."""
    shutil.copytree(MINI_CITY, tmp_path / "data" / "Mini")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def distilled(folder: Path, *arguments: str) -> str:
    """Continue the distillation; what it says."""
    tracking = ("--set", "wandb.enable=true")
    done = run(mini("train_with_distill.py", "--seed", "1", *tracking, *arguments), folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_distillation_resumes_with_its_caches_and_its_tracked_run(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    save = earlier / "save" / "Mini" / "seed1_distill"
    before, caches = torch.load(save / "checkpoint_latest.pth"), earlier / "data" / "Mini" / ".cache"
    kept = {path.name: path.stat().st_mtime_ns for path in caches.glob("*.pt")}
    said = distilled(earlier)
    assert "Resumed from checkpoint: epoch 2," in said
    assert "again" not in said and "asking" not in said
    assert {path.name: path.stat().st_mtime_ns for path in caches.glob("*.pt")} == kept
    after = torch.load(save / "checkpoint_latest.pth")
    assert after["wandb_run_id"] == before["wandb_run_id"]
    assert after["validation_metrics"][:1] == before["validation_metrics"]
    curves = scalars(earlier / "tensorboard_log" / "Mini" / "seed1_distill")
    assert [step for step, _ in curves["val_next_step_acc"]] == [1, 2]
    assert [step for step, _ in curves["loss_kl"]] == list(range(10))
    # Complete now, and not with other settings.
    assert "training is complete" in distilled(earlier)


def test_weights_are_evaluated(earlier: Path) -> None:
    done = run(mini("tools/evaluate.py", "--checkpoint", "save/Mini/seed1_distill/best.pth"), earlier)
    assert done.returncode == 0, done.stderr
    assert "30 trips" in done.stdout


def test_a_teacher_resumes(earlier: Path) -> None:
    done = run(mini("tools/train_teacher.py", "--seed", "1", "--set", "teacher.max_epoch=2"), earlier)
    assert done.returncode == 0, done.stderr
    assert "teacher epoch 2/2" in done.stderr
    assert "teacher epoch 1/2" not in done.stderr


def test_a_study_continues(earlier: Path) -> None:
    study = earlier / "save" / "Mini" / "tune" / "distill"
    before = (study / "trials.csv").read_text().splitlines()
    baseline = (study / "baseline" / "best.pth").stat().st_mtime_ns
    done = run(mini("tools/tune_hoser.py", "--cuda", "-1", "--n_trials", "3"), earlier)
    assert done.returncode == 0, done.stderr
    after = (study / "trials.csv").read_text().splitlines()
    assert len(after) == len(before) + 1
    assert (study / "baseline" / "best.pth").stat().st_mtime_ns == baseline
    assert [line.split(",")[0] for line in after[1:]] == ["baseline", "0", "1", "2"]
