"""The teacher's distribution over the candidates of each step.

LM-TAD reads the tokens of the roads so far (their grid cells, as published, or the roads themselves) and predicts the
next one. Restricted to the tokens of the candidates, that is what the student learns from.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import Batch
from models.ragged import ragged_arange
from utils.data.features import RoadTables
from utils.data.road_network import RoadNetwork
from utils.distillation.grid import Grid
from utils.distillation.teacher_file import Teacher
from utils.distillation.tokens import RoadTokens
from utils.errors import UserError

# Tokens that the teacher reads at a time: bounds the memory of its activations. A CPU is faster where they stay in its
# cache; a GPU needs many to be busy.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16_384}


def tokens_of_roads(teacher: Teacher, tokens: RoadTokens, network: RoadNetwork, path: Path) -> Tensor:
    """The teacher's token for each road, [N] int64; -1 where it has none.

    Args:
        teacher: read from `path`.
        tokens: those of the city, of the teacher's kind.
        network: the city's roads.
        path: for messages.

    Raises:
        UserError: the teacher was trained on another grid, or on other roads.
    """
    if tokens.grid is not None:
        return _tokens_of_cells(teacher, tokens.grid, path)
    teacher.network.check(network, path)
    return torch.from_numpy(tokens.token)


def _tokens_of_cells(teacher: Teacher, grid: Grid, path: Path) -> Tensor:
    if teacher.grid is not None and teacher.grid != (grid.rows, grid.columns):
        raise UserError(
            f"{path}: trained on a grid of {teacher.grid[0]} x {teacher.grid[1]} cells, but "
            f"distill.grid_size and distill.downsample make {grid.rows} x {grid.columns} of this city"
        )
    cell = torch.from_numpy(grid.cell)
    num_tokens = teacher.model.config.vocab_size
    if teacher.token_of_cell is None:
        if int(cell.max()) >= teacher.sot:
            raise UserError(
                f"{path}: has {num_tokens} tokens (the last is SOT), too few for the "
                f"{grid.rows} x {grid.columns} cells of distill.grid_size; was it trained on another grid?"
            )
        return cell
    # Without a recorded grid the table ends at the last cell that the vocabulary names.
    inside = cell < len(teacher.token_of_cell)
    return torch.where(inside, teacher.token_of_cell[torch.where(inside, cell, 0)], -1)


@dataclass(frozen=True)
class TeacherReader:
    """A frozen teacher that reads trips of one city through windows of tokens."""

    teacher: Teacher
    token_of_road: Tensor  # [N] int64, token of each road; -1: of a cell that the teacher does not know
    window: int  # tokens of the trip; the destination, where the teacher knows it, comes on top

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Tensor:
        """log of the teacher's probability of each candidate among those of its step, [K] float32.

        Where tokens are cells, roads whose centres lie in one share its token, so the teacher scores them alike.
        The softmax over the full vocabulary cancels in it, so the output layer is evaluated at the
        candidates' tokens only. NaN at the steps that involve a cell unknown to the teacher (as is each step to a
        destination that lies in one, if it reads destinations).
        """
        with self._in_float32(batch.road_id.device):
            history, length = self._windows(batch)
            last_hidden = self._read(history, length)
            known = (history >= 0).logical_or(_before(history, length)).all(1)
            step = batch.step_of_candidate
            unknown = self.token_of_road[batch.candidate_road_id] < 0
            known = known.scatter(0, step[unknown], False)
            log_probs = self._log_probs(
                last_hidden, step, batch.candidate_index, batch.candidate_road_id, batch.max_candidates
            )
            return torch.where(known[step], log_probs, torch.nan)

    @torch.no_grad()
    def log_probs_after(self, windows: Tensor, asked: Tensor, road: Tensor, tables: RoadTables) -> Tensor:
        """log of the teacher's probability of each successor of `road` among them all, [K] float32.

        Args:
            windows: [D, T] int64 on the CPU, tokens that it knows.
            asked: [Q] int64, the window before each question.
            road: [Q] int64, whose successors are the candidates.
            tables: those of the city, on the teacher's device.
        """
        device = tables.reach_road.device
        with self._in_float32(device):
            hidden = self.teacher.model.hidden(windows.to(device))[:, -1].float()
            road = road.to(device)
            first = tables.reach_ptr[road]
            step, index = ragged_arange(tables.reach_ptr[road + 1] - first)
            candidate = tables.reach_road[first[step] + index]
            hidden = hidden.index_select(0, asked.to(device))
            return self._log_probs(hidden, step, index, candidate, int(index.max()) + 1)

    @property
    def tokens_at_once(self) -> int:
        """Tokens that the teacher reads at a time on its device."""
        return TOKENS_AT_ONCE[self.token_of_road.device.type]

    @staticmethod
    def _in_float32(device: torch.device) -> torch.autocast:
        """Also where the student is not: the answers are those that a cache keeps."""
        return torch.autocast(device.type, enabled=False)

    def _log_probs(self, hidden: Tensor, step: Tensor, index: Tensor, candidate: Tensor, most: int) -> Tensor:
        """Of the candidates [K] that are number `index` [K] (below `most`) of their `step` [K]; hidden: [S, n_embd]."""
        token = self.token_of_road[candidate].clamp(min=0)
        scores = self.teacher.model.logits_at(hidden.index_select(0, step), token).float()
        padded = scores.new_full((len(hidden), most), float("-inf")).index_put((step, index), scores)
        return padded.log_softmax(dim=1)[step, index]

    def _windows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last tokens of SOT + roads so far, right-aligned [S, W], and how many they are [S].

        W = window; or window + 1 with the destination, whose token stands before them all, also where SOT is no longer
        among them. So the places of the others are those of the training, where the destination comes first, too.
        """
        _, place = ragged_arange(batch.trip_len, len(batch.road_id))
        token = self.token_of_road[batch.road_id]
        back = torch.arange(self.window - 1, -1, -1, device=token.device)  # steps back from the current one
        row = torch.arange(len(token), device=token.device).unsqueeze(1) - back
        history = token[row.clamp(min=0)]
        history = torch.where(back == place.unsqueeze(1) + 1, self.teacher.sot, history)
        length = (place + 2).clamp(max=self.window)
        if not self.teacher.destination:
            return history, length
        destination = self.token_of_road[batch.destination_road_id][batch.trip_of_step]
        history = F.pad(history, (1, 0)).scatter(1, (self.window - length).unsqueeze(1), destination.unsqueeze(1))
        return history, length + 1

    def _read(self, history: Tensor, length: Tensor) -> Tensor:
        """The teacher's last hidden state for each window, [S, n_embd].

        Windows of one length are read together, so that nothing is padded; equal ones are read once (fewer are equal
        where they begin with the destination: the trips to one place only).
        """
        width = history.shape[1]
        hidden = torch.empty(len(history), self.teacher.model.config.n_embd, device=history.device)
        for n in range(1, width + 1):
            chosen = (length == n).nonzero().squeeze(1)
            if not len(chosen):
                continue
            distinct, inverse = history[chosen, width - n :].clamp(min=0).unique(dim=0, return_inverse=True)
            parts = [
                self.teacher.model.hidden(part)[:, -1].float()
                for part in distinct.split(max(self.tokens_at_once // n, 1))
            ]
            hidden[chosen] = torch.cat(parts)[inverse]
        return hidden


def _before(history: Tensor, length: Tensor) -> Tensor:
    """Places [S, window] before the beginning of each right-aligned window."""
    return torch.arange(history.shape[1], device=history.device) < history.shape[1] - length.unsqueeze(1)
