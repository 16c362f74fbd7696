"""What the student learns from the teacher: the KL term, the windows, the cache, and the grid."""

import itertools
import math
import shutil
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loguru import logger
from scripts import Script, make_mini_project, make_mini_teacher, mini, run, scalars
from torch import Tensor

from models.batch import Batch, Prediction
from models.lmtad import LMTAD, LMTADConfig
from utils.config import load_config
from utils.data.dataset import City, load_city
from utils.data.loader import BatchLoader, RoadTables
from utils.data.road_network import RoadNetwork
from utils.data.trips import TimeStatistics
from utils.distillation import score_cache
from utils.distillation.grid import Grid, describe_grid, make_grid
from utils.distillation.kl_loss import DistillationTerm, load_distillation, measure_teacher
from utils.distillation.score_cache import cache_key, cached_log_probs
from utils.distillation.teacher_file import Teacher, load_teacher, save_teacher
from utils.distillation.teacher_scores import TeacherReader, tokens_of_roads
from utils.distillation.tokens import cell_tokens
from utils.errors import UserError
from utils.runtime.progress import ProgressReport

TEACHER = Path("save/Mini/teacher/weights.pt")


class Setting:
    """A city, its training trips, and a teacher with random weights."""

    def __init__(self, folder: Path):
        make_mini_teacher(make_mini_project(folder))
        self.folder = folder
        self.config = load_config("Mini", folder / "Mini.yaml")
        self.city: City = load_city("Mini", self.config, folder / "data" / "Mini")
        trips = self.city.trips("train")
        self.loader = BatchLoader(
            trips, RoadTables.from_network(self.city.network), TimeStatistics.from_trips(trips), 40
        )
        self.teacher: Teacher = load_teacher(folder / TEACHER)
        self.grid = make_grid(self.city.network, 0.001, 1)
        self.tokens = tokens_of_roads(self.teacher, cell_tokens(self.grid), self.city.network, folder / TEACHER)

    def reader(self, window: int = 4) -> TeacherReader:
        return TeacherReader(self.teacher, self.tokens, window)

    def batch(self) -> Batch:
        return self.loader.batch(np.arange(40))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("distillation"))


def plain_log_probs(setting: Setting, batch: Batch, window: int) -> Tensor:
    """The teacher's full distribution at each step, one step at a time, restricted to the candidates."""
    values = torch.empty(len(batch.step_of_candidate))
    trip_start = (batch.trip_len.cumsum(0) - batch.trip_len)[batch.trip_of_step]
    for step, start in enumerate(trip_start.tolist()):
        tokens = [setting.teacher.sot, *setting.tokens[batch.road_id[start : step + 1]].tolist()][-window:]
        probs = setting.teacher.model(torch.tensor([tokens]))[0, -1].double().softmax(dim=0)
        own = batch.step_of_candidate == step
        chosen = probs[setting.tokens[batch.candidate_road_id[own]]]
        values[own] = (chosen / chosen.sum()).log().float()
    return values


# The teacher's windows and probabilities -----------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 4, 16])
def test_the_teacher_is_read_as_by_the_plain_formula_on_the_full_vocabulary(setting: Setting, window: int) -> None:
    batch = setting.batch()
    ours = setting.reader(window).log_probs(batch)
    torch.testing.assert_close(ours, plain_log_probs(setting, batch, window), rtol=1e-4, atol=1e-4)


def test_no_padding_enters_the_teachers_context(setting: Setting) -> None:
    """Every sequence that the teacher gets is the end of SOT + cells of some trip, nothing else."""
    seen: set[tuple[int, ...]] = set()
    model = setting.teacher.model
    handle = model.transformer["wte"].register_forward_pre_hook(
        lambda _, inputs: seen.update(map(tuple, inputs[0].tolist()))
    )
    batch = setting.batch()
    setting.reader(window=4).log_probs(batch)
    handle.remove()
    expected = set()
    start = 0
    for length in batch.trip_len.tolist():
        history = [setting.teacher.sot]
        for road in batch.road_id[start : start + length].tolist():
            history.append(int(setting.tokens[road]))
            expected.add(tuple(history[-4:]))
        start += length
    assert seen == expected


def test_steps_with_a_cell_unknown_to_the_teacher_are_left_out(setting: Setting) -> None:
    batch = setting.batch()
    road = int(batch.candidate_road_id[0])
    tokens = setting.tokens.clone()
    tokens[road] = -1
    values = TeacherReader(setting.teacher, tokens, 4).log_probs(batch)
    trip_start = (batch.trip_len.cumsum(0) - batch.trip_len)[batch.trip_of_step]
    for step, start in enumerate(trip_start.tolist()):
        own = batch.step_of_candidate == step
        involved = torch.cat([batch.road_id[max(start, step - 3) : step + 1], batch.candidate_road_id[own]])
        assert values[own].isnan().all() if (involved == road).any() else values[own].isfinite().all()


# The KL term ---------------------------------------------------------------------------------------------------


def plain_kl(logits: Tensor, log_probs: Tensor, batch: Batch, tau: float, last_only: bool) -> Tensor:
    """Mean over steps of sum q log(q / p), q and p at temperature tau, written out step by step."""
    terms = []
    lasts = set((batch.trip_len.cumsum(0) - 1).tolist())
    for step in range(len(batch.road_id)):
        own = batch.step_of_candidate == step
        if own.sum() < 2 or (last_only and step not in lasts):
            continue
        q = (log_probs[own].exp() ** (1 / tau)) / (log_probs[own].exp() ** (1 / tau)).sum()
        p = (logits[own] / tau).softmax(dim=0)
        terms.append((q * (q / p).log()).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("last_only", [False, True])
def test_the_kl_term_is_the_plain_formula(setting: Setting, tau: float, last_only: bool) -> None:
    torch.manual_seed(1)
    batch = setting.batch()
    log_probs = plain_log_probs(setting, batch, 4)
    logits = torch.randn(len(log_probs), requires_grad=True)
    term = DistillationTerm(setting.reader(4).log_probs, tau, last_only)
    ours = term(Prediction(logits, torch.zeros(0)), batch)
    plain = plain_kl(logits, log_probs, batch, tau, last_only)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-4)
    (ours_grad,), (plain_grad,) = torch.autograd.grad(ours, logits), torch.autograd.grad(plain, logits)
    torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-3, atol=1e-6)


def test_a_teacher_is_measured_as_by_a_plain_count(setting: Setting) -> None:
    """With larger cells, so that candidates share some, and one road whose cell the teacher does not know."""
    tokens = torch.where(torch.arange(len(setting.tokens)) == 9, -1, setting.tokens // 40)
    reader = TeacherReader(setting.teacher, tokens, 4)
    measured = measure_teacher(reader.log_probs, tokens, setting.loader)
    steps, rows = 0, []  # tied, right, uniform accuracy, -log q, log of the number of candidates
    for batch in setting.loader.in_order():
        log_probs, first = reader.log_probs(batch), 0
        for length, label in zip(batch.candidate_len.tolist(), batch.label.tolist(), strict=True):
            own = log_probs[first : first + length]
            cells = tokens[batch.candidate_road_id[first : first + length]].tolist()
            steps, first = steps + 1, first + length
            if not own.isnan().any():
                right = int(own.argmax()) == label
                rows.append((len(set(cells)) < length, right, 1 / length, -own[label].item(), math.log(length)))
    tied, right, uniform, surprise, uniform_surprise = np.mean(np.array(rows, dtype=float), axis=0)
    assert 0 < tied < 1
    assert 0 < len(rows) < steps
    expected = (len(rows) / steps, tied, right, uniform, math.exp(surprise), math.exp(uniform_surprise))
    assert astuple(measured) == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_with_the_teacher_has_no_loss(setting: Setting) -> None:
    batch = setting.batch()
    logits = setting.reader().log_probs(batch) + 5.0
    term = DistillationTerm(setting.reader().log_probs, 3.0, False)
    assert term(Prediction(logits, torch.zeros(0)), batch).item() == pytest.approx(0.0, abs=1e-6)


def test_a_batch_without_anything_to_learn_has_a_loss_of_zero_and_finite_gradients(setting: Setting) -> None:
    batch = setting.batch()
    logits = torch.zeros(len(batch.candidate_road_id), requires_grad=True)
    term = DistillationTerm(lambda b: torch.full_like(b.metric_angle, math.nan), 2.0, False)
    loss = term(Prediction(logits, torch.zeros(0)), batch)
    loss.backward()
    assert loss.item() == 0.0
    assert (logits.grad == 0).all()


def test_steps_unknown_to_the_teacher_do_not_spoil_the_gradients_of_the_others(setting: Setting) -> None:
    batch = setting.batch()
    torch.manual_seed(2)
    values = setting.reader().log_probs(batch)
    unknown = batch.step_of_candidate % 3 == 0
    logits = torch.randn(len(values), requires_grad=True)
    term = DistillationTerm(lambda _: torch.where(unknown, math.nan, values), 2.0, False)
    term(Prediction(logits, torch.zeros(0)), batch).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_teacher_answers_in_full_precision_whatever_the_students(setting: Setting, dtype: torch.dtype) -> None:
    batch = setting.batch()
    expected = setting.reader().log_probs(batch)
    with torch.autocast("cpu", dtype):
        assert torch.equal(setting.reader().log_probs(batch), expected)


# The cache -----------------------------------------------------------------------------------------------------


class CountingReader(TeacherReader):
    """Counts the windows that the teacher is asked about; gives up after `limit` of them."""

    asked = 0
    limit = 10**9

    def log_probs_after(self, windows: Tensor, *questions: Any) -> Tensor:
        CountingReader.asked += len(windows)
        if CountingReader.asked > self.limit:
            raise KeyboardInterrupt
        return super().log_probs_after(windows, *questions)


@pytest.fixture
def counting(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> CountingReader:
    monkeypatch.setattr(score_cache, "WINDOWS_PER_PART", 32)
    monkeypatch.setattr(CountingReader, "asked", 0)
    return CountingReader(setting.teacher, setting.tokens, 4)


def windows_with_a_choice(setting: Setting, tokens: Tensor, window: int) -> set[tuple[int, ...]]:
    """The ends of SOT + cells of the trips at the steps that have two candidates or more, all of known cells."""
    windows, offset = set(), setting.city.trips("train").offset
    network, roads = setting.city.network, setting.city.trips("train").road_id
    for first, last in itertools.pairwise(offset.tolist()):
        for step in range(first, last - 1):
            seen = (setting.teacher.sot, *tokens[roads[first : step + 1]].tolist())[-window:]
            successors = network.reach_road[slice(*network.reach_ptr[roads[step] : roads[step] + 2])]
            if len(successors) > 1 and min(*seen, *tokens[successors].tolist()) >= 0:
                windows.add(seen)
    return windows


@pytest.mark.parametrize("window", [1, 4, 7, 16])
def test_the_teacher_reads_each_window_of_a_split_once(setting: Setting, window: int, tmp_path: Path) -> None:
    tokens = torch.where(torch.arange(len(setting.tokens)) == 9, -1, setting.tokens)
    seen: list[tuple[int, ...]] = []
    handle = setting.teacher.model.transformer["wte"].register_forward_pre_hook(
        lambda _, inputs: seen.extend(map(tuple, inputs[0].tolist()))
    )
    cached = cached_log_probs(TeacherReader(setting.teacher, tokens, window), setting.loader, tmp_path, "key")
    handle.remove()
    assert len(seen) == len(set(seen))
    assert set(seen) == windows_with_a_choice(setting, tokens, window)
    for batch in setting.loader.in_order():
        fresh = TeacherReader(setting.teacher, tokens, window).log_probs(batch)
        torch.testing.assert_close(cached(batch), fresh, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_a_teacher_that_knows_no_window_is_not_asked(
    setting: Setting, counting: CountingReader, tmp_path: Path
) -> None:
    reader = CountingReader(setting.teacher, torch.full_like(setting.tokens, -1), 4)
    assert cached_log_probs(reader, setting.loader, tmp_path, "key").values.isnan().all()
    assert counting.asked == 0


def test_long_work_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    report = ProgressReport("scoring", total=1000, done=400)
    handler = logger.add(lines.append, format="{message}")
    for clock[0] in (30.0, 61.0, 90.0, 125.0):
        report.update(100)
    logger.remove(handler)
    assert lines == ["scoring: 60%, 02:02 left\n", "scoring: 80%, 01:02 left\n"]


def test_cached_values_are_the_readers_but_for_rounding(
    setting: Setting, counting: CountingReader, tmp_path: Path
) -> None:
    cached = cached_log_probs(counting, setting.loader, tmp_path, "key")
    for batch in setting.loader.shuffled(0, 0):
        fresh = setting.reader(4).log_probs(batch)
        torch.testing.assert_close(cached(batch), fresh, rtol=1e-3, atol=1e-3)
    assert counting.asked == len(windows_with_a_choice(setting, setting.tokens, 4))
    assert [path.name for path in tmp_path.glob("*.pt")] == ["teacher-key.pt"]


def test_a_second_use_does_not_ask_the_teacher(setting: Setting, counting: CountingReader, tmp_path: Path) -> None:
    first = cached_log_probs(counting, setting.loader, tmp_path, "key")
    CountingReader.asked = 0
    second = cached_log_probs(counting, setting.loader, tmp_path, "key")
    assert counting.asked == 0
    assert torch.equal(first.values, second.values)


def test_an_interrupted_cache_goes_on_with_its_finished_parts(
    setting: Setting, counting: CountingReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingReader, "limit", 70)  # in a later part of 32
    with pytest.raises(KeyboardInterrupt):
        cached_log_probs(counting, setting.loader, tmp_path, "key")
    parts = list((tmp_path / "teacher-key.parts").glob("windows-*.pt"))
    monkeypatch.setattr(CountingReader, "limit", 10**9)
    CountingReader.asked = 0
    cached = cached_log_probs(counting, setting.loader, tmp_path, "key")
    finished = 32 * len(parts)
    assert parts and counting.asked == len(windows_with_a_choice(setting, setting.tokens, 4)) - finished
    whole = cached_log_probs(counting, setting.loader, tmp_path / "whole", "key")
    assert torch.equal(cached.values, whole.values)


def test_a_damaged_cache_is_made_anew(setting: Setting, counting: CountingReader, tmp_path: Path) -> None:
    expected = cached_log_probs(counting, setting.loader, tmp_path, "key").values.clone()
    path = tmp_path / "teacher-key.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert torch.equal(cached_log_probs(counting, setting.loader, tmp_path, "key").values, expected)
    assert counting.asked == 2 * len(windows_with_a_choice(setting, setting.tokens, 4))


def test_the_cache_belongs_to_teacher_data_grid_and_window_only(setting: Setting, tmp_path: Path) -> None:
    weights = setting.folder / TEACHER
    key = cache_key(weights, setting.loader, setting.tokens, 4)
    other = tmp_path / "other.pt"
    model = LMTAD(setting.teacher.model.config)
    save_teacher(other, model, setting.teacher.grid)
    copy = tmp_path / "copy.pt"
    shutil.copy(weights, copy)
    trips = setting.city.trips("val")
    val = BatchLoader(trips, setting.loader.tables, setting.loader.statistics, 40)
    assert cache_key(copy, setting.loader, setting.tokens, 4) == key
    changed = [
        cache_key(other, setting.loader, setting.tokens, 4),
        cache_key(weights, val, setting.tokens, 4),
        cache_key(weights, setting.loader, setting.tokens.roll(1), 4),
        cache_key(weights, setting.loader, setting.tokens, 5),
    ]
    assert len({key, *changed}) == 5


def test_runs_of_another_lambda_or_temperature_share_the_cache_and_those_without_it_learn_the_same(
    setting: Setting, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(setting.folder, folder)

    def kl_curve(override: str) -> list[tuple[int, float]]:
        shutil.rmtree(folder / "save" / "Mini" / "seed0_distill", ignore_errors=True)
        arguments = ["--set", f"distill.{override}", "--set", "optimizer_config.max_epoch=1"]
        done = run(mini("train_with_distill.py", *arguments), folder)
        assert done.returncode == 0, done.stderr
        return scalars(folder / "tensorboard_log" / "Mini" / "seed0_distill")["loss_kl"]

    cached = kl_curve("cache=true")
    kl_curve("lambda=0.5")
    kl_curve("temperature=5.0")
    caches = list((folder / "data" / "Mini" / ".cache").glob("teacher-*.pt"))
    assert len(caches) == 2  # of train and of val
    for cache in caches:
        cache.unlink()
    for (step, a), (other_step, b) in zip(cached, kl_curve("cache=false"), strict=True):
        assert step == other_step
        assert a == pytest.approx(b, rel=2e-3)
    assert not any(cache.exists() for cache in caches)


def test_a_cache_whose_process_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    arguments = ["--name", "Town", "--roads", "300", "--trips", "4000", "--seed", "1"]
    assert run(["tools/make_city.py", *arguments], tmp_path).returncode == 0
    make_mini_project(tmp_path)
    city = load_city("Town", load_config("Mini", tmp_path / "Mini.yaml"), tmp_path / "data" / "Town")
    grid = make_grid(city.network, 0.001, 1)
    model = LMTAD(LMTADConfig(block_size=16, vocab_size=grid.num_cells + 3, n_layer=4, n_head=2, n_embd=128))
    save_teacher(tmp_path / "save" / "Town" / "teacher" / "weights.pt", model, (grid.rows, grid.columns))
    command = ["train_with_distill.py", "--dataset", "Town", "--config", "Mini.yaml"]
    command += ["--set", "optimizer_config.max_epoch=1", "--set", "distill.window=12"]
    cache = tmp_path / "data" / "Town" / ".cache"
    with Script(command, tmp_path) as training:
        training.wait_until(lambda: list(cache.glob("teacher-*.parts/*.pt")))
        training.kill()
    (part, *_) = sorted(cache.glob("teacher-*.parts/*.pt"))
    made = part.stat().st_mtime_ns
    with Script(command, tmp_path) as training:
        while not list(cache.glob("teacher-*.pt")):
            assert training.returncode is None
            if part.exists():
                assert part.stat().st_mtime_ns == made
            time.sleep(0.001)
        training.kill()
    (whole,) = cache.glob("teacher-*.pt")
    values = torch.load(whole)["log_probs"]
    trips = city.trips("train")
    loader = BatchLoader(trips, RoadTables.from_network(city.network), TimeStatistics.from_trips(trips), 50)
    assert values.shape == (loader.num_candidates,)
    assert values.isfinite().all()


# The grid ------------------------------------------------------------------------------------------------------


def network_with(center: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> RoadNetwork:
    empty = np.zeros(0)
    fields = dict.fromkeys(RoadNetwork.__dataclass_fields__, empty)
    return RoadNetwork(**{**fields, "center": center, "bounds": np.array([low, high])})


def test_cells_count_by_rows_of_latitude_from_the_minimum_corner() -> None:
    center = np.array([[10.0005, 50.0005], [10.0025, 50.0005], [10.0005, 50.0015], [10.003, 50.002]])
    grid = make_grid(network_with(center, (10.0, 50.0), (10.0035, 50.0025)), 0.001, 1)
    assert (grid.rows, grid.columns) == (3, 4)
    assert grid.cell.tolist() == [0, 2, 4, 2 * 4 + 3]


def test_downsampling_joins_cells_in_both_directions() -> None:
    center = np.array([[10.0005, 50.0005], [10.0025, 50.0005], [10.0035, 50.0025]])
    grid = make_grid(network_with(center, (10.0, 50.0), (10.0039, 50.0039)), 0.001, 2)
    assert (grid.rows, grid.columns) == (2, 2)
    assert grid.cell.tolist() == [0, 1, 3]


def test_the_description_counts_cells_and_names_the_fullest() -> None:
    grid = Grid(rows=2, columns=5, cell=np.array([3, 3, 3, 7]))
    text = "grid of 2 x 5 cells: 2 hold roads (20.0%), 2.0 roads each on average, 3 in the fullest (cell 3)"
    assert describe_grid(grid) == text


def test_a_teacher_of_another_grid_is_refused_with_both_sizes(setting: Setting) -> None:
    train = setting.loader
    distill = replace(setting.config.distill, teacher=str(setting.folder / TEACHER), grid_size=0.002)
    other = make_grid(setting.city.network, 0.002, 1)
    with pytest.raises(UserError) as caught:
        load_distillation(distill, "Mini", setting.city, {"train": train, "val": train})
    assert f"trained on a grid of {setting.grid.rows} x {setting.grid.columns} cells" in str(caught.value)
    assert f"make {other.rows} x {other.columns} of this city" in str(caught.value)


def test_a_window_longer_than_the_teacher_reads_is_refused(setting: Setting) -> None:
    distill = replace(setting.config.distill, teacher=str(setting.folder / TEACHER), window=17)
    with pytest.raises(UserError, match=r"distill\.window: found 17, expected at most 16"):
        load_distillation(distill, "Mini", setting.city, {"train": setting.loader, "val": setting.loader})


def test_a_vocabulary_gives_tokens_and_cells_without_one_have_none(setting: Setting) -> None:
    cells = np.unique(setting.grid.cell)
    known = cells[1:]
    vocab = {str(cell): i for i, cell in enumerate(known)} | {
        name: len(known) + i for i, name in enumerate(("PAD", "EOT", "SOT"))
    }
    model = LMTAD(LMTADConfig(16, len(vocab), 1, 1, 8))
    path = setting.folder / "vocab.pt"
    save_teacher(path, model, (setting.grid.rows, setting.grid.columns), vocab)
    tokens = tokens_of_roads(load_teacher(path), cell_tokens(setting.grid), setting.city.network, path)
    for cell, token in zip(setting.grid.cell.tolist(), tokens.tolist(), strict=True):
        assert token == vocab.get(str(cell), -1)
