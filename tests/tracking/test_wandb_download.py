"""tools/download_wandb_model.py with the real client, against a W&B service on the loopback."""

import io
import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import error_of
from scripts import PROJECT, Script, mini, run, script_environment
from wandb_server import API_KEY, WandbServer
from wandb_store import matches

from models.hoser import HOSER
from utils.data.dataset import model_inputs

TOOL = "tools/download_wandb_model.py"
TWO_HUNDRED = {"x": torch.zeros(200)}


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


WEIGHTS = {name: torch.rand(100, 100) for name in ("road_network_encoder.a", "trajectory_encoder.b", "navigator.c")}
MODEL, OTHER_MODEL = saved(WEIGHTS), saved({**WEIGHTS, "navigator.d": torch.zeros(1)})


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A service that the client knows; what the client keeps is not in the working folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with WandbServer() as server:
        for name, value in server.environment(tmp_path_factory.mktemp("client")).items():
            monkeypatch.setenv(name, value)
        yield server


def config_of(distill: bool = True, max_epoch: int = 25) -> dict[str, Any]:
    return {"distill": {"enable": distill, "lambda": 0.01}, "optimizer_config": {"max_epoch": max_epoch}, "seed": 42}


@pytest.fixture
def five_runs(server: WandbServer) -> WandbServer:
    """Distilled and not, finished and not; also one without anything."""
    for id, config, summary, state in (
        ("full", config_of(), {"epoch": 25, "val_next_step_acc": 0.66, "best_val_acc": 0.6832}, "finished"),
        ("plain", config_of(distill=False), {"epoch": 25, "val_next_step_acc": 0.61}, "finished"),
        ("short", config_of(max_epoch=50), {"epoch": 25, "val_next_step_acc": 0.7}, "crashed"),
        ("young", config_of(max_epoch=30), {}, "running"),
        ("other", {}, {"val_next_step_acc": "NaN"}, "finished"),
    ):
        created = f"2026-01-0{len(server.runs) + 1}T12:00:00Z"
        server.add_run(id, name=f"{id}_b128", config=config, summary=summary, state=state, created_at=created)
    return server


@pytest.fixture
def model_run(server: WandbServer) -> WandbServer:
    """One run, with a model."""
    summary = {"epoch": 25, "best_val_acc": 0.6832}
    server.add_run(
        "abc123xyz", name="Beijing_b128_acc4", config=config_of(), summary=summary, files={"best.pth": MODEL}
    )
    return server


def search(cwd: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `--search --json` finds."""
    result = run([TOOL, "--search", "--json", *arguments], cwd)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def download(cwd: Path, *arguments: str) -> str:
    """A download that succeeds; returns what it prints."""
    result = run([TOOL, *arguments], cwd)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


def error_line(cwd: Path, *arguments: str) -> str:
    """The one line with which a call fails; nothing was written."""
    before = sorted(cwd.rglob("*"))
    result = run([TOOL, *arguments], cwd)
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert sorted(cwd.rglob("*")) == before
    assert API_KEY not in result.stderr
    return result.stderr.removeprefix("error: ").rstrip("\n")


# Search --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_run_newest_first(five_runs: WandbServer, tmp_path: Path) -> None:
    five_runs.runs["plain"].name = "\x1b[31mred\nline"  # which must not steer the terminal
    result = run([TOOL, "--search"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "id     name           distill  epochs  val_acc  state     created\n"
        "other  other_b128     -        -       -        finished  2026-01-05 12:00:00\n"
        "young  young_b128     true     -/30    -        running   2026-01-04 12:00:00\n"
        "short  short_b128     true     25/50   0.7000   crashed   2026-01-03 12:00:00\n"
        "plain  ?[31mred?line  false    25/25   0.6100   finished  2026-01-02 12:00:00\n"
        "full   full_b128      true     25/25   0.6832   finished  2026-01-01 12:00:00\n"
    )
    result = run([TOOL, "--search", "--state", "killed"], tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "no run of me/hoser-distill matches\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, ["full", "plain", "short", "young", "other"]),
        ({"distill": True, "epochs": 25}, ["full", "short"]),
        ({"distill": False}, ["plain"]),
        ({"distill": True, "epochs": 50}, ["short"]),
        ({"min_val_acc": 0.6832}, ["full", "short"]),
        ({"state": "crashed"}, ["short"]),
        ({"distill": True, "state": "finished", "min_val_acc": 0.5}, ["full"]),
        ({"epochs": 7}, []),
    ],
)
def test_filters(five_runs: WandbServer, wanted: dict[str, Any], ids: list[str]) -> None:
    from utils.tracking.wandb_search import Search

    assert [id for id, run in five_runs.runs.items() if matches(run, Search(**wanted).filters())] == ids


def test_json_has_what_the_table_has_and_pages_are_read_only_as_far_as_needed(
    server: WandbServer, tmp_path: Path
) -> None:
    for i in range(240):
        created = f"2026-01-01T{i // 60:02d}:{i % 60:02d}:00Z"
        summary = {"epoch": 25, "val_next_step_acc": 0.7}
        server.add_run(f"r{i}", config=config_of(distill=i % 2 == 0), summary=summary, created_at=created)
    options = "--distill true --epochs 25 --min_val_acc 0.5 --state finished --limit 70"
    found = search(tmp_path, *options.split())
    assert [run["id"] for run in found] == [f"r{i}" for i in range(238, 98, -2)]
    assert found[0] == {
        "id": "r238",
        "name": "r238",
        "distill": True,
        "epochs": 25,
        "max_epoch": 25,
        "val_acc": 0.7,
        "state": "finished",
        "created": "2026-01-01T03:58:00Z",
    }
    assert server.operations().count("Runs") == 2
    assert "Run" not in server.operations()  # none for a single run
    assert len(search(tmp_path)) == 20


@pytest.mark.parametrize(
    ("config", "summary", "expected"),
    [
        (config_of(max_epoch=9), {"best_val_acc": 0.5}, (True, None, 9, 0.5)),
        (config_of(False, 8), {"epoch": 3.0, "best_val_acc": None, "val_next_step_acc": 0}, (False, 3, 8, 0)),
        ({"distill": {"enable": 1}, "optimizer_config": 3}, {"epoch": True}, (None, None, None, None)),
        ({}, {"epoch": float("inf"), "best_val_acc": float("nan")}, (None, None, None, None)),
    ],
)
def test_what_a_run_does_not_have_is_none(
    config: dict[str, Any], summary: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    from utils.tracking.wandb_search import FoundRun

    run = SimpleNamespace(id="r", name="n", config=config, summary_metrics=summary, state="crashed", created_at="2026")
    row = FoundRun.from_run(run)  # type: ignore[arg-type]
    assert (row.distill, row.epochs, row.max_epoch, row.val_acc) == expected


def test_entity_and_project_come_from_the_command_the_client_or_the_configuration(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("wandb:\n  project: of-config\n  entity: team\n")
    for entity, project in (("team", "of-config"), ("team", "of-client"), ("you", "of-command")):
        server.add_run(project, project=project, entity=entity)
    with_config = ["--config", "mine.yaml"]
    assert [run["id"] for run in search(tmp_path, *with_config)] == ["of-config"]
    monkeypatch.setenv("WANDB_PROJECT", "of-client")
    assert [run["id"] for run in search(tmp_path, *with_config)] == ["of-client"]
    named = ["--entity", "you", "--project", "of-command"]
    assert [run["id"] for run in search(tmp_path, *with_config, *named)] == ["of-command"]
    message = error_line(tmp_path, "--search", "--project", "nowhere")
    assert message == "me/nowhere: no such project on W&B; see --entity and --project"


# Download ------------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_to_the_given_name(model_run: WandbServer, tmp_path: Path) -> None:
    to_file = ("--run_id", "abc123xyz", "--output", "my_model.pth")
    assert download(tmp_path, *to_file) == (
        "my_model.pth: best.pth of run abc123xyz (Beijing_b128_acc4), 25/25 epochs, val_acc 0.6832, 30,000 weights\n"
    )
    assert (tmp_path / "my_model.pth").read_bytes() == MODEL
    assert [path.name for path in tmp_path.iterdir()] == ["my_model.pth"]
    assert error_line(tmp_path, *to_file) == "my_model.pth: exists already; --force overwrites it"
    model_run.runs["abc123xyz"].files["best.pth"] = OTHER_MODEL
    download(tmp_path, *to_file, "--force")
    assert (tmp_path / "my_model.pth").read_bytes() == OTHER_MODEL


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("abc123xyz", ["abc123xyz"]),
        ("hoser-distill/abc123xyz", ["hoser-distill", "abc123xyz"]),
        ("me/hoser-distill/abc123xyz", ["me", "hoser-distill", "abc123xyz"]),
        ("https://wandb.ai/me/hoser-distill/runs/abc123xyz?nw=1", ["me", "hoser-distill", "abc123xyz"]),
    ],
)
def test_forms_of_a_run_id(text: str, parts: list[str]) -> None:
    from tools.download_wandb_model import run_path

    assert run_path(text) == parts


def test_the_default_name_is_made_of_name_and_id(model_run: WandbServer, tmp_path: Path) -> None:
    model_run.runs["abc123xyz"].name = "../../etc/Beijing b1\n"
    ours, theirs = pty.openpty()
    with Script([TOOL, "--run_id", "me/hoser-distill/abc123xyz"], tmp_path, terminal=theirs) as script:
        assert script.wait() == 0
    assert os.read(ours, 1 << 16).startswith(b"downloading best.pth, 0.1 MB")
    assert [path.name for path in tmp_path.iterdir()] == ["etc_Beijing_b1_abc123xyz.pth"]


def test_with_a_data_set_the_model_is_placed_where_evaluation_finds_it(server: WandbServer, project: Path) -> None:
    model = HOSER(*model_inputs("Mini", project / "data" / "Mini", str(project / "Mini.yaml")))
    server.add_run("abc", name="n", files={"best.pth": saved(model.state_dict())})
    to_data_set = ("--run_id", "abc", "--dataset", "Mini")
    assert download(project, *to_data_set).startswith("save/Mini/wandb_abc/best.pth: ")
    assert list(project.rglob("*.pth")) == [project / "save" / "Mini" / "wandb_abc" / "best.pth"]
    result = run(mini("tools/evaluate.py", "--checkpoint", "save/Mini/wandb_abc/best.pth"), project)
    assert result.returncode == 0 and "accuracy" in result.stdout, result.stderr
    assert error_line(project, *to_data_set).startswith("save/Mini/wandb_abc/best.pth: exists already")
    download(project, *to_data_set, "--output", "mine.pth")
    assert (project / "mine.pth").is_file()


def test_the_file_is_best_pth_or_the_only_model_or_the_one_that_is_named(server: WandbServer, tmp_path: Path) -> None:
    files = {"checkpoint_latest.pth": b"x", "old/save/best.pth": b"x", "save/best.pth": MODEL, "epoch_3.pth": b"x"}
    server.add_run("several", files=files)
    download(tmp_path, "--run_id", "several", "--output", "a.pth")
    server.add_run("single", files={"student.pt": MODEL, "config.yaml": b"x"})
    download(tmp_path, "--run_id", "single", "--output", "b.pth")
    server.add_run("two", files={"epoch_1.pth": b"x", "epoch_2.pth": MODEL})
    download(tmp_path, "--run_id", "two", "--output", "c.pth", "--file", "epoch_2.pth")
    assert error_line(tmp_path, "--run_id", "two") == (
        "run two: found several model files: epoch_1.pth, epoch_2.pth; choose one with --file"
    )
    assert error_line(tmp_path, "--run_id", "two", "--file", "epoch_4.pth") == (
        "run two: found no file epoch_4.pth; model files: epoch_1.pth, epoch_2.pth"
    )
    # Logged as an artifact only.
    logged = server.add_run("logged", files={"checkpoint_latest.pth": b"x"})
    server.add_artifact(logged, "data", {"best.pth": b"x"}, type="dataset")
    server.add_artifact(logged, "logged-model", {"best.pth": MODEL}, aliases=["best"])
    server.add_artifact(logged, "logged-model", {"best.pth": b"x"}, aliases=["latest"])
    download(tmp_path, "--run_id", "logged", "--output", "d.pth")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {MODEL}
    server.add_run("none", files={"config.yaml": b"x"})
    assert error_line(tmp_path, "--run_id", "none") == (
        "run none: found no model file, expected best.pth or another *.pth or *.pt"
    )
    assert error_line(tmp_path, "--run_id", "nope") == (
        "me/hoser-distill/nope: no such run on W&B; `--search` lists the runs of a project"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"an error page", "not a file of tensors saved by torch, or damaged"),
        (MODEL[: len(MODEL) // 2], "not a file of tensors saved by torch, or damaged"),
        (saved({"f": print}), "holds more than tensors and plain values; it is not loaded"),
        (saved({"model_state_dict": TWO_HUNDRED, "epoch": 3}), "found dict (model_state_dict, epoch)"),
        (saved({"a": 1, "b": [2]}), "found dict (a, b)"),
        (saved(TWO_HUNDRED), "found dict (x)"),
        (saved({}), "found dict, expected a state dict of HOSER"),
    ],
    ids=["text", "half", "code", "checkpoint", "values", "foreign", "empty"],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    from utils.tracking.wandb_download import check_model

    (tmp_path / "file").write_bytes(content)
    message = error_of(check_model, tmp_path / "file", "best.pth")
    assert message.startswith(f"best.pth: wrong file type: {found}")
    assert message.endswith("expected a HOSER model, such as best.pth; nothing was saved")


# Failures ------------------------------------------------------------------------------------------------------


def test_a_download_that_fails_leaves_the_file_as_it_was(model_run: WandbServer, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"old")
    to_file = ("--run_id", "abc123xyz", "--output", "a.pth", "--force")
    model_run.cut_downloads = True
    assert error_line(tmp_path, *to_file) == (
        "best.pth: W&B's answer broke off (unexpected EOF); try again later; nothing was saved"
    )
    model_run.cut_downloads, model_run.download_status = False, 404
    assert error_line(tmp_path, *to_file).startswith("best.pth: W&B answered with an error (HTTP 404: ")
    model_run.download_status = None
    model_run.runs["abc123xyz"].files = {"best.pth": b"an error page"}
    assert error_line(tmp_path, *to_file).startswith("best.pth: wrong file type: ")
    model_run.runs["abc123xyz"].files = {"../../best.pth": MODEL}
    assert error_line(tmp_path, *to_file).endswith("found a name that is no path below a folder")
    assert (tmp_path / "a.pth").read_bytes() == b"old"


def test_a_service_that_fails_is_reported(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail = 500
    expected = "W&B answered with an error (HTTP 500: injected); try again later"
    assert error_line(tmp_path, "--search") == expected
    server.fail = 401
    expected = "W&B does not accept this log-in (HTTP 401); run `uv run wandb login`, or set WANDB_API_KEY"
    assert error_line(tmp_path, "--search") == expected
    server.fail, server.hang = None, True
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    expected = "no answer from W&B (it took too long); check the network and WANDB_BASE_URL"
    assert error_line(tmp_path, "--search") == expected
    monkeypatch.delenv("WANDB_HTTP_TIMEOUT")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        begin = time.monotonic()
        message = error_line(tmp_path, "--search")
    assert message == "no answer from W&B (connection refused); check the network and WANDB_BASE_URL"
    assert time.monotonic() - begin < 30


def test_without_a_key_the_message_says_how_to_log_in(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "API key must have 40+ characters" in error_line(tmp_path, "--search")
    monkeypatch.delenv("WANDB_API_KEY")
    expected = "not logged in to W&B (no API key); run `uv run wandb login`, or set WANDB_API_KEY"
    assert error_line(tmp_path, "--search") == expected
    # On a terminal the client would ask for a key, and wait.
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, str(PROJECT / TOOL), "--search"], script_environment())
    output = b""
    while b"log-in" not in output and b"login" not in output:
        output += os.read(terminal, 4096)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert output.decode().strip() == f"error: {expected}"


def test_an_interrupted_download_leaves_nothing(model_run: WandbServer, tmp_path: Path) -> None:
    model_run.hang_downloads = True
    with Script([TOOL, "--run_id", "abc123xyz"], tmp_path) as script:
        script.wait_until(lambda: any(request.path.startswith("/run-files/") for request in model_run.requests))
        script.send_signal(2)
        assert script.wait() == 130
        assert script.stderr == "interrupted: no file was changed\n"
    assert list(tmp_path.iterdir()) == []


# The command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("", "one of the arguments --search --run_id is required"),
        ("--search --run_id abc", "argument --run_id: not allowed with argument --search"),
        ("--search --output a.pth", "argument --output: not allowed with --search"),
        ("--search --force", "argument --force: not allowed with --search"),
        ("--run_id abc --json", "argument --json: not allowed with --run_id"),
        ("--run_id abc --distill false", "argument --distill: not allowed with --run_id"),
        ("--run_id abc --epochs 0", "argument --epochs: not allowed with --run_id"),
        ("--run_id ../../abc", "argument --run_id: found '..', expected a name, without slashes"),
        ("--run_id a/b/c/d", "argument --run_id: found 'a/b/c/d', expected ID, PROJECT/ID or ENTITY/PROJECT/ID"),
        ("--run_id abc --dataset ../x", "argument --dataset: found '../x', expected a name, without slashes"),
        ("--search --distill maybe", "argument --distill: found 'maybe', expected true or false"),
        ("--search --epochs -1", "argument --epochs: found '-1', expected a whole number from 0"),
        ("--search --limit 0", "argument --limit: found '0', expected a whole number from 1"),
        ("--search --min_val_acc 68", "argument --min_val_acc: found '68', expected a number from 0 to 1"),
    ],
)
def test_usage_errors_end_with_2(
    arguments: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.download_wandb_model import main

    monkeypatch.setattr(sys, "argv", ["download_wandb_model.py", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"download_wandb_model.py: error: {found}"


def test_the_commands_of_the_specification_work_in_a_shell(model_run: WandbServer, tmp_path: Path) -> None:
    commands = f"""
        {sys.executable} {PROJECT}/tools/download_wandb_model.py \\
          --search \\
          --distill true \\
          --epochs 25 && \\
        {sys.executable} {PROJECT}/tools/download_wandb_model.py \\
          --run_id abc123xyz \\
          --output my_model.pth
    """
    result = subprocess.run(
        commands, shell=True, cwd=tmp_path, env=script_environment(), capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "my_model.pth").read_bytes() == MODEL
