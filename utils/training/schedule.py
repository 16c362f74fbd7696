"""The learning-rate schedule."""

import math
from dataclasses import dataclass

from utils.config_sections import OptimizerConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine to zero, by optimizer steps: the schedule of the published code.

    A function of the step alone, so there is nothing to save and nothing to resume wrongly. The rate is `base` at the
    end of the warm-up and zero at the last step, `total_steps`.
    """

    base: float
    total_steps: int
    warmup_steps: float

    @staticmethod
    def from_config(config: OptimizerConfig, batches_per_epoch: int) -> "Schedule":
        total = config.max_epoch * steps_per_epoch(config, batches_per_epoch)
        return Schedule(config.learning_rate, total, total * config.warmup_ratio)

    def lr_at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 1."""
        if step < self.warmup_steps:
            return self.base * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.base * 0.5 * (1.0 + math.cos(math.pi * progress))


def steps_per_epoch(config: OptimizerConfig, batches_per_epoch: int) -> int:
    """Optimizer steps of an epoch; a last, shorter accumulation window counts."""
    return -(-batches_per_epoch // config.accum_steps)
