"""What would stop every trial of a search is found before the first."""

import dataclasses

from optuna.distributions import CategoricalDistribution

from utils.city import load_city
from utils.config import Config, display_path
from utils.digest import file_digest
from utils.distillation import check_teacher, teacher_path
from utils.errors import UserError
from utils.grid import make_grid
from utils.search_space import SearchSpace
from utils.teacher import tokens_of_roads
from utils.teacher_file import load_teacher


def check_data_and_teachers(dataset: str, data_dir: str | None, config: Config, space: SearchSpace) -> dict[str, str]:
    """Read the city and each teacher that a trial may have; hashes of all their files, by their names.

    Raises:
        UserError: one of them cannot be used.
    """
    searched = space.distributions
    teachers = searched.get("distill.teacher", CategoricalDistribution([config.distill.teacher]))
    settings = [dataclasses.replace(config.distill, teacher=teacher) for teacher in teachers.choices]
    if not config.distill.enable and "distill.enable" not in searched:
        settings = []
    for each in settings:
        check_teacher(each, dataset)
    city = load_city(dataset, config, data_dir)
    for split in ("train", "val", "test"):
        city.trips(split)
    inputs = city.file_digests()
    for each in settings:
        path = teacher_path(each, dataset)
        teacher = load_teacher(path)
        if not {"distill.grid_size", "distill.downsample"} & set(searched):
            tokens_of_roads(teacher, make_grid(city.network, each.grid_size, each.downsample), path)
        window = searched.get("distill.window")
        longest = each.window if window is None else max(getattr(window, "choices", None) or [window.high])
        block_size = teacher.model.config.block_size
        if longest > block_size:
            raise UserError(
                f"distill.window: up to {longest}, expected at most {block_size} (block_size of {display_path(path)})"
            )
        inputs[f"teacher {display_path(path)}"] = file_digest(path)[:12]
    return inputs
