"""Teachers that read roads in place of cells, that know the destination, that have seen other trips; what they can."""

import itertools
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import error_of
from scripts import MINI_CITY, Script, make_mini_project, make_mini_teacher, mini, run
from torch import Tensor

from models.batch import Batch
from models.lmtad import LMTAD, LMTADConfig
from tools.export_lmtad_weights import describe
from tools.train_teacher import main as train_teacher_main
from utils.config import Config, load_config
from utils.config_sections import DistillConfig
from utils.data.dataset import City, load_city
from utils.data.loader import BatchLoader, RoadTables
from utils.data.overlap import count_shared
from utils.data.road_network import RoadNetwork
from utils.data.trips import TimeStatistics
from utils.distillation.kl_loss import TeacherMetrics, judge_teacher, load_teacher_reader
from utils.distillation.score_cache import cache_key, cached_log_probs
from utils.distillation.teacher_file import export_checkpoint, load_teacher, save_teacher
from utils.distillation.teacher_scores import TeacherReader
from utils.distillation.teacher_training import IGNORED, TokenTrips, make_teacher, uniform_perplexity
from utils.distillation.tokens import NetworkKey, make_tokens
from utils.files.tensor_files import save_tensors
from utils.search.preflight import check_data_and_teachers
from utils.search.space import SearchSpace

KINDS = [("cells", False), ("cells", True), ("roads", False), ("roads", True)]
BLOCK_SIZE = 16
SMALL = ["n_layer=1", "n_head=1", "n_embd=16", "block_size=24", "batch_size=40", "max_epoch=2", "learning_rate=0.003"]
OPTIONS = [option for setting in SMALL for option in ("--set", f"teacher.{setting}")]
KNOWING = ["--set", "teacher.tokens=roads", "--set", "teacher.destination=true"]
COMMAND = mini("tools/train_teacher.py", "--seed", "42", "--cuda", "0", *OPTIONS, *KNOWING)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    folder = make_mini_project(tmp_path_factory.mktemp("city"))
    return load_city("Mini", load_config("Mini", folder / "Mini.yaml"), folder / "data" / "Mini")


@pytest.fixture(scope="module")
def loader(city: City) -> BatchLoader:
    trips = city.trips("train")
    return BatchLoader(trips, RoadTables.from_network(city.network), TimeStatistics.from_trips(trips), 40)


def records_of(kind: str, destination: bool, network: RoadNetwork) -> dict[str, Any]:
    own = {"network": asdict(NetworkKey.from_network(network))} if kind == "roads" else {}
    return {"tokens": kind, "destination": destination, **own}


def write_teacher(path: Path, city: City, kind: str, destination: bool) -> Path:
    """A teacher with random weights, and opinions strong enough to see."""
    tokens = make_tokens(kind, city.network, DistillConfig())
    torch.manual_seed(3)
    model = LMTAD(LMTADConfig(BLOCK_SIZE, tokens.count + 3, n_layer=2, n_head=2, n_embd=16))
    for parameter in model.parameters():
        parameter.data.mul_(5.0)
    grid = (tokens.grid.rows, tokens.grid.columns) if tokens.grid else None
    save_teacher(path, model, grid, records=records_of(kind, destination, city.network))
    return path


def reader_of(path: Path, city: City, window: int = 4) -> TeacherReader:
    distill = DistillConfig(teacher=str(path), window=window)
    return load_teacher_reader(distill, "Mini", city, torch.device("cpu"))[0]


# What a teacher reads ------------------------------------------------------------------------------------------


def plain_window(reader: TeacherReader, batch: Batch, step: int) -> list[int]:
    """SOT and the roads so far, cut to the window; the destination stands before them."""
    trip = int(batch.trip_of_step[step])
    start = int(batch.trip_len[:trip].sum())
    window = [reader.teacher.sot, *reader.token_of_road[batch.road_id[start : step + 1]].tolist()][-reader.window :]
    destination = int(reader.token_of_road[batch.destination_road_id[trip]])
    return [destination, *window] if reader.teacher.destination else window


def plain_log_probs(reader: TeacherReader, batch: Batch) -> Tensor:
    """The teacher's full distribution at each step, one step at a time, restricted to the candidates."""
    values = torch.empty(len(batch.step_of_candidate))
    for step in range(len(batch.road_id)):
        probs = reader.teacher.model(torch.tensor([plain_window(reader, batch, step)]))[0, -1].double().softmax(dim=0)
        own = batch.step_of_candidate == step
        chosen = probs[reader.token_of_road[batch.candidate_road_id[own]]]
        values[own] = (chosen / chosen.sum()).log().float()
    return values


@pytest.mark.parametrize(("kind", "destination"), KINDS)
@pytest.mark.parametrize("window", [1, 4, 15])
def test_the_destination_stands_before_every_window(
    kind: str, destination: bool, window: int, city: City, loader: BatchLoader, tmp_path: Path
) -> None:
    reader = reader_of(write_teacher(tmp_path / "t.pt", city, kind, destination), city, window)
    seen: set[tuple[int, ...]] = set()
    reader.teacher.model.transformer["wte"].register_forward_pre_hook(
        lambda _, inputs: seen.update(map(tuple, inputs[0].tolist()))
    )
    batch = loader.batch(np.arange(12))
    ours = reader.log_probs(batch)
    assert seen == {tuple(plain_window(reader, batch, step)) for step in range(len(batch.road_id))}
    torch.testing.assert_close(ours, plain_log_probs(reader, batch), rtol=1e-4, atol=1e-4)


def test_a_token_of_each_road_leaves_no_candidates_that_share_one(city: City, tmp_path: Path) -> None:
    roads = reader_of(write_teacher(tmp_path / "roads.pt", city, "roads", False), city)
    cells = reader_of(write_teacher(tmp_path / "cells.pt", city, "cells", False), city)
    assert roads.token_of_road.tolist() == list(range(city.network.num_roads))
    assert len(cells.token_of_road.unique()) < city.network.num_roads


def test_a_step_to_a_destination_that_the_teacher_does_not_know_is_left_out(
    city: City, loader: BatchLoader, tmp_path: Path
) -> None:
    reader = reader_of(write_teacher(tmp_path / "t.pt", city, "roads", True), city, 1)
    batch = loader.batch(np.arange(12))
    place = int(batch.destination_road_id[0])
    tokens = reader.token_of_road.clone()
    tokens[place] = -1
    values = TeacherReader(reader.teacher, tokens, 1).log_probs(batch)
    for step in range(len(batch.road_id)):
        own = batch.step_of_candidate == step
        involved = [batch.destination_road_id[batch.trip_of_step[step]], batch.road_id[step]]
        is_known = place not in [*map(int, involved), *batch.candidate_road_id[own].tolist()]
        assert values[own].isfinite().all() if is_known else values[own].isnan().all()


def test_the_window_leaves_room_for_the_destination(city: City, tmp_path: Path) -> None:
    for destination, longest in ((False, BLOCK_SIZE), (True, BLOCK_SIZE - 1)):
        path = write_teacher(tmp_path / "t.pt", city, "roads", destination)
        assert reader_of(path, city, longest).window == longest
        error = error_of(reader_of, path, city, longest + 1)
        assert f"distill.window: found {longest + 1}, expected at most {longest} (block_size of" in error
        assert error.endswith("less one for the destination)") is destination


@pytest.mark.parametrize(("kind", "destination"), KINDS[1:])
def test_cached_scores_are_the_readers_and_those_of_this_teacher_only(
    kind: str, destination: bool, city: City, loader: BatchLoader, tmp_path: Path
) -> None:
    path = write_teacher(tmp_path / "t.pt", city, kind, destination)
    reader = reader_of(path, city)
    key = cache_key(path, loader, reader.token_of_road, 4)
    cached = cached_log_probs(reader, loader, tmp_path / "cache", key)
    for batch in itertools.islice(loader.shuffled(0, 0), 2):
        torch.testing.assert_close(cached(batch), reader.log_probs(batch), rtol=1e-3, atol=1e-3)
    other = write_teacher(tmp_path / "other.pt", city, kind, not destination)  # with the same weights
    assert cache_key(other, loader, reader.token_of_road, 4) != key


# What it is trained on -----------------------------------------------------------------------------------------


def token_trips(city: City, split: str, kind: str, destination: bool, block_size: int, batch_size: int) -> TokenTrips:
    tokens = make_tokens(kind, city.network, DistillConfig())
    return TokenTrips(city.trips(split), tokens, block_size, batch_size, torch.device("cpu"), destination)


@pytest.mark.parametrize(("kind", "destination"), KINDS)
def test_sequences_begin_with_the_destination_which_is_no_target(kind: str, destination: bool, city: City) -> None:
    trips, sequences = city.trips("val"), token_trips(city, "val", kind, destination, 64, 7)
    token = make_tokens(kind, city.network, DistillConfig()).token
    vocabulary, trip = sequences.vocabulary, 0
    for inputs, targets in sequences.whole():
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            roads = token[trips.road_id[trips.offset[trip] : trips.offset[trip + 1]]].tolist()
            lead = [roads[-1]] if destination else []
            padding = len(row) - len(roads) - 1 - len(lead)
            assert row == [*lead, vocabulary.sot, *roads] + [vocabulary.pad] * padding
            assert target == [IGNORED] * len(lead) + [*roads, vocabulary.eot] + [IGNORED] * padding
            trip += 1
    assert trip == len(trips)


def test_sequences_that_begin_within_a_trip_know_its_destination_too(city: City) -> None:
    trips, sequences = city.trips("train"), token_trips(city, "train", "roads", True, 5, 50)
    continuations = {}  # of the last road of a trip: the places within trips to it
    for first, last in itertools.pairwise(trips.offset):
        roads = [sequences.vocabulary.sot, *trips.road_id[first:last].tolist(), sequences.vocabulary.eot]
        slices = {tuple(roads[i : i + 4]) for i in range(len(roads) - 1)}
        continuations.setdefault(roads[-2], set()).update(slices)
    rows = [row for batch, _ in sequences.shuffled(0, 0) for row in batch.tolist()]
    assert len(rows) == len(trips)
    assert 0.3 < sum(row[1] == sequences.vocabulary.sot for row in rows) / len(rows) < 0.9
    for destination, *rest in rows:
        begin = tuple(token for token in rest if token != sequences.vocabulary.pad)
        assert len(begin) <= 4
        assert any(known[: len(begin)] == begin for known in continuations[destination])


@pytest.mark.parametrize(("kind", "destination"), KINDS)
def test_a_teacher_and_its_guess_count_the_same_tokens(kind: str, destination: bool, city: City) -> None:
    """A uniform guess over all successors, token by token; sequences are cut to blocks of 9."""
    sequences = token_trips(city, "val", kind, destination, 9, 7)
    tokens = make_tokens(kind, city.network, DistillConfig())
    network, trips, logs = city.network, city.trips("val"), []
    for first, last in itertools.pairwise(trips.offset):
        roads = trips.road_id[first:last].tolist()
        probabilities = [(tokens.token == tokens.token[roads[0]]).sum() / network.num_roads]
        for here, following in zip(roads, [*roads[1:], None], strict=True):
            successors = network.reach_road[network.reach_ptr[here] : network.reach_ptr[here + 1]]
            same = 1 if following is None else (tokens.token[successors] == tokens.token[following]).sum()
            probabilities.append(same / (len(successors) + 1))
        logs += np.log(probabilities[: 8 if destination else 9]).tolist()
    assert len(logs) == sum(int((targets != IGNORED).sum()) for _, targets in sequences.whole())
    uniform = uniform_perplexity(trips, network, tokens, sequences.longest)
    assert uniform == pytest.approx(math.exp(-np.mean(logs)), rel=1e-6)


def test_a_teacher_of_roads_has_a_token_for_each_and_three_more(city: City) -> None:
    config = replace(load_config("Demo").teacher, tokens="roads")
    model = make_teacher(config, make_tokens("roads", city.network, DistillConfig()), torch.device("cpu"))
    assert model.config.vocab_size == city.network.num_roads + 3


# Its file ------------------------------------------------------------------------------------------------------


def test_a_file_that_says_nothing_is_of_cells_without_the_destination(city: City, tmp_path: Path) -> None:
    """As all were that the version before wrote, and public ones are."""
    path = make_mini_teacher(make_mini_project(tmp_path)) / "save" / "Mini" / "teacher" / "weights.pt"
    assert not {"tokens", "destination"} & set(torch.load(path))
    teacher = load_teacher(path)
    assert (teacher.tokens, teacher.destination, teacher.network, teacher.trips) == ("cells", False, None, None)


def test_an_export_keeps_what_the_file_says(city: City, tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "t.pt", city, "roads", True)
    content = export_checkpoint(path)
    save_tensors(content, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()
    assert describe(content).endswith("token = road, destination first")


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "kind": (lambda c: c.update(tokens="streets"), "tokens: found 'streets', expected 'cells' or 'roads'"),
    "destination": (lambda c: c.update(destination=1), "destination: found '1', expected true or false"),
    "no network": (lambda c: c.pop("network"), "network: is missing, but tokens are roads"),
    "network": (lambda c: c["network"].update(roads="121"), "network: found"),
    "too many roads": (lambda c: c["network"].update(roads=124), "124 roads and special tokens from 123 do not fit"),
    "grid": (lambda c: c.update(grid=(11, 11)), "grid: expected none, since tokens are roads"),
    "trips": (lambda c: c.update(trips={"file": 3}), "trips: found"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_record_is_explained(case: str, city: City, workplace: Path) -> None:
    content = torch.load(write_teacher(Path("t.pt"), city, "roads", True))
    change, expected = WRONG[case]
    change(content)
    torch.save(content, "t.pt")
    message = error_of(load_teacher, Path("t.pt"))
    assert message.startswith("t.pt: ") and expected in message


def test_a_teacher_of_roads_is_of_one_road_network(city: City, tmp_path: Path, messages: list[str]) -> None:
    path = write_teacher(tmp_path / "t.pt", city, "roads", False)

    def read_with(**changes: np.ndarray) -> str:
        messages.clear()
        reader_of(path, replace(city, network=replace(city.network, **changes)))
        return " ".join(messages)

    moved = city.network.center + 0.01
    relations = city.network.reach_road.copy()
    relations[:2] = relations[:2][::-1]
    assert "is not the one" not in read_with()
    # Who edits one of the files has the same roads still.
    assert "roadmap.rel is not the one that the teacher" in read_with(reach_road=relations)
    assert "roadmap.geo is not the one that the teacher" in read_with(center=moved)
    assert "121 roads that it was trained on, and this city has as many, but other ones" in error_of(
        lambda: read_with(center=moved, reach_road=relations)
    )
    fewer = {"center": moved[:100], "reach_ptr": city.network.reach_ptr[:101]}
    assert "121 roads that it was trained on, and this city has 100; " in error_of(lambda: read_with(**fewer))


def test_a_search_compares_its_windows_with_the_room_beside_the_destination(city: City, tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "t.pt", city, "roads", True)

    def check(windows: str) -> None:
        def load(more: Sequence[str] = ()) -> Config:
            searched = f"optuna.search_space={{distill.window: {{choices: {windows}}}}}"
            return load_config(
                "Mini", city.folder.parents[1] / "Mini.yaml", [f"distill.teacher={path}", searched, *more]
            )

        config = load()
        check_data_and_teachers("Mini", str(city.folder), config, SearchSpace(config, load))

    check("[4, 15]")
    assert error_of(check, "[4, 16]").startswith("distill.window: up to 16, expected at most 15 (block_size of ")


# Training it, and learning from it -----------------------------------------------------------------------------


def test_trips_that_are_among_others_are_counted(city: City) -> None:
    train, val = city.trips("train"), city.trips("val")
    assert count_shared(val, val) == len(val)
    assert count_shared(val, train) == 0
    half = val.select(np.arange(len(val)) % 2 == 0)
    assert count_shared(val, half) == len(half)
    later = replace(half, time_s=half.time_s + 60)
    assert count_shared(val, later) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher of more trips than train.csv has."""
    folder = make_mini_project(tmp_path_factory.mktemp("trained"))
    rows = (MINI_CITY / "train.csv").read_text().splitlines(keepends=True)
    (folder / "more.csv").write_text("".join(rows))
    (folder / "data" / "Mini" / "train.csv").write_text("".join(rows[:61]))
    done = run([*COMMAND, "--trips", "more.csv"], folder)
    assert done.returncode == 0, done.stderr
    assert "120 trips of more.csv, validated with 40" in done.stderr
    assert "says nothing of other trips" not in done.stderr
    return folder


def test_the_file_says_what_was_trained_and_on_what(trained: Path) -> None:
    content = torch.load(trained / "save" / "Mini" / "teacher" / "weights.pt")
    assert (content["tokens"], content["destination"]) == ("roads", True)
    assert (content["trips"]["file"], content["trips"]["number"], content["network"]["roads"]) == ("more.csv", 120, 121)
    assert "grid" not in content


def test_distillation_follows_the_file_and_says_what_the_teacher_is_worth(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    arguments = ["--set", "optimizer_config.max_epoch=2", "--set", "distill.grid_size=0.003"]
    done = run(mini("train_with_distill.py", *arguments), folder)
    assert done.returncode == 0, done.stderr
    assert "tokens are roads, with the destination, trained on 120 trips of more.csv" in done.stderr
    lines = done.stderr.splitlines()
    [begin] = [i for i, line in enumerate(lines) if line.startswith("without learning, on val: smallest angle")]
    [introduced] = [i for i, line in enumerate(lines) if line.startswith("the teacher, on val (40 trips): next-road")]
    [ended] = [i for i, line in enumerate(lines) if line.startswith("this teacher could not help: its next-road")]
    assert begin < introduced < lines.index(next(line for line in lines if "| epoch 1/2" in line)) < ended
    assert "it knows the tokens of 100.0% of the steps; at 0.0% of them candidates share a token" in done.stderr


def test_a_killed_training_resumes_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    weights = folder / "save" / "Mini" / "teacher" / "weights.pt"
    expected = weights.read_bytes()
    shutil.rmtree(folder / "save")
    command = [*COMMAND, "--trips", "more.csv"]
    with Script(command, folder) as training:
        training.wait_until(weights.exists)
        training.kill()
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    assert weights.read_bytes() == expected


def test_another_kind_and_other_trips_are_another_training(trained: Path, tmp_path: Path) -> None:
    """Which are told, and set the one before aside."""
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    one_epoch = ["--set", "teacher.max_epoch=1"]
    for arguments, told in (
        ([], "trips=more.csv vs Mini/train.csv)"),
        (["--set", "teacher.destination=false"], "(destination=True vs False)"),
        (["--set", "teacher.destination=false", "--set", "teacher.tokens=cells"], "tokens=roads vs cells)"),
    ):
        done = run([*COMMAND, *arguments, *one_epoch], folder)
        assert done.returncode == 0, done.stderr
        [line] = [line for line in done.stderr.splitlines() if "Checkpoint mismatch" in line]
        assert line.endswith(told)
    assert len(list((folder / "save" / "Mini" / "teacher").glob("weights.earlier-*.pt"))) == 3


def test_trips_that_it_will_be_judged_by_are_told_and_a_wrong_file_is_an_error(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    monkeypatch.chdir(folder)

    def error_with(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [*COMMAND, *arguments])
        return error_of(train_teacher_main)

    assert error_with("--trips", "absent.csv").startswith("absent.csv: ")
    Path("other.csv").write_text('rid_list,time_list\n"0,999","2015-11-05T08:01:14Z,2015-11-05T08:01:20Z"\n')
    error = error_with("--trips", "other.csv")
    assert error.startswith("other.csv, line 2: ") and "found road 999, expected ids from 0 to 120" in error
    messages.clear()
    assert error_with("--trips", "data/Mini/test.csv", "--set", "teacher.n_head=5").startswith("teacher: n_head")
    said = [message for message in messages if "says nothing of other trips" in message]
    assert [message.split(":")[0] for message in said] == ["data/Mini/test.csv has 30 of the 30 trips of test.csv"]


def test_only_a_teacher_that_is_weaker_than_its_student_could_not_help(messages: list[str]) -> None:
    metrics = TeacherMetrics(1.0, 0.1, 0.9, 0.4, 1.5, 2.5)
    for teacher, best in ((metrics, 0.9), (metrics, 0.8), (None, 1.0)):
        judge_teacher(teacher, best)
    assert messages == []
    judge_teacher(metrics, 0.95)
    [message] = messages
    assert message.startswith(
        "this teacher could not help: its next-road accuracy on val, 0.9000, is below the student's best, 0.9500"
    )
