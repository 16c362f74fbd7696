"""The sections of a configuration file: their keys, with default, meaning and limits.

Docstrings and help texts are also the text of config/README.md, see utils/config_reference.py.
"""

from dataclasses import dataclass, field
from typing import Any

from models.config import MAX_LAYERS, MAX_WIDTH, ModelConfig, setting

# What a teacher's tokens stand for.
CELLS, ROADS = "cells", "roads"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule, and the batches.

    Read by `train.py`, `train_with_distill.py`, `tools/tune_hoser.py` and `tools/benchmark.py`; of these keys
    `tools/evaluate.py` reads `batch_size` only.
    """

    max_epoch: int = setting(25, "Epochs to train. The learning-rate schedule spans all of them.", min=1, max=1_000_000)
    batch_size: int = setting(
        256,
        "Trips in a batch, over all processes together. Lower it if memory runs out, and raise `accum_steps` to "
        "keep the size of an optimizer step.",
        min=1,
    )
    learning_rate: float = setting(0.001, "Highest learning rate, reached at the end of the warm-up.", above=0.0)
    weight_decay: float = setting(0.1, "Weight decay of AdamW, applied to all parameters.", min=0.0)
    warmup_ratio: float = setting(
        0.1,
        "Share of all optimizer steps in which the rate rises linearly. After that it falls to zero along a cosine.",
        min=0.0,
        below=1.0,
    )
    max_norm: float = setting(1.0, "Gradients with a larger norm are scaled down to this norm.", above=0.0)
    accum_steps: int = setting(
        1,
        "Batches whose gradients are averaged into one optimizer step. The last step of an epoch may have fewer.",
        min=1,
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How the arithmetic is carried out.

    `precision` is read by every program that runs a model, except `tools/plot_run.py`; the rest by `train.py`,
    `train_with_distill.py` and `tools/tune_hoser.py`, `cuda_graph` also by `tools/benchmark.py`.
    """

    precision: str = setting(
        "auto",
        "Arithmetic of the forward pass. `auto` is float32 on the CPU; on a GPU it is bfloat16 where the hardware "
        "supports it, and float16 with gradient scaling otherwise. Weights and optimizer state are always float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = setting(
        False,
        "Compile parts of the model with torch.compile, which takes a minute or two at the start. Worth a try for "
        "long runs on a GPU; if compilation fails, training continues without it.",
    )
    cuda_graph: bool = setting(
        True,
        "On a GPU, record the operations of a training step once and replay them, which saves the time to hand them to "
        "it one by one. A replayed step runs no Python code of the model: set this to false while a changed model is "
        "looked into, or where it computes from numbers of Python that change during training. Without effect with "
        "several processes, with accum_steps above 1, above 200,000 roads, and where a batch has more than 32,768 "
        "steps.",
    )


@dataclass(frozen=True)
class DataConfig:
    """How the CSV files of trips are read.

    Read by every program that reads trips.
    """

    on_bad_trip: str = setting(
        "error",
        "What to do with a trip that is malformed or longer than `trajectory_encoder_config.max_len`: `error` stops "
        "and names its file and line; `skip` leaves out trips of both kinds and logs how many.",
        choices=("error", "skip"),
    )
    status: str = setting(
        "reached",
        "Which trips of a file that `tools/generate.py` wrote are read (its column `status`): those that `reached` "
        "their destination, the others being left out and counted; or `all`.",
        choices=("reached", "all"),
    )


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from an LM-TAD teacher.

    Read by `train_with_distill.py`, `tools/tune_hoser.py` and `tools/benchmark.py`. `tools/train_teacher.py` reads
    `teacher` (the file that it writes), `grid_size` and `downsample`.
    """

    enable: bool = setting(True, "Learn from the teacher. The option `--no-distill` sets this to false.")
    teacher: str = setting("", "Teacher file. Empty: `save/{dataset}/teacher/weights.pt`.")
    grid_size: float = setting(
        0.001,
        "Side of a grid cell in degrees of latitude and longitude (0.001 is about 111 m from north to south). "
        "Together with `downsample` it must give the grid that the teacher was trained on. A teacher of roads has no "
        "grid.",
        above=0.0,
    )
    downsample: int = setting(1, "Merge this many cells in each direction into one.", min=1)
    window: int = setting(
        4,
        "How many of the latest tokens of a trip the teacher reads, at most its own `block_size`; one that knows the "
        "destination reads that token before them, so at most `block_size` - 1. A longer window gives it more context "
        "and takes longer; each value has a cache of its own.",
        min=1,
    )
    lambda_: float = setting(
        0.01,
        "Weight of the KL term: loss = loss_next_step + loss_time_pred + lambda * loss_kl. With 0 the teacher has no "
        "effect.",
        min=0.0,
    )
    temperature: float = setting(
        2.0,
        "Divides the logits of teacher and student before the softmax, so that higher values soften both "
        "distributions. loss_kl is not multiplied by the factor tau^2 of Hinton et al. (2015), so its gradients shrink "
        "at higher temperatures: tune `lambda` and `temperature` together.",
        above=0.0,
    )
    steps: str = setting(
        "all", "Steps of a trip that loss_kl covers: all of them, or only the last one.", choices=("all", "last")
    )
    cache: bool = setting(
        True,
        "Compute the teacher's answers once and keep them on disk. Turn it off if the disk is too small (2 bytes for "
        "each candidate road); the teacher then runs at every batch.",
    )


@dataclass(frozen=True)
class TeacherConfig:
    """Size and training of your own teacher. The defaults are LM-TAD's and meant for a GPU.

    Read by `tools/train_teacher.py` only.
    """

    n_layer: int = setting(8, "Number of transformer blocks.", min=1, max=MAX_LAYERS)
    n_head: int = setting(12, "Number of attention heads. Must divide `n_embd`.", min=1, max=MAX_WIDTH)
    n_embd: int = setting(768, "Width of the token embeddings and of all blocks.", min=1, max=MAX_WIDTH)
    block_size: int = setting(
        256,
        "Longest sequence in tokens. In each epoch, training sees at most this much of a trip.",
        min=2,
        max=MAX_WIDTH,
    )
    dropout: float = setting(0.1, "Dropout probability.", min=0.0, below=1.0)
    max_epoch: int = setting(
        20, "Epochs to train. The best one by validation perplexity is kept.", min=1, max=1_000_000
    )
    batch_size: int = setting(128, "Trips in a batch. Lower it if memory runs out.", min=1)
    learning_rate: float = setting(0.0003, "Highest learning rate, reached at the end of the warm-up.", above=0.0)
    weight_decay: float = setting(0.1, "Weight decay of AdamW, applied to all parameters.", min=0.0)
    warmup_ratio: float = setting(
        0.05,
        "Share of all optimizer steps in which the rate rises linearly. After that it falls to zero along a cosine.",
        min=0.0,
        below=1.0,
    )
    max_norm: float = setting(1.0, "Gradients with a larger norm are scaled down to this norm.", above=0.0)
    tokens: str = setting(
        CELLS,
        "What a token stands for: the grid cell that a road lies in (`cells`, as published; roads of one cell share a "
        "token, and the teacher cannot rank them), or the road itself (`roads`; needs no grid, and fits this road "
        "network only). The teacher file records it, and distillation follows the file.",
        choices=(CELLS, ROADS),
    )
    destination: bool = setting(
        False,
        "Put the token of the trip's destination before SOT in training, and before every window that the teacher "
        "reads in distillation. The published LM-TAD does not know where a trip goes; HOSER does. The teacher file "
        "records it, and distillation follows the file.",
    )


@dataclass(frozen=True)
class WandbConfig:
    """Tracking with Weights & Biases.

    Read by `train_with_distill.py` and, for its trials, by `tools/tune_hoser.py`. `tools/download_wandb_model.py`
    reads `entity` and `project`.
    """

    enable: bool = setting(False, "Track distillation training.")
    project: str = setting(
        "hoser-distill", "Project that runs belong to: up to 128 characters, none of them `/ \\ # ? % :`."
    )
    entity: str = setting("", "User or team that owns the project. Empty: the default of the W&B client.")
    run_name: str = setting(
        "", "Name of the run, up to 128 characters. Empty: `{dataset}_b{batch_size}_acc{accum_steps}`."
    )
    tags: tuple[str, ...] = setting((), "Tags of the run, each of 1 to 64 characters.")
    log_model: bool = setting(
        False, "Upload best.pth when training ends, as a model artifact and as a file of the run."
    )


def _default_search_space() -> dict[str, dict[str, Any]]:
    return {
        "distill.lambda": {"low": 0.001, "high": 0.1, "log": True},
        "distill.temperature": {"low": 1.0, "high": 5.0},
        "distill.window": {"low": 2, "high": 8},
    }


@dataclass(frozen=True)
class OptunaConfig:
    """Hyper-parameter search.

    Read by `tools/tune_hoser.py` only.
    """

    sampler: str = setting(
        "tpe",
        "Optuna's sampler. `grid` tries all combinations of `choices`, one after the other. `cmaes` is an extra "
        "(`uv sync --extra cmaes`); it needs two or more numeric keys, and draws the values of `choices` at random.",
        choices=("tpe", "grid", "cmaes"),
    )
    n_startup_trials: int = setting(
        10, "Trials with random values before the sampler starts to learn from earlier ones.", min=1
    )
    min_resource: int = setting(1, "Epochs that a trial trains before it can be pruned.", min=1)
    reduction_factor: int = setting(
        3,
        "Hyperband keeps about one in this many trials at each comparison. Higher values prune harder.",
        min=2,
        max=1_000,
    )
    heartbeat_interval: int = setting(
        10, "Seconds between the heartbeats of a running trial. Used with `--storage` only.", min=1
    )
    grace_period: int = setting(
        60,
        "Seconds without a heartbeat after which a trial counts as dead and its values are tried again. Used with "
        "`--storage` only.",
        min=2,
    )
    # utils/search/space.py checks its entries.
    search_space: dict[str, Any] = field(
        default_factory=_default_search_space,
        metadata={
            "help": "Keys to search, and the values to try. One that is given replaces the default as a whole, in a "
            "file or as `--set 'optuna.search_space={distill.lambda: {low: 0.001, high: 1.0, log: true}}'`."
        },
    )


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
