"""Errors that would stop every trial of a search are found before the first trial."""

import dataclasses

from optuna.distributions import CategoricalDistribution

from utils.config import Config
from utils.config_sections import ROADS, DistillConfig
from utils.data.dataset import file_digests, find_folder, load_city
from utils.distillation.kl_loss import check_teacher, teacher_path
from utils.distillation.teacher_file import load_teacher
from utils.distillation.teacher_scores import tokens_of_roads
from utils.distillation.tokens import make_tokens
from utils.errors import UserError
from utils.files.checksums import file_digest
from utils.search.space import SearchSpace


def check_data_and_teachers(dataset: str, data_dir: str | None, config: Config, space: SearchSpace) -> None:
    """Read the city and each teacher that a trial may use.

    Raises:
        UserError: one of them cannot be used.
    """
    searched, settings = space.distributions, _teachers(config, space)
    for each in settings:
        check_teacher(each, dataset)
    city = load_city(dataset, config, data_dir)
    for split in ("train", "val", "test"):
        city.trips(split)
    for each in settings:
        path = teacher_path(each, dataset)
        teacher = load_teacher(path)
        if teacher.tokens == ROADS or not {"distill.grid_size", "distill.downsample"} & set(searched):
            tokens_of_roads(teacher, make_tokens(teacher.tokens, city.network, each), city.network, path)
        window = searched.get("distill.window")
        longest = each.window if window is None else max(getattr(window, "choices", None) or [window.high])
        if longest > teacher.longest_window:
            raise UserError(f"distill.window: up to {longest}, expected at most {teacher.describe_window(path)}")


def digests_of_inputs(dataset: str, data_dir: str | None, config: Config, space: SearchSpace) -> dict[str, str]:
    """Hashes of all files of the data and of the teachers, by their names."""
    teachers = {teacher_path(each, dataset) for each in _teachers(config, space)}
    return file_digests(find_folder(dataset, data_dir)) | {
        f"teacher {path}": file_digest(path)[:12] for path in teachers
    }


def _teachers(config: Config, space: SearchSpace) -> list[DistillConfig]:
    """The configuration sections of all teachers that a trial may use."""
    searched = space.distributions
    if not config.distill.enable and "distill.enable" not in searched:
        return []
    teachers = searched.get("distill.teacher", CategoricalDistribution([config.distill.teacher]))
    return [dataclasses.replace(config.distill, teacher=teacher) for teacher in teachers.choices]
