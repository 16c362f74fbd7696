"""A hash of the content of a checkpoint: it notices a content that parses and is not what was saved."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def content_digest(content: Any) -> str:
    """Hash of nested dicts, lists and tuples of tensors and plain values, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, content)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Hash of a file; empty if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _add(digest: "hashlib.blake2b", value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)};".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r};".encode())
