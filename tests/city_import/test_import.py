"""An import as its users see it: from a map and traces to a data set that trains and generates."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from helpers import contents, error_of, write_lines
from scripts import PROJECT, run, script_environment
from simulated import Simulated

pytest.importorskip("osmium")

from utils.city_import.cleaning import CleaningOptions
from utils.city_import.drives import Drive
from utils.city_import.proof import compare, measure, table
from utils.city_import.run import FILES, ImportOptions, import_city
from utils.city_import.simulated_map import read_map
from utils.city_import.simulation import GpsOptions
from utils.city_import.small_config import write_small_config, zone_advice
from utils.city_import.splits import SplitOptions
from utils.data.road_network import read_road_network
from utils.data.trips import Trips, read_trips

SPLITS = ("train", "val", "test")


def options(simulated: Simulated, folder: Path, **changes: object) -> ImportOptions:
    """Those of an import of the simulated city into `folder`."""
    values = {"name": "Town", "map_path": simulated.folder / "map.osm", "traces_path": simulated.folder / "traces.csv"}
    return ImportOptions(**{**values, "folder": folder, "noise_m": 15.0, **changes})


def command(simulated: Simulated, *arguments: str) -> list[str]:
    """The command line of such an import."""
    files = ["--osm", str(simulated.folder / "map.osm"), "--traces", str(simulated.folder / "traces.csv")]
    return ["tools/import_city.py", "--name", "Town", *files, *arguments]


def trips_of(folder: Path) -> dict[str, Trips]:
    """The trips of all splits, each of which must be well formed."""
    network = read_road_network(folder)
    return {split: read_trips(folder / f"{split}.csv", network) for split in SPLITS}


def drives_of(folder: Path) -> list[Drive]:
    """All trips with the number of the trace that each is from."""
    found = []
    for split, trips in trips_of(folder).items():
        lines = (folder / f"{split}.csv").read_text().splitlines()[1:]
        for number, line in enumerate(lines):
            part = slice(trips.offset[number], trips.offset[number + 1])
            source = int(line.split(",")[2])
            found.append(Drive(source, trips.road_id[part].astype(np.int64), trips.time_s[part]))
    return found


def same_files(one: Path, other: Path) -> bool:
    """Whether two imports gave the same network and trips."""
    names = [name for name in FILES if name.endswith((".csv", ".geo", ".rel"))]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def imported(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an import that nothing disturbed. Not to be changed."""
    folder = tmp_path_factory.mktemp("imported") / "Town"
    import_city(options(simulated, folder), workers=1)
    return folder


def test_the_folder_has_all_files_and_nothing_else(imported: Path) -> None:
    assert set(contents(imported)) == {*FILES, ".lock"}


def test_the_trips_are_those_that_were_driven(simulated: Simulated, imported: Path) -> None:
    recall, f1, exact, (median_s, _) = compare(drives_of(imported), simulated.trips)
    assert min(recall, f1) >= 0.97
    assert exact >= 0.6
    assert median_s <= 3


def test_no_trace_is_in_two_splits_and_shares_are_kept(imported: Path) -> None:
    number = {name: len(trips) for name, trips in trips_of(imported).items()}
    total = sum(number.values())
    assert total >= 316
    assert number == {"train": pytest.approx(0.7 * total, abs=1), "val": pytest.approx(0.1 * total, abs=1)} | {
        "test": pytest.approx(0.2 * total, abs=1)
    }
    assert len({drive.source for drive in drives_of(imported)}) == total


def test_the_record_and_the_card_say_what_there_is(imported: Path) -> None:
    record = json.loads((imported / "import.json").read_text())
    number = {name: len(trips) for name, trips in trips_of(imported).items()}
    assert record["trips"]["splits"] == number
    assert (record["trips"]["traces"], record["trips"]["traces_matched"]) == (320, sum(number.values()))
    assert 5 < record["median_distance_m"] < 15
    card = (imported / "README.md").read_text()
    assert "© OpenStreetMap contributors, available under the Open Database License (ODbL) 1.0" in card
    assert (
        f"train {number['train']}, val {number['val']}, test {number['test']}" in card
        and "2015-11-01 to 2015-11-14" in card
    )
    assert (imported / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_it_trains_and_generates_as_it_is(imported: Path, tmp_path: Path) -> None:
    shutil.copytree(imported, tmp_path / "data" / "Town")
    small = ["--set", "optimizer_config.max_epoch=1", "--cuda", "-1"]
    (tmp_path / "config").mkdir()
    shutil.copy(PROJECT / "config" / "Demo.yaml", tmp_path / "config" / "Town.yaml")
    zones = ["--set", "road_network_encoder_config.zone_id_num_embeddings=9"]
    done = run(["train.py", "--dataset", "Town", *small, *zones], tmp_path)
    assert done.returncode == 0, done.stderr
    made = ["--checkpoint", "save/Town/seed0/best.pth", "--number", "3", "--cuda", "-1", *zones]
    done = run(["tools/generate.py", "--dataset", "Town", *made], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 trips of 3 queries" in done.stdout


def test_the_same_command_again_does_nothing(simulated: Simulated, imported: Path, messages: list[str]) -> None:
    before = contents(imported)
    import_city(options(simulated, imported), workers=1)
    assert contents(imported) == before
    assert messages == [f"{imported}: this import is there already"]


def test_other_options_or_other_files_are_not_overwritten(simulated: Simulated, imported: Path, tmp_path: Path) -> None:
    before = contents(imported)
    message = error_of(import_city, options(simulated, imported, split=SplitOptions(seed=1)), workers=1)
    assert "has an import with other options or of other files, which stays as it is" in message
    assert contents(imported) == before
    (tmp_path / "train.csv").write_text("mine")
    assert "has files such as train.csv" in error_of(import_city, options(simulated, tmp_path), workers=1)
    assert (tmp_path / "train.csv").read_text() == "mine"


def test_an_import_that_was_killed_is_resumed_by_any_number_of_processes(
    simulated: Simulated, imported: Path, tmp_path: Path
) -> None:
    arguments = command(simulated, "--noise", "15", "--workers", "2")
    program = [sys.executable, str(PROJECT / arguments[0]), *arguments[1:]]
    with subprocess.Popen(
        program, cwd=tmp_path, env=script_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = monotonic() + 60
        while not (parts := sorted(tmp_path.glob("data/Town/.import/*/0*.npz"))):
            assert process.poll() is None and monotonic() < deadline
            sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert "matching 320 traces with 2 processes" in process.stderr.read()
    assert not (tmp_path / "data" / "Town" / "train.csv").exists()
    damaged = parts[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    done = run([*arguments[:-1], "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{damaged.name}: damaged; its traces are matched again" in done.stderr
    assert same_files(tmp_path / "data" / "Town", imported)
    assert not (tmp_path / "data" / "Town" / ".import").exists()
    assert "zone_id_num_embeddings: 8\n" in (tmp_path / "config" / "Town.yaml").read_text()


def test_the_noise_is_estimated(simulated: Simulated) -> None:
    city = read_map(simulated.folder / "map.osm")
    trips = simulated.trips.select(np.arange(len(simulated.trips)) < 60)
    score = measure(city, trips, GpsOptions(noise_m=25.0, interval_s=15, gap_share=0.1))
    assert score.noise_m == pytest.approx(25.0, rel=0.15)
    assert score.f1 >= 0.9
    assert "| 25 m | 15 s | 10% |" in table([score])


def test_traces_from_elsewhere_are_refused_with_a_guess(simulated: Simulated, tmp_path: Path) -> None:
    lines = (simulated.folder / "traces.csv").read_text().splitlines()
    swapped = write_lines(tmp_path / "a.csv", lines[0].replace("longitude,latitude", "latitude,longitude"), *lines[1:9])
    message = error_of(import_city, options(simulated, tmp_path / "Town", traces_path=swapped), workers=1)
    assert "no fix is near the roads of" in message and "longitude and latitude are swapped" in message


def test_what_fmm_matched_is_taken_as_it_is(simulated: Simulated, imported: Path, tmp_path: Path) -> None:
    trips = simulated.trips
    rows = []
    for number in range(40):
        part = slice(trips.offset[number], trips.offset[number + 1])
        roads, times = trips.road_id[part].tolist(), trips.time_s[part].tolist()
        rows.append(f"{number};{','.join(map(str, roads))};{','.join(map(str, times))}")
    path = write_lines(tmp_path / "fmm.csv", "id;cpath;timestamp", *rows, "40;;1,2")
    import_city(options(simulated, tmp_path / "Town", traces_path=path, noise_m=None), workers=1)
    assert compare(drives_of(tmp_path / "Town"), trips.select(np.arange(len(trips)) < 40))[1:] == (1.0, 1.0, (0.0, 0.0))
    record = json.loads((tmp_path / "Town" / "import.json").read_text())
    assert record["left_out"] == {"traces that FMM did not match": 1}


def test_times_of_fixes_that_fmm_matched_are_interpolated(simulated: Simulated, tmp_path: Path) -> None:
    time = 1446710400
    roads = simulated.trips.road_id[: simulated.trips.offset[1]].tolist()
    edges = ",".join(map(str, roads))
    # A fix in the middle of the first road, and one in the middle of the last; three trips, for three splits.
    rows = [f"{i};{edges};{roads[0]},{roads[-1]};5,5;10,10;{time + i},{time + 100 + i}" for i in range(3)]
    path = write_lines(tmp_path / "fmm.csv", "id;cpath;opath;offset;length;timestamp", *rows)
    import_city(options(simulated, tmp_path / "Town", traces_path=path, noise_m=None), workers=1)
    drive = next(drive for drive in drives_of(tmp_path / "Town") if drive.source == 0)
    assert drive.roads.tolist() == roads
    assert drive.time_s[0] == time and time < drive.time_s[1] < drive.time_s[-1] < time + 100


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1;a,b;1,2", "cpath: found 'a,b', expected numbers of edges"),
        ("1;1,2,3;1446710400,1446710410", "found 2 times for the 3 edges of cpath"),
        ("1;1,2;1446710410,1446710400", "the times run backwards"),
    ],
)
def test_a_malformed_row_of_fmm_is_named(simulated: Simulated, tmp_path: Path, row: str, expected: str) -> None:
    path = write_lines(tmp_path / "fmm.csv", "id;cpath;timestamp", row)
    message = error_of(import_city, options(simulated, tmp_path / "Town", traces_path=path), workers=1)
    assert f"fmm.csv, line 2: {expected}" in message


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--split", "0.7", "0.3", "0"], 2, "expected a number of 0.001 or more"),
        (["--split", "0.7", "0.1", "0.1"], 2, "the shares add up to 0.9, expected 1 (or 100)"),
        (["--bbox", "1,2,3"], 2, "expected WEST,SOUTH,EAST,NORTH"),
        (["--network", "Roads!"], 1, "expected drive, all, or classes"),
        (["--columns", "a", "b"], 1, "--columns: found 'a,b'"),
        (["--timezone", "Nowhere"], 1, "--timezone: found 'Nowhere'"),
    ],
)
def test_mistakes_in_the_command_are_one_line(
    simulated: Simulated, tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    done = run(command(simulated, "--noise", "15", "--workers", "1", *arguments), tmp_path)
    assert done.returncode == code
    assert "error: " in done.stderr.splitlines()[-1] and expected in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data" / "Town" / "train.csv").exists()


def test_an_import_that_cannot_end_well_leaves_no_trips(simulated: Simulated, tmp_path: Path) -> None:
    few = write_lines(tmp_path / "few.csv", *(simulated.folder / "traces.csv").read_text().splitlines()[:200])
    folder = tmp_path / "Town"
    by_user = options(simulated, folder, traces_path=few, split=SplitOptions(by_user=True))
    assert "the traces have no column of users" in error_of(import_city, by_user, workers=1)
    assert not list(folder.glob(".import/*/0*.npz"))  # it is told before anything is matched
    long = options(simulated, folder, traces_path=few, cleaning=CleaningOptions(min_roads=99))
    assert "is left (trips of too few roads" in error_of(import_city, long, workers=1)
    assert not (folder / "train.csv").exists()


def test_small_cities_get_a_configuration_unless_they_have_one(workplace: Path) -> None:
    assert write_small_config("Village", 66) == Path("config/Village.yaml")
    assert "zone_id_num_embeddings: 2\n" in Path("config/Village.yaml").read_text()
    assert write_small_config("Village", 70) is None
    assert write_small_config("Large", 20_000) is None
    assert write_small_config("Beijing", 100) is None


def test_a_configuration_for_a_larger_city_is_told(workplace: Path) -> None:
    assert "--set road_network_encoder_config.zone_id_num_embeddings=3, or import" in zone_advice("Porto", 100)
    assert zone_advice("Porto", 11_000) == ""
