"""The arithmetic of a run."""

from contextlib import AbstractContextManager
from typing import Any

import torch


class Precision:
    """The arithmetic of forward passes, and the gradient scaling that float16 needs."""

    def __init__(self, name: str, device: torch.device):
        """`name` is `training.precision` of the configuration."""
        if name == "auto":
            name = "float32"
            if device.type == "cuda":
                # torch.cuda.is_bf16_supported() also counts slow emulation, and asks the current GPU.
                native = torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8
                name = "bfloat16" if native else "float16"
        self.name, self.device = name, device
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Continue with a saved scaler; that of another precision is ignored."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)

    def autocast(self, cache_enabled: bool = True) -> AbstractContextManager:
        """Forward passes within it; `cache_enabled` keeps converted weights for a second use."""
        enabled = self.name != "float32"
        return torch.autocast(self.device.type, self._dtype, enabled=enabled, cache_enabled=cache_enabled)
