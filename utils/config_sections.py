"""The sections of a configuration file: their keys, with default, meaning and limits."""

from dataclasses import dataclass, field
from typing import Any

from models.config import MAX_LAYERS, MAX_WIDTH, ModelConfig, setting


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule and the batches (DESIGN: training semantics)."""

    max_epoch: int = setting(25, "epochs to train", min=1, max=1_000_000)
    batch_size: int = setting(256, "trips in a batch", min=1)
    learning_rate: float = setting(0.001, "highest learning rate", above=0.0)
    weight_decay: float = setting(0.1, "AdamW weight decay, on all parameters", min=0.0)
    warmup_ratio: float = setting(0.1, "share of the steps with a linearly rising rate", min=0.0, below=1.0)
    max_norm: float = setting(1.0, "gradient norm above which gradients are scaled down", above=0.0)
    accum_steps: int = setting(1, "batches averaged into one optimizer step", min=1)


@dataclass(frozen=True)
class TrainingConfig:
    """How the arithmetic is carried out."""

    precision: str = setting(
        "auto",
        "auto: float32 on the CPU, bfloat16 or else float16 on CUDA",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = setting(False, "fuse parts of the model by torch.compile; takes a minute at the start")


@dataclass(frozen=True)
class DataConfig:
    """How the split files are read."""

    on_bad_trip: str = setting(
        "error", "error: stop at a malformed trip; skip: leave it out and count it", choices=("error", "skip")
    )


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from an LM-TAD teacher (train_with_distill.py only)."""

    enable: bool = setting(True, "learn from the teacher; --no-distill turns it off")
    teacher: str = setting("", "teacher file; empty: save/{dataset}/teacher/weights.pt")
    grid_size: float = setting(0.001, "degrees of latitude and longitude of a grid cell", above=0.0)
    downsample: int = setting(1, "so many cells in each direction are one", min=1)
    window: int = setting(4, "tokens of the trip so far that the teacher reads", min=1)
    lambda_: float = setting(0.01, "weight of the KL term in the loss", min=0.0)
    temperature: float = setting(2.0, "softens both distributions", above=0.0)
    steps: str = setting("all", "steps of a trip that count: all, or the last only", choices=("all", "last"))
    cache: bool = setting(True, "ask the teacher once and keep its answers on disk")


@dataclass(frozen=True)
class TeacherConfig:
    """Size and training of a teacher of one's own (tools/train_teacher.py only)."""

    n_layer: int = setting(8, "transformer blocks", min=1, max=MAX_LAYERS)
    n_head: int = setting(12, "attention heads; must divide n_embd", min=1, max=MAX_WIDTH)
    n_embd: int = setting(768, "width", min=1, max=MAX_WIDTH)
    block_size: int = setting(256, "longest sequence; longer trips are cut", min=2, max=MAX_WIDTH)
    dropout: float = setting(0.1, "dropout", min=0.0, below=1.0)
    max_epoch: int = setting(20, "epochs to train", min=1, max=1_000_000)
    batch_size: int = setting(128, "trips in a batch", min=1)
    learning_rate: float = setting(0.0003, "highest learning rate", above=0.0)
    weight_decay: float = setting(0.1, "AdamW weight decay", min=0.0)
    warmup_ratio: float = setting(0.05, "share of the steps with a linearly rising rate", min=0.0, below=1.0)
    max_norm: float = setting(1.0, "gradient norm above which gradients are scaled down", above=0.0)


@dataclass(frozen=True)
class WandbConfig:
    """Tracking with Weights & Biases (train_with_distill.py only)."""

    enable: bool = setting(False, "track distillation training with Weights & Biases")
    project: str = setting("hoser-distill", "project of the runs")
    entity: str = setting("", "user or team that owns the project; empty: the client's setting")
    run_name: str = setting("", "name of the run; empty: {dataset}_b{batch_size}_acc{accum_steps}")
    tags: tuple[str, ...] = setting((), "tags of the run")
    log_model: bool = setting(False, "upload best.pth at the end, as a model artifact and as a file of the run")


def _default_search_space() -> dict[str, dict[str, Any]]:
    return {
        "distill.lambda": {"low": 0.001, "high": 0.1, "log": True},
        "distill.temperature": {"low": 1.0, "high": 5.0},
        "distill.window": {"low": 2, "high": 8},
    }


@dataclass(frozen=True)
class OptunaConfig:
    """Hyper-parameter search (tools/tune_hoser.py only)."""

    sampler: str = setting("tpe", "what suggests values: tpe, or cmaes (extra `cmaes`)", choices=("tpe", "cmaes"))
    n_startup_trials: int = setting(10, "trials at random values before the sampler learns from them", min=1)
    min_resource: int = setting(1, "epochs before a trial can be pruned", min=1)
    reduction_factor: int = setting(3, "about one trial in `reduction_factor` passes each comparison", min=2, max=1_000)
    heartbeat_interval: int = setting(10, "seconds between the heartbeats of a running trial (--storage only)", min=1)
    grace_period: int = setting(60, "seconds without a heartbeat after which a trial is replaced by a new one", min=2)
    # Replaced as a whole; utils/search/space.py checks its content.
    search_space: dict[str, Any] = field(default_factory=_default_search_space, metadata={"help": "what is searched"})


@dataclass(frozen=True)
class Config(ModelConfig):
    """A whole configuration file: the model's sections, as published, and those of the scripts."""

    optimizer_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    optuna: OptunaConfig = field(default_factory=OptunaConfig)
