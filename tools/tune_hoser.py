"""Search for the best settings of distillation. Running the same command again continues the search, or joins it.

    uv run python tools/tune_hoser.py --dataset Demo --cuda 0 --n_trials 12

The configuration says what is searched (optuna.search_space); trials are ranked by validation accuracy. Results are in
save/{dataset}/tune/{study_name}/. A baseline without a teacher is trained first. The command may run several times
at once, with --storage on several machines; --n_trials counts the trials of all of them.
"""

import argparse
import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import (
    ONE_READER,
    add_data_arguments,
    add_device_argument,
    add_seed_argument,
    answer_before_imports,
    run_command_line,
    seed_number,
    warn_of_unread,
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    add_seed_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--n_trials",
        type=_count,
        default=20,
        metavar="N",
        help="trials of the study, over all processes, not counting the baseline (default: 20)",
    )
    parser.add_argument(
        "--study_name", type=_folder_name, default="distill", metavar="NAME", help="name and folder (default: distill)"
    )
    parser.add_argument(
        "--storage",
        type=_url,
        metavar="URL",
        help="database shared by several machines, such as postgresql://user:password@host/database "
        "(default: a journal in the study's folder)",
    )
    parser.add_argument(
        "--keep", type=_count, default=3, metavar="K", help="best trials whose best.pth is kept (default: 3)"
    )
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train without a teacher first (default: yes)",
    )
    parser.add_argument(
        "--final_seeds",
        type=seed_number,
        nargs="+",
        default=[],
        metavar="N",
        help="at the end, train the best settings with and without a teacher with each of these seeds, generate trips "
        "for test.csv with each, and compare",
    )
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of 1 or more")
    return int(text)


def _url(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("found nothing, expected a URL (is a shell variable empty?)")
    return text


def _folder_name(text: str) -> str:
    if not text.isprintable() or Path(text).parts != (text,) or text.startswith(".") or len(text.encode()) > 100:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of a folder, such as distill")
    return text


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

import optuna
from loguru import logger
from optuna.trial import TrialState

import train_with_distill
from utils.config import Config, load_config
from utils.data.dataset import find_folder
from utils.errors import UserError
from utils.runtime.device import choose_device
from utils.search.final_comparison import compare_final_runs
from utils.search.preflight import check_data_and_teachers, digests_of_inputs
from utils.search.report import StudyReport
from utils.search.samplers import check_sampler, make_pruner
from utils.search.space import SearchSpace, override_texts
from utils.search.study import SharedStudy, best_trial
from utils.search.worker import Worker


def main() -> None:
    """Check everything, open the study, work, write the report."""
    args = parse_arguments()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a search does not run with torchrun; start the command several times instead, to share the trials"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    # errors that would stop every trial
    find_folder(args.dataset, args.data_dir)

    def load(more: list[str]) -> Config:
        return load_config(args.dataset, args.config, [*args.overrides, *more])

    config = load([])
    make_pruner(config.optuna, config.optimizer_config.max_epoch)
    space = SearchSpace(config, load)
    check_sampler(config.optuna, space.distributions, args.n_trials)
    warn_of_unread(args.overrides, unread_keys(config, space, args.storage))
    device = choose_device(args.cuda)
    check_data_and_teachers(args.dataset, args.data_dir, config, space)
    inputs = functools.partial(digests_of_inputs, args.dataset, args.data_dir, config, space)

    # the work
    study = SharedStudy(args.study_name, args.dataset, args.storage, config, space, args.seed, inputs())
    logger.info(f"study '{study.name}' in {study.folder}: {len(study.trials())} of {args.n_trials} trials")
    train = functools.partial(
        train_with_distill.main,
        args.dataset,
        cuda=-1 if device.type == "cpu" else args.cuda,
        data_dir=args.data_dir,
        config_path=args.config,
    )
    worker = Worker(study, train, args.overrides, args.keep, inputs)
    report = StudyReport(study, load, args.data_dir, args.cuda)
    if args.baseline:
        worker.baseline(wait=False)
    for _ in worker.trials(args.n_trials):
        report.write()
    if args.baseline:
        worker.baseline(wait=True)
    worker.tidy()
    print(report.finish())

    # the best settings with other seeds
    trials = study.trials()
    best = best_trial(trials)
    if best is None:
        errors = [trial.user_attrs.get("error", "no reason") for trial in trials if trial.state == TrialState.FAIL]
        reason = f"; the last one: {errors[-1]}" if errors else ""
        raise UserError(f"study '{study.name}': {len(errors)} of {len(trials)} trials failed and none finished{reason}")
    if args.final_seeds:
        seeds = list(dict.fromkeys(args.final_seeds))
        print(report.finish_final(worker.final_runs(seeds, best.params)))
        if best.params.get("distill.enable") is False:
            print("the best settings are without a teacher: both columns are the same training")
        else:
            settings = load(override_texts(best.params))
            print(f"\n{compare_final_runs(study, seeds, settings, args.data_dir, device)}")


def unread_keys(config: Config, space: SearchSpace, storage: str | None) -> dict[str, str]:
    """Keys and sections that have no effect on this search, and why."""
    unread = {"teacher": ONE_READER["teacher"]}
    if "distill.enable" not in space.distributions:
        unread = {key: reason for key, reason in train_with_distill.unread_keys(config).items() if key != "optuna"}
    if config.optimizer_config.max_epoch in (1, config.optuna.min_resource):
        no_pruning = "trials end before they could be pruned"
        unread |= dict.fromkeys(("optuna.reduction_factor", "optuna.min_resource"), no_pruning)
    unread |= dict.fromkeys(space.distributions, "it is searched (optuna.search_space)")
    if storage is None:
        on_machines = "it is for a study that several machines share (--storage)"
        unread |= dict.fromkeys(("optuna.heartbeat_interval", "optuna.grace_period"), on_machines)
    return unread


if __name__ == "__main__":
    run_command_line(main, kept="the study is kept; run the same command again to continue")
