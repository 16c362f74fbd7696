"""`tools/evaluate_generation.py`: tables, JSON and pictures; mistakes in one line."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import write_lines
from scripts import PROJECT, make_mini_project, mini, run

GOLDEN = PROJECT / "tests" / "golden" / "generation" / "mini"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini city and what the published search generated for its test trips."""
    folder = make_mini_project(tmp_path_factory.mktemp("judge"))
    for name in ("generated.csv", "generated_limit20.csv"):
        shutil.copy(GOLDEN / name, folder / name)
    return folder


def evaluate(*arguments: str) -> list[str]:
    return mini("tools/evaluate_generation.py", *arguments)


def test_files_side_by_side_with_pictures_and_a_comparison(project: Path) -> None:
    from matplotlib.image import imread

    files = ["full=generated.csv", "limit=generated_limit20.csv"]
    more = ["--json", "out/figures.json", "--plots", "out", "--compare", *files]
    done = run(evaluate("--generated", *files, *more), project)
    assert done.returncode == 0, done.stderr
    assert "generated.csv: 30 trips; with fewer than 1,000, divergences are mostly noise" in done.stderr
    head = next(line for line in done.stdout.splitlines() if line.startswith("As the published notebook"))
    columns = ["full", "limit", "real trips", "noise floor"]
    assert [head.index(name) for name in columns] == sorted(head.index(name) for name in columns)
    assert "limit - full, 30 queries" in done.stdout and "limit is worse in reached (-0.6000)" in done.stdout

    tree = json.loads((project / "out" / "figures.json").read_text())
    assert (tree["real"], tree["real_trips"], tree["seed"]) == ("test.csv", 30, 0)
    assert [made["label"] for made in tree["generated"]] == columns[:2]
    for made, name in zip(tree["generated"], ("metrics.json", "metrics_limit20.json"), strict=True):
        golden = json.loads((GOLDEN / name).read_text())
        assert made["public_notebook"]["edr_published"] == pytest.approx(golden["public_notebook"]["edr"], rel=1e-6)
        assert made["fork"]["DTW_norm"] == pytest.approx(golden["fork"]["DTW_norm"], rel=1e-6)
        assert made["extra"]["libcity_f1"] == pytest.approx(golden["extra"]["libcity_f1"], rel=1e-6)
        assert made["figures"].keys() == {"published", "fork", "same_query", "distributions"}
        figure = made["figures"]["published"][0]
        assert figure["key"] == "distance_jsd" and figure["n"] == 30 and figure["unit"] == "nats"
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["floor"].keys() == {"mean", "low", "high"}
    assert tree["comparison"]["differences"][0]["mean"] == pytest.approx(-0.6)
    for name in ("distributions.png", "comparison.png"):
        picture = imread(project / "out" / name)
        assert picture.shape[0] > 300 and picture.std() > 0.05


def test_queries_sampled_from_train_are_judged_as_a_whole_and_baselines_trip_by_trip(project: Path) -> None:
    done = run(evaluate("--generated", "data/Mini/train.csv", "--baselines", "--json", "train.json"), project)
    assert done.returncode == 0, done.stderr
    assert "its queries are sampled from train.csv, so it is compared with test.csv as a whole" in done.stderr
    made, *baselines = json.loads((project / "train.json").read_text())["generated"]
    assert "same_query" not in made["figures"] and made["extra"].keys() == {"road_usage_jsd"}
    # Made for the queries of the test trips.
    assert [baseline["label"] for baseline in baselines] == ["shortest path", "fastest path", "greedy"]
    assert all(baseline["trips_with_real_trip"] == 30 for baseline in baselines)
    shares = [baseline["extra"]["reached_rate"] for baseline in baselines]
    assert shares[:2] == [1, 1] and 0 < shares[2] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generated", "data/Mini/val.csv"], "data/Mini/val.csv: no common query: no trip has the origin, start ti"),
        (["--generated", "empty.csv"], "empty.csv: the file is empty, expected generated trips"),
        (["--generated", "nothing.csv"], "nothing.csv: cannot be read (No such file or directory)"),
        (["--generated", "generated.csv", "--real", "empty.csv"], "empty.csv, line 1: column rid_list, time_list is m"),
        (["--compare", "generated.csv", "data/Mini/train.csv"], "data/Mini/train.csv: no common query with test.csv"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, project: Path) -> None:
    write_lines(project / "empty.csv")
    done = run(evaluate(*arguments), project)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --generated or --compare"),
        (["--compare", "a=generated.csv", "a=generated.csv"], "two models of the name 'a', expected two names"),
        (["--generated", "generated.csv", "--json", "data"], "data is a folder, expected a file"),
    ],
)
def test_mistakes_of_the_command_line_are_found_at_once(arguments: list[str], message: str, project: Path) -> None:
    done = run(evaluate(*arguments), project)
    assert done.returncode == 2 and message in done.stderr
