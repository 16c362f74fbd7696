"""Tracking of distillation training with W&B: the real client, offline or against a server on the loopback.

What the server received, online or by `wandb sync`, is compared with the TensorBoard events of the same run.
"""

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from scripts import MINI_CONFIG, PROJECT, Script, make_mini_teacher, mini, run, scalars
from wandb_server import API_KEY, WandbServer
from wandb_store import StoredRun

from utils.config import load_config

EPOCHS, BATCHES = 3, 5  # of the mini project: 120 trips in batches of 25
ROWS_PER_EPOCH = BATCHES + 1
ON = ("--set", "wandb.enable=true")

Curves = dict[str, list[tuple[int, float]]]


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


def epochs(number: int) -> tuple[str, str]:
    return "--set", f"optimizer_config.max_epoch={number}"


def command(*arguments: str) -> list[str]:
    return mini("train_with_distill.py", "--seed", "7", *ON, *arguments)


def finish(folder: Path, *arguments: str) -> str:
    """Run the command to its end; what it logged."""
    done = run(command(*arguments), folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def finish_untracked(folder: Path, *arguments: str) -> None:
    assert run(mini("train_with_distill.py", "--seed", "7", *arguments), folder).returncode == 0


def stop_after(folder: Path, text: str, number: int, *arguments: str) -> int | None:
    """Start the command, and send it a signal as soon as it has logged `text`; returns its exit code."""
    with Script(command(*arguments), folder) as script:
        script.wait_until(lambda: text in script.stderr)
        script.send_signal(number)
        code = script.wait()
        assert "W&B cannot" not in script.stderr, script.stderr
        return code


def impatient(folder: Path, *arguments: str) -> list[str]:
    """The command with limits of a few seconds in the place of 15 s and 30 s."""
    program = f"""
import runpy
import sys
sys.path.insert(0, {str(PROJECT)!r})
from utils.tracking import wandb_run
wandb_run.INIT_TIMEOUT_S, wandb_run.FINISH_TIMEOUT_S = 5, 8
runpy.run_path({str(PROJECT / "train_with_distill.py")!r}, run_name="__main__")
"""
    (folder / "impatient.py").write_text(program)
    return [str(folder / "impatient.py"), *command(*arguments)[1:]]


def run_id(folder: Path) -> str:
    return torch.load(folder / "save/Mini/seed7_distill/checkpoint_latest.pth", weights_only=True)["wandb_run_id"]


def curves(stored: StoredRun) -> Curves:
    """Rows as TensorBoard gives them, in their order: tag -> (step, value). A row that is there twice fails."""
    assert [row["_step"] for row in stored.history] == list(range(len(stored.history)))
    points: Curves = {}
    for row in stored.history:
        axis = "epoch" if "epoch" in row else "batch"
        for tag, value in row.items():
            if tag != axis and not tag.startswith("_"):
                points.setdefault(tag, []).append((row[axis], pytest.approx(value, rel=1e-6)))
    return points


def tensorboard(folder: Path) -> Curves:
    return scalars(folder / "tensorboard_log/Mini/seed7_distill")


def sync(folder: Path) -> None:
    """`wandb sync` of all offline parts, as the README says."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, sorted(folder.glob("wandb/offline-run-*")))],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    print(done.stdout + done.stderr)  # for a test that fails on what the server has
    assert done.returncode == 0 and "ERROR" not in done.stderr


class TestOffline:
    def test_a_run_that_was_killed_is_synced_whole(self, offline: Path, server: WandbServer) -> None:
        longer = (*epochs(12), "--set", "wandb.tags=[beijing, distillation]", "--set", "optimizer_config.accum_steps=2")
        stop_after(offline, "tracking", signal.SIGKILL, *longer)
        stop_after(offline, "epoch 2/12", signal.SIGKILL, *longer)
        # As a kill of all processes at once leaves it: `wandb sync` would stop at half a record, or at none.
        for part in offline.glob("wandb/offline-run-*/*.wandb"):
            part.write_bytes(part.read_bytes()[:-20])
        assert stop_after(offline, "epoch 4/12", signal.SIGTERM, *longer) == 143
        logged = finish(offline, *longer, "--set", "wandb.log_model=true")
        assert len(list(offline.glob("wandb/offline-run-*"))) == 2
        assert f"uv run wandb sync wandb/offline-run-*-{run_id(offline)}*" in logged
        sync(offline)

        (stored,) = server.runs.values()
        assert curves(stored) == tensorboard(offline)
        assert len(stored.history) == 12 * ROWS_PER_EPOCH
        assert (stored.id, stored.project, stored.name) == (run_id(offline), "hoser-distill", "Mini_b25_acc2")
        assert stored.tags == ["beijing", "distillation"]
        assert (stored.config["dataset"], stored.config["seed"]) == ("Mini", 7)
        for section, values in yaml.safe_load(MINI_CONFIG).items():
            assert stored.config[section].keys() >= values.keys()
        assert stored.config["distill"]["lambda"] == load_config("Mini").distill.lambda_
        assert stored.summary["epoch"] == 12
        best = (offline / "save/Mini/seed7_distill/best.pth").read_bytes()
        assert stored.files["best.pth"] == best
        assert [artifact.files["best.pth"] for artifact in server.artifacts] == [best]

    def test_parts_that_started_in_the_same_second_are_set_aside_side_by_side(self, tmp_path: Path) -> None:
        from utils.tracking import wandb_run

        for content in (b"first", b"second", b"third"):
            part = tmp_path / "offline-run-20260131_120000-abc"
            part.mkdir()
            (part / "run-abc.wandb").write_bytes(content)
            assert wandb_run._rows_of_parts(wandb_run._parts(tmp_path, "abc"), rows_done=0) == 0
        kept = [path.read_bytes() for path in sorted(tmp_path.glob("set-aside-offline-run-*/*.wandb"))]
        assert kept == [b"first", b"second", b"third"]
        assert not list(tmp_path.glob("offline-run-*"))

    def test_parts_may_be_synced_in_between_untracked_or_online(
        self, offline: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finish_untracked(offline, *epochs(1))
        assert run_id(offline) is None
        finish(offline, *epochs(2))
        first = run_id(offline)
        sync(offline)
        assert curves(server.runs[first]) == tensorboard(offline)
        finish_untracked(offline, *epochs(3))
        finish(offline, *epochs(4))
        sync(offline)
        assert curves(server.runs[first]) == tensorboard(offline)
        # Not synced, and killed; what it has is sent by the online part.
        stop_after(offline, "epoch 5/6", signal.SIGKILL, *epochs(6))
        monkeypatch.delenv("WANDB_MODE")
        finish(offline, *epochs(6))
        assert len(list(offline.glob("wandb/set-aside-offline-run-*"))) == 1
        (stored,) = server.runs.values()
        assert curves(stored) == tensorboard(offline)
        assert (stored.id, run_id(offline)) == (first, first)

    def test_training_from_the_start_is_a_new_run(self, offline: Path, server: WandbServer) -> None:
        from utils.tracking.wandb_run import COUNT_FILE

        stop_after(offline, "tracking", signal.SIGKILL)
        finish(offline, "--set", "optimizer_config.learning_rate=0.001", "--set", "wandb.run_name=first try")
        (offline / "save/Mini/seed7_distill/checkpoint_latest.pth").unlink()
        finish(offline)
        (killed,) = [path for path in offline.glob("wandb/offline-run-*") if not (path / COUNT_FILE).exists()]
        shutil.rmtree(killed)
        sync(offline)
        assert [len(stored.history) for stored in server.runs.values()] == [EPOCHS * ROWS_PER_EPOCH] * 2
        assert {stored.name for stored in server.runs.values()} == {"first try", "Mini_b25_acc1"}


class TestOnline:
    def test_each_row_is_sent_once_however_often_the_run_was_stopped(
        self, workplace: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longer = epochs(9)
        stop_after(workplace, "tracking", signal.SIGKILL, *longer)
        assert stop_after(workplace, "epoch 1/9", signal.SIGINT, *longer) == 130
        (stored,) = server.runs.values()
        assert stored.state == "failed" and len(stored.history) >= ROWS_PER_EPOCH
        # In the middle of an epoch, offline after an online part that ended in order.
        monkeypatch.setenv("WANDB_MODE", "offline")
        stop_after(workplace, "epoch 3/9", signal.SIGTERM, *longer)
        sync(workplace)
        monkeypatch.delenv("WANDB_MODE")
        stop_after(workplace, "epoch 5/9", signal.SIGKILL, *longer)
        # What arrived of that part, only the service knows.
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert "W&B cannot be used (only the service knows" in finish(workplace, *epochs(7))
        monkeypatch.delenv("WANDB_MODE")
        logged = finish(workplace, *longer)
        (stored,) = server.runs.values()
        assert (stored.id, stored.state, "W&B " in logged) == (run_id(workplace), "finished", False)
        assert curves(stored) == tensorboard(workplace)
        # The curves of batches by batch, those of validations by epoch.
        metrics = stored.client_config["m"]
        names = [metric.get("1") or metric["2"] for metric in metrics]
        axes = {name: names[metric["5"] - 1] for name, metric in zip(names, metrics, strict=True) if "5" in metric}
        assert axes == {"loss*": "batch", "learning_rate": "batch", "val_*": "epoch"}
        # Without the event files the run continues with the next row.
        shutil.rmtree(workplace / "tensorboard_log")
        finish(workplace, *epochs(10))
        assert len(stored.history) == 10 * ROWS_PER_EPOCH

    def test_two_runs_of_one_process_are_two_w_and_b_runs_also_when_the_first_one_fails(
        self, workplace: Path, server: WandbServer
    ) -> None:
        """As in a search; the client would continue a run that was not ended."""
        program = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import wandb
import train_with_distill
ended = wandb.Run.finish
def fail(*_, **__):
    wandb.Run.finish = ended
    raise RuntimeError("no more")
wandb.Run.finish = fail
for seed in (1, 2):
    train_with_distill.main("Mini", seed, -1, {{"wandb.enable": True}}, config_path="Mini.yaml")
"""
        (workplace / "two_runs.py").write_text(program)
        done = run([str(workplace / "two_runs.py")], workplace)
        assert done.returncode == 0, done.stderr
        assert "W&B failed (no more)" in done.stderr
        assert sorted(run.config["seed"] for run in server.runs.values()) == [1, 2]
        for stored in server.runs.values():
            assert curves(stored) == scalars(workplace / f"tensorboard_log/Mini/seed{stored.config['seed']}_distill")


class TestFailures:
    def test_without_a_key_training_continues_offline_and_nothing_is_asked(
        self, workplace: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        terminal, side = pty.openpty()  # where the client would ask
        with Script(command(), workplace, terminal=side) as script:
            os.close(side)
            assert script.wait() == 0
        assert os.read(terminal, 100_000).decode().count("W&B cannot be reached (no API key") == 1
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        sync(workplace)
        assert curves(server.runs[run_id(workplace)]) == tensorboard(workplace)

    def test_a_service_that_hangs_delays_the_start_and_then_training_continues_offline(
        self, workplace: Path, server: WandbServer
    ) -> None:
        server.hang = True
        done = run(impatient(workplace), workplace)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("W&B cannot be reached") == 1
        server.hang = False
        sync(workplace)
        assert curves(server.runs[run_id(workplace)]) == tensorboard(workplace)

    def test_a_service_that_fails_in_mid_run_gets_what_it_missed_at_the_next_start(
        self, workplace: Path, server: WandbServer
    ) -> None:
        with Script(impatient(workplace, *epochs(6)), workplace) as script:
            script.wait_until(lambda: "epoch 1/6" in script.stderr)
            server.fail = 503
            assert script.wait() == 0
            assert script.stderr.count("W&B failed") == 1
        server.fail = None
        finish(workplace, *epochs(6))
        (stored,) = server.runs.values()
        assert curves(stored) == tensorboard(workplace)
        assert len(stored.history) == 6 * ROWS_PER_EPOCH

    def test_a_service_that_refuses_the_run_or_its_model_is_reported(
        self, workplace: Path, server: WandbServer
    ) -> None:
        with Script(command(), workplace) as script:
            script.wait_until(lambda: "epoch 1/3" in script.stderr)
            server.fail = 401
            assert script.wait() == 0
            assert script.stderr.count("W&B may not have all of the run") == 1
        server.fail, server.fail_operations["CreateArtifact"] = None, 400
        logged = finish(workplace, "--set", "wandb.log_model=true")
        (stored,) = server.runs.values()
        assert stored.state == "finished"
        assert stored.files["best.pth"] == (workplace / "save/Mini/seed7_distill/best.pth").read_bytes()
        assert logged.count("W&B may not have all of the run") == 1

    def test_settings_of_the_client_can_disable_it_and_wrong_ones_are_reported(
        self, workplace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert "W&B" not in finish(workplace, *epochs(1))
        assert not (workplace / "wandb").exists()
        for name, value in (("WANDB_MODE", "bogus"), ("WANDB_INIT_TIMEOUT", "soon"), ("WANDB_BASE_URL", "nonsense")):
            with monkeypatch.context() as context:
                context.delenv("WANDB_MODE")
                context.setenv(name, value)
                assert finish(workplace, *epochs(1)).count("W&B cannot be used") == 1

    def test_vanilla_training_is_not_tracked(self, offline: Path) -> None:
        done = run(mini("train.py", *ON), offline)
        assert done.returncode == 0, done.stderr
        assert "vanilla training is not tracked by W&B" in done.stderr
        assert not (offline / "wandb").exists()


class TestPrivacy:
    def test_neither_key_nor_password_nor_local_paths_nor_the_users_name_leave_the_machine(
        self, workplace: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("USER", "ada.lovelace")
        monkeypatch.setenv("LOGNAME", "ada.lovelace")
        monkeypatch.setenv("WANDB_BASE_URL", server.url.replace("//", "//joe:pa55word@"))
        teacher = workplace / "teachers of ada" / "weights.pt"
        teacher.parent.mkdir()
        shutil.copy(workplace / "save/Mini/teacher/weights.pt", teacher)
        logged = finish(workplace, "--set", f"distill.teacher={teacher}", "--set", "wandb.log_model=true")
        (stored,) = server.runs.values()
        assert stored.config["distill"]["teacher"] == "weights.pt"
        assert server.artifacts[0].metadata["distill"]["teacher"] == "weights.pt"
        # The client itself names its staging folder in the list of an artifact's files; all else is ours.
        sent = b"".join(request.body for request in server.requests if not request.path.startswith("/manifest/"))
        assert server.artifacts[0].files["best.pth"] in sent
        for secret in (API_KEY, "pa55word", str(workplace), str(PROJECT), "teachers of ada", "ada.lovelace"):
            assert secret.encode() not in sent
        kept = [path for name in ("save", "log") for path in (workplace / name / "Mini/seed7_distill").iterdir()]
        for secret in (API_KEY, "pa55word"):
            assert secret not in logged
            assert not any(secret.encode() in path.read_bytes() for path in kept)

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
        from utils.tracking.wandb_run import without_local_paths

        assert without_local_paths({"a": [text, 1]}) == {"a": [shown, 1]}

    def test_messages_of_the_client_are_shown_without_keys_and_passwords(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from utils.tracking.wandb_run import redact

        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        error = ValueError(f"{'k' * 40} refused by https://ada:enigma@host/graphql\nsecond line")
        assert redact(error) == "*** refused by https://***@host/graphql second line"
