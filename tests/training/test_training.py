"""Vanilla training as its users see it: files, logs, curves, commands of the documentation."""

import fcntl
import itertools
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import PROJECT, Script, make_mini_project, mini, run, scalars

EPOCHS = 3
BATCHES = 5  # of 25, for 120 trips


class FinishedRun:
    """A training run of three epochs with seed 42."""

    def __init__(self, folder: Path):
        self.folder = make_mini_project(folder)
        self.process = run(mini("train.py", "--seed", "42", "--cuda", "0"), self.folder)
        self.save = folder / "save" / "Mini" / "seed42"
        self.log_folder = folder / "log" / "Mini" / "seed42"
        self.events = folder / "tensorboard_log" / "Mini" / "seed42"
        assert self.process.returncode == 0, self.process.stderr

    @property
    def log(self) -> str:
        (path,) = self.log_folder.glob("*.log")
        return path.read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return FinishedRun(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_mini_project(tmp_path)


# Checkpoints ---------------------------------------------------------------------------------------------------


def test_every_epoch_is_kept_and_nothing_else_but_best(finished: FinishedRun) -> None:
    names = sorted(path.name for path in finished.save.iterdir() if path.name != ".lock")
    assert names == ["best.pth", "epoch_1.pth", "epoch_2.pth", "epoch_3.pth"]


def test_checkpoints_are_bare_state_dicts(finished: FinishedRun) -> None:
    for path in finished.save.glob("*.pth"):
        state = torch.load(path)
        assert type(state) is OrderedDict
        assert all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in state.values())


def test_best_is_byte_for_byte_the_first_epoch_of_the_highest_accuracy(finished: FinishedRun) -> None:
    accuracies = [value for _, value in scalars(finished.events)["val_next_step_acc"]]
    best_epoch = int(np.argmax(accuracies)) + 1
    assert (finished.save / "best.pth").read_bytes() == (finished.save / f"epoch_{best_epoch}.pth").read_bytes()


def test_the_first_of_equal_epochs_is_the_best(tmp_path: Path) -> None:
    from utils.training.epoch_checkpoints import EpochCheckpoints

    checkpoints, model = EpochCheckpoints(tmp_path), torch.nn.Linear(1, 1)
    best_after_each = []
    for number, accuracy in enumerate([0.5, 0.7, 0.6, 0.7, 0.7]):
        torch.nn.init.constant_(model.weight, number)
        checkpoints.save(model, accuracy)
        best_after_each.append(int(torch.load(tmp_path / "best.pth")["weight"].item()) + 1)
    assert best_after_each == [1, 2, 2, 2, 2]
    assert checkpoints.best_epoch == 2


def test_the_loading_example_of_the_documentation_works(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"```python\n(import torch\n.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) <= 5
    example = example.replace('"Beijing"', '"Mini", config_path="Mini.yaml"').replace("Beijing", "Mini")
    monkeypatch.chdir(finished.folder)
    exec(example + "\nprint(type(model).__name__, model.training, sum(p.numel() for p in model.parameters()))", {})
    assert re.fullmatch(r"HOSER False \d{5,}\n", capsys.readouterr().out)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(finished: FinishedRun, project: Path) -> None:
    for seed in ("42", "43"):
        assert run(mini("train.py", "--seed", seed), project).returncode == 0
    same, other = ((project / "save" / "Mini" / f"seed{seed}" / "best.pth").read_bytes() for seed in (42, 43))
    assert same == (finished.save / "best.pth").read_bytes()
    assert other != same


# Logs ----------------------------------------------------------------------------------------------------------


def shell(text: str, cwd: Path) -> str:
    return subprocess.run(["bash", "-c", text], cwd=cwd, capture_output=True, text=True, timeout=30).stdout


def test_grep_shows_one_line_for_each_epoch(finished: FinishedRun) -> None:
    lines = shell('grep "val_next_step_acc" ./log/Mini/seed42/*.log', finished.folder).splitlines()
    assert len(lines) == EPOCHS
    recorded = scalars(finished.events)["val_next_step_acc"]
    for epoch, (line, (step, accuracy)) in enumerate(zip(lines, recorded, strict=True), start=1):
        assert f"epoch {epoch}/{EPOCHS}" in line
        assert step == epoch
        assert float(line.split(",")[1]) == pytest.approx(accuracy, abs=1e-6)


def test_the_documented_command_prints_the_line_of_the_best_epoch(finished: FinishedRun) -> None:
    command = """grep "val_next_step_acc" ./log/Mini/seed42/*.log | sort -t',' -k2 -rn | head -1"""
    best = int(np.argmax([value for _, value in scalars(finished.events)["val_next_step_acc"]])) + 1
    assert f"epoch {best}/{EPOCHS} " in shell(command, finished.folder)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "en_US.UTF-8"])
@pytest.mark.parametrize("values", [[0.1, 0.7, 0.7], [0.25] * 12, [0.9, 0.85, 0.9], [1.0, 0.999999], [0.0, 0.0]])
def test_that_command_prefers_the_first_of_equal_epochs(tmp_path: Path, values: list[float], locale: str) -> None:
    from datetime import datetime, timedelta

    from utils.tracking.run import epoch_line
    from utils.training.metrics import Metrics

    now = datetime(2026, 1, 31, 23, 59, 30)
    lines = []
    for epoch, value in enumerate(values, start=1):
        metrics = Metrics(value, time_pred_mape=0.5 + epoch / 100, time_mape=0.2, time_mae_s=5.0)
        lines.append(epoch_line(epoch, len(values), metrics, 7.5, now + timedelta(seconds=9 * epoch)))
    (tmp_path / "a.log").write_text("2026-01-31 23:59:00 | started\n" + "".join(lines))
    command = f"export LC_ALL={locale}; grep val_next_step_acc *.log | sort -t',' -k2 -rn | head -1"
    assert f"epoch {int(np.argmax(values)) + 1}/{len(values)} " in shell(command, tmp_path)


def test_tail_and_grep_follow_a_run_as_it_goes(project: Path) -> None:
    folder = project / "log" / "Mini" / "seed1"
    arguments = mini("train.py", "--seed", "1", "--set", "optimizer_config.max_epoch=4")
    with Script(arguments, project) as training:
        training.wait_until(lambda: list(folder.glob("*.log")))
        command = 'tail -n +1 -f ./log/Mini/seed1/*.log | grep --line-buffered "val_next_step_acc"'
        with subprocess.Popen(
            ["bash", "-c", command], cwd=project, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as watching:
            lines = [watching.stdout.readline() for _ in range(4)]
            os.killpg(watching.pid, signal.SIGTERM)
        assert training.wait(60) == 0
    assert [f"epoch {epoch}/4" in line for epoch, line in enumerate(lines, start=1)] == [True] * 4


def test_the_log_tells_of_baselines_before_training_and_ends_with_a_summary(finished: FinishedRun) -> None:
    log = finished.log
    baseline = re.search(
        r"smallest angle (0\.\d+), smallest distance (0\.\d+); steps with a single candidate (0\.\d+)", log
    )
    assert baseline.start() < log.index("epoch 1/3")
    recorded = scalars(finished.events)
    accuracies = [value for _, value in recorded["val_next_step_acc"]]
    best = int(np.argmax(accuracies))
    mape = recorded["val_time_pred_mape"][best][1]
    summary = log[log.index(f"loading epoch_{best + 1}.pth") :]
    assert f"best epoch {best + 1}: accuracy {accuracies[best]:.4f}, time MAPE {mape:.4f}" in summary
    assert re.search(r"test: accuracy 0\.\d{4}, time MAPE 0\.\d{4}", summary)
    assert re.search(r"best model: save/Mini/seed42/best\.pth; [\d.]+ s per epoch", summary)


def test_baselines_and_single_candidates_are_what_a_plain_count_gives(finished: FinishedRun) -> None:
    from utils.data.loader import BatchLoader, RoadTables
    from utils.data.road_network import read_road_network
    from utils.data.trips import TimeStatistics, read_trips

    data = finished.folder / "data" / "Mini"
    network = read_road_network(data)
    val = read_trips(data / "val.csv", network)
    loader = BatchLoader(val, RoadTables.from_network(network), TimeStatistics.from_trips(val), len(val))
    batch = loader.batch(np.arange(len(val)))
    hits = np.zeros(3)
    for step, label in enumerate(batch.label.tolist()):
        own = batch.step_of_candidate == step
        for i, metric in enumerate((batch.metric_angle, batch.metric_distance)):
            hits[i] += int(metric[own].argmin()) == label
        hits[2] += int(own.sum()) == 1
    angle, distance, single = hits / len(batch.label)
    text = f"smallest angle {angle:.4f}, smallest distance {distance:.4f}; steps with a single candidate {single:.4f}"
    assert text in finished.log


def test_without_a_terminal_no_progress_bars_are_printed(finished: FinishedRun) -> None:
    assert "\r" not in finished.process.stderr
    assert len(finished.process.stderr.splitlines()) < 15


def test_on_a_terminal_progress_bars_are_shown(project: Path) -> None:
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows and columns
    arguments = mini("train.py", "--set", "optimizer_config.max_epoch=1")
    with Script(arguments, project, terminal) as training:
        os.close(terminal)
        shown = b""
        while chunk := _read_terminal(reader):
            shown += chunk
        assert training.wait(60) == 0
    for title in ("reading train.csv", "training, epoch 1", "validating, epoch 1", "testing"):
        assert title.encode() in shown


def _read_terminal(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # the other side is closed
        return b""


def test_the_log_of_a_run_that_fails_ends_with_the_error(project: Path) -> None:
    done = run(mini("train.py", "--set", "optimizer_config.learning_rate=1e30"), project)
    assert done.returncode == 1
    (log,) = (project / "log" / "Mini" / "seed0").glob("*.log")
    error = log.read_text().splitlines()[-1]
    assert re.search(r"error: the loss is (nan|inf) in epoch 1, batch \d+ ", error)
    assert error.split("error: ")[1] in done.stderr
    assert "Traceback" not in done.stderr


# TensorBoard ---------------------------------------------------------------------------------------------------


def test_every_batch_and_every_epoch_has_its_points(finished: FinishedRun) -> None:
    recorded = scalars(finished.events)
    assert set(recorded) == {
        "loss_next_step",
        "loss_time_pred",
        "loss",
        "learning_rate",
        "val_next_step_acc",
        "val_time_pred_mape",
        "val_time_mape",
        "val_time_mae_s",
    }
    for tag in ("loss_next_step", "loss_time_pred", "loss", "learning_rate"):
        assert [step for step, _ in recorded[tag]] == list(range(EPOCHS * BATCHES))
    for tag in ("val_next_step_acc", "val_time_pred_mape", "val_time_mape", "val_time_mae_s"):
        assert [step for step, _ in recorded[tag]] == [1, 2, 3]
    for (_, total), (_, first), (_, second) in zip(
        *(recorded[tag] for tag in ("loss", "loss_next_step", "loss_time_pred")), strict=True
    ):
        assert total == pytest.approx(first + second, rel=1e-6)
    rates = [value for _, value in recorded["learning_rate"]]
    assert max(rates) == pytest.approx(0.005, rel=0.02)
    assert rates[-1] == 0.0


def test_a_second_run_starts_from_scratch_and_does_not_mix_its_curves_with_the_first(
    finished: FinishedRun, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished.folder, folder)
    done = run(mini("train.py", "--seed", "42", "--set", "optimizer_config.max_epoch=2"), folder)
    assert done.returncode == 0
    assert "vanilla training does not resume: starting from scratch" in done.stderr
    assert "left over from a longer run, and not replaced by this one: epoch_3.pth" in done.stderr
    save = folder / "save" / "Mini" / "seed42"
    assert (save / "epoch_3.pth").read_bytes() == (finished.save / "epoch_3.pth").read_bytes()
    recorded = scalars(folder / "tensorboard_log" / "Mini" / "seed42")
    assert [step for step, _ in recorded["loss"]] == list(range(2 * BATCHES))
    assert [step for step, _ in recorded["val_next_step_acc"]] == [1, 2]
    assert len(list((folder / "log" / "Mini" / "seed42").glob("*.log"))) == 2
    kept = [path for path in (folder / "tensorboard_log" / "Mini" / "seed42").iterdir() if "earlier-run" in path.name]
    assert len(kept) == 1


# Interruptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "word", "stopped_by"),
    [(signal.SIGINT, 130, "interrupted", "Ctrl-C (SIGINT)"), (signal.SIGTERM, 143, "terminated", "SIGTERM")],
)
def test_a_signal_ends_the_run_with_one_line_and_keeps_the_epochs(
    project: Path, number: signal.Signals, code: int, word: str, stopped_by: str
) -> None:
    arguments = mini("train.py", "--set", "optimizer_config.max_epoch=100000")
    best = project / "save" / "Mini" / "seed0" / "best.pth"
    with Script(arguments, project) as training:
        training.wait_until(best.exists)
        training.send_signal(number)
        assert training.wait(60) == code
        stderr = training.stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith(f"{word}: the epochs saved so far stay")
    log = next((project / "log" / "Mini" / "seed0").glob("*.log")).read_text()
    assert log.splitlines()[-1].partition(" | ")[2] == f"stopped by {stopped_by}"
    for path in best.parent.glob("*.pth"):
        torch.load(path)
    assert not list(best.parent.glob(".tmp-*"))


def test_a_killed_run_leaves_only_whole_files_and_the_next_one_cleans_up(project: Path) -> None:
    save = project / "save" / "Mini" / "seed0"
    arguments = mini("train.py", "--set", "optimizer_config.max_epoch=100000")
    for delay in (0.0, 0.05, 0.11):
        with Script(arguments, project) as training:
            training.wait_until(lambda: len(list(save.glob("epoch_*.pth"))) >= 3)
            time.sleep(delay)
            training.kill()
        for path in save.glob("[!.]*.pth"):  # beside them may lie a temporary file, half written
            torch.load(path)
        for path in save.glob("epoch_*.pth"):
            path.unlink()
    (save / ".tmp-abc-epoch_9.pth").write_bytes(b"half a file")
    assert run(mini("train.py"), project).returncode == 0
    assert not list(save.glob(".tmp-*"))


def test_transitions_of_other_trips_are_told_of(project: Path) -> None:
    assert "zone_trans_mat.npy" not in run(mini("tools/prepare_dataset.py"), project).stderr
    train = project / "data" / "Mini" / "train.csv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:60]))
    done = run(mini("tools/prepare_dataset.py"), project)
    assert done.returncode == 0
    assert "zone_trans_mat.npy does not count the transitions of train.csv" in done.stderr


def test_two_first_runs_at_once_build_the_demo_city_once(tmp_path: Path) -> None:
    arguments = ["tools/prepare_dataset.py", "--dataset", "Demo"]
    with Script(arguments, tmp_path) as first, Script(arguments, tmp_path) as second:
        assert (first.wait(), second.wait()) == (0, 0), first.stderr + second.stderr
        assert (first.stderr + second.stderr).count("building the Demo city") == 1


def test_predictions_that_are_no_numbers_are_never_right(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from utils.training.metrics import rank_of_label

    batch = SimpleNamespace(
        road_id=torch.tensor([0, 1]),
        max_candidates=2,
        step_of_candidate=torch.tensor([0, 0, 1, 1]),
        candidate_index=torch.tensor([0, 1, 0, 1]),
        label=torch.tensor([0, 1]),
    )
    nan = float("nan")
    assert (rank_of_label(torch.tensor([nan, nan, nan, nan]), batch) > 0).all()
    assert (rank_of_label(torch.tensor([nan, 1.0, nan, 1.0]), batch) > 0).all()
    assert rank_of_label(torch.tensor([1.0, 0.0, 1.0, 0.0]), batch).tolist() == [0, 1]


def test_a_second_process_on_the_same_run_is_refused(project: Path) -> None:
    arguments = mini("train.py", "--set", "optimizer_config.max_epoch=100000")
    with Script(arguments, project) as training:
        training.wait_until((project / "save" / "Mini" / "seed0" / "epoch_1.pth").exists)
        second = run(arguments, project)
        assert training.returncode is None
        training.kill()
    assert second.returncode == 1
    assert "save/Mini/seed0: another process is working in this folder" in second.stderr


# Options -------------------------------------------------------------------------------------------------------


def test_accumulated_batches_equal_one_batch_of_their_trips(tmp_path: Path) -> None:
    """With as many steps in each batch, two batches averaged are one batch of twice the size."""
    from models.hoser import HOSER
    from utils.config import load_config
    from utils.data.dataset import load_city
    from utils.data.loader import BatchLoader, RoadTables
    from utils.data.trips import TimeStatistics
    from utils.training.engine import Learner, train_epoch
    from utils.training.losses import HOSERLoss

    make_mini_project(tmp_path)
    results = []
    for batch_size, accum_steps in ((24, 1), (12, 2)):
        sizes = [f"optimizer_config.batch_size={batch_size}", f"optimizer_config.accum_steps={accum_steps}"]
        config = load_config("Mini", tmp_path / "Mini.yaml", [*sizes, "optimizer_config.warmup_ratio=0.0"])
        city = load_city("Mini", config, tmp_path / "data" / "Mini")
        trips = _trips_of_equal_length(city.trips("train"), 36, 4)
        loader = BatchLoader(trips, RoadTables.from_network(city.network), TimeStatistics.from_trips(trips), batch_size)
        torch.manual_seed(1)
        model = HOSER(config, city.features)
        learner = Learner.from_config(model, config, loader)
        epoch = train_epoch(learner, loader, HOSERLoss(loader.statistics), seed=0, epoch=0, first_batch=0)
        records = [record for chunk in epoch for record in chunk]
        results.append((records, torch.nn.utils.parameters_to_vector(model.parameters()).detach()))
    (whole, whole_weights), (halves, halves_weights) = results
    assert [len(whole), len(halves)] == [2, 3]  # 36 = 24 + 12 = 12 + 12, 12: the last window is shorter
    whole_losses, halves_losses = ([record.losses["loss"] for record in records] for records in (whole, halves))
    assert whole_losses[0] == pytest.approx((halves_losses[0] + halves_losses[1]) / 2, rel=1e-5)
    assert whole_losses[1] == pytest.approx(halves_losses[2], rel=1e-4)
    assert [r.learning_rate for r in halves] == [whole[0].learning_rate] * 2 + [whole[1].learning_rate]
    torch.testing.assert_close(whole_weights, halves_weights, rtol=1e-3, atol=1e-4)


def _trips_of_equal_length(trips, number: int, roads: int):
    """The first `number` trips of at least `roads` roads, cut to that many."""
    from utils.data.trips import Trips

    starts = [s for s, e in zip(trips.offset[:-1], trips.offset[1:], strict=True) if e - s >= roads][:number]
    place = np.concatenate([np.arange(s, s + roads) for s in starts])
    rank = trips.label[place].copy()
    rank[roads - 1 :: roads] = 0
    return Trips(np.arange(0, roads * number + 1, roads), trips.road_id[place], trips.time_s[place], rank)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains(project: Path, precision: str) -> None:
    done = run(mini("train.py", "--set", f"training.precision={precision}"), project)
    assert done.returncode == 0, done.stderr
    assert precision in done.stderr
    values = [value for _, value in scalars(project / "tensorboard_log" / "Mini" / "seed0")["loss"]]
    assert np.isfinite(values).all()
    assert values[-1] < values[0]


def test_a_schedule_warms_up_and_falls_to_zero_by_the_step_alone() -> None:
    from utils.config_sections import OptimizerConfig
    from utils.training.schedule import Schedule

    config = OptimizerConfig(max_epoch=10, learning_rate=0.1, warmup_ratio=0.2, accum_steps=4)
    schedule = Schedule.from_config(config, batches_per_epoch=10)  # 3 steps an epoch
    rates = [schedule.lr_at(step) for step in range(1, 31)]
    np.testing.assert_allclose(rates[:6], 0.1 * np.arange(1, 7) / 6)
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] == 0.0


# Evaluation ----------------------------------------------------------------------------------------------------


METRICS = r"accuracy (\S+), time MAPE (\S+) of log1p\(s\), (\S+) of seconds, MAE (\S+) s"


def test_the_evaluation_tool_gives_the_metrics_that_training_logged(finished: FinishedRun) -> None:
    import json

    for split, pattern in (
        ("val", rf"best epoch \d+: {METRICS}"),
        ("test", f"test: {METRICS}"),
    ):
        arguments = ["--checkpoint", "save/Mini/seed42/best.pth", "--split", split, "--json", f"{split}.json"]
        done = run(mini("tools/evaluate.py", *arguments), finished.folder)
        assert done.returncode == 0, done.stderr
        report = json.loads((finished.folder / f"{split}.json").read_text())
        logged = re.search(pattern, finished.log).groups()
        total = report["total"]
        assert logged == (
            f"{total['next_step_acc']:.4f}",
            f"{total['time_pred_mape']:.4f}",
            f"{total['time_mape']:.4f}",
            f"{total['time_mae_s']:.2f}",
        )
        source = {key: report[key] for key in ("checkpoint", "dataset", "split", "file")}
        path = f"data/Mini/{split}.csv"
        assert source == {"checkpoint": arguments[1], "dataset": "Mini", "split": split, "file": path}
        assert done.stdout.splitlines()[0] == f"save/Mini/seed42/best.pth on {path}, {report['trips']} trips"
        assert f"{report['total']['next_step_acc']:8.4f}" in done.stdout
        for part in ("by_class", "by_trip_length"):
            steps = [figures["steps"] for figures in report[part].values()]
            hits = [figures["steps"] * figures["next_step_acc"] for figures in report[part].values()]
            assert sum(steps) == report["total"]["steps"]
            assert sum(hits) == pytest.approx(report["total"]["steps"] * report["total"]["next_step_acc"])


def test_a_file_of_trips_is_evaluated_with_the_time_statistics_of_training(finished: FinishedRun) -> None:
    import json

    shutil.copy(finished.folder / "data" / "Mini" / "test.csv", finished.folder / "elsewhere.csv")
    for name, source in (("split", ["--split", "test"]), ("file", ["--trips", "elsewhere.csv"])):
        arguments = ["--checkpoint", "save/Mini/seed42/best.pth", *source, "--json", f"{name}.json"]
        done = run(mini("tools/evaluate.py", *arguments), finished.folder)
        assert done.returncode == 0
    assert done.stdout.startswith("save/Mini/seed42/best.pth on elsewhere.csv, ")
    split, file = (json.loads((finished.folder / f"{name}.json").read_text()) for name in ("split", "file"))
    assert (split.pop("split"), split.pop("file")) == ("test", "data/Mini/test.csv")
    assert (file.pop("split"), file.pop("file")) == (None, "elsewhere.csv")
    assert split == file


def test_ranks_and_errors_in_seconds_are_what_their_names_say() -> None:
    from types import SimpleNamespace

    from models.batch import Prediction
    from utils.data.trips import TimeStatistics
    from utils.training.metrics import score

    batch = SimpleNamespace(
        road_id=torch.tensor([0, 1, 2]),
        max_candidates=3,
        step_of_candidate=torch.tensor([0, 0, 0, 1, 2, 2]),
        candidate_index=torch.tensor([0, 1, 2, 0, 0, 1]),
        label=torch.tensor([1, 0, 1]),
        label_candidate=torch.tensor([1, 3, 5]),
        log_time=torch.log1p(torch.tensor([10.0, 20.0, 0.0])),
    )
    predicted_s = torch.tensor([0.0, 13.0, 0.0, 20.0, 0.0, 1.0])
    prediction = Prediction(torch.tensor([3.0, 2.0, 1.0, -5.0, 1.0, 1.0]), torch.log1p(predicted_s))
    scores = score(prediction, batch, TimeStatistics(mean=0.0, std=1.0))
    assert scores.rank.tolist() == [1, 0, 1]  # of equal scores the first candidate is the prediction
    torch.testing.assert_close(scores.time_error_s, torch.tensor([3.0, 0.0, 1.0]), rtol=0, atol=1e-4)
    expected = [abs(np.log(14) - np.log(11)) / np.log(11), 0.0, np.log(2) / 1.0]
    torch.testing.assert_close(scores.relative_log_time_error, torch.tensor(expected).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.relative_time_error, torch.tensor([0.3, 0.0, 1.0]), rtol=0, atol=1e-5)


def test_a_start_that_fails_leaves_the_curves_of_the_finished_run_alone(project: Path) -> None:
    assert run(mini("train.py", "--set", "optimizer_config.max_epoch=1"), project).returncode == 0
    curves = scalars(project / "tensorboard_log" / "Mini" / "seed0")
    with (project / "data" / "Mini" / "val.csv").open("a") as file:
        file.write("nonsense\n")
    assert run(mini("train.py", "--set", "optimizer_config.max_epoch=1"), project).returncode == 1
    assert scalars(project / "tensorboard_log" / "Mini" / "seed0") == curves
