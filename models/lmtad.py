"""LM-TAD (Mbuya et al., SIGSPATIAL 2024): a GPT-2-style language model of trips.

Its tokens are grid cells, as published, or roads; what they mean is nothing to the model.

The teacher of distillation. Parameter names are those of the public code, so that its weights load.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.thread_count import LayerNorm, softmax, threads_for

# Far beyond any real model; keeps nonsense in a file from overflowing the sizes of tensors.
LARGEST_SIZE = 2**24


@dataclass(frozen=True)
class LMTADConfig:
    """Sizes of the model, as the public code records them with its weights."""

    block_size: int  # longest sequence
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = False  # in the linear layers and the layer norms

    def __post_init__(self) -> None:
        """Raises ValueError for a field that no model can have."""
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
                raise ValueError(f"{name}: found {value!r}, expected a whole number from 1 to {LARGEST_SIZE}")
        if type(self.bias) is not bool:
            raise ValueError(f"bias: found {self.bias!r}, expected true or false")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: found {self.dropout!r}, expected a number from 0 to below 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head: found {self.n_head}, which does not divide n_embd = {self.n_embd}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LMTADConfig":
        """From the public code's `model_config`, whose other fields (pad_token, logging, ...) say nothing of weights.

        Raises:
            ValueError: a field is missing or wrong, or the weights mean nothing outside their training batches.
        """
        if values.get("integer_poe"):
            raise ValueError(
                "integer_poe is true: the public code then adds positions along the batch, not along the trip, "
                "so these weights mean nothing outside their training batches; train a teacher without it"
            )
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return cls(**{name: values[name] for name in names})


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and those before it."""

    def __init__(self, config: LMTADConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, n_embd] -> [B, T, n_embd]."""
        B, T, width = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # each [B, H, T, C]
        dropout = self.dropout if self.training else 0.0
        if dropout and x.device.type == "cpu":
            out = self._attend(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(out.transpose(1, 2).reshape(B, T, width)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [B, H, T, C] -> [B, H, T, C]; what PyTorch does on a CPU with dropout, with our softmax."""
        T, C = q.shape[-2:]
        score = (q * C**-0.25) @ (k * C**-0.25).transpose(-2, -1)
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        weight = softmax(score.masked_fill(future, float("-inf")))
        return F.dropout(weight, self.dropout) @ v


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: LMTADConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, n_embd] -> [B, T, n_embd]."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: LMTADConfig):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, n_embd] -> [B, T, n_embd]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class LMTAD(nn.Module):
    """Logits of the next token at each position; the output layer is the token embedding."""

    def __init__(self, config: LMTADConfig):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self._set_initial_values()

    def tie_weights(self) -> None:
        """Make the output layer and the token embedding one parameter (again)."""
        self.lm_head.weight = self.transformer["wte"].weight

    def _set_initial_values(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # Each block adds to the residual stream twice: the sum keeps its scale whatever the depth.
                depth = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T] int64 -> [B, T, n_embd], what the output layer reads; positions count from 0.

        Raises:
            ValueError: T is more than `block_size`.
        """
        length, longest = tokens.shape[1], self.config.block_size
        if length > longest:
            raise ValueError(f"found a sequence of {length} tokens, expected at most block_size = {longest}")
        position = torch.arange(length, device=tokens.device)
        with threads_for(tokens.numel()):
            x = self.transformer["drop"](self.transformer["wte"](tokens) + self.transformer["wpe"](position))
            for block in self.transformer["h"]:
                x = block(x)
            return self.transformer["ln_f"](x)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T] int64 -> logits of the token after each, [B, T, vocab_size]."""
        return self.lm_head(self.hidden(tokens))

    def logits_at(self, hidden: Tensor, token: Tensor) -> Tensor:
        """The output layer at one token for each row: hidden [M, n_embd], token [M] int64 -> [M]."""
        return (hidden * self.lm_head.weight[token]).sum(-1)
