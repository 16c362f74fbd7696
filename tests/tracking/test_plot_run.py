"""The picture of a run: of any run that has one, else one line."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from scripts import make_mini_project, make_mini_teacher, mini, run

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import load_city
from utils.data.trips import TimeStatistics
from utils.generation.paths import PathModel, Query
from utils.generation.reachability import Reachability
from utils.generation.walk import WalkRule, walk_trips
from utils.training.weights import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("plot")))
    for script, arguments in (
        ("train.py", []),
        ("train_with_distill.py", []),
        ("train_with_distill.py", ["--no-distill"]),
        ("train_with_distill.py", ["--run_name", "tune/study/trial_0"]),
    ):
        assert run(mini(script, "--set", "optimizer_config.max_epoch=2", *arguments), folder).returncode == 0
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", "0"],
        ["--run_name", "seed0_distill"],
        ["--run_name", "seed0_nodistill"],
        ["--run_name", "tune/study/trial_0"],
    ],
)
def test_every_kind_of_run_has_a_picture(arguments: list[str], trained: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    output = tmp_path / "run.png"
    done = run(mini("tools/plot_run.py", *arguments, "--output", str(output)), trained)
    assert done.returncode == 0, done.stderr
    picture = imread(output)
    assert picture.shape[2] == 4 and picture[..., :3].std() > 0.05  # not blank
    assert "the first of median length" in done.stdout
    assert "% of test trips arrive (" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--seed", "7"],
            "tensorboard_log/Mini/seed7: no validation of HOSER in it (no TensorBoard events); runs that have been "
            "trained: seed0, seed0_distill, seed0_nodistill",
        ),
        (["--run_name", "../elsewhere"], "run name '../elsewhere': expected a path below save/Mini/"),
        (["--run_name", "tune/study/trial_9"], "tensorboard_log/Mini_tune/study/trial_9: no validation of HOSER in it"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(arguments: list[str], message: str, trained: Path) -> None:
    done = run(mini("tools/plot_run.py", *arguments, "--output", "x.png"), trained)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert not (trained / "x.png").exists()


def test_a_run_without_its_best_model_or_of_a_teacher_is_one_line(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    (folder / "save" / "Mini" / "tune" / "study" / "trial_0" / "best.pth").unlink()  # as a search does
    small = [w for part in ("n_layer=1", "n_head=1", "n_embd=8", "max_epoch=1") for w in ("--set", f"teacher.{part}")]
    (folder / "save" / "Mini" / "teacher" / "weights.pt").unlink()
    assert run(mini("tools/train_teacher.py", *small), folder).returncode == 0
    for name, words in (
        ("tune/study/trial_0", "save/Mini/tune/study/trial_0/best.pth: no such file (of a search, only the best"),
        ("teacher", "tensorboard_log/Mini/teacher: no validation of HOSER in it (its curves are teacher_loss, val_"),
    ):
        done = run(mini("tools/plot_run.py", "--run_name", name, "--output", "x.png"), folder)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: {words}"), done.stderr


def test_the_trip_is_the_first_of_median_length_whether_it_arrives_or_not(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.plot_run import generate_example

    monkeypatch.chdir(trained)
    config = load_config("Mini", "Mini.yaml")
    city = load_city("Mini", config)
    model = HOSER(config, city.features).eval()
    load_model(model, Path("save/Mini/seed0/best.pth"))
    example = generate_example(model, city)
    test = city.trips("test")
    lengths = np.diff(test.offset)
    chosen = np.flatnonzero(lengths == np.sort(lengths)[(len(lengths) - 1) // 2])[0]
    assert example.real == test.road_id[test.offset[chosen] : test.offset[chosen + 1]].tolist()
    real = [test.road_id[a:b].tolist() for a, b in itertools.pairwise(test.offset)]
    statistics = TimeStatistics.from_trips(city.trips("train"))
    paths, reachability = PathModel(model, city.network, statistics), Reachability(city.network)
    arrive = 0
    for i, roads in enumerate(real):  # one by one
        query = [Query(roads[0], roads[-1], int(test.time_s[test.offset[i]]), i)]
        [(_, [trip])] = walk_trips(paths, reachability, query, WalkRule(), [2 * len(roads) - 1], slots=1)
        made, times = trip.road, trip.time_s
        arrive += made[-1] == roads[-1]
        assert len(made) == len(times) <= max(2 * len(roads), 2)
        assert all(b >= a for a, b in itertools.pairwise(times))
        for here, following in itertools.pairwise(made):
            ptr = city.network.reach_ptr
            assert following in city.network.reach_road[ptr[here] : ptr[here + 1]]
        if i == chosen:
            assert example.made == made
    assert f"{arrive / len(real):.0%} of test trips arrive ({arrive} of {len(real)})" in example.title


def test_measures_have_frames_of_their_own_epochs_are_whole_and_roads_follow_their_polylines(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.data.road_network import read_polylines
    from utils.generation.map_plot import TripPair
    from utils.tracking.run_plot import plot_run, plt, read_validation_curves

    monkeypatch.chdir(trained)
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    curves = read_validation_curves(Path("tensorboard_log/Mini/seed0"))
    points, offset = read_polylines(Path("data/Mini"))
    example = TripPair(made=[0, 2], real=[0, 1], destination=1, title="title")
    plot_run(curves, points, offset, example, "run")
    [figure] = figures
    first, second, world = figure.axes
    for axes, tag in ((first, "val_next_step_acc"), (second, "val_time_pred_mape")):
        assert len(axes.lines) == 1
        assert axes.lines[0].get_ydata().tolist() == curves[tag][1]
        assert all(float(tick).is_integer() for tick in axes.get_xticks() if 1 <= tick <= 2)
    drawn = {collection.get_label(): collection.get_segments() for collection in world.collections[1:]}
    assert set(drawn) == {"real, 2 roads", "generated, 2 roads, does not arrive"}
    for segment, road in zip(drawn["real, 2 roads"], example.real, strict=True):
        assert np.array_equal(segment, points[offset[road] : offset[road + 1]])
    monkeypatch.undo()
    plt.close(figure)
