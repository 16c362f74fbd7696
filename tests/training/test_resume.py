"""Distillation training resumes exactly: whatever interrupts it, it ends as if nothing had."""

import random
import re
import shutil
import signal
import time
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from faults.injector import Fault
from helpers import error_of
from scripts import Script, make_mini_project, make_mini_teacher, mini, run, scalars

import train_with_distill
from utils.errors import UserError
from utils.files.tensor_files import load_tensors

EPOCHS = 4
BATCHES = 5
SPEC_KEYS = {
    "epoch",
    "seed",
    "dataset",
    "distill_enabled",
    "model_state_dict",
    "optimizer_state_dict",
    "best_val_acc",
    "validation_metrics",
    "wandb_run_id",
}


def distill_command(*arguments: str, epochs: int = EPOCHS, seed: int = 42) -> list[str]:
    return mini(
        "train_with_distill.py", "--seed", str(seed), "--set", f"optimizer_config.max_epoch={epochs}", *arguments
    )


class DistilledRun:
    """Folders of a run with seed 42 below a project folder."""

    def __init__(self, folder: Path, seed: int = 42):
        name = f"Mini/seed{seed}_distill"
        self.folder = folder
        self.save, self.events = folder / "save" / name, folder / "tensorboard_log" / name
        self.log_folder = folder / "log" / name
        self.checkpoint, self.best = self.save / "checkpoint_latest.pth", self.save / "best.pth"

    @property
    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.log_folder.glob("*.log")))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> DistilledRun:
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("uninterrupted")))
    # Dropout draws random numbers: resuming must draw the same ones.
    config = folder / "Mini.yaml"
    config.write_text(config.read_text().replace("hidden_dim: 32\nnav", "hidden_dim: 32\n  dropout: 0.1\nnav"))
    done = run(distill_command(), folder)
    assert done.returncode == 0, done.stderr
    return DistilledRun(folder)


@pytest.fixture
def project(uninterrupted: DistilledRun, tmp_path: Path) -> DistilledRun:
    """A fresh project with the same data, configuration, teacher and teacher cache; no run yet."""
    folder = tmp_path / "project"
    ignore = shutil.ignore_patterns("seed42_distill", "log", "tensorboard_log")
    shutil.copytree(uninterrupted.folder, folder, ignore=ignore)
    return DistilledRun(folder)


@pytest.fixture
def copy(uninterrupted: DistilledRun, tmp_path: Path) -> DistilledRun:
    """A copy of the finished run."""
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted.folder, folder)
    return DistilledRun(folder)


def assert_same_result(ours: DistilledRun, expected: DistilledRun) -> None:
    assert ours.best.read_bytes() == expected.best.read_bytes()
    a, b = (torch.load(run.checkpoint, weights_only=True) for run in (ours, expected))
    assert a["validation_metrics"] == b["validation_metrics"]
    assert a["resume_state"]["val_time_pred_mape"] == b["resume_state"]["val_time_pred_mape"]
    for name, value in b["model_state_dict"].items():
        assert torch.equal(a["model_state_dict"][name], value), name
    # Every point once, no gap, the same values.
    assert scalars(ours.events) == scalars(expected.events)


# The checkpoint ------------------------------------------------------------------------------------------------


def test_only_the_rolling_checkpoint_and_best_are_kept(uninterrupted: DistilledRun) -> None:
    assert {path.name for path in uninterrupted.save.iterdir()} - {".lock"} == {"checkpoint_latest.pth", "best.pth"}


def test_the_checkpoint_has_the_documented_keys_and_loads_weights_only(uninterrupted: DistilledRun) -> None:
    checkpoint = torch.load(uninterrupted.checkpoint, weights_only=True)
    assert set(checkpoint) == SPEC_KEYS | {"resume_state"}
    assert checkpoint["epoch"] == EPOCHS - 1
    assert checkpoint["seed"] == 42
    assert checkpoint["dataset"] == "Mini"
    assert checkpoint["distill_enabled"] is True
    assert type(checkpoint["model_state_dict"]) is OrderedDict
    assert len(checkpoint["validation_metrics"]) == EPOCHS
    assert checkpoint["best_val_acc"] == max(checkpoint["validation_metrics"])
    assert set(checkpoint["optimizer_state_dict"]) == {"state", "param_groups"}


def test_best_is_a_bare_state_dict(uninterrupted: DistilledRun) -> None:
    best = torch.load(uninterrupted.best)
    assert type(best) is OrderedDict
    assert set(best) == set(torch.load(uninterrupted.checkpoint)["model_state_dict"])


def test_curves_and_log_are_those_of_vanilla_training_and_the_kl_term(uninterrupted: DistilledRun) -> None:
    recorded = scalars(uninterrupted.events)
    batch_tags = {"loss_next_step", "loss_time_pred", "loss_kl", "loss", "learning_rate"}
    assert set(recorded) == batch_tags | {"val_next_step_acc", "val_time_pred_mape", "val_time_mape", "val_time_mae_s"}
    for tag in batch_tags:
        assert [step for step, _ in recorded[tag]] == list(range(EPOCHS * BATCHES))
    assert [step for step, _ in recorded["val_next_step_acc"]] == list(range(1, EPOCHS + 1))
    weight = 0.01
    for (_, total), *terms in zip(
        *(recorded[tag] for tag in ("loss", "loss_next_step", "loss_time_pred", "loss_kl")), strict=True
    ):
        step, time_pred, kl = (value for _, value in terms)
        assert kl > 0
        assert total == pytest.approx(step + time_pred + weight * kl, rel=1e-5)
    lines = [line for line in uninterrupted.logs.splitlines() if "val_next_step_acc" in line]
    assert len(lines) == EPOCHS
    assert "best model: save/Mini/seed42_distill/best.pth" in uninterrupted.logs


# Resuming ------------------------------------------------------------------------------------------------------


def test_a_run_that_stops_after_some_epochs_resumes_as_documented(
    project: DistilledRun, uninterrupted: DistilledRun
) -> None:
    arguments = distill_command()
    with Script(arguments, project.folder) as training:
        _wait_for_epoch(project, training, 2)
        training.kill()
    done_before = torch.load(project.checkpoint)["epoch"] + 1
    best_before = torch.load(project.checkpoint)["best_val_acc"]
    done = run(arguments, project.folder)
    assert done.returncode == 0, done.stderr
    if done_before < EPOCHS:
        assert f"✅ Valid checkpoint found: will resume from epoch {done_before + 1}\n" in done.stderr
        text = f"✅ Resumed from checkpoint: epoch {done_before + 1}, best_val_acc={best_before:.4f}\n"
        assert text in done.stderr
    assert_same_result(project, uninterrupted)


def test_kills_at_random_moments_change_nothing(project: DistilledRun, uninterrupted: DistilledRun) -> None:
    """SIGKILL at six or more random moments of a run, from its start to its end."""
    rng = random.Random(7)
    arguments, kills = distill_command(), 0
    while True:
        with Script(arguments, project.folder) as training:
            _wait_until_training(project, training)
            # An epoch takes a small part of a second here: anything may be hit, the writing most of all.
            code = training.wait(rng.uniform(0.0, 0.25) if kills < 12 else 120)
            if code is None:
                training.kill()
                kills += 1
                continue
        assert code == 0
        if kills >= 6:
            break
        _start_over(project)  # it came to its end before it was killed often enough
    assert_same_result(project, uninterrupted)


def _start_over(project: DistilledRun) -> None:
    for folder in (project.save, project.events):
        shutil.rmtree(folder)


def _wait_for_epoch(project: DistilledRun, training: Script, epochs: int) -> None:
    training.wait_until(lambda: project.checkpoint.exists() and torch.load(project.checkpoint)["epoch"] + 1 >= epochs)


def _wait_until_training(project: DistilledRun, training: Script) -> None:
    """Until this process has opened its curves: what comes before reads only."""
    before = set(project.log_folder.glob("*.log"))
    while training.returncode is None:
        logs = set(project.log_folder.glob("*.log")) - before
        if any("parameters on cpu" in path.read_text() for path in logs):
            return
        time.sleep(0.01)


def test_a_finished_run_says_so_and_trains_nothing(copy: DistilledRun) -> None:
    shutil.rmtree(copy.folder / "save" / "Mini" / "teacher")  # which it does not need
    before = {path.name: path.read_bytes() for path in copy.save.glob("*.pth")}
    configuration = (copy.log_folder / "config.yaml").read_bytes()
    for epochs, more in ((EPOCHS, ""), (EPOCHS - 1, ", more than optimizer_config.max_epoch = 3")):
        done = run(distill_command(epochs=epochs), copy.folder)
        assert done.returncode == 0, done.stderr
        assert f"training is complete: all 4 epochs are done{more}\n" in done.stderr
        assert re.search(r"test: accuracy 0\.\d{4}", done.stderr)
        assert {path.name: path.read_bytes() for path in copy.save.glob("*.pth")} == before
        assert (copy.log_folder / "config.yaml").read_bytes() == configuration  # that of what was trained


def test_more_epochs_continue_from_the_end_with_the_schedule_of_the_new_total(copy: DistilledRun) -> None:
    """Also with a checkpoint of the version before, which had fewer keys."""
    content = torch.load(copy.checkpoint)
    del content["resume_state"]["inputs"], content["resume_state"]["replaced_digest"]
    torch.save(content, copy.checkpoint)
    done = run(distill_command(epochs=EPOCHS + 2), copy.folder)
    assert done.returncode == 0, done.stderr
    assert f"✅ Resumed from checkpoint: epoch {EPOCHS + 1}, " in done.stderr
    assert "optimizer_config.max_epoch was 4 so far, and is 6 now" in done.stderr
    assert "the learning-rate schedule is that of the new number of epochs from now on" in done.stderr
    assert torch.load(copy.checkpoint)["epoch"] == EPOCHS + 1
    rates = scalars(copy.events)["learning_rate"]
    assert [step for step, _ in rates] == list(range((EPOCHS + 2) * BATCHES))
    assert rates[EPOCHS * BATCHES - 1][1] == 0.0  # the old end
    assert rates[EPOCHS * BATCHES][1] > 0.0
    assert rates[-1][1] == 0.0


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_says_what_is_kept_and_how_to_resume(
    project: DistilledRun, uninterrupted: DistilledRun, number: signal.Signals, code: int, word: str
) -> None:
    arguments = distill_command()
    with Script(arguments, project.folder) as training:
        _wait_for_epoch(project, training, 1)
        training.send_signal(number)
        found, stderr = training.wait(60), training.stderr
    if found != 0:  # it may have been at its end
        assert found == code
        assert (
            stderr.splitlines()[-1] == f"{word}: the epochs done so far are kept; run the same command again to resume"
        )
        assert "Traceback" not in stderr
    assert run(arguments, project.folder).returncode == 0
    assert_same_result(project, uninterrupted)


def test_a_signal_before_the_first_epoch_does_not_say_that_epochs_are_kept(project: DistilledRun) -> None:
    for script, arguments in (("train.py", []), ("train_with_distill.py", ["--no-distill"])):
        with Script(mini(script, "--set", "optimizer_config.max_epoch=500", *arguments), project.folder) as training:
            training.wait_until(lambda: "parameters on cpu" in training.stderr)
            training.send_signal(signal.SIGINT)
            assert training.wait(60) == 130
            last = training.stderr.splitlines()[-1]
        if not list(project.folder.glob("save/Mini/seed0*/*.pth")):
            assert last.startswith("interrupted: no epoch was finished")


# Checkpoints of others -----------------------------------------------------------------------------------------


def test_the_checkpoint_of_another_run_is_deleted_and_its_best_model_is_kept(copy: DistilledRun) -> None:
    """Whatever differs, and however often: before anything else is written, and its new name is in the log."""
    content = torch.load(copy.checkpoint)
    torch.save({**content, "dataset": "Beijing"}, copy.checkpoint)
    best = copy.best.read_bytes()
    cases = [
        (43, [], "seed=42 vs 43, dataset=Beijing vs Mini"),
        (44, [], "seed=43 vs 44"),
        (44, ["--no-distill"], "distill=True vs False"),
    ]
    for number, (seed, arguments, text) in enumerate(cases, start=1):
        done = run(distill_command(*arguments, "--run_name", "seed42_distill", seed=seed, epochs=1), copy.folder)
        assert done.returncode == 0, done.stderr
        assert f"⚠️  Checkpoint mismatch ({text})\n⚠️  Deleting invalid checkpoint and starting fresh\n" in done.stderr
        content = torch.load(copy.checkpoint)
        assert (content["epoch"], content["seed"], content["dataset"]) == (0, seed, "Mini")
        assert content["distill_enabled"] is (arguments == [])
        kept = copy.save / f"best.earlier-{number}.pth"
        assert kept.read_bytes() == best
        assert f"save/Mini/seed42_distill/best.pth is of an earlier run: kept as {kept.name}" in done.stderr
        assert f"kept as {kept.name}" in copy.logs
        best = copy.best.read_bytes()


def test_a_best_model_whose_checkpoint_was_deleted_is_kept_too(copy: DistilledRun) -> None:
    best = copy.best.read_bytes()
    copy.checkpoint.unlink()  # the documented way to start over
    assert run(distill_command(epochs=1), copy.folder).returncode == 0
    assert (copy.save / "best.earlier-1.pth").read_bytes() == best


def test_a_kill_while_another_run_makes_room_leaves_no_foreign_model_beside_its_checkpoint(
    copy: DistilledRun, tmp_path: Path
) -> None:
    """Killed before or behind the removal of the checkpoint, which follows the renaming of the best model."""
    best, checkpoint = copy.best.read_bytes(), copy.checkpoint.read_bytes()
    other, events = distill_command("--run_name", "seed42_distill", seed=43, epochs=1), tmp_path / "events"
    recorded = DistilledRun(Path(shutil.copytree(copy.folder, tmp_path / "recorded")))
    assert run(other, recorded.folder, fault=asdict(Fault("record", told=str(events)))).returncode == 0
    lines = events.read_text().splitlines()
    removal = next(i for i, line in enumerate(lines) if line.endswith("/checkpoint_latest.pth"))
    assert lines.index("rename save/Mini/seed42_distill/best.earlier-1.pth") < removal
    for at in (removal, removal + 1):
        work = DistilledRun(Path(shutil.copytree(copy.folder, tmp_path / str(at))))
        fault = Fault("kill", at=at, told=str(tmp_path / "told"))
        assert run(other, work.folder, fault=asdict(fault)).returncode == -9
        assert not work.best.exists()
        if at == removal:
            assert work.checkpoint.read_bytes() == checkpoint
            ours = DistilledRun(Path(shutil.copytree(work.folder, tmp_path / "ours")))
            assert run(distill_command(), ours.folder).returncode == 0
            assert ours.best.read_bytes() == best
        else:
            assert not work.checkpoint.exists()
        assert run(other, work.folder).returncode == 0
        assert torch.load(work.checkpoint)["seed"] == 43
        assert work.best.read_bytes() == recorded.best.read_bytes()
        assert best in [path.read_bytes() for path in work.save.glob("best.earlier-*.pth")]


@pytest.fixture(scope="module")
def first_epoch(uninterrupted: DistilledRun, tmp_path_factory: pytest.TempPathFactory) -> DistilledRun:
    """A run of one epoch."""
    ignore = shutil.ignore_patterns("seed42_distill", "log", "tensorboard_log")
    folder = tmp_path_factory.mktemp("first") / "project"
    shutil.copytree(uninterrupted.folder, folder, ignore=ignore)
    assert run(distill_command(epochs=1), folder).returncode == 0
    return DistilledRun(folder)


def test_a_kill_between_the_checkpoint_and_best_is_made_good(first_epoch: DistilledRun, tmp_path: Path) -> None:
    """After the first epoch, which is the best so far, the checkpoint alone holds all that best.pth does."""
    ours = DistilledRun(Path(shutil.copytree(first_epoch.folder, tmp_path / "project")))
    for spoil in (ours.best.unlink, lambda: ours.best.write_bytes(ours.best.read_bytes()[:-50])):
        spoil()
        assert run(distill_command(epochs=1), ours.folder).returncode == 0
        assert ours.best.read_bytes() == first_epoch.best.read_bytes()


def test_a_file_of_ones_own_in_the_place_of_the_best_model_is_kept(first_epoch: DistilledRun, tmp_path: Path) -> None:
    """Averaged weights, say. The checkpoint has the best model, which is written again."""
    ours = DistilledRun(Path(shutil.copytree(first_epoch.folder, tmp_path / "project")))
    first = torch.load(ours.best)
    torch.save({name: value * 2 for name, value in first.items()}, ours.best)
    mine = ours.best.read_bytes()
    done = run(distill_command(epochs=2), ours.folder)
    assert done.returncode == 0, done.stderr
    assert (ours.save / "best.earlier-1.pth").read_bytes() == mine
    assert "best.pth is not of this training: kept as best.earlier-1.pth" in done.stderr
    checkpoint = torch.load(ours.checkpoint)
    expected = [first, checkpoint["model_state_dict"]][int(np.argmax(checkpoint["validation_metrics"]))]
    found = torch.load(ours.best)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_other_data_another_teacher_and_another_batch_size_are_announced(copy: DistilledRun) -> None:
    """And the curves continue where they were."""
    val = copy.folder / "data" / "Mini" / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    make_mini_teacher(copy.folder, seed=4)
    done = run(distill_command("--set", "optimizer_config.batch_size=50", epochs=EPOCHS + 1), copy.folder)
    assert done.returncode == 0, done.stderr
    assert "the validation data is not the same as so far\n" in done.stderr
    assert "the teacher is not the same as so far\n" in done.stderr
    assert "the training data is not" not in done.stderr
    assert "other " not in done.stderr
    assert "optimizer_config.batch_size was 25 so far, and is 50 now" in done.stderr
    assert [step for step, _ in scalars(copy.events)["loss"]] == list(range(EPOCHS * BATCHES + 3))


def error_in(copy: DistilledRun, monkeypatch: pytest.MonkeyPatch, **overrides: object) -> str:
    """The error that the run ends with, which changes no file; in this process, since nothing is trained."""
    before = {path: path.read_bytes() for path in copy.save.glob("*.pth")}
    monkeypatch.chdir(copy.folder)
    settings = {"optimizer_config.max_epoch": EPOCHS, **overrides}
    error = error_of(lambda: train_with_distill.main("Mini", 42, -1, settings, config_path="Mini.yaml"))
    assert {path: path.read_bytes() for path in copy.save.glob("*.pth")} == before
    return error


def test_a_checkpoint_of_another_architecture_is_an_error_and_stays(
    copy: DistilledRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = error_in(copy, monkeypatch, **{"trajectory_encoder_config.num_layers": 2})
    assert error.startswith("save/Mini/seed42_distill/checkpoint_latest.pth: does not fit this model")
    assert "is of another architecture" in error
    assert "rm save/Mini/seed42_distill/checkpoint_latest.pth" in error


def test_a_checkpoint_whose_parts_do_not_fit_is_an_error_and_stays(
    copy: DistilledRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(copy.checkpoint)
    for key, value in (
        ("resume_state", None),
        ("resume_state", {"version": 1}),
        ("optimizer_state_dict", {}),
        ("validation_metrics", [0.5]),
        ("epoch", "9"),
    ):
        torch.save({**content, key: value}, copy.checkpoint)
        assert "rm save/Mini/seed42_distill/checkpoint_latest.pth" in error_in(copy, monkeypatch)


class Malicious:
    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return (Path.touch, (self.sentinel,))


def test_a_damaged_checkpoint_is_an_error_and_stays(
    copy: DistilledRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, sentinel = copy.checkpoint.read_bytes(), tmp_path / "sentinel"
    middle = len(sound) // 2
    flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    torch.save({**torch.load(copy.checkpoint), "seed": Malicious(sentinel)}, copy.checkpoint)
    for content in (copy.checkpoint.read_bytes(), sound[:middle], flipped, b"", b"a checkpoint"):
        copy.checkpoint.write_bytes(content)
        error = error_in(copy, monkeypatch)
        assert error.startswith("save/Mini/seed42_distill/checkpoint_latest.pth: ")
        assert "is corrupt" in error
        assert "rm save/Mini/seed42_distill/checkpoint_latest.pth" in error
    assert not sentinel.exists()


def test_truncation_anywhere_is_detected(uninterrupted: DistilledRun, tmp_path: Path) -> None:
    content = uninterrupted.checkpoint.read_bytes()
    path = tmp_path / "checkpoint_latest.pth"
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"checkpoint_latest\.pth"):
            load_tensors(path)


def test_flipped_bits_are_detected_or_without_effect(uninterrupted: DistilledRun, tmp_path: Path) -> None:
    content = bytearray(uninterrupted.checkpoint.read_bytes())
    expected = torch.load(uninterrupted.checkpoint)["model_state_dict"]
    path, rng, detected = tmp_path / "checkpoint_latest.pth", random.Random(3), 0
    for _ in range(100):
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        content[place] ^= bit
        path.write_bytes(content)
        content[place] ^= bit
        try:
            found = load_tensors(path)["model_state_dict"]
        except UserError:
            detected += 1
            continue
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert detected > 80


def test_a_lost_or_spoilt_best_model_that_the_checkpoint_does_not_hold_is_an_error(
    first_epoch: DistilledRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of two epochs whose first one is its best."""
    ours = DistilledRun(Path(shutil.copytree(first_epoch.folder, tmp_path / "project")))
    wild = run(distill_command("--set", "optimizer_config.learning_rate=30", epochs=2), ours.folder)
    assert wild.returncode == 0, wild.stderr
    first, last = torch.load(ours.checkpoint)["validation_metrics"]
    assert first > last
    for content in (ours.checkpoint.read_bytes(), ours.best.read_bytes()[:-50], None):
        ours.best.unlink() if content is None else ours.best.write_bytes(content)
        error = error_in(ours, monkeypatch)
        assert "expected the model of epoch 1" in error
        assert "put the file back, or the checkpoint has lost its best model" in error


# Without a teacher, and with a trial ---------------------------------------------------------------------------


def test_without_distillation_no_teacher_is_needed_and_the_run_has_a_folder_of_its_own(copy: DistilledRun) -> None:
    shutil.rmtree(copy.folder / "save" / "Mini" / "teacher")
    finished = {path.name: path.read_bytes() for path in copy.save.glob("*.pth")}
    done = run(distill_command("--no-distill", epochs=1), copy.folder)
    assert done.returncode == 0, done.stderr
    folders = [copy.folder / top / "Mini" / "seed42_nodistill" for top in ("save", "log", "tensorboard_log")]
    assert torch.load(folders[0] / "checkpoint_latest.pth")["distill_enabled"] is False
    assert list(folders[1].glob("*.log"))
    assert "loss_kl" not in scalars(folders[2])
    assert {path.name: path.read_bytes() for path in copy.save.glob("*.pth")} == finished


def test_a_missing_teacher_is_an_error_that_says_how_to_make_one_and_no_checkpoint_is_touched(
    copy: DistilledRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a checkpoint of another run stays, since the new one cannot start."""
    shutil.rmtree(copy.folder / "save" / "Mini" / "teacher")
    torch.save({**torch.load(copy.checkpoint), "seed": 43}, copy.checkpoint)
    named = error_in(copy, monkeypatch, **{"distill.teacher": "other.pt"})
    assert named.startswith("other.pt: no teacher; correct distill.teacher, leave it out (then it is the file that")
    assert error_in(copy, monkeypatch, **{"distill.teacher": "save"}).startswith("save: is a folder, expected a file")
    error = error_in(copy, monkeypatch)
    assert error.startswith("save/Mini/teacher/weights.pt: no teacher")
    assert "uv run python tools/train_teacher.py --dataset Mini --seed 42 --cuda 0" in error


def test_a_run_that_diverges_in_its_last_step_saves_nothing(project: DistilledRun) -> None:
    arguments = [
        "--no-distill",
        "--set",
        "optimizer_config.batch_size=200",
        "--set",
        "optimizer_config.learning_rate=1e30",
    ]
    done = run(distill_command(*arguments, epochs=2), project.folder)
    assert done.returncode == 1
    assert "not finite" in done.stderr or "the loss is" in done.stderr
    for path in project.save.glob("*.pth"):
        state = torch.load(path)
        assert all(value.isfinite().all() for value in state.get("model_state_dict", state).values())


def test_a_bad_trial_is_pruned_and_a_good_one_is_not(project: DistilledRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=2)
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="pruning")
    rates = [0.005, 0.005, 1e-9, 1e-9]

    def objective(trial: optuna.Trial) -> float:
        overrides = {
            "optimizer_config.learning_rate": rates[trial.number],
            "optimizer_config.max_epoch": EPOCHS,
            "distill.lambda": 0.05,
        }
        result = train_with_distill.main(
            dataset="Mini",
            seed=1,
            cuda=-1,
            config_overrides=overrides,
            config_path="Mini.yaml",
            run_name=f"trial_{trial.number}",
            optuna_trial=trial,
        )
        return result.best.next_step_acc

    study.optimize(objective, n_trials=len(rates))
    states = [trial.state.name for trial in study.trials]
    assert states[:2] == ["COMPLETE"] * 2
    assert "PRUNED" in states[2:]
    for trial in study.trials:
        content = torch.load(project.folder / "save" / "Mini" / f"trial_{trial.number}" / "checkpoint_latest.pth")
        # Each epoch with a checkpoint is reported, the one that led to pruning too.
        assert list(trial.intermediate_values.values()) == content["validation_metrics"]
        assert list(trial.intermediate_values) == list(range(content["epoch"] + 1))


def test_a_resumed_trial_reports_each_epoch_once(
    project: DistilledRun, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(project.folder)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    settings = {"dataset": "Mini", "seed": 1, "cuda": -1, "config_path": "Mini.yaml", "run_name": "tune/study/trial_0"}
    train_with_distill.main(**settings, config_overrides={"optimizer_config.max_epoch": 2}, optuna_trial=None)
    result = train_with_distill.main(**settings, config_overrides={"optimizer_config.max_epoch": 3}, optuna_trial=trial)
    assert [item.next_step_acc for item in result.validations] == list(study.trials[0].intermediate_values.values())
    assert len(result.validations) == 3
    assert not [w for w in recwarn if "already reported" in str(w.message)]


def test_a_trial_killed_before_its_report_is_pruned_when_it_comes_back(
    project: DistilledRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=2.0))
    settings = {"dataset": "Mini", "seed": 1, "cuda": -1, "config_path": "Mini.yaml", "run_name": "trial"}
    train_with_distill.main(**settings, config_overrides={"optimizer_config.max_epoch": 1})
    with pytest.raises(optuna.TrialPruned):
        train_with_distill.main(
            **settings, config_overrides={"optimizer_config.max_epoch": 3}, optuna_trial=study.ask()
        )
    assert torch.load(project.folder / "save" / "Mini" / "trial" / "checkpoint_latest.pth")["epoch"] == 0


# Curves --------------------------------------------------------------------------------------------------------


def test_trimmed_curves_keep_every_point_of_the_finished_part_once(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    from utils.tracking.event_files import trim_events

    for first_epoch, last_epoch in ((0, 3), (2, 4)):  # the second process trains the third epoch again
        with SummaryWriter(str(tmp_path)) as writer:
            for epoch in range(first_epoch, last_epoch):
                for batch in range(2):
                    writer.add_scalar("loss", epoch + batch / 10, 2 * epoch + batch)
                writer.add_scalar("val_next_step_acc", epoch / 10, epoch + 1)
    trim_events(tmp_path, batches=6, epochs=3)
    recorded = scalars(tmp_path)
    assert [step for step, _ in recorded["loss"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in recorded["val_next_step_acc"]] == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 1
    # A file cut in the middle of a record loses that record only.
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    trim_events(tmp_path, batches=6, epochs=3)
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path)["val_next_step_acc"]] == [1, 2]
