"""Training a teacher of one's own: it learns, resumes exactly, and its file is what distillation reads."""

import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import error_of
from scripts import Script, make_mini_project, mini, run, scalars

from models.lmtad import LMTAD, LMTADConfig
from tools.train_teacher import main as train_teacher_main
from utils.config import load_config
from utils.data.dataset import load_city
from utils.distillation.grid import make_grid
from utils.distillation.teacher_checkpoint import TeacherCheckpoint
from utils.distillation.teacher_file import load_teacher, save_teacher
from utils.distillation.teacher_training import IGNORED, TokenTrips
from utils.distillation.tokens import cell_tokens

SMALL = ["n_layer=2", "n_head=2", "n_embd=32", "block_size=24", "batch_size=20", "max_epoch=5", "learning_rate=0.003"]
OPTIONS = [option for setting in SMALL for option in ("--set", f"teacher.{setting}")]
COMMAND = mini("tools/train_teacher.py", "--seed", "42", "--cuda", "0", *OPTIONS)


class TeacherRun:
    def __init__(self, folder: Path):
        self.folder = folder
        self.save = folder / "save" / "Mini" / "teacher"
        self.weights, self.checkpoint = self.save / "weights.pt", self.save / "checkpoint_latest.pth"

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        return scalars(self.folder / "tensorboard_log" / "Mini" / "teacher")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TeacherRun:
    folder = make_mini_project(tmp_path_factory.mktemp("teacher"))
    done = run(COMMAND, folder)
    assert done.returncode == 0, done.stderr
    return TeacherRun(folder)


def copy_of(trained: TeacherRun, folder: Path) -> TeacherRun:
    return TeacherRun(Path(shutil.copytree(trained.folder, folder / "project")))


def error_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The error that the command ends with; in this process, since nothing is trained."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [*COMMAND, *arguments])
    return error_of(train_teacher_main)


def test_perplexity_falls_and_the_best_epoch_is_kept(trained: TeacherRun) -> None:
    values = [value for _, value in trained.curves["val_perplexity"]]
    assert len(values) == 5
    assert values[-1] < 0.5 * values[0]
    content = torch.load(trained.checkpoint)
    best = int(np.argmin(content["val_perplexity"]))
    teacher = load_teacher(trained.weights)
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, content["best_state_dict"][name])
    if best < 4:
        assert not torch.equal(value, content["model_state_dict"][name])


def test_more_epochs_and_another_batch_size_continue_and_lost_weights_are_written_again(
    trained: TeacherRun, tmp_path: Path
) -> None:
    ours = copy_of(trained, tmp_path)
    longer = [*COMMAND, "--set", "teacher.batch_size=60", "--set", "teacher.max_epoch=6"]
    before = torch.load(ours.checkpoint)
    done = run(longer, ours.folder)
    assert done.returncode == 0, done.stderr
    assert "teacher.batch_size was 20 so far, and is 60 now" in done.stderr
    assert "✅ Resumed from checkpoint: epoch 6" in done.stderr
    assert [step for step, _ in ours.curves["teacher_loss"]] == list(range(5 * 6 + 2))
    after = torch.load(ours.checkpoint)
    assert after["val_perplexity"][:5] == before["val_perplexity"]
    ours.weights.unlink()
    assert run(longer, ours.folder).returncode == 0
    for name, value in load_teacher(ours.weights).model.state_dict().items():
        assert torch.equal(value, after["best_state_dict"][name])


def test_a_file_that_is_not_of_this_training_is_not_overwritten(
    trained: TeacherRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (make_mini_project(tmp_path / "fresh"), copy_of(trained, tmp_path / "finished").folder):
        (folder / "mine.pt").write_text("precious")
        error = error_in(folder, monkeypatch, "--set", "distill.teacher=mine.pt")
        assert error.startswith("mine.pt exists and is not of this training")
        assert (folder / "mine.pt").read_text() == "precious"


def test_another_grid_and_other_trips_are_another_training(trained: TeacherRun, tmp_path: Path) -> None:
    ours = copy_of(trained, tmp_path)
    train = ours.folder / "data" / "Mini" / "train.csv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:60]))
    done = run([*COMMAND, "--set", "teacher.max_epoch=1", "--set", "distill.grid_size=0.002"], ours.folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"⚠️  Checkpoint mismatch \(grid=\[\d+, \d+\] vs \[\d+, \d+\], data=\w+ vs \w+\)", done.stderr)


def test_distillation_reads_the_teacher_where_it_was_written(trained: TeacherRun, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path).folder
    done = run(mini("train_with_distill.py", "--set", "optimizer_config.max_epoch=1"), folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"grid of \d+ x \d+ cells", done.stderr)
    assert "100.0% of the roads lie in cells that the teacher knows" in done.stderr


def wait_for_epochs(training: Script, checkpoint: Path, epochs: int) -> None:
    def epochs_done() -> int:
        return len(torch.load(checkpoint)["val_perplexity"]) if checkpoint.exists() else 0

    training.wait_until(lambda: epochs_done() >= epochs)


def test_a_killed_training_resumes_to_the_same_weights(trained: TeacherRun, tmp_path: Path) -> None:
    ours = TeacherRun(make_mini_project(tmp_path))
    for epochs in (1, 3):
        with Script(COMMAND, tmp_path) as training:
            wait_for_epochs(training, ours.checkpoint, epochs)
            training.kill()
    done = run(COMMAND, tmp_path)
    assert done.returncode == 0, done.stderr
    assert ours.weights.read_bytes() == trained.weights.read_bytes()
    assert ours.curves == trained.curves


def test_another_teacher_sets_the_one_before_aside_and_says_how_to_go_back(trained: TeacherRun, tmp_path: Path) -> None:
    ours = copy_of(trained, tmp_path)
    done = run([*COMMAND, "--seed", "43", "--set", "teacher.n_layer=1", "--set", "teacher.max_epoch=1"], ours.folder)
    assert done.returncode == 0, done.stderr
    assert "⚠️  Checkpoint mismatch (seed=42 vs 43, n_layer=2 vs 1)\n⚠️  Starting fresh" in done.stderr
    kept = ours.save / "checkpoint_latest.earlier-1.pth", ours.save / "weights.earlier-1.pt"
    assert kept[0].read_bytes() == trained.checkpoint.read_bytes()
    assert kept[1].read_bytes() == trained.weights.read_bytes()
    other_pair = ours.checkpoint.read_bytes(), ours.weights.read_bytes()
    way_back = "to go back to it, and keep this one: "
    [line] = [line for line in done.stderr.splitlines() if line.startswith(way_back)]
    subprocess.run(line.removeprefix(way_back), shell=True, cwd=ours.folder, check=True)
    assert ours.weights.read_bytes() == trained.weights.read_bytes()
    second = ours.save / "checkpoint_latest.earlier-2.pth", ours.save / "weights.earlier-2.pt"
    assert tuple(path.read_bytes() for path in second) == other_pair
    done = run([*COMMAND, "--set", "teacher.max_epoch=6"], ours.folder)
    assert "✅ Resumed from checkpoint: epoch 6" in done.stderr


def test_another_teacher_that_is_ended_in_its_first_epoch_changes_nothing(trained: TeacherRun, tmp_path: Path) -> None:
    ours = copy_of(trained, tmp_path)
    with Script([*COMMAND, "--seed", "43"], ours.folder) as training:
        training.wait_until(lambda: "Starting fresh" in training.stderr)
        training.kill()
    assert ours.checkpoint.read_bytes() == trained.checkpoint.read_bytes()
    assert ours.weights.read_bytes() == trained.weights.read_bytes()


def test_a_kill_while_a_teacher_is_set_aside_loses_nothing(trained: TeacherRun, tmp_path: Path) -> None:
    """The weights are moved first: the same command writes them again, and another teacher completes the pair."""
    ours = copy_of(trained, tmp_path)
    (ours.save / "weights.earlier-1.pt").write_text("an exported one, from before")
    ours.weights.rename(ours.save / "weights.earlier-2.pt")  # and there the process was killed
    other = TeacherRun(Path(shutil.copytree(ours.folder, tmp_path / "other")))
    assert run(COMMAND, ours.folder).returncode == 0
    assert ours.weights.read_bytes() == trained.weights.read_bytes()
    assert run([*COMMAND, "--seed", "43", "--set", "teacher.max_epoch=1"], other.folder).returncode == 0
    pair = other.save / "checkpoint_latest.earlier-2.pth", other.save / "weights.earlier-2.pt"
    assert pair[0].read_bytes() == trained.checkpoint.read_bytes()
    assert pair[1].read_bytes() == trained.weights.read_bytes()


def test_other_validation_trips_are_announced_and_a_finished_teacher_is_not_passed_off(
    trained: TeacherRun, tmp_path: Path
) -> None:
    ours = copy_of(trained, tmp_path)
    val = ours.folder / "data" / "Mini" / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    done = run(COMMAND, ours.folder)
    assert done.returncode == 1
    assert "training is complete (5 epochs), but not with these settings: other validation data. " in done.stderr
    done = run([*COMMAND, "--set", "teacher.max_epoch=6"], ours.folder)
    assert done.returncode == 0, done.stderr
    assert "the validation data is not the same as so far: perplexities before and after do not compare" in done.stderr


def test_an_exported_teacher_in_that_place_outlives_every_training(trained: TeacherRun, tmp_path: Path) -> None:
    """Also if it was put there between two parts of a training."""
    ours = copy_of(trained, tmp_path)
    model = LMTAD(LMTADConfig(block_size=16, vocab_size=400, n_layer=1, n_head=1, n_embd=8))
    save_teacher(ours.weights, model, (1, 300))
    exported = ours.weights.read_bytes()
    done = run([*COMMAND, "--set", "teacher.max_epoch=6"], ours.folder)
    assert done.returncode == 0, done.stderr
    assert (ours.save / "weights.earlier-1.pt").read_bytes() == exported
    assert "save/Mini/teacher/weights.pt is not of this training: kept as weights.earlier-1.pt" in done.stderr
    best = torch.load(ours.checkpoint)["best_state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in load_teacher(ours.weights).model.state_dict().items())


def test_a_teacher_that_diverges_saves_nothing_more(tmp_path: Path) -> None:
    ours = TeacherRun(make_mini_project(tmp_path))
    assert run([*COMMAND, "--set", "teacher.max_epoch=1"], tmp_path).returncode == 0
    before = ours.checkpoint.read_bytes(), ours.weights.read_bytes()
    done = run([*COMMAND, "--set", "teacher.learning_rate=1e30", "--set", "teacher.max_epoch=3"], tmp_path)
    assert done.returncode == 1
    assert "not finite" in done.stderr.splitlines()[-1]
    assert (ours.checkpoint.read_bytes(), ours.weights.read_bytes()) == before


def test_a_perplexity_that_is_no_number_is_never_the_best(workplace: Path) -> None:
    checkpoint = TeacherCheckpoint(workplace, workplace / "weights.pt", {}, {}, {}, {})
    for values, best in (([math.nan, 5.0, 4.0], 3), ([7.0, math.nan, 8.0], 1), ([math.nan, math.nan, 9.0], 3)):
        checkpoint.perplexities = values
        assert checkpoint.best_epoch == best


def test_a_teacher_is_introduced_with_what_its_perplexity_means(trained: TeacherRun, tmp_path: Path) -> None:
    done = run(COMMAND, trained.folder)
    assert done.returncode == 0, done.stderr
    assert "training is complete: all 5 epochs are done" in done.stderr
    assert "Resumed" not in done.stderr
    number = r"(\d+\.\d\d)"
    found = re.search(rf"perplexity {number} over all cells: .*; a uniform guess .* has {number}", done.stderr)
    perplexity, uniform = (float(value) for value in found.groups())
    assert perplexity == pytest.approx(min(torch.load(trained.checkpoint)["val_perplexity"]), abs=0.006)
    assert uniform == pytest.approx(plain_uniform_perplexity(trained.folder), abs=0.006)
    assert ("over all cells this teacher is no better than that guess" in done.stderr) is (perplexity >= uniform)
    ours = TeacherRun(make_mini_project(tmp_path))
    done = run([*COMMAND, "--set", "teacher.learning_rate=1e-9", "--set", "teacher.max_epoch=1"], ours.folder)
    assert "over all cells this teacher is no better than that guess" in done.stderr


def plain_uniform_perplexity(folder: Path) -> float:
    """Trip by trip: any road first, then any successor or the end, summed over the roads of a cell."""
    city = load_city("Mini", load_config("Mini", folder / "Mini.yaml"), folder / "data" / "Mini")
    network, cell, trips = city.network, make_grid(city.network, 0.001, 1).cell.tolist(), city.trips("val")
    logs = []
    for first, last in itertools.pairwise(trips.offset):
        roads = trips.road_id[first:last].tolist()
        probabilities = [cell.count(cell[roads[0]]) / network.num_roads]
        for here, following in zip(roads, [*roads[1:], None], strict=True):
            successors = network.reach_road[network.reach_ptr[here] : network.reach_ptr[here + 1]].tolist()
            ways = 1 if following is None else sum(cell[road] == cell[following] for road in successors)
            probabilities.append(ways / (len(successors) + 1))
        logs += [math.log(p) for p in probabilities[:24]]  # the block size
    return math.exp(-sum(logs) / len(logs))


def test_weights_of_another_training_are_set_aside(trained: TeacherRun, tmp_path: Path) -> None:
    ours = TeacherRun(make_mini_project(tmp_path))
    ours.save.mkdir(parents=True)
    ours.weights.write_bytes(trained.weights.read_bytes())  # had from elsewhere
    for setting, count in (("n_layer=1", 1), ("n_head=1", 2), ("n_head=1", 2)):
        done = run([*COMMAND, "--set", f"teacher.{setting}", "--set", "teacher.max_epoch=1"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(list(ours.save.glob("weights.earlier-*.pt"))) == count
    assert (ours.save / "weights.earlier-1.pt").read_bytes() == trained.weights.read_bytes()
    assert load_teacher(ours.save / "weights.earlier-2.pt").model.config.n_layer == 1
    assert load_teacher(ours.weights).model.config.n_head == 1


def test_a_damaged_checkpoint_and_sizes_that_do_not_fit_are_errors_with_a_remedy(
    trained: TeacherRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = copy_of(trained, tmp_path)
    assert error_in(ours.folder, monkeypatch, "--set", "teacher.n_head=5").startswith("teacher: n_head: found 5")
    ours.checkpoint.write_bytes(ours.checkpoint.read_bytes()[:-100])
    assert "rm save/Mini/teacher/checkpoint_latest.pth" in error_in(ours.folder, monkeypatch)


def test_sequences_are_sot_cells_eot_and_targets_are_shifted_by_one(trained: TeacherRun) -> None:
    config = load_config("Mini", trained.folder / "Mini.yaml")
    city = load_city("Mini", config, trained.folder / "data" / "Mini")
    grid, trips = make_grid(city.network, 0.001, 1), city.trips("val")
    tokens = TokenTrips(trips, cell_tokens(grid), block_size=64, batch_size=7, device=torch.device("cpu"))
    vocabulary, trip = tokens.vocabulary, 0
    for inputs, targets in tokens.whole():
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            cells = grid.cell[trips.road_id[trips.offset[trip] : trips.offset[trip + 1]]].tolist()
            sequence = [vocabulary.sot, *cells, vocabulary.eot]
            padding = len(row) - len(sequence) + 1
            assert row == sequence[:-1] + [vocabulary.pad] * padding
            assert target == sequence[1:] + [IGNORED] * padding
            trip += 1
    assert trip == len(trips)


def test_training_sequences_are_ends_of_trips_and_a_block_at_most(trained: TeacherRun) -> None:
    config = load_config("Mini", trained.folder / "Mini.yaml")
    city = load_city("Mini", config, trained.folder / "data" / "Mini")
    grid, trips = make_grid(city.network, 0.001, 1), city.trips("train")
    tokens = TokenTrips(trips, cell_tokens(grid), block_size=5, batch_size=50, device=torch.device("cpu"))
    inputs = [row for batch, _ in tokens.shuffled(0, 0) for row in batch.tolist()]
    assert len(inputs) == len(trips)
    assert all(len(row) <= 5 for row in inputs)
    whole = sum(row[0] == tokens.vocabulary.sot for row in inputs) / len(inputs)
    assert 0.3 < whole < 0.9
    again = [row for batch, _ in tokens.shuffled(0, 0) for row in batch.tolist()]
    assert inputs == again
