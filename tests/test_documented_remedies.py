"""'Common Issues & Solutions' of the documentation of checkpoints: each symptom is made, each remedy followed."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scripts import Script, make_mini_project, make_mini_teacher, mini, run

EPOCHS = "optimizer_config.max_epoch=3"
VANILLA = mini("train.py", "--seed", "42", "--cuda", "0", "--set", EPOCHS)
DISTILL = mini("train_with_distill.py", "--seed", "42", "--cuda", "0", "--set", EPOCHS)
MISMATCH = "⚠️  Checkpoint mismatch"


def shell(command: str, folder: Path) -> str:
    """A command of the documentation, as a user types it."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def last_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    return stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("distilled")))
    done = run(DISTILL, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(distilled: Path, tmp_path: Path) -> Path:
    """A copy of a finished distillation with seed 42."""
    return Path(shutil.copytree(distilled, tmp_path / "project"))


def epochs_done(folder: Path, seed: int = 42) -> int:
    return torch.load(folder / f"save/Mini/seed{seed}_distill/checkpoint_latest.pth")["epoch"] + 1


# "Checkpoint mismatch" warning ---------------------------------------------------------------------------------


@pytest.fixture
def mismatched(folder: Path) -> list[str]:
    """A command for whose folder there is the checkpoint of seed 42."""
    shutil.copytree(folder / "save/Mini/seed42_distill", folder / "save/Mini/seed43_distill")
    return [argument if argument != "42" else "43" for argument in DISTILL]


def test_a_mismatch_is_warned_of_in_the_documented_words(folder: Path, mismatched: list[str]) -> None:
    done = run([*mismatched[:-1], "optimizer_config.max_epoch=1"], folder)
    assert done.returncode == 0, done.stderr
    assert f"{MISMATCH} (seed=42 vs 43)\n⚠️  Deleting invalid checkpoint and starting fresh\n" in done.stderr


def test_the_same_seed_as_the_checkpoint_resumes_from_it(folder: Path) -> None:
    done = run([*DISTILL[:-1], "optimizer_config.max_epoch=4"], folder)
    assert MISMATCH not in done.stderr
    assert "✅ Resumed from checkpoint: epoch 4" in done.stderr


def test_without_the_checkpoint_training_starts_fresh(folder: Path, mismatched: list[str]) -> None:
    shell("rm checkpoint_latest.pth", folder / "save/Mini/seed43_distill")
    done = run([*mismatched[:-1], "optimizer_config.max_epoch=1"], folder)
    assert done.returncode == 0, done.stderr
    assert MISMATCH not in done.stderr
    assert epochs_done(folder, 43) == 1


# Out of disk space during training -----------------------------------------------------------------------------


@pytest.fixture
def full(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(filled, tmp_path / "project"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose disk was full when the third epoch was to be written."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("filled")))
    fault = {"kind": "ENOSPC", "first": "epoch_3.pth", "stays": True, "told": str(folder / "told")}
    done = run(VANILLA, folder, fault=fault)
    assert done.returncode == 1
    assert last_line(done.stderr) == (
        "error: save/Mini/seed42/epoch_3.pth: cannot be written (OSError: [Errno 28] No space left on device); what "
        "was there before is unchanged; use distillation training, which stores one checkpoint only; or delete old "
        "epoch checkpoints: rm save/*/seed*/epoch_*.pth; or make more disk space available"
    )
    names = {path.name for path in (folder / "save/Mini/seed42").iterdir()} - {".lock"}
    assert names == {"epoch_1.pth", "epoch_2.pth", "best.pth"}
    return folder


def test_distillation_training_stores_one_checkpoint(full: Path) -> None:
    done = run(DISTILL, full)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (full / "save/Mini/seed42_distill").iterdir()} - {".lock"}
    assert names == {"checkpoint_latest.pth", "best.pth"}


def test_old_epoch_checkpoints_can_be_deleted(full: Path) -> None:
    best = (full / "save/Mini/seed42/best.pth").read_bytes()
    shell("rm save/*/seed*/epoch_*.pth", full)
    assert (full / "save/Mini/seed42/best.pth").read_bytes() == best
    done = run(VANILLA, full)
    assert done.returncode == 0, done.stderr


def test_with_more_disk_space_the_command_succeeds(full: Path) -> None:
    done = run(VANILLA, full)
    assert done.returncode == 0, done.stderr
    assert (full / "save/Mini/seed42/epoch_3.pth").exists()


# Training resuming from wrong epoch ----------------------------------------------------------------------------


def corrupt(folder: Path) -> list[str]:
    path = folder / "save/Mini/seed42_distill/checkpoint_latest.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return DISTILL


def change_architecture(folder: Path) -> list[str]:
    return [*DISTILL, "--set", "trajectory_encoder_config.num_layers=2"]


@pytest.mark.parametrize("damage", [corrupt, change_architecture])
def test_a_checkpoint_that_cannot_be_used_is_deleted_by_hand(folder: Path, damage: Callable[[Path], list[str]]) -> None:
    command = damage(folder)
    refused = run(command, folder)
    assert refused.returncode == 1
    assert "Resumed from" not in refused.stderr
    assert "rm save/Mini/seed42_distill/checkpoint_latest.pth" in last_line(refused.stderr)
    shell("rm ./save/Mini/seed42_distill/checkpoint_latest.pth", folder)
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    assert epochs_done(folder) == 3


# Cannot find best.pth after training ---------------------------------------------------------------------------


def test_the_best_epoch_is_found_in_the_log_and_copied(tmp_path: Path) -> None:
    folder = make_mini_project(tmp_path / "project")
    save = folder / "save/Mini/seed42"
    with Script([*VANILLA[:-1], "optimizer_config.max_epoch=9"], folder) as training:
        training.wait_until(lambda: (save / "epoch_4.pth").exists())
        training.kill()
    (save / "best.pth").unlink(missing_ok=True)
    found = shell("""grep "val_next_step_acc" ./log/Mini/seed42/*.log | sort -t',' -k2 -rn | head -1""", folder)
    epoch = int(re.search(r"epoch (\d+)/9 val_next_step_acc", found)[1])
    shell(f"cp ./save/Mini/seed42/epoch_{epoch}.pth ./save/Mini/seed42/best.pth", folder)
    lines = "".join(path.read_text() for path in (folder / "log/Mini/seed42").glob("*.log"))
    accuracies = [float(value) for value in re.findall(r"val_next_step_acc, ([\d.]+)", lines)]
    assert epoch == accuracies.index(max(accuracies)) + 1
    done = run(mini("tools/evaluate.py", "--checkpoint", "save/Mini/seed42/best.pth", "--cuda", "0"), folder)
    assert done.returncode == 0, done.stderr
