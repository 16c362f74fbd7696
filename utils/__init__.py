"""All but the models: see the README for the order of the packages.

Modules had other places in the version before. Their former names still import, with a warning, so that notebooks and
scripts of that time keep running.
"""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from types import ModuleType

FORMER_NAMES = {
    **{name: f"runtime.{name}" for name in ("device", "memory", "progress", "signals")},
    **{name: f"data.{name}" for name in ("geometry", "highway", "loader", "road_network", "zones")},
    **{name: f"distillation.{name}" for name in ("grid", "teacher_checkpoint", "teacher_file", "teacher_training")},
    **{name: f"training.{name}" for name in ("evaluation", "rolling_checkpoint", "weights")},
    **{name: f"tracking.{name}" for name in ("log_file", "wandb_client", "wandb_download", "wandb_run")},
    "baselines": "training.heuristics",
    "checkpoint": "files.tensor_files",
    "city": "data.dataset",
    "compilation": "training.compile",
    "data_cache": "data.cache",
    "digest": "files.checksums",
    "disk_space": "files.disk_space",
    "events": "tracking.event_files",
    "file_kinds": "files.file_kinds",
    "objective": "training.losses",
    "processes": "runtime.distributed",
    "tables": "data.csv_reader",
    "teacher": "distillation.teacher_scores",
    "teacher_cache": "distillation.score_cache",
    "trajectories": "data.trips",
}


class _FormerNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `utils.city` where `utils.data.dataset` is."""

    def find_spec(self, fullname: str, path: object = None, target: object = None):
        is_former = fullname.removeprefix("utils.") in FORMER_NAMES and fullname.startswith("utils.")
        return importlib.util.spec_from_loader(fullname, self) if is_former else None

    def exec_module(self, module: ModuleType) -> None:
        place = f"utils.{FORMER_NAMES[module.__name__.removeprefix('utils.')]}"
        warnings.warn(f"{module.__name__} is {place} now", DeprecationWarning, stacklevel=2)
        found = vars(importlib.import_module(place)).items()
        vars(module).update({name: value for name, value in found if not name.startswith("__")})


sys.meta_path.append(_FormerNames())
