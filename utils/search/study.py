"""A study that processes and machines share: who trains which trial, and what the trials must have in common."""

import contextlib
import json
import platform
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from loguru import logger
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState

from utils.config import Config, config_to_dict, flatten
from utils.errors import UserError
from utils.files.atomic import atomic_write, make_folder
from utils.files.locks import FolderInUseError, file_lock, folder_lock
from utils.search.samplers import make_pruner, make_sampler, repeated_by
from utils.search.space import SearchSpace
from utils.search.storage import JOURNAL, open_database, open_journal, storage_errors

FOLDER_ID = ".study_id"  # file in the study's folder; the study holds the id too

# These may differ between the processes of a study; everything else makes trials comparable.
FREE_SETTINGS = ("wandb.", "optuna.", "teacher.")


@dataclass(frozen=True)
class Claim:
    """A trial that this process trains."""

    trial: optuna.Trial
    folder: Path
    values: dict[str, Any]  # of the searched keys
    is_resumed: bool  # another process started it, and was killed

    @property
    def number(self) -> int:
        return self.trial.number


class SharedStudy:
    """The trials of one study. `folder` is its folder on this machine."""

    def __init__(
        self,
        name: str,
        dataset: str,
        storage_url: str | None,
        config: Config,
        space: SearchSpace,
        seed: int,
        inputs: Mapping[str, str],
    ):
        """Open the study, or create it. `inputs` are hashes of the files of data and teachers.

        Raises:
            UserError: the storage cannot be opened, or holds a study with other settings or inputs.
        """
        self.name, self.dataset, self.space, self.config, self.seed = name, dataset, space, config, seed
        self.folder = Path("save") / dataset / "tune" / name
        make_folder(self.folder)
        with self._lock(), storage_errors():
            self._check_storage_kind(storage_url)
            self._storage = open_database(storage_url, config.optuna) if storage_url else open_journal(self.folder)
            self.study = self._open()
            self._check_settings()
            self.check_inputs(inputs)
            self._check_folder()
        self.study.pruner.prepare(self.study)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        with storage_errors():
            return self.study.get_trials(deepcopy=False)

    def running(self) -> int:
        """How many trials are running."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def trial_folder(self, number: int) -> Path:
        return self.folder / f"trial_{number}"

    def run_name(self, folder: Path) -> str:
        """A run folder of this study as the run name of the training script."""
        return str(folder.relative_to(Path("save") / self.dataset))

    @contextlib.contextmanager
    def claim(self, total: int) -> Iterator[Claim | None]:
        """A trial to train in the `with` block: one whose process died, or else a new one, up to `total`.

        None: all trials have ended, or others are training them.
        """
        with contextlib.ExitStack() as stack:
            with self._lock(), storage_errors():
                if isinstance(self._storage, RDBStorage):
                    claim = self._start_in_database(stack, total)
                else:
                    claim = self._resume(stack) or self._start(stack, total)
            yield claim

    def end(self, claim: Claim, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """Record how a trial ended, with `facts` about it.

        Raises:
            UpdateFinishedTrialError: its heartbeat was missing, so another machine has failed it.
        """
        with storage_errors():
            if self.study._storage.get_trial(claim.trial._trial_id).state != TrialState.RUNNING:
                raise UpdateFinishedTrialError
            for name, fact in facts.items():
                claim.trial.set_user_attr(name, fact)
            self.study.tell(claim.trial, value, state=state)

    def note(self, key: str, value: Any) -> None:
        """Store something about the study as a whole."""
        with storage_errors():
            self.study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What was stored under `key`, or None."""
        with storage_errors():
            return self.study.user_attrs.get(key)

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """All trials must have the same data and teachers, by content.

        Raises:
            UserError: they differ; names the files and both hashes.
        """
        with storage_errors():
            attributes = self.study.user_attrs
            if "inputs" not in attributes:
                if self.study.get_trials(deepcopy=False):
                    logger.warning(f"study '{self.name}' has no record of its data and teacher: assuming these")
                self.study.set_user_attr("inputs", dict(inputs))
        found = attributes.get("inputs", inputs)
        changed = [name for name in sorted({*inputs, *found}) if inputs.get(name) != found.get(name)]
        if changed:
            pairs = ", ".join(f"{n} (hash was {found.get(n, 'none')}, is {inputs.get(n, 'none')})" for n in changed)
            raise UserError(
                f"study '{self.name}': other data or another teacher than its trials had: {pairs}, so trials would not "
                "be comparable; restore the files, or choose another --study_name"
            )

    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        """One process of this machine at a time counts the trials and takes one."""
        return file_lock(self.folder / ".study.lock")

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            study_name=self.name,
            storage=self._storage,
            sampler=make_sampler(self.config.optuna, self.seed, 0, self.space.distributions),
            pruner=make_pruner(self.config.optuna, self.config.optimizer_config.max_epoch),
            direction="maximize",
            load_if_exists=True,
        )
        is_foreign = "settings" not in study.user_attrs and study.get_trials(deepcopy=False)
        if is_foreign or [direction.name for direction in study.directions] != ["MAXIMIZE"]:
            raise UserError(f"study '{self.name}': was created by another program; choose another --study_name")
        return study

    def _check_storage_kind(self, storage_url: str | None) -> None:
        """A study stays where it was created: in its journal, or in a database."""
        has_journal = (self.folder / JOURNAL).exists()
        if storage_url and has_journal:
            raise UserError(
                f"{self.folder}: holds a study with a journal of its own; leave out --storage, or "
                "choose another --study_name"
            )
        if not storage_url and not has_journal and (self.folder / FOLDER_ID).exists():
            raise UserError(
                f"{self.folder}: holds the trials of a study that is kept in a database; name it with "
                "--storage, or choose another --study_name"
            )

    def _check_settings(self) -> None:
        """The study holds what its trials must have in common."""
        flat = flatten(config_to_dict(self.config))
        space = flat["optuna.search_space"]
        flat = {key: value for key, value in flat.items() if not key.startswith(FREE_SETTINGS) and key not in space}
        own = json.loads(json.dumps({"dataset": self.dataset, "seed": self.seed, **flat, "optuna.search_space": space}))
        found = self.study.user_attrs.get("settings")
        if found is None:
            self.study.set_user_attr("settings", own)
            return
        found = {key: value for key, value in found.items() if not key.startswith(FREE_SETTINGS) or key in own}
        # A key that an earlier version did not have was as its default is: that is what it did.
        defaults = flatten(config_to_dict(Config()))
        found = {key: defaults[key] for key in own if key in defaults} | found
        for key in sorted(own.keys() | found.keys()):
            if own.get(key) != found.get(key):
                raise UserError(
                    f"study '{self.name}': {key} was {found.get(key)} and is now {own.get(key)}, so trials would not "
                    "be comparable; use the same settings, or choose another --study_name"
                )

    def _check_folder(self) -> None:
        """The folder must not hold the trials of another study of the same name.

        Each folder has an id, and the study knows the ids of its folders (one on each machine).
        """
        path, attributes = self.folder / FOLDER_ID, self.study.user_attrs
        if not path.exists():
            own = uuid.uuid4().hex
            self.study.set_user_attr(f"folder {own}", platform.node())
            atomic_write(path, lambda file: file.write(own.encode()))
            return
        own = path.read_text()
        if f"folder {own}" not in attributes and attributes.get("id") != own:  # "id": of version 1, one for all folders
            raise UserError(
                f"{self.folder}: holds the trials of another study of this name, kept in another database; "
                f"choose another --study_name, or rm -r {self.folder}"
            )

    # On one machine: a trial whose process died is resumed ---------------------------------------------------------

    def _resume(self, stack: contextlib.ExitStack) -> Claim | None:
        """The first running trial whose folder no process holds: its process is dead."""
        for found in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            try:
                stack.enter_context(folder_lock(self.trial_folder(found.number)))
            except FolderInUseError:
                continue
            self._seed_sampler(found.number)
            trial = optuna.Trial(self.study, found._trial_id)  # the sampler draws as it did for `ask`
            # The process may have died between two values of a new trial: bring the sampler to where it was.
            for key in self.space.distributions:
                if key in found.params and key not in trial.relative_params:
                    self.study.sampler.sample_independent(self.study, found, key, found.distributions[key])
            return self._claim(trial, is_resumed=True)
        return None

    def _start(self, stack: contextlib.ExitStack, total: int) -> Claim | None:
        """A new trial, or one that is waiting in the queue, if there are fewer than `total`."""
        trials = self.study.get_trials(deepcopy=False)
        replaced = replacements(trials)
        if sum(trial.state != TrialState.WAITING and trial.number not in replaced for trial in trials) >= total:
            return None
        self._seed_sampler(len(trials))
        with warnings.catch_warnings():
            # Heartbeats are recorded, though not by Optuna's own loop.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = self.study.ask()
        if trial.number != len(trials):  # queued, or another machine has asked meanwhile: draw with the own seed
            self._seed_sampler(trial.number)
            trial = optuna.Trial(self.study, trial._trial_id)
        stack.enter_context(folder_lock(self.trial_folder(trial.number)))
        stack.enter_context(get_heartbeat_thread(trial._trial_id, self.study._storage))
        return self._claim(trial, is_resumed=False)

    def _start_in_database(self, stack: contextlib.ExitStack, total: int) -> Claim | None:
        """As `_start`; trials whose heartbeat has stopped are failed first, and their values queued again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        return self._start(stack, total)

    def _claim(self, trial: optuna.Trial, is_resumed: bool) -> Claim:
        trial.set_user_attr("host", platform.node())
        return Claim(trial, self.trial_folder(trial.number), self.space.suggest(trial), is_resumed)

    def _seed_sampler(self, number: int) -> None:
        self.study.sampler = make_sampler(self.config.optuna, self.seed, number, self.space.distributions)


def replacements(trials: list[FrozenTrial]) -> dict[int, int]:
    """Trials that failed because their heartbeat stopped, and the trials that repeat their values, by number."""
    return {old: trial.number for trial in trials for old in repeated_by(trial)}


def best_value(trial: FrozenTrial) -> float | None:
    """The highest validation accuracy that a trial reported; None before its first epoch."""
    values = list(trial.intermediate_values.values())
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        values.append(trial.value)
    return max(values, default=None)


def best_trial(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the highest value, the first of equals."""
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)
