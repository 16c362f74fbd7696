"""Weights load in every form that people have, where that is unambiguous; else one line says what the file is."""

import gzip
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error_of
from scripts import make_mini_project, make_mini_teacher, mini, run
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from models.hoser import HOSER
from models.lmtad import LMTAD, LMTADConfig
from utils.config import load_config
from utils.data.dataset import load_city
from utils.distillation.teacher_file import export_checkpoint, load_teacher
from utils.files.tensor_files import save_tensors, state_dict_of
from utils.training.weights import load_model

State = dict[str, Tensor]
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 27000000\n"


@pytest.fixture(scope="module")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def make_model(project_folder: Path) -> Callable[[], HOSER]:
    config = load_config("Mini", project_folder / "Mini.yaml")
    features = load_city("Mini", config, project_folder / "data" / "Mini").features
    return lambda: HOSER(config, features)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "module": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled module": prefixed("_orig_mod.module."),
    "module that is compiled": prefixed("module._orig_mod."),
    "compiled part": lambda state: {
        name.replace("navigator.", "navigator._orig_mod."): value for name, value in state.items()
    },
    "attribute of another module": prefixed("model."),
    "attribute of an attribute": prefixed("net.model."),
    "beside statistics of its own": lambda state: {
        "model": state,
        "stats": {"mean": torch.zeros(2), "std": torch.ones(2)},
    },
    "with a number among them": lambda state: {**state, "epoch": 3},
    "expanded": lambda state: {
        k: v[:1].expand_as(v) if k == "navigator.q_proj.weight" else v for k, v in state.items()
    },
    "sparse": lambda state: {k: v.to_sparse() if k == "navigator.q_proj.weight" else v for k, v in state.items()},
    "nested": lambda state: {"model_state_dict": state},
    "nested beside other things": lambda state: {
        "epoch": 3,
        "state_dict": prefixed("module.")(state),
        "args": {"a": 1},
    },
    "nested twice": lambda state: {"checkpoint": {"model": state}},
    "with an optimizer": lambda state: {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}},
    },
    "halves": lambda state: {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    },
    "ordered": OrderedDict,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_in_another_form_are_loaded(name: str, make_model: Callable[[], HOSER], tmp_path: Path) -> None:
    source, target = make_model(), make_model()
    torch.save(WRAPPED[name](state_dict_of(source)), tmp_path / "x.pth")
    load_model(target, tmp_path / "x.pth")
    for ours, value in zip(target.parameters(), source.parameters(), strict=True):
        if name == "expanded" and value is source.navigator.q_proj.weight:
            value = value[:1].expand_as(value)
        assert torch.equal(ours, value.half().float() if name == "halves" else value)


def test_torchs_format_from_before_1_6_is_loaded(make_model: Callable[[], HOSER], tmp_path: Path) -> None:
    source, target = make_model(), make_model()
    torch.save(state_dict_of(source), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    load_model(target, tmp_path / "x.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    assert "x.pth: " in error_of(load_model, target, tmp_path / "x.pth")


# What people do to weights ---------------------------------------------------------------------------------------


def test_averaged_weights_are_loaded(make_model: Callable[[], HOSER], tmp_path: Path) -> None:
    """The mean of state dicts, of all their tensors; and what torch's own AveragedModel saves."""
    models = [make_model() for _ in range(3)]
    for i, model in enumerate(models):
        save_tensors(state_dict_of(model), tmp_path / f"epoch_{i}.pth")
    states = [torch.load(tmp_path / f"epoch_{i}.pth") for i in range(3)]
    mean = {name: sum(state[name] for state in states) / 3 for name in states[0]}
    torch.save(mean, tmp_path / "mean.pth")
    edited = states[0]  # with whatever notes it was loaded with
    for name in edited:
        edited[name] = mean[name]
    torch.save(edited, tmp_path / "edited.pth")
    averaged = AveragedModel(models[0])
    for model in models:
        averaged.update_parameters(model)
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    for name in ("mean.pth", "edited.pth", "swa.pth"):
        target = make_model()
        load_model(target, tmp_path / name)
        for key, value in target.named_parameters():
            torch.testing.assert_close(value.detach(), mean[key], rtol=1e-5, atol=1e-6)


def test_pruned_weights_are_loaded(make_model: Callable[[], HOSER], tmp_path: Path) -> None:
    """Before and after their masks are made permanent."""
    pruned = make_model()
    layers = [(module, "weight") for module in pruned.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        prune.l1_unstructured(*layer, amount=0.5)
    torch.save(pruned.state_dict(), tmp_path / "masked.pth")
    for layer in layers:
        prune.remove(*layer)
    torch.save(pruned.state_dict(), tmp_path / "pruned.pth")
    for name in ("masked.pth", "pruned.pth"):
        target = make_model()
        load_model(target, tmp_path / name)
        for key, value in target.named_parameters():
            assert torch.equal(value, pruned.state_dict()[key])
    assert (target.navigator.q_proj.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_a_state_dict_saved_by_the_version_before_is_loaded_edited_or_not(
    make_model: Callable[[], HOSER], tmp_path: Path
) -> None:
    """It hid a checksum among torch's notes on modules."""
    state = state_dict_of(make_model())
    state._metadata = {"checksum": "0123456789abcdef"}
    torch.save(state, tmp_path / "x.pth")
    load_model(make_model(), tmp_path / "x.pth")


# What is no model --------------------------------------------------------------------------------------------------


def test_files_that_are_no_model_say_what_they_are(
    project_folder: Path, make_model: Callable[[], HOSER], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project_folder)
    command = mini("train_with_distill.py", "--set", "optimizer_config.max_epoch=1")
    assert run(command, project_folder).returncode == 0
    small = ["n_layer=1", "n_head=1", "n_embd=8", "block_size=16", "max_epoch=1"]
    settings = [word for setting in small for word in ("--set", f"teacher.{setting}")]
    assert run(mini("tools/train_teacher.py", *settings), project_folder).returncode == 0
    (project_folder / "pointer.pth").write_text(LFS_POINTER)
    best = (project_folder / "save" / "Mini" / "seed0_distill" / "best.pth").read_bytes()
    (project_folder / "packed.pth").write_bytes(gzip.compress(best))
    (project_folder / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    (project_folder / "folder.pth").mkdir()
    state = torch.load(project_folder / "save" / "Mini" / "seed0_distill" / "best.pth")
    torch.save({"a": state, "b": state}, project_folder / "two.pth")
    for name, words in {
        "save/Mini/seed0_distill/checkpoint_latest.pth": (
            "is the rolling checkpoint of a training, whose model is best.pth beside it "
            "(save/Mini/seed0_distill/best.pth)"
        ),
        "save/Mini/teacher/weights.pt": "is an LM-TAD teacher; expected a model of HOSER, such as best.pth",
        "save/Mini/teacher/checkpoint_latest.pth": "is the rolling checkpoint of a teacher's training; ",
        "pointer.pth": "is a Git LFS pointer, not the file itself: install git-lfs and run `git lfs pull`",
        "packed.pth": "is a gzip file: unpack it with gunzip",
        "page.pth": "is a web page, not the file: download it again",
        "folder.pth": "is a folder, expected a file",
        "two.pth": "found several sets of weights (a, b), expected a state dict of HOSER",
    }.items():
        assert error_of(load_model, make_model(), Path(name)).startswith(f"{name}: {words}")


def test_two_tensors_that_would_get_one_name_are_refused(make_model: Callable[[], HOSER], tmp_path: Path) -> None:
    state = state_dict_of(make_model())
    torch.save({**state, **prefixed("module.")(state)}, tmp_path / "x.pth")
    assert "is there twice, with and without a prefix" in error_of(load_model, make_model(), tmp_path / "x.pth")


# The teacher -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_teachers_weights_lose_their_prefixes(prefix: str, key: str, tmp_path: Path) -> None:
    model = LMTAD(LMTADConfig(block_size=8, vocab_size=15, n_layer=1, n_head=2, n_embd=8))
    config = asdict(model.config)
    torch.save({key: prefixed(prefix)(model.state_dict()), "model_config": config}, tmp_path / "t.pt")
    read = load_teacher(tmp_path / "t.pt").model
    exported = export_checkpoint(tmp_path / "t.pt", (3, 4))
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
        assert torch.equal(exported["state_dict"][name], value)


def test_a_teachers_file_that_is_another_file_says_what_it_is(project_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.pt").write_text(LFS_POINTER)
    for read in (load_teacher, export_checkpoint):
        assert "t.pt: is a Git LFS pointer" in error_of(read, tmp_path / "t.pt")
    torch.save({"val_perplexity": [1.0], "best_state_dict": {}, "identity": {}}, tmp_path / "c.pt")
    assert error_of(load_teacher, tmp_path / "c.pt").endswith(
        "is the rolling checkpoint of a teacher's training; its teacher is weights.pt beside it"
    )
