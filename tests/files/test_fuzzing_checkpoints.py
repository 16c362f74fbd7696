"""Readers of tensors: a file that is not what was saved is never taken for it, however well it parses."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import DEADLINE_MS, mutated, result_or_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import MINI_CONFIG, make_mini_project
from torch import Tensor

from models.hoser import HOSER
from models.lmtad import LMTAD, LMTADConfig
from utils.config import config_to_dict, load_config
from utils.data.dataset import load_city
from utils.data.loader import make_loaders
from utils.distillation.teacher_file import export_checkpoint, load_teacher, save_teacher
from utils.files.tensor_files import save_tensors, state_dict_of
from utils.training.engine import Learner, evaluate, train_epoch
from utils.training.losses import HOSERLoss
from utils.training.metrics import Metrics
from utils.training.rolling_checkpoint import Identity, RollingCheckpoint
from utils.training.weights import load_model

pytestmark = pytest.mark.slow
fuzz = settings(max_examples=50, deadline=DEADLINE_MS, suppress_health_check=[HealthCheck.function_scoped_fixture])

IDENTITY = Identity(42, "Mini", True)


class Saved:
    """Files of a short training, and what is needed to read them."""

    def __init__(self, folder: Path, config: dict[str, Any], make_learner: Callable[[], Learner], weights: Any):
        self.folder, self.config, self.make_learner, self.weights = folder, config, make_learner, weights

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint_latest.pth"

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = make_mini_project(tmp_path_factory.mktemp("saved"))
    small = MINI_CONFIG.replace("32", "16").replace("16\n  len", "8\n  len").replace("_dim: 4", "_dim: 2")
    (folder / "Mini.yaml").write_text(small)
    config = load_config("Mini", folder / "Mini.yaml")
    city = load_city("Mini", config, folder / "data" / "Mini")
    loaders = make_loaders(city, config, "cpu")

    def make_learner() -> Learner:
        torch.manual_seed(1)
        return Learner.from_config(HOSER(config, city.features), config, loaders["train"])

    learner, settings_ = make_learner(), config_to_dict(config)
    checkpoint = RollingCheckpoint(folder, IDENTITY, settings_)
    checkpoint.restore(learner, {"training data": "data"})
    for epoch in range(2):
        for _ in train_epoch(learner, loaders["train"], HOSERLoss(loaders["train"].statistics), 42, epoch, 0):
            pass
        metrics = evaluate(learner.model, loaders["val"], learner.precision, "validating")
        checkpoint.save(learner, Metrics(epoch + metrics.next_step_acc, metrics.time_pred_mape), 5)
    return Saved(folder, settings_, make_learner, state_dict_of(learner.model))


# Changes -------------------------------------------------------------------------------------------------------


class _Foreign:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it runs",))


ODD: tuple[Callable[[], Any], ...] = (
    *(lambda v=v: v for v in (None, True, 0, -1, 1, 2**40, 0.5, float("nan"), "", "x", "x" * 100_000, b"x", ())),
    *(list, dict, OrderedDict, set, _Foreign),
    lambda: {1: {2: [3]}},
    lambda: torch.zeros(3),
    lambda: torch.zeros(()),
    lambda: torch.zeros(0, 5),
    lambda: torch.zeros(1).as_strided((1000, 1000), (0, 0)),
    lambda: torch.zeros(2, 2).to_sparse(),
    lambda: torch.empty(3, device="meta"),
    lambda: torch.ones(3, dtype=torch.complex64),
    lambda: torch.ones(3, dtype=torch.bool),
    lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
)


def places_in(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of keys to everything in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in items for place in places_in(value, (*path, key)))][not path :]


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def tensors_in(content: Any) -> list[tuple[Any, ...]]:
    return [path for path in places_in(content) if isinstance(at(content, path), Tensor)]


class Tampered:
    """Content of a file with something changed."""

    def __init__(self, content: Any, change: str):
        self.content, self._change = content, change

    def __repr__(self) -> str:
        return self._change


@st.composite
def tampered(draw: st.DrawFn, original: Any) -> Tampered:
    """`original`, which was loaded from a file, with something changed; rarely something else altogether."""
    if draw(st.integers(0, 19)) == 19:
        return Tampered(draw(st.sampled_from(ODD))(), "all")
    content = copy.deepcopy(original)
    change = draw(st.sampled_from(("odd", "odd", "drop", "add", "swap", "value", "nan", "dtype", "shape")))
    if change in ("odd", "drop", "add"):
        path = draw(st.sampled_from(places_in(content)))
        holder = at(content, path[:-1])
        if change == "odd":
            holder[path[-1]] = draw(st.sampled_from(ODD))()
        elif change == "drop":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder["more"] = draw(st.sampled_from(ODD))()
        else:
            holder.append(draw(st.sampled_from(ODD))())
        return Tampered(content, f"{change} {path}")
    path = draw(st.sampled_from(tensors_in(content)))
    tensor, holder = at(content, path), at(content, path[:-1])
    match change:
        case "swap":
            shape = tensor.shape
            others = [p for p in tensors_in(content) if p != path and at(content, p).shape == shape]
            if others:
                other = draw(st.sampled_from(others))
                holder[path[-1]], at(content, other[:-1])[other[-1]] = at(content, other), tensor
        case "value" if tensor.numel():
            tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] += 1
        case "nan" if tensor.numel() and tensor.is_floating_point():
            tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from((torch.nan, torch.inf)))
        case "dtype":
            dtypes = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)
            holder[path[-1]] = tensor.to(draw(st.sampled_from(dtypes)))
        case "shape":
            holder[path[-1]] = draw(st.sampled_from((tensor[None], tensor.reshape(-1), torch.cat([tensor[None]] * 2))))
    return Tampered(content, f"{change} {path}")


def save(content: Any, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)


# The checkpoint of distillation --------------------------------------------------------------------------------


def restore(saved: Saved, folder: Path) -> dict[str, Tensor] | None:
    """The weights that training would resume with, or None where it starts from scratch."""
    checkpoint = RollingCheckpoint(folder, IDENTITY, saved.config)
    learner = saved.make_learner()
    checkpoint.restore(learner, {"training data": "data"})
    return state_dict_of(learner.model) if checkpoint.epochs_done else None


@fuzz
@given(st.data())
def test_a_damaged_checkpoint(saved: Saved, tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "checkpoint_latest.pth").write_bytes(data.draw(mutated(saved.checkpoint.read_bytes())))
    (tmp_path / "best.pth").write_bytes(saved.best.read_bytes())
    weights = result_or_error(lambda: restore(saved, tmp_path), "checkpoint_latest.pth")
    if weights is not None:
        assert all(torch.equal(weights[name], value) for name, value in saved.weights.items())


# State dicts ---------------------------------------------------------------------------------------------------


def evaluate_file(saved: Saved, path: Path) -> dict[str, Tensor]:
    model = saved.make_learner().model
    load_model(model, path)
    return state_dict_of(model)


@fuzz
@given(st.data())
def test_a_state_dict_of_another_program(saved: Saved, tmp_path: Path, data: st.DataObject) -> None:
    """Changed values are as good as others; but names, shapes and kinds of the parameters must be right."""
    original = dict(torch.load(saved.best, weights_only=True))
    content = data.draw(tampered(original)).content
    path = tmp_path / "best.pth"
    save(content, path)
    weights = result_or_error(lambda: evaluate_file(saved, path), "best.pth")
    if weights is not None:
        features = saved.make_learner().model.feature_buffers()
        assert {name for name, value in content.items() if isinstance(value, Tensor)} <= weights.keys()
        for name, value in weights.items():
            if name in features:
                assert torch.equal(value, features[name][1])
            else:
                assert value.shape == content[name].shape
                assert value.isfinite().all()
                assert torch.equal(content[name].to(value.dtype), value)


@fuzz
@given(st.data())
def test_a_damaged_state_dict(saved: Saved, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "best.pth"
    path.write_bytes(data.draw(mutated(saved.best.read_bytes())))
    weights = result_or_error(lambda: evaluate_file(saved, path), "best.pth")
    if weights is not None:
        assert all(torch.equal(weights[name], value) for name, value in saved.weights.items())


# The teacher ---------------------------------------------------------------------------------------------------


VOCAB = {"PAD": 0, "EOT": 1, "SOT": 2, **{str(cell): cell + 3 for cell in range(12)}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    model = LMTAD(LMTADConfig(block_size=8, vocab_size=15, n_layer=1, n_head=2, n_embd=8))
    path = tmp_path_factory.mktemp("teacher") / "weights.pt"
    save_teacher(path, model, (3, 4), VOCAB)
    return path


@fuzz
@given(st.data())
def test_a_tampered_teacher(teacher: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = torch.load(teacher, weights_only=True)
    content = data.draw(tampered(original)).content
    path = tmp_path / "weights.pt"
    save(content, path)
    read = result_or_error(lambda: load_teacher(path), "weights.pt")
    if read is not None:
        assert all(value.isfinite().all() for value in read.model.state_dict().values())
    # What is no teacher file of ours may still be a training checkpoint of LM-TAD.
    exported = result_or_error(lambda: export_checkpoint(path), "weights.pt")
    if exported is not None:
        assert exported["model_config"]["vocab_size"] == len(exported["state_dict"]["lm_head.weight"])
        assert all(value.isfinite().all() for value in exported["state_dict"].values())


@fuzz
@given(st.data())
def test_a_damaged_teacher(teacher: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(data.draw(mutated(teacher.read_bytes())))
    read = result_or_error(lambda: load_teacher(path), "weights.pt")
    if read is not None:
        for name, value in torch.load(teacher, weights_only=True)["state_dict"].items():
            assert torch.equal(read.model.state_dict()[name], value)


def test_a_file_saved_by_save_tensors_is_what_is_read(saved: Saved, tmp_path: Path) -> None:
    """What all of the above begins with: undisturbed, they are the weights of the training."""
    save_tensors(state_dict_of(saved.make_learner().model), tmp_path / "other.pth")
    weights = evaluate_file(saved, saved.best)
    assert all(torch.equal(weights[name], value) for name, value in saved.weights.items())
    assert not all(torch.equal(v, saved.weights[k]) for k, v in evaluate_file(saved, tmp_path / "other.pth").items())
    assert restore(saved, saved.folder) is not None
