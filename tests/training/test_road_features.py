"""The features of the road network that are in force are those of the data, whatever stands in a checkpoint."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import make_mini_project, make_mini_teacher, mini, run

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import City, load_city
from utils.data.loader import make_loaders
from utils.files.checksums import content_digest
from utils.files.tensor_files import save_tensors, state_dict_of
from utils.training.engine import Learner, evaluate, train_epoch
from utils.training.losses import HOSERLoss
from utils.training.weights import load_model

Row = list[str]


def edit(path: Path, change: Callable[[Row, Row, int], None]) -> None:
    """Change the rows of a CSV file: change(row, header, number)."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    for number, row in enumerate(rows):
        change(row, header, number)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def longer(row: Row, header: Row, number: int) -> None:
    if number % 2:
        place = header.index("length")
        row[place] = str(20 * float(row[place]))


def other_classes(row: Row, header: Row, number: int) -> None:
    place = header.index("highway")
    row[place] = row[place].replace("primary", "Primary")  # sorts first


def moved(row: Row, header: Row, number: int) -> None:
    if number == 5:
        place = header.index("coordinates")
        points = [[float(value) for value in point] for point in __import__("json").loads(row[place])]
        points[1:1] = [[points[0][0] + 0.01, points[0][1] + 0.02]]  # a detour; its ends stay
        row[place] = str(points)


def other_zones(path: Path) -> None:
    zones = path.read_text().split()
    zones[0] = str((int(zones[0]) + 1) % 8)
    path.write_text("\n".join(zones) + "\n")


def torn_apart(row: Row, header: Row, number: int) -> None:
    if number == 5:  # its ends are nobody's any more; what is reachable stays
        place = header.index("coordinates")
        points = __import__("json").loads(row[place])
        row[place] = str([[x + 1e-5, y] for x, y in points])


EDITS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "lengths": (lambda data: edit(data / "roadmap.geo", longer), {"road lengths"}),
    "classes": (lambda data: edit(data / "roadmap.geo", other_classes), {"highway classes"}),
    "coordinates": (lambda data: edit(data / "roadmap.geo", moved), {"coordinates"}),
    "adjacency": (lambda data: edit(data / "roadmap.geo", torn_apart), {"coordinates", "adjacency"}),
    "zones": (lambda data: other_zones(data / "road_network_partition"), {"zones"}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a vanilla run of one epoch, and a distilled and an undistilled one of two epochs out of three."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("trained")))
    assert run(mini("train.py", "--set", "optimizer_config.max_epoch=1"), folder).returncode == 0
    for arguments in ([], ["--no-distill"]):
        command = mini("train_with_distill.py", *arguments, "--set", "optimizer_config.max_epoch=2")
        assert run(command, folder).returncode == 0
    return folder


def city_of(folder: Path) -> City:
    return load_city("Mini", load_config("Mini", folder / "Mini.yaml"), folder / "data" / "Mini")


@pytest.mark.parametrize("name", EDITS)
def test_a_resumed_run_goes_on_with_the_features_of_the_files_and_names_them(
    name: str, trained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    change, kinds = EDITS[name]
    change(folder / "data" / "Mini")
    mode = "distill" if name == "lengths" else "nodistill"
    done = run(mini("train_with_distill.py", *["--no-distill"] * (mode == "nodistill")), folder)
    assert done.returncode == 0, done.stderr
    [line] = [
        line for line in done.stderr.splitlines() if " than so far: from now on those of the data's files" in line
    ]
    assert set(line.removeprefix("other ").partition(" than so far")[0].split(", ")) == kinds
    content = torch.load(folder / "save" / "Mini" / f"seed0_{mode}" / "checkpoint_latest.pth")
    assert content["epoch"] == 2
    features = vars(city_of(folder).features)
    for key, value in content["model_state_dict"].items():
        feature = features.get(key.rpartition(".")[2])
        assert feature is None or torch.equal(value, feature), key


@pytest.mark.parametrize("name", EDITS)
def test_evaluation_uses_the_features_of_the_data_and_warns_once(name: str, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    command = mini("tools/evaluate.py", "--checkpoint", "save/Mini/seed0/best.pth")
    before = run(command, folder)
    assert (before.returncode, before.stderr.count("was trained with other")) == (0, 0), before.stderr
    change, kinds = EDITS[name]
    change(folder / "data" / "Mini")
    after = run(command, folder)
    assert after.returncode == 0, after.stderr
    [line] = [line for line in after.stderr.splitlines() if "was trained with other" in line]
    found = line.partition("was trained with other ")[2].partition(" than the data has now")[0]
    assert set(found.split(", ")) == kinds
    assert by_class(after.stdout) == true_counts(folder)
    if name == "classes":
        assert [count for _, count in sorted(by_class(before.stdout).items(), key=lambda item: item[0].lower())] == [
            count for _, count in sorted(by_class(after.stdout).items(), key=lambda item: item[0].lower())
        ]


def by_class(report: str) -> dict[str, int]:
    """Steps by highway class, as printed."""
    rows = (line.split() for line in report.splitlines() if line.startswith("to "))
    return {words[1]: int(words[2].replace(",", "")) for words in rows}


def true_counts(folder: Path) -> dict[str, int]:
    """The same, counted in the files."""
    city = city_of(folder)
    test = city.trips("test")
    taken = np.delete(test.road_id, test.offset[:-1])
    names = [city.network.highway_classes[i] for i in city.network.road_attr_type[taken]]
    return {name: names.count(name) for name in set(names)}


def test_a_finished_run_names_the_features_that_it_was_not_trained_with(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    edit(folder / "data" / "Mini" / "roadmap.geo", longer)
    done = run(mini("train_with_distill.py", "--no-distill", "--set", "optimizer_config.max_epoch=2"), folder)
    assert done.returncode == 1
    assert "training is complete (2 epochs), but not with these settings: other road lengths." in done.stderr


def test_nothing_changes_the_arrays_of_the_data(trained: Path, tmp_path: Path) -> None:
    """Neither loading other features, nor training, nor evaluating."""
    config = load_config("Mini", trained / "Mini.yaml")
    city = city_of(trained)
    loaders = make_loaders(city, config, "cpu")
    arrays = [
        vars(city.features),
        *(torch.from_numpy(v) for v in vars(city.network).values() if isinstance(v, np.ndarray)),
    ]
    arrays += [torch.from_numpy(np.asarray(v)) for v in vars(city.trips("train")).values() if isinstance(v, np.ndarray)]
    before = content_digest(arrays)
    model = HOSER(config, city.features)
    other = {
        name: value + 1 if name in model.feature_buffers() else value for name, value in model.state_dict().items()
    }
    copy = {name: value.clone() for name, value in other.items()}
    save_tensors(other, tmp_path / "other.pth")
    load_model(model, tmp_path / "other.pth")
    model.load_state_dict(other)  # as in the README
    assert content_digest(other) == content_digest(copy)
    learner = Learner.from_config(model, config, loaders["train"])
    for _ in train_epoch(learner, loaders["train"], HOSERLoss(loaders["train"].statistics), 1, 0, 0):
        pass
    evaluate(model, loaders["val"], learner.precision, "validating")
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
    assert content_digest(arrays) == before


def test_features_of_another_processor_or_precision_are_the_same(
    trained: Path, tmp_path: Path, messages: list[str]
) -> None:
    """Logarithms in float32 differ by 5e-6 between processors; state dicts may be saved in half precision."""
    city = city_of(trained)
    model = HOSER(load_config("Mini", trained / "Mini.yaml"), city.features)
    for change in (lambda value: value + 5e-6, lambda value: value.half(), lambda value: value.double()):
        state = {
            name: change(value) if value.is_floating_point() else value.float()
            for name, value in state_dict_of(model).items()
        }
        save_tensors(state, tmp_path / "x.pth")
        load_model(model, tmp_path / "x.pth")
    assert messages == []


def test_a_state_dict_of_parameters_alone_is_enough(trained: Path, tmp_path: Path) -> None:
    model = HOSER(load_config("Mini", trained / "Mini.yaml"), city_of(trained).features)
    parameters = {name: value.detach() + 1 for name, value in model.named_parameters()}
    save_tensors(parameters, tmp_path / "x.pth")
    load_model(model, tmp_path / "x.pth")
    assert all(torch.equal(value, parameters[name]) for name, value in model.named_parameters())
