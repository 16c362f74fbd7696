"""`tools/generate.py`: the files that it writes, and that nothing is lost of what it did."""

import contextlib
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import append_line, contents, write_lines
from scripts import Script, make_mini_project, mini, run

from utils.config import load_config
from utils.data.dataset import load_city
from utils.generation.trip_files import COLUMNS, read_rows

FILES = {"trips.csv", "short.csv", "generation.json"}


def generate(*arguments: str) -> list[str]:
    return mini("tools/generate.py", "--cuda", "-1", "--checkpoint", "save/Mini/seed0/best.pth", *arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model."""
    folder = make_mini_project(tmp_path_factory.mktemp("generate"))
    done = run(mini("train.py", "--cuda", "-1", "--set", "optimizer_config.max_epoch=1"), folder)
    assert done.returncode == 0, done.stderr
    for path in folder.glob("save/Mini/seed0/epoch_*.pth"):
        path.unlink()
    return folder


@pytest.fixture
def trained(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(template, tmp_path / "project"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_trip_for_each_test_trip_in_every_format(trained: Path) -> None:
    from matplotlib.image import imread

    done = run(generate("--geojson", "--map", "--public_csv"), trained)
    assert done.returncode == 0, done.stderr
    folder = trained / "save" / "Mini" / "seed0" / "generated"
    assert {path.name for path in folder.iterdir()} == FILES | {"trips.geojson", "map.png", "public.csv", ".lock"}
    assert done.stdout.startswith("save/Mini/seed0/generated/trips.csv: 30 trips of 30 queries (search), ")

    test = rows(trained / "data" / "Mini" / "test.csv")
    made = rows(folder / "trips.csv")
    assert tuple(made[0]) == COLUMNS
    assert len(made) + len(rows(folder / "short.csv")) == len(test) == 30
    for row in made:
        real = test[int(row["source_row"])]
        real_roads = real["rid_list"].strip("[]").replace(" ", "").split(",")
        assert (row["origin"], row["destination"]) == (real_roads[0], real_roads[-1])
        assert row["rid_list"].split(",")[0] == row["origin"]
        assert (row["rid_list"].split(",")[-1] == row["destination"]) == (row["status"] == "reached")
        assert (
            row["time_list"].split(",")[0] == row["start_time"] == real["time_list"].strip("[]").split(",")[0].strip()
        )
        assert row["time_list"].count(",") == row["rid_list"].count(",")

    record = json.loads((folder / "generation.json").read_text())
    assert record["identity"]["method"] == "search" and record["identity"]["checkpoint"]
    assert record["summary"]["by_status"] == {"reached": 30}
    assert record["summary"]["expansions"]["max"] == max(int(row["expansions"]) for row in made)
    assert record["trips_per_s"] > 0

    public = rows(folder / "public.csv")
    assert tuple(public[0]) == ("gene_trace_road_id", "gene_trace_datetime")
    assert json.loads(public[0]["gene_trace_road_id"]) == [int(road) for road in made[0]["rid_list"].split(",")]

    check_geojson(json.loads((folder / "trips.geojson").read_text()), made, trained)
    picture = imread(folder / "map.png")
    assert picture.shape[0] > 400 and picture.std() > 0.05


def check_geojson(collection: dict, made: list[dict[str, str]], project: Path) -> None:
    """RFC 7946, and along the roads."""
    assert set(collection) == {"type", "features"}  # no `crs`, which the RFC has removed
    assert collection["type"] == "FeatureCollection" and len(collection["features"]) == len(made)
    geo = [json.loads(row["coordinates"]) for row in rows(project / "data" / "Mini" / "roadmap.geo")]
    for feature, row in zip(collection["features"], made, strict=True):
        assert set(feature) == {"type", "geometry", "properties"} and feature["type"] == "Feature"
        line = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "LineString" and len(line) >= 2
        assert all(-180 <= lon <= 180 and -90 <= lat <= 90 for lon, lat in line)
        roads = [int(road) for road in row["rid_list"].split(",")]
        points = [point for road in roads for point in geo[road]]
        assert [line[0], line[-1]] == [points[0], points[-1]]
        assert {tuple(point) for point in points} == {tuple(point) for point in line}
        assert feature["properties"]["status"] == row["status"]


def test_the_same_command_again_generates_nothing_and_others_go_beside(trained: Path) -> None:
    assert run(generate(), trained).returncode == 0
    folder = trained / "save" / "Mini" / "seed0" / "generated"
    before = contents(folder)
    again = run(generate("--public_csv"), trained)
    assert again.returncode == 0 and "all trips are there" in again.stderr
    after = contents(folder)
    assert len(rows(folder / "public.csv")) == 30
    assert {name: after[name] for name in before} == before

    other = run(generate("--max_expansions", "20", "--seed", "0"), trained)
    beside = folder.with_name("generated-2")
    assert "save/Mini/seed0/generated: has trips that differ in max_expansions; it stays as it is" in other.stderr
    assert {row["status"] for row in rows(beside / "trips.csv")} == {"reached", "limit"}
    assert "save/Mini/seed0/generated-2/trips.csv: 30 trips" in other.stdout

    greedy = ("--method", "greedy", "--number", "2", "--out", "greedy")
    assert run(generate(*greedy), trained).returncode == 0
    unread = run(generate(*greedy, "--temperature", "2"), trained)  # an option of `sample`
    assert "--temperature has no effect: --method greedy draws nothing" in unread.stderr
    assert "greedy: all trips are there" in unread.stderr

    weights = torch.load(trained / "save" / "Mini" / "seed0" / "best.pth")
    weights["navigator.v_proj.weight"].neg_()
    torch.save(weights, trained / "save" / "Mini" / "seed0" / "best.pth")
    changed = run(generate(), trained)
    assert "generated: has trips that differ in checkpoint; it stays" in changed.stderr
    assert (folder.with_name("generated-3") / "trips.csv").exists()
    assert contents(folder) == after
    # A folder with files that are not ours is not written to either.
    (trained / "mine").mkdir()
    (trained / "mine" / "trips.csv").write_text("of my own")
    foreign = run(generate("--out", "mine"), trained)
    assert foreign.returncode == 0 and "mine: has files that another program wrote" in foreign.stderr
    assert (trained / "mine" / "trips.csv").read_text() == "of my own" and (trained / "mine-2" / "trips.csv").exists()


def test_a_killed_run_is_resumed_to_the_same_bytes(trained: Path) -> None:
    command = generate("--queries", "train-od", "--number", "700", "--max_expansions", "100", "--times", "sampled")
    assert run([*command, "--out", "whole"], trained).returncode == 0
    parts = trained / "cut" / ".parts"
    for blocks in (1, 2):
        with Script([*command, "--out", "cut"], trained) as script:
            script.wait_until(lambda blocks=blocks: len(list(parts.glob("[0-9]*.csv"))) >= blocks)
            script.kill()
    damaged = parts / "000000000.csv"
    damaged.write_bytes(damaged.read_bytes()[:-400])
    done = run([*command, "--out", "cut"], trained)
    assert done.returncode == 0, done.stderr
    assert "cut: 256 of 700 queries are done; the others follow" in done.stderr
    assert "damaged; its trips are generated again" in done.stderr
    for name in ("trips.csv", "short.csv"):
        assert (trained / "cut" / name).read_bytes() == (trained / "whole" / name).read_bytes()
    assert not parts.exists()


def test_an_unfinished_group_of_blocks_is_generated_again_to_the_same_bytes(trained: Path) -> None:
    command = generate("--queries", "train-od", "--number", "1100", "--max_expansions", "100", "--slots", "600")
    done = run([*command, "--out", "whole"], trained)
    assert done.returncode == 0, done.stderr
    parts = trained / "killed" / ".parts"
    with Script([*command, "--out", "killed"], trained) as script:
        script.wait_until(lambda: len(list(parts.glob("[0-9]*.csv"))) >= 2)
        script.kill()
    (parts / "000000256.csv").unlink()  # as if it had been killed between the two blocks of the first group
    resumed = run([*command, "--out", "killed"], trained)
    assert resumed.returncode == 0, resumed.stderr
    few = run([*command[:-1], "50", "--out", "few"], trained)
    assert few.returncode == 0, few.stderr
    names = ("trips.csv", "short.csv")
    whole, killed = ([(trained / out / name).read_bytes() for name in names] for out in ("whole", "killed"))
    assert killed == whole
    roads = [[row["rid_list"] for row in rows(trained / out / "trips.csv")] for out in ("whole", "few")]
    assert roads[0] == roads[1]


def test_a_signal_ends_it_with_one_line(trained: Path) -> None:
    import signal

    parts = trained / "save" / "Mini" / "seed0" / "generated" / ".parts"
    with Script(generate("--queries", "train-od", "--number", "3000"), trained) as script:
        script.wait_until(lambda: list(parts.glob("[0-9]*.csv")))
        script.send_signal(signal.SIGTERM)
        assert script.wait() == 143
        assert script.stderr.splitlines()[-1] == (
            "terminated: finished blocks are in save/Mini/seed0/generated; the same command resumes"
        )


def test_two_processes_in_one_folder(trained: Path) -> None:
    command = generate("--queries", "train-od", "--number", "3000")
    parts = trained / "save" / "Mini" / "seed0" / "generated" / ".parts"
    with Script(command, trained) as first:
        first.wait_until(lambda: list(parts.glob("[0-9]*.csv")))
        second = run(command, trained)
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1].startswith("error: save/Mini/seed0/generated: another process is working")


def test_several_processes_write_what_one_writes(trained: Path) -> None:
    command = generate("--queries", "train-od", "--number", "600")
    assert run([*command, "--out", "one"], trained).returncode == 0
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": store.host, "MASTER_PORT": str(store.port)}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                Script([*command, "--out", "two"], trained, environment=common | {"RANK": rank, "LOCAL_RANK": rank})
            )
            for rank in ("0", "1")
        ]
        assert [process.wait() for process in processes] == [0, 0], processes[0].stderr + processes[1].stderr
        assert processes[0].stdout and not processes[1].stdout
    assert (trained / "two" / "trips.csv").read_bytes() == (trained / "one" / "trips.csv").read_bytes()


def test_trips_that_miss_their_destination_do_not_train(trained: Path) -> None:
    done = run(generate("--queries", "train", "--max_expansions", "15", "--out", "made"), trained)
    assert done.returncode == 0, done.stderr
    made = trained / "data" / "Made"
    shutil.copytree(trained / "data" / "Mini", made, ignore=shutil.ignore_patterns(".cache"))
    shutil.copy(trained / "made" / "trips.csv", made / "train.csv")
    statuses = [row["status"] for row in rows(made / "train.csv")]
    missed = sum(status != "reached" for status in statuses)
    assert 0 < missed < len(statuses)
    (made / "zone_trans_mat.npy").unlink()
    train = ["train.py", "--dataset", "Made", "--config", "Mini.yaml", "--cuda", "-1"]
    done = run([*train, "--set", "optimizer_config.max_epoch=1"], trained)
    assert done.returncode == 0, done.stderr
    left_out = f"data/Made/train.csv: left out {missed} generated trips of {len(statuses)}, which do not reach"
    assert left_out in done.stderr

    everything = run([*train, "--set", "optimizer_config.max_epoch=1", "--set", "data.status=all"], trained)
    assert everything.returncode == 0 and "left out" not in everything.stderr

    config = load_config("Made", str(trained / "Mini.yaml"))
    city = load_city("Made", config, made)
    assert len(city.trips("train")) == len(statuses) - missed
    assert len(city.trips_of(made / "train.csv")) == len(statuses) - missed


def test_only_trips_that_reach_their_destination_on_request(trained: Path) -> None:
    done = run(generate("--max_expansions", "15", "--status", "reached", "--out", "x"), trained)
    assert done.returncode == 0
    reached, missed = rows(trained / "x" / "trips.csv"), rows(trained / "x" / "missed.csv")
    assert {row["status"] for row in reached} == {"reached"} and {row["status"] for row in missed} == {"limit"}
    assert len(reached) + len(missed) + len(rows(trained / "x" / "short.csv")) == 30
    again = run(generate("--max_expansions", "15", "--status", "reached", "--out", "x", "--public_csv"), trained)
    assert "all trips are there" in again.stderr
    assert [json.loads(row["gene_trace_road_id"])[0] for row in rows(trained / "x" / "public.csv")] == [
        row.origin for row in sorted(_all_rows(trained / "x"), key=lambda row: row.source_row)
    ]


def _all_rows(folder: Path) -> list:
    return [row for name in ("trips.csv", "missed.csv", "short.csv") for row in read_rows(folder / name)]


def test_own_queries_and_generated_trips_as_queries(trained: Path) -> None:
    lines = ["note,origin,destination,start_time", "a,12,66,2015-11-02T23:59:38Z", "b,4,4,2015-11-07 10:00:00+08:00"]
    write_lines(trained / "my.csv", *lines)
    done = run(generate("--queries", "my.csv", "--k", "3", "--out", "own", "--geojson", "--map"), trained)
    assert done.returncode == 0, done.stderr
    made = rows(trained / "own" / "trips.csv")
    assert [row["rank"] for row in made] == ["1", "2", "3"]
    assert len({row["rid_list"] for row in made}) == 3
    log_probs = [float(row["log_prob"]) for row in made]
    assert log_probs == sorted(log_probs, reverse=True)
    [short] = rows(trained / "own" / "short.csv")
    assert (short["rid_list"], short["time_list"], short["source_row"]) == ("4", "2015-11-07T10:00:00Z", "1")

    again = run(generate("--queries", "own/trips.csv", "--number", "1", "--out", "again"), trained)
    assert again.returncode == 0, again.stderr
    assert rows(trained / "again" / "trips.csv")[0]["rid_list"] == made[0]["rid_list"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("121,3,2015-11-02T10:00:00Z", "origin: found '121', expected a road id from 0 to 120"),
        ("3,-1,2015-11-02T10:00:00Z", "destination: found '-1', expected a road id from 0 to 120"),
        ("3,x,2015-11-02T10:00:00Z", "destination: found 'x', expected a road id from 0 to 120"),
        ("3,4,yesterday", "start_time: found 'yesterday', expected a time such as 2015-11-05T08:01:14Z"),
        ("3,4", "found 2 fields, expected 3"),
    ],
)
def test_bad_queries_are_named_by_line_or_skipped(line: str, reason: str, trained: Path) -> None:
    path = write_lines(trained / "q.csv", "origin,destination,start_time", "3,4,2015-11-02T10:00:00Z", line)
    append_line(path, "5,6,2015-11-02T10:00:00Z")
    done = run(generate("--queries", "q.csv", "--out", "bad"), trained)
    assert done.returncode == 1 and not (trained / "bad").exists()
    [error] = done.stderr.splitlines()[-1:]
    assert error.startswith("error: q.csv, line 3: ") and reason in error
    assert error.endswith("--set data.on_bad_trip=skip leaves such queries out")
    if "yesterday" in line:
        skipped = run(generate("--queries", "q.csv", "--out", "good", "--set", "data.on_bad_trip=skip"), trained)
        assert skipped.returncode == 0 and "q.csv: skipped 1 malformed query of 3 (line 3: query 2" in skipped.stderr
        sources = {row.source_row for row in _all_rows_of(trained / "good")}
        assert sources == {0, 2}


def _all_rows_of(folder: Path) -> list:
    return [row for name in ("trips.csv", "short.csv") for row in read_rows(folder / name)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "greedy", "--k", "2"], "--method greedy finds one trip a query"),
        (["--queries", "nowhere.csv"], "nowhere.csv: cannot be read (No such file or directory)"),
        (["--queries", "Mini.yaml"], "Mini.yaml, line 1: column origin, destination, start_time is missing"),
        (["--checkpoint", "Mini.yaml"], "Mini.yaml"),
        (["--checkpoint", "save/Mini/seed0"], "save/Mini/seed0: is a folder, expected a file"),
        (["--out", "Mini.yaml"], "Mini.yaml: is a file, expected a folder"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, trained: Path) -> None:
    done = run(generate(*arguments), trained)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}"), done.stderr


def test_sampled_times_are_spread(trained: Path) -> None:
    for times in ("point", "sampled"):
        assert run(generate("--times", times, "--out", times), trained).returncode == 0
    point, sampled = (rows(trained / name / "trips.csv") for name in ("point", "sampled"))
    assert [row["rid_list"] for row in point] == [row["rid_list"] for row in sampled]

    def seconds(table: list[dict[str, str]]) -> np.ndarray:
        times = [np.array([t[:-1] for t in row["time_list"].split(",")], dtype="M8[s]") for row in table]
        return np.concatenate([np.diff(some).astype(int) for some in times])

    real = seconds(rows(trained / "data" / "Mini" / "test.csv"))
    assert np.std(seconds(point)) < 0.5 * np.std(real) < np.std(seconds(sampled)) < 2 * np.std(real)
