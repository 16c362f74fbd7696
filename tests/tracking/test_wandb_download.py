"""tools/download_wandb_model.py with the real client, against a WandB service on the loopback."""

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import error_of
from scripts import PROJECT, Script, mini, run, script_environment
from wandb_server import ALWAYS, API_KEY, Request, WandbServer
from wandb_store import matches

from models.hoser import HOSER
from tools.download_wandb_model import main
from utils.data.dataset import model_inputs
from utils.tracking.wandb_download import check_model
from utils.tracking.wandb_search import FoundRun

TOOL = "tools/download_wandb_model.py"
TWO_HUNDRED = {"x": torch.zeros(200)}


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


MODEL = saved(
    {name: torch.rand(100, 100) for name in ("road_network_encoder.a", "trajectory_encoder.b", "navigator.c")}
)


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
    """Distilled and not, finished and not; also one of another training code."""
    for id, config, summary, state in (
        ("full", config_of(), {"epoch": 25, "val_next_step_acc": 0.66, "best_val_acc": 0.6832}, "finished"),
        ("plain", config_of(distill=False), {"epoch": 25, "val_next_step_acc": 0.61}, "finished"),
        ("short", config_of(max_epoch=50), {"epoch": 25, "val_next_step_acc": 0.7}, "crashed"),
        ("young", config_of(max_epoch=30), {}, "running"),
        ("other", {"distill_enabled": True, "epochs": 12}, {"val_next_step_acc": "NaN"}, "finished"),
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


def download(cwd: Path, *arguments: str) -> list[str]:
    """A download that succeeds; returns the lines that it prints."""
    result = run([TOOL, *arguments], cwd)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout.splitlines()


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
    result = run([TOOL, "--search"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "id     name        distill  epochs  val_acc  state     created\n"
        "other  other_b128  true     12/12   -        finished  2026-01-05 12:00:00\n"
        "young  young_b128  true     -/30    -        running   2026-01-04 12:00:00\n"
        "short  short_b128  true     25/50   0.7000   crashed   2026-01-03 12:00:00\n"
        "plain  plain_b128  false    25/25   0.6100   finished  2026-01-02 12:00:00\n"
        "full   full_b128   true     25/25   0.6832   finished  2026-01-01 12:00:00\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ("--distill true --epochs 25", ["short", "full"]),
        ("--distill false", ["plain"]),
        ("--distill true --epochs 50", ["short"]),
        ("--epochs 12", ["other"]),
        ("--min_val_acc 0.6832", ["short", "full"]),
        ("--state crashed", ["short"]),
        ("--distill true --state finished --min_val_acc 0.5", ["full"]),
        ("--limit 2", ["other", "young"]),
        ("--epochs 7", []),
    ],
)
def test_filters_apply_at_the_server_and_here(
    five_runs: WandbServer, tmp_path: Path, arguments: str, ids: list[str]
) -> None:
    found = search(tmp_path, *arguments.split())
    assert [run["id"] for run in found] == ids
    request = next(request for request in five_runs.requests if request.operation == "Runs")
    if "limit" not in arguments:
        sent = json.loads(request.variables["filters"])
        assert {id for id, run in five_runs.runs.items() if matches(run, sent)} == set(ids)


def test_json_has_what_the_table_has(five_runs: WandbServer, tmp_path: Path) -> None:
    assert search(tmp_path, "--state", "crashed") == [
        {
            "id": "short",
            "name": "short_b128",
            "distill": True,
            "epochs": 25,
            "max_epoch": 50,
            "val_acc": 0.7,
            "state": "crashed",
            "created": "2026-01-03T12:00:00Z",
        }
    ]


def test_no_match_is_said_and_is_no_error(five_runs: WandbServer, tmp_path: Path) -> None:
    result = run([TOOL, "--search", "--state", "killed"], tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "no run of me/hoser-distill matches\n"


def test_thousands_of_runs_are_paged_through_only_as_far_as_needed(server: WandbServer, tmp_path: Path) -> None:
    for i in range(1200):
        created = f"2026-01-01T{i // 60:02d}:{i % 60:02d}:00Z"
        server.add_run(f"r{i}", config=config_of(distill=i % 2 == 0), created_at=created)
    assert [run["id"] for run in search(tmp_path)] == [f"r{i}" for i in range(1199, 1179, -1)]
    assert server.operations().count("Runs") == 1
    found = search(tmp_path, "--distill", "true", "--limit", "120")
    assert [run["id"] for run in found] == [f"r{i}" for i in range(1198, 958, -2)]
    assert server.operations().count("Runs") == 1 + 3
    assert "Run" not in server.operations()  # none for a single run


def test_a_server_that_neither_sorts_nor_filters_gives_the_same(
    five_runs: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = five_runs.answer
    five_runs.answer = lambda request, query: answer(  # type: ignore[method-assign]
        type(request)(**{**vars(request), "variables": request.variables | {"filters": None, "order": None}}), query
    )
    assert [run["id"] for run in search(tmp_path, "--distill", "true", "--limit", "2")] == ["other", "young"]


@pytest.mark.parametrize("refused", [["filters"], ["order"], ["filters", "order"]])
def test_a_server_that_refuses_filters_or_the_order_gives_the_same(
    five_runs: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    answer = five_runs.answer

    def refuse(request: Request, query: str) -> tuple[int, dict[str, Any]]:
        filters, order = (request.variables.get(name) or "" for name in ("filters", "order"))
        asked = {"filters": filters not in ("", "{}"), "order": order.startswith("-")}
        if request.operation == "Runs" and any(asked[name] for name in refused):
            return 200, {"data": None, "errors": [{"message": "unknown filter"}]}
        return answer(request, query)

    five_runs.answer = refuse  # type: ignore[method-assign]
    assert [run["id"] for run in search(tmp_path, "--distill", "true", "--limit", "2")] == ["other", "young"]


@pytest.mark.parametrize(
    "arguments", ["--distill true", "--epochs 25", "--min_val_acc 0.8", "--distill true --epochs 25 --min_val_acc 0.8"]
)
@pytest.mark.parametrize(
    "config",
    [
        {"distill.enable": True, "optimizer_config.max_epoch": 25},
        {"distill": {"enable": "true"}, "max_epoch": 25},
        {"distill": "True", "optimizer_config": {"max_epoch": 25}},
    ],
)
def test_what_the_table_shows_is_what_is_found(
    server: WandbServer, tmp_path: Path, config: dict[str, Any], arguments: str
) -> None:
    server.add_run("r", config=config, summary={"val_acc": {"max": 0.9}})
    server.add_run("other", config=config_of(distill=False, max_epoch=3), summary={"best_val_acc": 0.7})
    assert [run["id"] for run in search(tmp_path, *arguments.split())] == ["r"]


def test_names_cannot_steer_the_terminal(server: WandbServer, tmp_path: Path) -> None:
    server.add_run("r", name="\x1b[31mred\nline")
    result = run([TOOL, "--search"], tmp_path)
    assert "?[31mred?line" in result.stdout and result.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("config", "summary", "expected"),
    [
        ({"distill": True, "max_epoch": 9}, {"best_val_acc": 0.5}, (True, None, 9, 0.5)),
        ({"distill.enable": False, "optimizer_config.max_epoch": 8}, {"epoch": 3.0}, (False, 3, 8, None)),
        ({"distill_enabled": "True"}, {"val_next_step_acc": {"max": 0.7}}, (True, None, None, 0.7)),
        ({"distill": {"lambda": 1}, "epochs": True}, {"best_val_acc": None}, (None, None, None, None)),
        ({}, {"epoch": float("inf"), "best_val_acc": float("nan"), "val_next_step_acc": 0}, (None, None, None, 0)),
    ],
)
def test_runs_of_other_training_code_are_understood(
    config: dict[str, Any], summary: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    run = SimpleNamespace(id="r", name="n", config=config, summary_metrics=summary, state="crashed", created_at="2026")
    row = FoundRun.of(run)  # type: ignore[arg-type]
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
    assert message == "me/nowhere: no such project on WandB; see --entity and --project"


# Download ------------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_to_the_given_name(model_run: WandbServer, tmp_path: Path) -> None:
    assert download(tmp_path, "--run_id", "abc123xyz", "--output", "my_model.pth") == [
        "my_model.pth: best.pth of run abc123xyz (Beijing_b128_acc4), 25/25 epochs, val_acc 0.6832, 30,000 weights"
    ]
    assert (tmp_path / "my_model.pth").read_bytes() == MODEL
    assert [path.name for path in tmp_path.iterdir()] == ["my_model.pth"]
    message = error_line(tmp_path, "--run_id", "abc123xyz", "--output", "my_model.pth")
    assert message == "my_model.pth: is there already; --force overwrites it"
    model_run.runs["abc123xyz"].files["best.pth"] = other = saved(torch.load(io.BytesIO(MODEL)))
    download(tmp_path, "--run_id", "abc123xyz", "--output", "my_model.pth", "--force")
    assert (tmp_path / "my_model.pth").read_bytes() == other


@pytest.mark.parametrize(
    "path",
    [
        "abc123xyz",
        "hoser-distill/abc123xyz",
        "me/hoser-distill/abc123xyz",
        "https://wandb.ai/me/hoser-distill/runs/abc123xyz?nw=1",
    ],
)
def test_the_default_name_is_made_of_name_and_id(model_run: WandbServer, tmp_path: Path, path: str) -> None:
    model_run.runs["abc123xyz"].name = "../../etc/Beijing b1\n"
    download(tmp_path, "--run_id", path)
    assert [path.name for path in tmp_path.iterdir()] == ["etc_Beijing_b1_abc123xyz.pth"]


def test_with_a_data_set_the_model_is_placed_where_evaluation_finds_it_and_nowhere_else(
    server: WandbServer, project: Path
) -> None:
    model = HOSER(*model_inputs("Mini", project / "data" / "Mini", str(project / "Mini.yaml")))
    server.add_run("abc", name="n", files={"best.pth": saved(model.state_dict())})
    [printed] = download(project, "--run_id", "abc", "--dataset", "Mini")
    placed = project / "save" / "Mini" / "wandb_abc" / "best.pth"
    assert list(project.rglob("*.pth")) == [placed]
    assert printed.startswith("save/Mini/wandb_abc/best.pth: ")
    result = run(mini("tools/evaluate.py", "--checkpoint", "save/Mini/wandb_abc/best.pth"), project)
    assert result.returncode == 0 and "accuracy" in result.stdout, result.stderr
    assert "save/Mini/wandb_abc/best.pth: is there already" in error_line(
        project, "--run_id", "abc", "--dataset", "Mini"
    )
    placed.unlink()
    download(project, "--run_id", "abc", "--dataset", "Mini", "--output", "mine.pth")
    assert list(project.rglob("*.pth")) == [project / "mine.pth"]


def test_best_is_chosen_among_several_files_or_the_one_that_is_named(server: WandbServer, tmp_path: Path) -> None:
    other = saved({**torch.load(io.BytesIO(MODEL)), "navigator.d": torch.zeros(1)})
    files = {"checkpoint_latest.pth": b"x", "save/old/best.pth": b"x", "save/best.pth": MODEL, "epoch_3.pth": other}
    server.add_run("several", files=files)
    download(tmp_path, "--run_id", "several", "--output", "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == MODEL
    download(tmp_path, "--run_id", "several", "--output", "b.pth", "--file", "epoch_3.pth")
    assert (tmp_path / "b.pth").read_bytes() == other
    message = error_line(tmp_path, "--run_id", "several", "--file", "epoch_4.pth")
    assert message == (
        "run several: found no file epoch_4.pth; model files: "
        "checkpoint_latest.pth, epoch_3.pth, save/best.pth, save/old/best.pth"
    )


def test_the_only_model_file_is_taken_and_of_several_one_must_be_named(server: WandbServer, tmp_path: Path) -> None:
    server.add_run("single", files={"student.pt": MODEL, "config.yaml": b"x"})
    download(tmp_path, "--run_id", "single", "--output", "a.pth")
    server.add_run("two", files={"epoch_1.pth": MODEL, "epoch_2.pth": MODEL})
    assert error_line(tmp_path, "--run_id", "two") == (
        "run two: found several model files and no telling which: epoch_1.pth, epoch_2.pth; choose with --file"
    )


def test_a_model_that_was_logged_as_an_artifact_only_is_found(server: WandbServer, tmp_path: Path) -> None:
    logged = server.add_run("logged", files={"checkpoint_latest.pth": b"x"})
    server.add_artifact(logged, "data", {"best.pth": b"x"}, type="dataset")
    server.add_artifact(logged, "logged-model", {"best.pth": MODEL}, aliases=["best"])
    server.add_artifact(logged, "logged-model", {"best.pth": b"x"}, aliases=["latest"])
    download(tmp_path, "--run_id", "logged", "--output", "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == MODEL


def test_a_server_without_artifacts_has_none(server: WandbServer, tmp_path: Path) -> None:
    server.add_run("none", files={"config.yaml": b"x"})
    server.fail_operations = {"RunOutputArtifacts": 400}
    assert error_line(tmp_path, "--run_id", "none") == (
        "run none: found no model file, expected best.pth or another *.pth or *.pt"
    )
    server.fail_operations = {"RunOutputArtifacts": 500}
    assert "WandB answered with an error (HTTP 500" in error_line(tmp_path, "--run_id", "none")


def test_an_unknown_run_is_told(server: WandbServer, tmp_path: Path) -> None:
    message = error_line(tmp_path, "--run_id", "nope")
    assert message == "me/hoser-distill/nope: no such run on WandB; `--search` lists the runs of a project"


WRONG_TYPES = {
    "text": (b"an error page", "not a file of tensors saved by torch, or damaged"),
    "code": (saved({"f": print}), "holds more than tensors and plain values; it is not loaded"),
    "checkpoint": (saved({"model_state_dict": TWO_HUNDRED, "epoch": 3}), "found dict (model_state_dict, epoch)"),
    "values": (saved({"a": 1, "b": [2]}), "found dict (a, b)"),
    "foreign": (saved(TWO_HUNDRED), "found dict (x)"),
    "empty": (saved({}), "found dict, expected a state dict of HOSER"),
    "half": (MODEL[: len(MODEL) // 2], "not a file of tensors saved by torch, or damaged"),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_a_file_of_the_wrong_type_is_told(tmp_path: Path, kind: str) -> None:
    content, found = WRONG_TYPES[kind]
    (tmp_path / "file").write_bytes(content)
    message = error_of(check_model, tmp_path / "file", "best.pth")
    assert message.startswith(f"best.pth: wrong file type: {found}")
    assert message.endswith("a HOSER model is wanted, such as best.pth; nothing was saved")


@pytest.mark.parametrize("kind", ["text", "code"])
def test_a_file_of_the_wrong_type_is_not_kept(server: WandbServer, tmp_path: Path, kind: str) -> None:
    content, found = WRONG_TYPES[kind]
    server.add_run("r", files={"best.pth": content})
    (tmp_path / "r.pth").write_bytes(b"old")
    assert found in error_line(tmp_path, "--run_id", "r", "--force")
    assert (tmp_path / "r.pth").read_bytes() == b"old"


def test_a_name_on_the_server_cannot_lead_out_of_the_folder(server: WandbServer, tmp_path: Path) -> None:
    server.add_run("evil", files={"../../best.pth": MODEL})
    assert error_line(tmp_path, "--run_id", "evil").endswith("found a name that is no path below a folder")


# Faults --------------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_is_begun_again(model_run: WandbServer, tmp_path: Path) -> None:
    model_run.cut_downloads = 1
    download(tmp_path, "--run_id", "abc123xyz", "--output", "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == MODEL
    (tmp_path / "a.pth").write_bytes(b"old")
    model_run.cut_downloads = ALWAYS
    message = error_line(tmp_path, "--run_id", "abc123xyz", "--output", "a.pth", "--force")
    assert message == "best.pth: the download broke off 3 times (unexpected EOF); nothing was saved, try again later"
    assert (tmp_path / "a.pth").read_bytes() == b"old"


def test_a_download_that_is_not_what_was_announced_is_not_kept(
    model_run: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = model_run.store.file_node
    model_run.store.file_node = lambda name, data, url: announce(name, bytes(len(data)), url)  # type: ignore
    assert "the checksum is wrong" in error_line(tmp_path, "--run_id", "abc123xyz")
    model_run.store.file_node = lambda name, data, url: announce(name, data + b"x", url)  # type: ignore
    assert re.search(r"found \d+ bytes, expected \d+", error_line(tmp_path, "--run_id", "abc123xyz"))


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (404, "best.pth: WandB lists this file but does not have it (HTTP 404)"),
        (500, "WandB answered with an error (HTTP 500: "),
        (403, "best.pth: WandB does not hand this file out (HTTP 403); try again"),
    ],
)
def test_a_download_that_is_refused_is_told(model_run: WandbServer, tmp_path: Path, status: int, found: str) -> None:
    model_run.download_status = status
    assert error_line(tmp_path, "--run_id", "abc123xyz").startswith(found)


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (500, "WandB answered with an error (HTTP 500: injected); try again later"),
        (401, "WandB does not accept this log-in (HTTP 401); run `uv run wandb login`, or set WANDB_API_KEY"),
    ],
)
def test_a_service_that_fails_is_told(server: WandbServer, tmp_path: Path, status: int, found: str) -> None:
    server.fail = status
    assert error_line(tmp_path, "--search") == found


def test_without_a_key_the_way_to_log_in_is_told(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "API key must have 40+ characters" in error_line(tmp_path, "--search")
    monkeypatch.delenv("WANDB_API_KEY")
    expected = "not logged in to WandB (no API key); run `uv run wandb login`, or set WANDB_API_KEY"
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


def test_without_a_network_the_wait_is_short(
    model_run: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        begin = time.monotonic()
        message = error_line(tmp_path, "--search")
    assert message == "no answer from WandB (connection refused); check the network and WANDB_BASE_URL"
    assert time.monotonic() - begin < 15


def test_a_server_that_hangs_is_given_up(
    model_run: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    model_run.hang_downloads = True
    message = error_line(tmp_path, "--run_id", "abc123xyz")
    assert message == "best.pth: no answer from WandB for 2 s; nothing was saved"
    model_run.hang_downloads, model_run.stall_downloads = False, True
    assert error_line(tmp_path, "--run_id", "abc123xyz") == message
    model_run.hang = True
    message = error_line(tmp_path, "--search")
    assert message == "no answer from WandB (it took too long); check the network and WANDB_BASE_URL"


def test_an_interrupted_download_leaves_nothing(model_run: WandbServer, tmp_path: Path) -> None:
    model_run.hang_downloads = True
    with Script([TOOL, "--run_id", "abc123xyz"], tmp_path) as script:
        script.wait_until(lambda: any(request.path.startswith("/run-files/") for request in model_run.requests))
        script.send_signal(2)
        assert script.wait() == 130
        assert script.stderr == "interrupted: no file was changed\n"
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_on_a_terminal(model_run: WandbServer, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with Script([TOOL, "--run_id", "abc123xyz"], tmp_path, terminal=theirs) as script:
        assert script.wait() == 0
    assert b"best.pth: 100%" in os.read(ours, 1 << 16)


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
