"""The teacher LM-TAD: the same numbers as the public code, its files, and files that are wrong or malicious."""

import argparse
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import error_of
from scripts import PROJECT, run
from torch import Tensor

from models.lmtad import LMTAD, LMTADConfig
from tools.export_lmtad_weights import main as export_main
from utils.distillation.lmtad_import import attributes_of, load_foreign
from utils.distillation.teacher_file import export_checkpoint, load_teacher, read_vocab, save_teacher
from utils.files.tensor_files import save_tensors

GOLDEN = PROJECT / "tests" / "golden" / "lmtad_small"
TOOL = "tools/export_lmtad_weights.py"
SMALL = LMTADConfig(block_size=12, vocab_size=15, n_layer=2, n_head=2, n_embd=8, dropout=0.1, bias=True)
SMALL_VOCAB = {"0": 11, **{str(cell): cell for cell in range(1, 11)}, "11": 0, "PAD": 14, "EOT": 13, "SOT": 12}


def golden_content() -> dict[str, Any]:
    return torch.load(GOLDEN / "weights_only.pt", weights_only=True)


def golden_difference(model: LMTAD) -> float:
    """Largest difference from the logits of the public code."""
    golden = np.load(GOLDEN / "forward.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(golden["tokens"]))
    return float((logits - torch.from_numpy(golden["logits"])).abs().max())


def small_model() -> LMTAD:
    """With random numbers in the biases and norms too, which start at 0 and 1."""
    torch.manual_seed(3)
    model = LMTAD(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


# ---------------------------------------------------------------- the model


def plain_logits(weights: dict[str, Tensor], config: LMTADConfig, tokens: Tensor) -> Tensor:
    """LM-TAD with its formulas written out, for one sequence: [T] -> [T, vocab_size]."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    T, width, head = len(tokens), config.n_embd, config.n_embd // config.n_head
    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:T]
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        heads = []
        for h in range(config.n_head):
            q, k, v = (qkv[:, part * width + h * head :][:, :head] for part in range(3))
            score = (q @ k.T / math.sqrt(head)).masked_fill(torch.ones(T, T).triu(1) == 1, -math.inf)
            heads.append(score.softmax(-1) @ v)
        x = x + linear(torch.cat(heads, dim=-1), f"{block}.attn.c_proj")
        inner = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights["lm_head.weight"].T


def test_logits_equal_those_of_the_public_code() -> None:
    teacher = load_teacher(GOLDEN / "weights_only.pt")
    assert golden_difference(teacher.model) < 1e-5
    # Nothing is recorded of its grid and tokens.
    assert (teacher.grid, teacher.token_of_cell, teacher.sot, teacher.eot, teacher.pad) == (None, None, 398, None, None)


def test_logits_equal_the_plain_formula_with_biases() -> None:
    model = small_model()
    tokens = torch.randint(SMALL.vocab_size, (2, SMALL.block_size))
    with torch.no_grad():
        logits = model(tokens)
        expected = torch.stack([plain_logits(dict(model.state_dict()), SMALL, row) for row in tokens])
    assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()


@torch.no_grad()
def test_logits_at_some_tokens_equal_those_of_the_whole_output_layer() -> None:
    model = small_model()
    tokens = torch.randint(SMALL.vocab_size, (3, 7))
    hidden, logits = model.hidden(tokens), model(tokens)
    wanted = torch.randint(SMALL.vocab_size, (21,))
    found = model.logits_at(hidden.flatten(0, 1), wanted)
    assert torch.allclose(found, logits.flatten(0, 1)[torch.arange(21), wanted], atol=1e-5)


@torch.no_grad()
def test_logits_depend_on_no_later_token() -> None:
    model = small_model()
    tokens = torch.randint(SMALL.vocab_size, (1, 10))
    changed = tokens.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % SMALL.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-5)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-2)
    assert torch.allclose(model(tokens[:, :4]), before[:, :4], atol=1e-5)


def test_initial_values_and_dropout() -> None:
    torch.manual_seed(0)
    config = LMTADConfig(block_size=64, vocab_size=500, n_layer=8, n_head=2, n_embd=64, dropout=0.1, bias=True)
    model = LMTAD(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 2:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    tokens = torch.randint(500, (2, 9))
    assert not torch.equal(model(tokens), model(tokens))
    assert model.lm_head.weight is model.transformer["wte"].weight
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_sequence_longer_than_block_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="13 tokens, expected at most block_size = 12"):
        small_model()(torch.zeros(1, 13, dtype=torch.int64))


# ---------------------------------------------------------------- the tool, and files that are right


def test_export_of_a_training_checkpoint_by_the_tool(workplace: Path) -> None:
    checkpoint, vocab = str(GOLDEN / "ckpt_public_format.pt"), str(GOLDEN / "vocab.json")
    arguments = ("--checkpoint", checkpoint, "--output", "weights.pt", "--grid_size", "18 22", "--vocab", vocab)
    done = run([TOOL, *arguments], workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "weights.pt: 3 layers, width 64, vocabulary 399, grid 18 x 22, "
        "special tokens PAD 396, EOT 397, SOT 398, vocabulary file\n"
    )
    content = torch.load("weights.pt", weights_only=True)
    assert {type(value) for value in content["state_dict"].values()} == {Tensor}
    assert not any(name.startswith("_orig_mod.") for name in content["state_dict"])

    teacher = load_teacher(Path("weights.pt"))
    assert golden_difference(teacher.model) < 1e-5
    assert (teacher.grid, teacher.sot, teacher.eot, teacher.pad) == ((18, 22), 398, 397, 396)
    assert torch.equal(teacher.token_of_cell, torch.arange(396))


def test_the_grid_is_that_of_the_checkpoint_unless_given() -> None:
    checkpoint = GOLDEN / "ckpt_public_format.pt"
    assert export_checkpoint(checkpoint)["grid"] == (18, 22)
    assert export_checkpoint(checkpoint, (11, 36))["grid"] == (11, 36)
    assert "vocab" not in export_checkpoint(checkpoint)


def test_export_of_an_exported_file_keeps_what_it_holds(workplace: Path) -> None:
    first = export_checkpoint(GOLDEN / "ckpt_public_format.pt", (18, 22), read_vocab(GOLDEN / "vocab.json"))
    save_tensors(first, Path("first.pt"))
    save_tensors(export_checkpoint(Path("first.pt")), Path("second.pt"))
    assert Path("first.pt").read_bytes() == Path("second.pt").read_bytes()
    assert "grid" not in export_checkpoint(GOLDEN / "weights_only.pt")


def test_save_and_load(workplace: Path) -> None:
    model, path = small_model(), Path("teacher.pt")
    save_teacher(path, model, (3, 5), SMALL_VOCAB)
    state = torch.get_rng_state()
    teacher = load_teacher(path)
    assert torch.equal(torch.get_rng_state(), state)
    # Cell 0 has token 11 and cell 11 has token 0; the last three cells of the grid were never seen.
    assert teacher.token_of_cell.tolist() == [11, *range(1, 11), 0, -1, -1, -1]
    assert (teacher.grid, teacher.sot, teacher.eot, teacher.pad) == ((3, 5), 12, 13, 14)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.model.lm_head.weight is teacher.model.transformer["wte"].weight
    tokens = torch.randint(SMALL.vocab_size, (2, 5))
    assert torch.equal(teacher.model(tokens), model(tokens))


@pytest.mark.parametrize("form", ["compiled", "mask", "untied", "half", "int keys", "specials apart"])
def test_other_forms_of_the_same_file(form: str, workplace: Path) -> None:
    save_teacher(Path("plain.pt"), small_model(), (3, 5), SMALL_VOCAB)
    content = torch.load("plain.pt", weights_only=True)
    state = content["state_dict"]
    if form == "compiled":
        content["state_dict"] = {f"_orig_mod.{name}": value for name, value in state.items()}
    elif form == "mask":
        state["transformer.h.1.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
    elif form == "untied":
        del state["lm_head.weight"]
    elif form == "half":
        content["state_dict"] = {name: value.bfloat16() for name, value in state.items()}
    elif form == "int keys":
        content["vocab"] = {int(name) if name.isdigit() else name: token for name, token in SMALL_VOCAB.items()}
    else:
        content["special_tokens"] = {name: content["vocab"].pop(name) for name in ("PAD", "EOT", "SOT")}
    torch.save(content, "other.pt")
    plain, other = load_teacher(Path("plain.pt")), load_teacher(Path("other.pt"))
    assert torch.equal(other.token_of_cell, plain.token_of_cell)
    assert (other.sot, other.eot, other.pad) == (plain.sot, plain.eot, plain.pad)
    for name, value in other.model.state_dict().items():
        expected = plain.model.state_dict()[name]
        assert torch.equal(value, expected.bfloat16().float() if form == "half" else expected), name
    assert export_checkpoint(Path("other.pt"))["state_dict"].keys() == plain.model.state_dict().keys()


# ---------------------------------------------------------------- files that are wrong


def weights_with(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["state_dict"].__setitem__(name, value)


def config_with(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model_config"].update(values)


WRONG_CONTENT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no weights": (lambda c: c.pop("state_dict"), "holds no weights of LM-TAD: expected 'state_dict'"),
    "no config": (lambda c: c.pop("model_config"), "holds no sizes of the model: expected 'model_config'"),
    "weights of another type": (lambda c: c.update(state_dict=[1]), "holds no weights"),
    "a field missing": (lambda c: c["model_config"].pop("n_head"), "model_config: n_head is missing"),
    "a field of another type": (config_with(n_head="4"), "n_head: found '4', expected a whole number"),
    "heads": (config_with(n_head=5), "n_head: found 5, which does not divide n_embd = 64"),
    "bias of another type": (config_with(bias=1), "bias: found 1, expected true or false"),
    "dropout": (config_with(dropout=1.0), "dropout: found 1.0"),
    "integer_poe": (config_with(integer_poe=True), "integer_poe is true: the public code then adds positions along"),
    "biases expected": (config_with(bias=True), "state_dict: transformer.h.0.ln_1.bias is missing"),
    "layers": (config_with(n_layer=4), "state_dict: transformer.h.3.ln_1.weight is missing"),
    "fewer layers": (config_with(n_layer=2), "state_dict: 'transformer.h.2.ln_1.weight' is unexpected"),
    "absurdly many layers": (config_with(n_layer=2**23), "has 22 tensors, too few for n_layer"),
    "absurd width": (config_with(n_embd=2**22), "wte.weight has shape (399, 64), expected (399, 4194304)"),
    "vocabulary": (config_with(vocab_size=400), "wte.weight has shape (399, 64), expected (400, 64)"),
    "a weight missing": (
        lambda c: c["state_dict"].pop("transformer.h.1.mlp.c_fc.weight"),
        "state_dict: transformer.h.1.mlp.c_fc.weight is missing",
    ),
    "a weight too many": (weights_with("extra", torch.zeros(3)), "state_dict: 'extra' is unexpected"),
    "a bias too many": (weights_with("transformer.h.0.attn.bias", torch.zeros(64)), "attn.bias' is unexpected"),
    "no tensor": (weights_with("transformer.ln_f.weight", [1.0]), "found 'transformer.ln_f.weight': list"),
    "NaN": (weights_with("transformer.ln_f.weight", torch.full((64,), math.nan)), "ln_f.weight holds NaN or infinite"),
    "infinite": (weights_with("transformer.ln_f.weight", torch.full((64,), -math.inf)), "holds NaN or infinite"),
    "whole numbers": (weights_with("transformer.ln_f.weight", torch.ones(64, dtype=torch.int64)), "no plain tensor"),
    "untied": (weights_with("lm_head.weight", torch.zeros(399, 64)), "lm_head.weight differs from transformer.wte"),
    "grid too large": (lambda c: c.update(grid=(20, 22)), "a grid of 20 x 22 cells and 399 tokens do not fit"),
    "grid of three": (lambda c: c.update(grid=(2, 2, 2)), "grid: found (2, 2, 2), expected rows and columns"),
    "grid of nothing": (lambda c: c.update(grid=(0, 5)), "grid: found (0, 5)"),
    "special tokens": (lambda c: c.update(special_tokens={"SOT": 399}), "special_tokens: found '399' for 'SOT'"),
    "vocab of another type": (lambda c: c.update(vocab=[1, 2]), "vocab: found list"),
}


@pytest.mark.parametrize("case", WRONG_CONTENT)
def test_wrong_or_missing_pieces_are_named(case: str, workplace: Path) -> None:
    change, expected = WRONG_CONTENT[case]
    content = golden_content()
    change(content)
    torch.save(content, "teacher.pt")
    for function in (load_teacher, export_checkpoint):
        message = error_of(function, Path("teacher.pt"))
        assert message.startswith("teacher.pt: ")
        assert expected in message


WRONG_VOCAB: dict[str, tuple[dict[str, Any], tuple[int, int] | None, str]] = {
    "another size": ({"395": None}, (18, 22), "vocab: has 398 tokens, but the model has 399"),
    "duplicate token": ({"7": 8}, (18, 22), "vocab: '7' and '8' have the same token 8"),
    "no SOT": ({"SOT": None, "396": 398}, (18, 23), "vocab: has no SOT"),
    "token too large": ({"7": 399}, (18, 22), "vocab: found '399' for '7', expected 0 to 398"),
    "token of another type": ({"7": 7.0}, (18, 22), "vocab: found '7.0' for '7'"),
    "name": ({"7": None, "seven": 7}, (18, 22), "vocab: found 'seven', expected a cell number or PAD, EOT, SOT"),
    "cell twice": ({"9": None, "08": 9}, (18, 22), "vocab: found '08', expected a cell number"),
    "grid": ({}, (18, 21), "vocab: names cell 395, which is outside the grid of 18 x 21 cells"),
    "absurd cell": ({"7": None, "9999999999": 7}, None, "vocab: names cell 9999999999, which is outside"),
}


@pytest.mark.parametrize("case", WRONG_VOCAB)
def test_a_wrong_vocabulary_is_explained(case: str) -> None:
    changes, grid, expected = WRONG_VOCAB[case]
    vocab = {**read_vocab(GOLDEN / "vocab.json"), **changes}
    vocab = {name: token for name, token in vocab.items() if token is not None}
    assert expected in error_of(export_checkpoint, GOLDEN / "weights_only.pt", grid, vocab)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"7"', "\x00", "[" * 100_000])
def test_a_vocabulary_that_is_no_json_object(text: str, workplace: Path) -> None:
    Path("vocab.json").write_text(text)
    assert error_of(read_vocab, Path("vocab.json")).startswith("vocab.json: ")


def test_an_absent_vocabulary(workplace: Path) -> None:
    assert error_of(read_vocab, Path("vocab.json")) == "vocab.json: cannot be read (No such file or directory)"


@pytest.mark.parametrize("name", ["weights_only.pt", "ckpt_public_format.pt"])
def test_damaged_files_are_refused(name: str, workplace: Path) -> None:
    whole = (GOLDEN / name).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"data/0") + 5000] ^= 1
    in_pickle = bytearray(whole)
    in_pickle[whole.index(b"block_size")] ^= 1
    damaged = [
        whole[: len(whole) // 2],
        whole[:-1],
        bytes(flipped),
        bytes(in_pickle),
        b"",
        b"no torch file",
        b"PK\x05\x06",
    ]
    for content in damaged:
        Path("teacher.pt").write_bytes(content)
        for function in (load_teacher, export_checkpoint):
            assert error_of(function, Path("teacher.pt")).startswith("teacher.pt: ")
    for function in (load_teacher, export_checkpoint):
        assert error_of(function, Path("absent.pt")) == "absent.pt: no such file"


def test_a_training_checkpoint_is_no_teacher_file() -> None:
    assert "make a teacher file of it with tools/export_lmtad_weights.py" in error_of(
        load_teacher, GOLDEN / "ckpt_public_format.pt"
    )


@pytest.mark.parametrize("grid_size", ["", "205", "205 252 1", "0 5", "-1 5", "2.5 3", "a b", "205x252"])
def test_a_malformed_grid_size_is_a_wrong_argument(
    grid_size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", "c.pt", "--output", "w.pt", f"--grid_size={grid_size}"]
    monkeypatch.setattr(sys, "argv", [TOOL, *arguments])
    with pytest.raises(SystemExit) as caught:
        export_main()
    assert caught.value.code == 2
    assert 'expected rows and columns, such as "205 252"' in capsys.readouterr().err


def test_the_checkpoint_is_not_overwritten(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [TOOL, "--checkpoint", "c.pt", "--output", "./c.pt"])
    with pytest.raises(SystemExit) as caught:
        export_main()
    assert caught.value.code == 2


# ---------------------------------------------------------------- checkpoints of other programs


@dataclass
class Settings:
    """A configuration as the public code has it."""

    n_layer: int = 3
    n_head: int = 4


class Plain:
    def __init__(self) -> None:
        self.block_size = 24


def test_instances_of_classes_are_read_as_their_attributes(workplace: Path) -> None:
    """Also of classes that are not here when the file is read."""
    content = {"config": Settings(), "args": argparse.Namespace(n_embd=64), "other": Plain(), "size": 3}
    torch.save(content, "ckpt.pt")
    read, classes = load_foreign(Path("ckpt.pt"))
    assert classes == ["argparse.Namespace", f"{__name__}.Plain", f"{__name__}.Settings"]
    assert type(read["config"]).__name__ == "Record"
    assert {name: attributes_of(part) for name, part in read.items()} == {
        "config": {"n_layer": 3, "n_head": 4},
        "args": {"n_embd": 64},
        "other": {"block_size": 24},
        "size": None,
    }
    # The classes were known during that one load only.
    with pytest.raises(pickle.UnpicklingError):
        torch.load("ckpt.pt", weights_only=True)


def test_a_checkpoint_from_before_torch_1_6_is_read_or_gets_a_remedy(workplace: Path) -> None:
    torch.save(golden_content(), "plain.pt", _use_new_zipfile_serialization=False)
    assert golden_difference(load_teacher(Path("plain.pt")).model) < 1e-5
    torch.save({**golden_content(), "args": Settings()}, "old.pt", _use_new_zipfile_serialization=False)
    for function in (load_teacher, export_checkpoint):
        message = error_of(function, Path("old.pt"))
        assert message.endswith("(it is in torch's format from before version 1.6: load and save it again)")


class Calls:
    """Pickles as a call of `function`: what a malicious file would have run on loading."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def write_pickle(path: Path, content: bytes) -> None:
    """A torch file whose pickle is `content`."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in entries.items():
            archive.writestr(name, content if name.endswith("data.pkl") else old)


TOUCH, TOUCH_IN_PYTHON = "touch sentinel", "open('sentinel', 'w').close()"
NOT_PLAIN = "holds more than tensors and plain values; it is not loaded, since it could run any code"
CALLS: dict[str, tuple[Calls, str]] = {
    "os.system": (Calls(os.system, TOUCH), NOT_PLAIN),
    "eval": (Calls(eval, TOUCH_IN_PYTHON), "builtins.eval is called by the pickle in this file; refused"),
    "exec": (Calls(exec, TOUCH_IN_PYTHON), "builtins.exec is called"),
    "Popen": (Calls(subprocess.Popen, ("touch", "sentinel")), "Popen is called"),
    "a call in a call": (Calls(getattr, Calls(__import__, "os"), "system"), "builtins.__import__ is called"),
    "rmtree": (Calls(shutil.rmtree, "."), "shutil.rmtree is called"),
    "torch.load": (Calls(torch.load, "other.pt", None, None), "torch.serialization.load is called"),
    "torch.hub.load": (Calls(torch.hub.load, "a/b", "c"), "torch.hub.load is called"),
    "a class": (Calls(Settings, 1, 2), f"{__name__}.Settings is called"),
    "a pickle in a pickle": (Calls(pickle.loads, pickle.dumps(Calls(os.system, TOUCH))), "loads is called"),
}
PICKLES: dict[str, bytes] = {
    "by stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + b"X\x0e\x00\x00\x00touch sentinel\x85R.",
    "INST": b"(S'touch sentinel'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch sentinel'\no.",
    "extension": b"\x80\x02\x82\x01.",
    "attributes of a class": b"\x80\x02cmodels.LMTAD\nLMTADConfig\n}X\x01\x00\x00\x00aK\x01sb.",
}


def assert_refused(reason: str) -> None:
    torch.save(golden_content(), "other.pt")
    for function in (load_teacher, export_checkpoint):
        message = error_of(function, Path("teacher.pt"))
        assert message.startswith("teacher.pt: ")
        assert reason in message
    # Neither the sentinel was made nor a file removed.
    assert sorted(path.name for path in Path().iterdir()) == ["other.pt", "teacher.pt"]


@pytest.mark.parametrize("case", CALLS)
def test_a_pickled_call_is_refused(case: str, workplace: Path) -> None:
    call, reason = CALLS[case]
    torch.save({**golden_content(), "args": call}, "teacher.pt")
    assert_refused(reason)


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_made_by_hand_is_refused(case: str, workplace: Path) -> None:
    write_pickle(Path("teacher.pt"), PICKLES[case])
    assert_refused(NOT_PLAIN)


def test_attributes_that_name_the_machinery_of_objects_are_only_data(workplace: Path) -> None:
    keys = ["__class__", "__dict__", "__setstate__", "attributes"]
    state = b"}(" + b"".join(b"X" + struct.pack("<I", len(key)) + key.encode() + b"K\x07" for key in keys) + b"u"
    write_pickle(Path("c.pt"), b"\x80\x02cmodels.LMTAD\nLMTADConfig\n)\x81" + state + b"b.")
    record, _ = load_foreign(Path("c.pt"))
    assert type(record).__name__ == "Record"
    assert attributes_of(record) == dict.fromkeys(keys, 7)
    assert "expected a checkpoint (a dict)" in error_of(export_checkpoint, Path("c.pt"))


def test_the_tool_refuses_a_malicious_checkpoint(workplace: Path) -> None:
    torch.save({**golden_content(), "args": Calls(os.system, TOUCH)}, "ckpt.pt")
    done = run([TOOL, "--checkpoint", "ckpt.pt", "--output", "weights.pt"], workplace)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: ckpt.pt: {NOT_PLAIN}\n"
    assert [path.name for path in Path().iterdir()] == ["ckpt.pt"]
    # The file is what it pretends to be.
    torch.load("ckpt.pt", weights_only=False)
    assert Path("sentinel").exists()
