"""Tracking of distillation training with W&B: the real client, offline or against a server on the loopback.

What the client wrote (offline) or the server received is compared with the TensorBoard events of the same run.
"""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from scripts import MINI_CONFIG, PROJECT, Script, make_mini_teacher, mini, run, scalars
from wandb_server import API_KEY, WandbServer

from utils.config import load_config
from utils.tracking.wandb_log import PartLog, part_logs, read_records
from utils.tracking.wandb_run import redact, without_local_paths

EPOCHS, BATCHES = 3, 5  # of the mini project: 120 trips in batches of 25
ON = ("--set", "wandb.enable=true")


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def workplace(project: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a teacher; the client knows the loopback server, and keeps its files in `wandb/`."""
    for name, value in server.environment(project).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return make_mini_teacher(project)


@pytest.fixture
def offline(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    return workplace


def command(*arguments: str) -> list[str]:
    return mini("train_with_distill.py", "--seed", "7", *ON, *arguments)


def finish(folder: Path, *arguments: str) -> str:
    """Run the command to its end; what it said."""
    done = run(command(*arguments), folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill_after(folder: Path, text: str, *arguments: str) -> None:
    """Start the command, and SIGKILL it as soon as it has said `text`."""
    with Script(command(*arguments), folder) as script:
        script.wait_until(lambda: text in script.stderr)
        script.kill()


def rows_on_disk(folder: Path) -> int:
    """The client's own process writes them, each second."""
    return sum(len(log.rows()) for log in logs(folder))


def kill_when_rows_are_on_disk(folder: Path, text: str, *arguments: str) -> None:
    """Start the command, and SIGKILL it after it has said `text`, when rows of this part are on the disk."""
    before = rows_on_disk(folder)
    with Script(command(*arguments), folder) as script:
        script.wait_until(lambda: text in script.stderr)
        script.stop_until(lambda: rows_on_disk(folder) > before)
        script.kill()


def run_id(folder: Path) -> str:
    return torch.load(folder / "save/Mini/seed7_distill/checkpoint_latest.pth", weights_only=True)["wandb_run_id"]


def logs(folder: Path) -> list[PartLog]:
    return part_logs(folder / "wandb", "*")


def history(log: PartLog) -> list[dict[str, float]]:
    """The logged rows, without the client's own columns."""
    rows = []
    for record in read_records(log.path):
        if record.HasField("history"):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def curves(rows: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Rows as TensorBoard gives them: tag -> (step, value); a row that stands twice gives two points."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        axis = "epoch" if "epoch" in row else "batch"
        for tag, value in row.items():
            if tag != axis and not tag.startswith("_"):
                points.setdefault(tag, []).append((row[axis], pytest.approx(value, rel=1e-6)))
    return {tag: sorted(values, key=lambda point: point[0]) for tag, values in points.items()}


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return scalars(folder / "tensorboard_log/Mini/seed7_distill")


def sync(folder: Path) -> str:
    """`wandb sync` of all offline parts, as the log says."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, sorted(folder.glob("wandb/offline-run-*")))],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class TestAnOfflineRun:
    def test_has_all_points_of_tensorboard_under_the_same_names(self, offline: Path) -> None:
        finish(offline)
        (log,) = logs(offline)
        assert log.is_offline
        assert curves(history(log)) == tensorboard(offline)
        assert len(history(log)) == EPOCHS * (BATCHES + 1)

    def test_has_axes_of_batches_and_epochs(self, offline: Path) -> None:
        finish(offline)
        metrics = [r.metric for r in read_records(logs(offline)[0].path) if r.HasField("metric")]
        axes = {metric.name or metric.glob_name: metric.step_metric for metric in metrics}
        batch = {"loss*": "batch", "learning_rate": "batch"}
        assert axes == {"batch": "", "epoch": "", "val_*": "epoch", **batch}

    def test_has_the_whole_configuration_name_project_and_tags(self, offline: Path) -> None:
        finish(offline, "--set", "wandb.tags=[beijing, distillation]", "--set", "optimizer_config.accum_steps=2")
        (record,) = (r.run for r in read_records(logs(offline)[0].path) if r.HasField("run"))
        assert record.run_id == run_id(offline)
        assert (record.project, record.display_name) == ("hoser-distill", "Mini_b25_acc2")
        assert list(record.tags) == ["beijing", "distillation"]
        config = {item.key: json.loads(item.value_json) for item in record.config.update}
        assert (config["dataset"], config["seed"]) == ("Mini", 7)
        for section, values in yaml.safe_load(MINI_CONFIG).items():
            assert config[section].items() >= values.items()
        assert config["distill"]["lambda"] == load_config("Mini").distill.lambda_

    def test_takes_a_name_of_ones_own(self, offline: Path) -> None:
        finish(offline, "--set", "wandb.run_name=first try")
        (record,) = (r.run for r in read_records(logs(offline)[0].path) if r.HasField("run"))
        assert record.display_name == "first try"

    def test_tells_how_to_upload_it(self, offline: Path) -> None:
        assert f"uv run wandb sync wandb/offline-run-*-{run_id_of(finish(offline))}*" in finish(offline)

    def test_is_synced_with_the_model_and_the_epoch_in_the_summary(self, offline: Path, server: WandbServer) -> None:
        finish(offline, "--set", "wandb.log_model=true")
        sync(offline)
        (stored,) = server.runs.values()
        best = (offline / "save/Mini/seed7_distill/best.pth").read_bytes()
        assert stored.summary["epoch"] == EPOCHS
        assert stored.files["best.pth"] == best
        assert [artifact.files["best.pth"] for artifact in server.artifacts] == [best]
        assert curves(stored.history) == tensorboard(offline)


def run_id_of(stderr: str) -> str:
    return stderr.split("tracking with W&B, run ")[1].split(":")[0]


class TestAnInterruptedRun:
    def test_offline_has_each_point_once_however_often_it_was_killed(self, offline: Path, server: WandbServer) -> None:
        longer = ("--set", "optimizer_config.max_epoch=30")
        kill_after(offline, "tracking", *longer)
        kill_after(offline, "epoch 1/30", *longer)
        for text in ("epoch 6/30", "epoch 14/30"):
            kill_when_rows_are_on_disk(offline, text, *longer)
        finish(offline, *longer)
        parts = logs(offline)
        assert len(parts) >= 3  # those that were killed before their first record are removed
        assert {log.path.stem for log in parts} == {f"run-{run_id(offline)}"}
        assert curves([row for log in parts for row in history(log)]) == tensorboard(offline)
        said = sync(offline)
        assert curves(server.runs[run_id(offline)].history) == tensorboard(offline)
        assert "step" not in said.lower()

    def test_online_has_each_point_once_however_often_it_was_killed(self, workplace: Path, server: WandbServer) -> None:
        longer = ("--set", "optimizer_config.max_epoch=9")
        for text in ("tracking", "epoch 1/9", "epoch 5/9"):
            kill_after(workplace, text, *longer)
        said = finish(workplace, *longer)
        (stored,) = server.runs.values()
        assert (stored.id, stored.state) == (run_id(workplace), "finished")
        assert curves(stored.history) == tensorboard(workplace)
        assert "monotonic" not in said

    def test_online_has_each_point_once_although_some_of_a_part_never_arrived(
        self, workplace: Path, server: WandbServer
    ) -> None:
        longer = ("--set", "optimizer_config.max_epoch=40")
        with Script(command(*longer), workplace) as script:
            script.wait_until(lambda: "epoch 3/40" in script.stderr)
            script.stop_until(lambda: next(iter(server.runs.values())).history)
            server.fail, before = 503, rows_on_disk(workplace)
            script.wait_until(lambda: "epoch 10/40" in script.stderr)
            script.stop_until(lambda: rows_on_disk(workplace) > before + BATCHES)
            script.kill()
        server.fail = None
        with Script(command(*longer), workplace) as script:
            script.wait_until(lambda: "to go" in script.stderr)
            script.send_signal(signal.SIGTERM)
            assert script.wait() == 143
        finish(workplace, *longer)
        (stored,) = server.runs.values()
        assert curves(stored.history) == tensorboard(workplace)

    def test_that_was_cut_off_online_and_ended_offline_says_how_to_upload_it(
        self, workplace: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longer = ("--set", "optimizer_config.max_epoch=5")
        kill_after(workplace, "epoch 2/5", *longer)
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert "to upload: not with `wandb sync`" in finish(workplace, *longer)
        monkeypatch.delenv("WANDB_MODE")
        finish(workplace, *longer)
        (stored,) = server.runs.values()
        assert curves(stored.history) == tensorboard(workplace)

    def test_that_was_cut_off_online_ended_offline_and_was_synced_all_the_same_gets_what_is_missing(
        self, workplace: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longer = ("--set", "optimizer_config.max_epoch=5")
        kill_after(workplace, "epoch 2/5", *longer)
        monkeypatch.setenv("WANDB_MODE", "offline")
        finish(workplace, *longer)
        sync(workplace)
        monkeypatch.delenv("WANDB_MODE")
        finish(workplace, *longer)
        (stored,) = server.runs.values()
        assert curves(stored.history) == tensorboard(workplace)

    def test_that_was_offline_at_first_is_not_sent_twice(
        self, offline: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longer = ("--set", "optimizer_config.max_epoch=4")
        kill_after(offline, "epoch 2/4", *longer)
        monkeypatch.delenv("WANDB_MODE")
        finish(offline, *longer)
        sync(offline)
        (stored,) = server.runs.values()
        assert curves(stored.history) == tensorboard(offline)

    def test_that_was_not_tracked_at_first_is_tracked_from_its_beginning(self, offline: Path) -> None:
        done = run(mini("train_with_distill.py", "--seed", "7"), offline)
        assert done.returncode == 0
        assert run_id(offline) is None
        finish(offline, "--set", "optimizer_config.max_epoch=5")
        assert curves(history(logs(offline)[0])) == tensorboard(offline)

    def test_that_is_tracked_when_it_is_complete_has_its_id_in_the_checkpoint(self, offline: Path) -> None:
        assert run(mini("train_with_distill.py", "--seed", "7"), offline).returncode == 0
        finish(offline)
        first = run_id(offline)
        assert first is not None
        finish(offline, "--set", "wandb.log_model=true")
        assert {log.path.stem for log in logs(offline)} == {f"run-{first}"}

    def test_keeps_its_id_through_a_part_that_is_not_tracked(self, offline: Path) -> None:
        finish(offline)
        first = run_id(offline)
        done = run(mini("train_with_distill.py", "--seed", "7", "--set", "optimizer_config.max_epoch=4"), offline)
        assert done.returncode == 0
        assert run_id(offline) == first
        finish(offline, "--set", "optimizer_config.max_epoch=5")
        assert curves([row for log in logs(offline) for row in history(log)]) == tensorboard(offline)

    def test_begins_a_new_run_when_it_begins_afresh(self, offline: Path) -> None:
        finish(offline)
        first = run_id(offline)
        (offline / "save/Mini/seed7_distill/checkpoint_latest.pth").unlink()
        finish(offline)
        assert run_id(offline) != first
        assert Counter(len(history(log)) for log in logs(offline)) == {EPOCHS * (BATCHES + 1): 2}

    def test_begins_a_new_run_when_it_was_killed_at_once_and_then_changed(self, offline: Path) -> None:
        kill_after(offline, "tracking")
        finish(offline, "--set", "optimizer_config.learning_rate=0.001")
        assert curves(history(part_logs(offline / "wandb", run_id(offline))[0])) == tensorboard(offline)

    def test_is_not_kept_from_syncing_by_a_part_that_was_killed_in_its_first_second(
        self, offline: Path, server: WandbServer
    ) -> None:
        kill_after(offline, "epoch 2/3")
        log = logs(offline)[0]
        stub = offline / "wandb" / f"offline-run-20200101_000000-{run_id(offline)}" / log.path.name
        stub.parent.mkdir()
        stub.write_bytes(log.path.read_bytes()[:7])
        finish(offline)
        sync(offline)
        assert curves(server.runs[run_id(offline)].history) == tensorboard(offline)

    def test_is_synced_although_a_part_ends_in_half_a_record(self, offline: Path, server: WandbServer) -> None:
        """As a kill of all processes at once leaves it."""
        finish(offline, "--set", "optimizer_config.max_epoch=2")
        (log,) = logs(offline)
        whole, rows = log.path.read_bytes(), log.rows()
        log.path.write_bytes(whole[: whole.rindex(b"loss")])
        assert 0 < len(log.rows()) < len(rows)
        finish(offline)
        sync(offline)
        assert curves(server.runs[run_id(offline)].history) == tensorboard(offline)


class TestTheNetworkCostsNothing:
    def test_a_password_in_the_address_is_not_logged(self, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", os.environ["WANDB_BASE_URL"].replace("//", "//joe:pa55word@"))
        assert "pa55word" not in finish(workplace)
        assert not any("pa55word" in path.read_text() for path in (workplace / "log").rglob("*.log"))

    def test_without_a_key_training_goes_on_offline_and_nothing_is_asked(
        self, workplace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        terminal, side = pty.openpty()  # where the client would ask
        with Script(command(), workplace, terminal=side) as script:
            os.close(side)
            assert script.wait() == 0
        said = os.read(terminal, 100_000).decode()
        assert said.count("W&B cannot be reached (no API key") == 1
        assert curves(history(logs(workplace)[0])) == tensorboard(workplace)

    def test_a_service_that_hangs_delays_the_start_and_then_training_goes_on_offline(
        self, workplace: Path, server: WandbServer
    ) -> None:
        server.hang = True
        said = finish(workplace)
        assert said.count("W&B cannot be reached") == 1
        assert curves([row for log in logs(workplace) for row in history(log)]) == tensorboard(workplace)

    def test_a_service_that_fails_in_mid_run_gets_what_it_missed_at_the_next_start(
        self, workplace: Path, server: WandbServer
    ) -> None:
        longer = ("--set", "optimizer_config.max_epoch=10")
        with Script(command(*longer), workplace) as script:
            script.wait_until(lambda: "epoch 1/10" in script.stderr)
            server.fail = 503
            assert script.wait() == 0
            assert script.stderr.count("W&B failed") == 1
        assert len(tensorboard(workplace)["val_next_step_acc"]) == 10
        server.fail = None
        finish(workplace, *longer)
        (stored,) = server.runs.values()
        assert curves(stored.history) == tensorboard(workplace)

    def test_a_service_that_refuses_us_in_mid_run_is_told_of(self, workplace: Path, server: WandbServer) -> None:
        with Script(command(), workplace) as script:
            script.wait_until(lambda: "epoch 1/3" in script.stderr)
            server.fail = 401
            assert script.wait() == 0
            assert script.stderr.count("W&B may not have got all of the run") == 1

    def test_an_artifact_that_is_refused_is_told_of_and_ends_nothing(
        self, workplace: Path, server: WandbServer
    ) -> None:
        server.fail_operations["CreateArtifact"] = 400
        said = finish(workplace, "--set", "wandb.log_model=true")
        (stored,) = server.runs.values()
        assert stored.state == "finished"
        assert stored.files["best.pth"] == (workplace / "save/Mini/seed7_distill/best.pth").read_bytes()
        assert said.count("W&B") == 2  # where it tracks, and that it may not have all

    @pytest.mark.parametrize(
        ("name", "value"), [("WANDB_MODE", "bogus"), ("WANDB_INIT_TIMEOUT", "soon"), ("WANDB_BASE_URL", "nonsense")]
    )
    def test_settings_that_the_client_refuses_are_told_of_in_a_line(
        self, workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(name, value)
        assert finish(workplace).count("W&B cannot be used") == 1

    def test_an_interrupt_ends_the_run_with_the_usual_code(self, workplace: Path, server: WandbServer) -> None:
        with Script(command("--set", "optimizer_config.max_epoch=500"), workplace) as script:
            script.wait_until(lambda: "epoch 1/500" in script.stderr)
            script.send_signal(signal.SIGINT)
            assert script.wait() == 130
        (stored,) = server.runs.values()
        assert stored.state == "failed"
        assert len(stored.history) >= BATCHES

    def test_w_and_b_can_be_disabled_by_its_own_settings(
        self, workplace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        finish(workplace)
        assert logs(workplace) == []


class TestPrivacy:
    def test_neither_key_nor_local_paths_nor_the_users_name_leave_the_machine(
        self, workplace: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("USER", "ada.lovelace")
        monkeypatch.setenv("LOGNAME", "ada.lovelace")
        teacher = workplace / "teachers of ada" / "weights.pt"
        teacher.parent.mkdir()
        shutil.copy(workplace / "save/Mini/teacher/weights.pt", teacher)
        finish(workplace, "--set", f"distill.teacher={teacher}", "--set", "wandb.log_model=true")
        (stored,) = server.runs.values()
        assert stored.config["distill"]["teacher"] == "weights.pt"
        assert server.artifacts[0].metadata["distill"]["teacher"] == "weights.pt"
        # The client itself names its staging folder in the list of an artifact's files; all else is ours.
        sent = b"".join(request.body for request in server.requests if not request.path.startswith("/manifest/"))
        assert server.artifacts[0].files["best.pth"] in sent
        for secret in (API_KEY, str(workplace), str(PROJECT), "teachers of ada", "ada.lovelace"):
            assert secret.encode() not in sent
        for folder in ("save", "log"):
            for path in (workplace / folder / "Mini/seed7_distill").iterdir():
                assert API_KEY.encode() not in path.read_bytes()

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("/home/ada/teacher.pt", "teacher.pt"),
            ("~/teacher.pt", "teacher.pt"),
            ("../../ada/teacher.pt", "teacher.pt"),
            (r"C:\Users\ada\teacher.pt", "teacher.pt"),
            ("save/Beijing/teacher/weights.pt", "save/Beijing/teacher/weights.pt"),
            ("all", "all"),
        ],
    )
    def test_a_path_that_leads_out_of_the_working_folder_is_cut_to_its_name(self, text: str, shown: str) -> None:
        assert without_local_paths({"a": [text, 1]}) == {"a": [shown, 1]}

    def test_messages_of_the_client_are_shown_without_keys_and_passwords(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        error = ValueError(f"{'k' * 40} refused by https://ada:enigma@host/graphql\nsecond line")
        assert redact(error) == "*** refused by https://***@host/graphql second line"


def test_two_runs_of_one_process_are_two_w_and_b_runs_also_when_the_first_one_fails(
    workplace: Path, server: WandbServer
) -> None:
    """As in a search; the client would go on with a run that was not ended."""
    program = """
import sys
from pathlib import Path
import wandb
import train_with_distill
ended = wandb.Run.finish
def fail(*_, **__):
    wandb.Run.finish = ended
    raise RuntimeError("no more")
wandb.Run.finish = fail
for seed in (1, 2):
    train_with_distill.main("Mini", seed, -1, {"wandb.enable": True}, config_path="Mini.yaml")
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workplace, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "W&B failed (no more)" in done.stderr
    assert sorted(run.config["seed"] for run in server.runs.values()) == [1, 2]
    for stored in server.runs.values():
        curve = scalars(workplace / f"tensorboard_log/Mini/seed{stored.config['seed']}_distill")
        assert curves(stored.history) == curve


def test_vanilla_training_is_not_tracked(offline: Path) -> None:
    done = run(mini("train.py", *ON), offline)
    assert done.returncode == 0, done.stderr
    assert "vanilla training is not tracked by WandB" in done.stderr
    assert not (offline / "wandb").exists()
