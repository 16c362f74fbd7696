"""The teacher's file: LM-TAD's weights, its sizes, and what is known of its grid and tokens (plain data only)."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.lmtad import LMTAD, LMTADConfig
from utils.config_sections import CELLS, ROADS
from utils.distillation.lmtad_import import attributes_of, load_foreign
from utils.distillation.tokens import NetworkKey
from utils.errors import UserError
from utils.files.file_kinds import foreign_kind
from utils.files.state_dicts import unwrapped
from utils.files.tensor_files import save_tensors, state_dict_of
from utils.runtime.device import shapes_only

SPECIAL_TOKENS = ("PAD", "EOT", "SOT")
# What our own files say beside the public ones: `teacher.tokens`, `teacher.destination`, the road network that tokens
# of roads belong to, and the trips of the training.
RECORDS = ("tokens", "destination", "network", "trips")
MAX_CELLS = 2**26
CELL = re.compile(r"0|[1-9][0-9]{0,9}")
# The public code's causal mask, saved with the weights where PyTorch had no attention of its own.
MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")


@dataclass(frozen=True)
class TrainingTrips:
    """The trips that a teacher was trained on, as its file records them (`trips`)."""

    file: str  # name and folder
    number: int
    hash: str  # of the sequences of tokens

    def __str__(self) -> str:
        return f"{self.number:,} trips of {self.file}"


Record = TypeVar("Record", NetworkKey, TrainingTrips)


@dataclass(frozen=True)
class Teacher:
    """A frozen LM-TAD and what its tokens mean."""

    model: LMTAD  # in evaluation mode, without gradients
    grid: tuple[int, int] | None  # rows, columns
    token_of_cell: Tensor | None  # [rows * columns] int64, -1: the cell has none; None: token = cell (or road)
    sot: int
    eot: int | None
    pad: int | None
    tokens: str = CELLS  # what they stand for: "cells" or "roads"
    destination: bool = False  # its token stands before each window
    network: NetworkKey | None = None  # of a teacher of roads
    trips: TrainingTrips | None = None  # that it was trained on, where the file says so

    @property
    def longest_window(self) -> int:
        """The most tokens of a trip that it can read."""
        return self.model.config.block_size - self.destination

    def describe_window(self, path: Path) -> str:
        """The longest one and what it comes from, for messages."""
        less = ", less one for the destination" if self.destination else ""
        return f"{self.longest_window} (block_size of {path}{less})"

    def describe(self) -> str:
        """What it reads and what it was trained on, in one line."""
        destination = "with" if self.destination else "without"
        trips = f", trained on {self.trips}" if self.trips else ""
        return f"tokens are {self.tokens}, {destination} the destination{trips}"


def load_teacher(path: Path) -> Teacher:
    """Read a file that `save_teacher` or `tools/export_lmtad_weights.py` wrote.

    Raises:
        UserError: the file cannot be read, its parts do not fit each other, or it holds more than plain data.
    """
    content, classes = load_foreign(path)
    if classes:
        raise UserError(
            f"{path}: holds {classes[0]}, as training checkpoints of LM-TAD do; make a teacher file "
            "of it with tools/export_lmtad_weights.py"
        )
    with _naming(path):
        return _read(content)


def save_teacher(
    path: Path,
    model: LMTAD,
    grid: tuple[int, int] | None = None,
    vocab: Mapping[str, int] | None = None,
    records: Mapping[str, Any] | None = None,
) -> None:
    """Write a teacher file, atomically.

    Args:
        path: the file.
        model: its weights and sizes are written.
        grid: rows and columns, where known.
        vocab: cell number as text, and PAD, EOT, SOT -> token; without it token = cell, and SOT is the last token.
        records: what else is known, by the names of `RECORDS`. Without them the tokens are cells, and the destination
            is not among them.

    Raises:
        UserError: the parts do not fit each other, or the file cannot be written.
    """
    content = _content(state_dict_of(model), asdict(model.config), grid, vocab) | dict(records or {})
    with _naming(path):
        content = _normalised(content)
    save_tensors(content, path)


def export_checkpoint(
    path: Path, grid: tuple[int, int] | None = None, vocab: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The content of a teacher file, from a training checkpoint of the public LM-TAD code or from a teacher file.

    Args:
        path: the checkpoint.
        grid: rows and columns; by default as the checkpoint records them, if it does.
        vocab: as for `save_teacher`; by default that of the teacher file, if it has one.

    Raises:
        UserError: the file cannot be read, is refused, or lacks something.
    """
    content, _ = load_foreign(path)
    with _naming(path):
        if not isinstance(content, dict):
            raise ValueError(f"found {type(content).__name__}, expected a checkpoint (a dict)")
        state = _weights_of(content)
        config = attributes_of(content.get("model_config"))
        grid = _recorded_grid(content) if grid is None else grid
        # A vocabulary that is given stands for all that the file says of tokens.
        special = content.get("special_tokens") if vocab is None else None
        vocab = content.get("vocab") if vocab is None else vocab
        records = {name: content[name] for name in RECORDS if name in content}
        return _normalised(_content(state, config, grid, vocab, special) | records)


def read_vocab(path: Path) -> dict[str, int]:
    """The `vocab.json` of the public preprocessing: cell number as text, and PAD, EOT, SOT -> token.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    try:
        if kind := foreign_kind(path):
            raise UserError(f"{path}: {kind}")
        vocab = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(vocab, dict):
        raise UserError(f"{path}: found {type(vocab).__name__}, expected an object of cell numbers and their tokens")
    return vocab


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the content name the file."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _weights_of(content: dict[str, Any]) -> Any:
    """The weights among the parts of a teacher file or of a training checkpoint; None if there are none."""
    return next((content[name] for name in ("state_dict", "model", "model_state_dict") if name in content), None)


def _recorded_grid(content: dict[str, Any]) -> Any:
    """Of a teacher file, or of the data set that the public code recorded (where the name is spelt so)."""
    recorded = (attributes_of(content.get("dataset_config")) or {}).get("grip_size")
    return content.get("grid", recorded if isinstance(recorded, (tuple, list)) else None)


def _content(state: Any, config: Any, grid: Any, vocab: Any, special: Any = None) -> dict[str, Any]:
    """The content of a teacher file, without what is not known."""
    vocab = dict(vocab) if isinstance(vocab, Mapping) else vocab
    if special is None and isinstance(vocab, dict):
        special = {name: vocab[name] for name in SPECIAL_TOKENS if name in vocab}
    parts = {"state_dict": state, "model_config": config, "grid": grid, "vocab": vocab, "special_tokens": special}
    return {name: part for name, part in parts.items() if part is not None}


def _normalised(content: dict[str, Any]) -> dict[str, Any]:
    """The same, checked, with plain names of weights, float32, and without masks. Raises ValueError."""
    model = _read(content).model
    return {**content, "state_dict": state_dict_of(model), "model_config": asdict(model.config)}


def _read(content: Any) -> Teacher:
    """A teacher from the content of its file. Raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError(f"found {type(content).__name__}, expected a teacher file (state_dict, model_config)")
    if "best_state_dict" in content and "val_perplexity" in content:
        raise ValueError("is the rolling checkpoint of a teacher's training; its teacher is weights.pt beside it")
    state = _weights_of(content)
    if not isinstance(state, dict):
        raise ValueError("holds no weights of LM-TAD: expected 'state_dict' (in a training checkpoint: 'model')")
    if not isinstance(content.get("model_config"), dict):
        raise ValueError("holds no sizes of the model: expected 'model_config'")
    try:
        config = LMTADConfig.from_dict(content["model_config"])
    except ValueError as error:
        raise ValueError(f"model_config: {error}") from None
    grid, records = _read_grid(content.get("grid")), _read_records(content)
    tokens, special = _read_tokens(content.get("vocab"), content.get("special_tokens"), config, grid)
    if records["tokens"] == ROADS:
        _check_roads(content, records["network"], special)
    model = _read_model(config, state)
    return Teacher(model, grid, tokens, special["SOT"], special.get("EOT"), special.get("PAD"), **records)


def _read_records(content: dict[str, Any]) -> dict[str, Any]:
    """Those of `RECORDS`, as fields of `Teacher`. Raises ValueError."""
    tokens, destination = content.get("tokens", CELLS), content.get("destination", False)
    if tokens not in (CELLS, ROADS):
        raise ValueError(f"tokens: found {str(tokens)[:40]!r}, expected {CELLS!r} or {ROADS!r}")
    if type(destination) is not bool:
        raise ValueError(f"destination: found {str(destination)[:40]!r}, expected true or false")
    return {
        "tokens": tokens,
        "destination": destination,
        "network": _read_record(content, "network", NetworkKey),
        "trips": _read_record(content, "trips", TrainingTrips),
    }


def _read_record(content: dict[str, Any], name: str, kind: type[Record]) -> Record | None:
    """A record of plain texts and numbers; None if the file has none. Raises ValueError."""
    values, types = content.get(name), {field.name: field.type for field in fields(kind)}
    if values is None:
        return None
    if not isinstance(values, dict) or {key: type(value) for key, value in values.items()} != types:
        raise ValueError(f"{name}: found {str(values)[:80]!r}, expected {', '.join(types)}")
    return kind(**values)


def _check_roads(content: dict[str, Any], network: NetworkKey | None, special: dict[str, int]) -> None:
    """token = road, and the special tokens come behind all roads. Raises ValueError."""
    if network is None:
        raise ValueError("network: is missing, but tokens are roads: of which road network?")
    for name in ("grid", "vocab"):
        if name in content:
            raise ValueError(f"{name}: expected none, since tokens are roads")
    if not 0 < network.roads <= min(special.values()):
        raise ValueError(f"network: {network.roads} roads and special tokens from {min(special.values())} do not fit")


def _read_grid(grid: Any) -> tuple[int, int] | None:
    if grid is None:
        return None
    is_pair = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(type(n) is int and n > 0 for n in grid)
    if not is_pair or grid[0] * grid[1] > MAX_CELLS:
        raise ValueError(f"grid: found {grid!r}, expected rows and columns, of at most {MAX_CELLS} cells")
    return grid[0], grid[1]


def _read_tokens(
    vocab: Any, special: Any, config: LMTADConfig, grid: tuple[int, int] | None
) -> tuple[Tensor | None, dict[str, int]]:
    """The token of each cell (None: token = cell), and the special tokens. Raises ValueError."""
    special = {} if special is None else special
    if not isinstance(special, dict):
        raise ValueError(f"special_tokens: found {type(special).__name__}, expected names and their tokens")
    if vocab is None:
        special = {"SOT": config.vocab_size - 1, **special}
        _check_tokens(special, "special_tokens", config.vocab_size)
        if grid and grid[0] * grid[1] > min(special.values()):
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} cells and {config.vocab_size} tokens do not fit: without a "
                "vocabulary (--vocab), token = cell; is it the right grid (--grid_size)?"
            )
        return None, special
    if not isinstance(vocab, dict):
        raise ValueError(f"vocab: found {type(vocab).__name__}, expected cell numbers and their tokens")
    vocab = {**special, **{str(name): token for name, token in vocab.items()}}
    _check_vocab(vocab, config.vocab_size)
    special = {name: vocab[name] for name in SPECIAL_TOKENS if name in vocab}
    cells = {int(name): token for name, token in vocab.items() if name not in special}
    num_cells = grid[0] * grid[1] if grid else max(cells, default=-1) + 1
    if max(cells, default=-1) >= min(num_cells, MAX_CELLS):
        of_grid = f"the grid of {grid[0]} x {grid[1]} cells" if grid else f"{MAX_CELLS} cells"
        raise ValueError(f"vocab: names cell {max(cells)}, which is outside {of_grid}")
    token_of_cell = torch.full((num_cells,), -1)
    token_of_cell[torch.tensor(list(cells), dtype=torch.int64)] = torch.tensor(list(cells.values()), dtype=torch.int64)
    return token_of_cell, special


def _check_vocab(vocab: dict[Any, Any], vocab_size: int) -> None:
    if "SOT" not in vocab:
        raise ValueError("vocab: has no SOT, the token that begins each trip")
    if len(vocab) != vocab_size:
        raise ValueError(f"vocab: has {len(vocab)} tokens, but the model has {vocab_size} (vocab_size)")
    for name in vocab:
        if name not in SPECIAL_TOKENS and not CELL.fullmatch(str(name)):
            raise ValueError(f"vocab: found {str(name)[:40]!r}, expected a cell number or {', '.join(SPECIAL_TOKENS)}")
    _check_tokens(vocab, "vocab", vocab_size)


def _check_tokens(tokens: Mapping[Any, Any], name: str, vocab_size: int) -> None:
    """Tokens are distinct numbers below `vocab_size`."""
    owner: dict[int, Any] = {}
    for key, token in tokens.items():
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"{name}: found {str(token)[:40]!r} for {key!r}, expected 0 to {vocab_size - 1}")
        if token in owner:
            raise ValueError(f"{name}: {owner[token]!r} and {key!r} have the same token {token}")
        owner[token] = key


def _read_model(config: LMTADConfig, state: dict[Any, Any]) -> LMTAD:
    """The frozen model with these weights; draws no random numbers. Raises ValueError."""
    if config.n_layer > len(state):
        raise ValueError(f"state_dict: has {len(state)} tensors, too few for n_layer = {config.n_layer}")
    with shapes_only():
        model = LMTAD(config)
    weights = _plain_names(state)
    _check_weights(weights, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    # Copies: the file's tensors may be views of larger ones.
    weights = {name: value.detach().float().clone() for name, value in weights.items()}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _plain_names(state: dict[Any, Any]) -> dict[str, Tensor]:
    """The weights by the names of `LMTAD`: without prefixes of wrappers and masks, and with the tied one."""
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            found = f"{str(key)[:80]!r}: {type(value).__name__}"
            raise ValueError(f"state_dict: found {found}, expected names and tensors")
    try:
        weights = unwrapped(state)
    except ValueError as error:
        raise ValueError(f"state_dict: {error}") from None
    weights = {name: value for name, value in weights.items() if not (MASK.fullmatch(name) and value.dim() == 4)}
    if "transformer.wte.weight" in weights:
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    return weights


def _check_weights(weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Names, shapes and values; names the first that is wrong."""
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"state_dict: {name} is missing")
        value = weights[name]
        if tuple(value.shape) != shape:
            raise ValueError(f"state_dict: {name} has shape {tuple(value.shape)}, expected {shape} by model_config")
        if not value.is_floating_point() or value.is_meta:
            raise ValueError(f"state_dict: {name} is no plain tensor of floating-point numbers")
        if not value.isfinite().all():
            raise ValueError(f"state_dict: {name} holds NaN or infinite values; did its training diverge?")
    for name in weights:
        if name not in shapes:
            raise ValueError(
                f"state_dict: {name[:80]!r} is unexpected; was it made with other settings than model_config?"
            )
    if not weights["lm_head.weight"].equal(weights["transformer.wte.weight"]):
        raise ValueError("state_dict: lm_head.weight differs from transformer.wte.weight; LM-TAD has one for both")
