"""Several processes, started by torchrun, train what one process would: each has its part of every batch."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import (
    PROJECT,
    Script,
    copy_of_the_project,
    make_mini_project,
    make_mini_teacher,
    mini,
    run,
    scalars,
    script_environment,
)

from utils.config import load_config
from utils.data.dataset import load_city
from utils.data.loader import make_loaders
from utils.runtime.distributed import Processes

# 120 trips in batches of 17: the last batch is a single trip, which one process has alone.
SETTINGS = ("--set", "optimizer_config.batch_size=17", "--set", "distill.lambda=0.5", "--cuda", "-1", "--seed", "3")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_mini_teacher(make_mini_project(tmp_path))


def torchrun(count: int, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node=COUNT SCRIPT ...`, which imports PyTorch once for each process, and for itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += [str(PROJECT / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=cwd, env=script_environment(), capture_output=True, text=True, timeout=240)


@contextlib.contextmanager
def group(count: int, arguments: list[str], cwd: Path) -> Iterator[list[Script]]:
    """The same processes without torchrun, but with the variables and the store that it gives them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": count, "MASTER_ADDR": store.host, "MASTER_PORT": store.port}
    environment = {key: str(value) for key, value in common.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Script(arguments, cwd, environment=environment | {"RANK": rank, "LOCAL_RANK": rank}))
            for rank in map(str, range(count))
        ]


def finish(count: int, arguments: list[str], cwd: Path) -> str:
    """Run a group to its end; what it said."""
    with group(count, arguments, cwd) as processes:
        codes, said = [process.wait() for process in processes], "".join(process.stderr for process in processes)
        assert codes == [0] * count, said
    return said


def assert_same_curves(ours: Path, theirs: Path) -> None:
    """Equal up to rounding, which training makes grow."""
    a, b = scalars(ours), scalars(theirs)
    assert a.keys() == b.keys()
    for tag in a:
        assert [step for step, _ in a[tag]] == [step for step, _ in b[tag]]
        np.testing.assert_allclose([v for _, v in a[tag]], [v for _, v in b[tag]], rtol=2e-3, err_msg=tag)
    np.testing.assert_allclose(a["loss"][0][1], b["loss"][0][1], rtol=1e-6)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_parts_of_a_batch_are_its_trips_each_once_and_of_similar_size(project: Path) -> None:
    config = load_config("Mini", project / "Mini.yaml", ["optimizer_config.batch_size=17"])
    city = load_city("Mini", config, project / "data" / "Mini")
    whole = list(make_loaders(city, config, "cpu")["train"].shuffled(1, 2))
    parts = [list(make_loaders(city, config, "cpu", Processes(rank, 3))["train"].shuffled(1, 2)) for rank in range(3)]
    for batch, *own in zip(whole, *parts, strict=True):
        assert sum(part.share for part in own) == pytest.approx(1.0)
        real = [part for part in own if part.share]
        assert sorted(torch.cat([part.trip_index for part in real]).tolist()) == sorted(batch.trip_index.tolist())
        steps = [len(part.road_id) for part in real]
        assert sum(steps) == len(batch.road_id)
        assert max(steps) - min(steps) <= batch.trip_len.max()
    assert [part.share for part in (own[-1] for own in parts)] == [1.0, 0.0, 0.0]


def test_distillation_by_three_processes_is_that_of_one(project: Path) -> None:
    command = mini("train_with_distill.py", *SETTINGS, "--set", "optimizer_config.accum_steps=3")
    said = finish(3, command, project)
    assert said.count("HOSER with") == 1 and "3 processes" in said
    several = project / "several"
    for top in ("save", "log", "tensorboard_log"):
        (several / top).parent.mkdir(exist_ok=True)
        (project / top / "Mini" / "seed3_distill").rename(several / top)
    assert files(several / "save") == {"checkpoint_latest.pth", "best.pth"}
    assert len(files(several / "log") - {"config.yaml"}) == len(files(several / "tensorboard_log")) == 1
    alone = run(command, project)
    assert alone.returncode == 0, alone.stderr
    assert_same_curves(several / "tensorboard_log", project / "tensorboard_log" / "Mini" / "seed3_distill")
    ours, theirs = (
        torch.load(folder / "best.pth") for folder in (several / "save", project / "save" / "Mini" / "seed3_distill")
    )
    assert list(ours) == list(theirs)


def test_vanilla_training_by_two_processes_is_that_of_one(project: Path) -> None:
    command = mini("train.py", *SETTINGS)
    said = finish(2, command, project)
    assert [said.count(text) for text in ("epoch 1/3", "best model:", "loading epoch_")] == [1, 1, 1]
    (project / "tensorboard_log" / "Mini" / "seed3").rename(project / "several")
    assert files(project / "save" / "Mini" / "seed3") == {"epoch_1.pth", "epoch_2.pth", "epoch_3.pth", "best.pth"}
    assert run(command, project).returncode == 0
    assert_same_curves(project / "several", project / "tensorboard_log" / "Mini" / "seed3")


def test_a_killed_group_is_gone_on_with_by_another_number_of_processes(project: Path) -> None:
    command = mini("train_with_distill.py", *SETTINGS, "--set", "optimizer_config.max_epoch=60")
    checkpoint = project / "save" / "Mini" / "seed3_distill" / "checkpoint_latest.pth"
    with group(2, command, project) as processes:
        processes[0].wait_until(checkpoint.exists)
        for process in processes:
            process.kill()
    done = torch.load(checkpoint)["epoch"] + 1
    assert done < 60
    ended = run([*command[:-1], f"optimizer_config.max_epoch={done + 2}"], project)  # one process
    assert ended.returncode == 0, ended.stderr
    assert f"Resumed from checkpoint: epoch {done + 1}," in ended.stderr
    said = finish(3, [*command[:-1], f"optimizer_config.max_epoch={done + 4}"], project)
    assert f"Resumed from checkpoint: epoch {done + 3}," in said
    curves = scalars(project / "tensorboard_log" / "Mini" / "seed3_distill")
    assert [step for step, _ in curves["val_next_step_acc"]] == list(range(1, done + 5))
    assert [step for step, _ in curves["loss"]] == list(range(8 * (done + 4)))


def test_a_mistake_ends_all_processes_each_with_one_line(project: Path) -> None:
    with group(2, mini("train.py", *SETTINGS, "--set", "optimizer_config.learning_rate=1e30"), project) as processes:
        assert [process.wait() for process in processes] == [1, 1]
        said = "".join(process.stderr for process in processes)
    assert "error: the loss is " in said  # once or twice: the other process may find itself alone


def test_a_mistake_of_one_process_ends_all(project: Path) -> None:
    script = project / "script.py"
    script.write_text(
        f"""import sys
sys.path.insert(0, {str(PROJECT)!r})
from utils.command_line import run_command_line
from utils.errors import UserError
from utils.runtime.distributed import join_processes

def main():
    processes = join_processes()
    if processes.rank == 1:
        raise UserError("the second process has no GPU")
    processes.barrier()

run_command_line(main)
"""
    )
    done = torchrun(2, [str(script)], project)
    assert done.returncode == 1
    ours = done.stderr.partition("torch.distributed.elastic")[0]
    assert "process 1: error: the second process has no GPU\n" in ours


def test_a_compiler_that_fails_on_one_process_keeps_no_other_waiting(project: Path) -> None:
    """With a KL term, whose sum goes over all processes; all train without the compiler."""
    code = copy_of_the_project(project / "code")
    with (code / "utils" / "training" / "compile.py").open("a") as file:
        file.write(
            "\nimport os\n"
            "def _compile(function, **_):\n"
            "    def compiled(*arguments):\n"
            "        if os.environ['RANK'] == '1':\n"
            "            raise RuntimeError('no compiler on this one')\n"
            "        return function(*arguments)\n"
            "    return compiled\n"
            "torch.compile = _compile\n"
        )
    settings = ("--set", "training.compile=true", "--set", "optimizer_config.max_epoch=1")
    script, *arguments = mini("train_with_distill.py", *SETTINGS, *settings)
    said = finish(2, [str(code / script), *arguments], project)
    assert "training.compile: torch.compile fails here (on another process); it has no effect" in said
    assert "best model: save/Mini/seed3_distill/best.pth" in said


def test_a_search_is_not_for_torchrun(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run(mini("tools/tune_hoser.py", "--cuda", "-1", "--n_trials", "1"), project)
    assert done.returncode == 1
    assert "start the command several times instead" in done.stderr
