"""A study that processes and machines share: whose trial is whose, how many there are, and what became of them."""

from __future__ import annotations

import contextlib
import json
import os
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
from optuna.trial import FrozenTrial, TrialState

from utils.config import Config, config_to_dict, flatten
from utils.errors import UserError
from utils.files.atomic import FolderInUseError, atomic_write, file_lock, folder_lock, make_folder
from utils.search.samplers import make_pruner, make_sampler
from utils.search.space import SearchSpace
from utils.search.storage import (
    JOURNAL,
    Heartbeat,
    Patience,
    StudyLock,
    open_database,
    open_journal,
    storage_errors,
)

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
IDENTITY_FILE = ".study_id"

# These may differ between the processes of a study; everything else makes trials comparable.
FREE_SETTINGS = ("wandb.", "optuna.", "teacher.")


class TakenOverError(Exception):
    """Another process has taken a trial up, believing this one dead."""


class OwnedTrial(optuna.Trial):
    """A trial that one process works on, until another takes it up."""

    def __init__(self, study: optuna.Study, trial_id: int, owner: str, patiently: Patience):
        # The constructor is half private; there is no other way to go on with a trial.
        super().__init__(study, trial_id)
        self._owner, self._patiently = owner, patiently

    def report(self, value: float, step: int) -> None:
        """Report an epoch.

        Raises:
            TakenOverError: the trial is no longer ours.
        """

        def report() -> None:
            self.check_owner()
            super(OwnedTrial, self).report(value, step)

        self._patiently(report)

    def should_prune(self) -> bool:
        """Whether the pruner gives the trial up."""
        return self._patiently(super().should_prune)

    def check_owner(self, ended_as: TrialState | None = None) -> FrozenTrial:
        """Make sure that the trial is still ours, running or ended as we wanted it; the trial as it is stored.

        Raises:
            TakenOverError: it is not.
        """
        found = self.storage.get_trial(self._trial_id)
        if found.state not in (TrialState.RUNNING, ended_as) or found.user_attrs.get("owner") != self._owner:
            raise TakenOverError
        return found


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on."""

    trial: OwnedTrial
    folder: Path
    values: dict[str, Any]  # of the searched keys
    is_taken_up: bool  # another process began it

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
            UserError: the storage cannot be opened, or holds a study of other settings.
        """
        self.name, self.dataset, self.space, self.config, self.seed = name, dataset, space, config, seed
        self.folder = Path("save") / dataset / "tune" / name
        self._owner = uuid.uuid4().hex
        make_folder(self.folder)
        self._place = _place(self.folder)
        with file_lock(self.folder / ".study.lock"), storage_errors():
            self._check_place(storage_url)
            self._storage = open_database(storage_url, config.optuna) if storage_url else open_journal(self.folder)
            self.study = self._open()
        self._patiently = Patience(config.optuna.grace_period if self.spans_machines else 0.0)
        self.lock = StudyLock(self.folder, self._storage)
        with self.lock(), storage_errors():
            self._check_settings()
            self.check_inputs(inputs)
            self._check_folder()
        self.study.pruner.prepare(self.study)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._patiently(lambda: self.study.get_trials(deepcopy=False))

    def trial_folder(self, number: int) -> Path:
        return self.folder / f"trial_{number}"

    def run_name(self, folder: Path) -> str:
        """A run folder of this study as the run name of the training script."""
        return str(folder.relative_to(Path("save") / self.dataset))

    @contextlib.contextmanager
    def claim(self, total: int) -> Iterator[Claim | None]:
        """A trial to work on in the `with` block: one whose process is dead, or else a new one, up to `total`.

        None: all trials there should be have ended, or others are working on them.
        """
        with contextlib.ExitStack() as stack:
            yield self._patiently(lambda: self._claim(stack, total))

    def _claim(self, stack: contextlib.ExitStack, total: int) -> Claim | None:
        with self.lock():
            return self._take_up(stack) or self._begin(stack, total)

    def others_at_work(self) -> int:
        """Trials that are running."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def end(self, claim: Claim, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """Record how a trial ended, with `facts` about it.

        Raises:
            TakenOverError: it was no longer ours to end.
        """

        def tell() -> None:
            found = claim.trial.check_owner(state)
            if found.state == TrialState.RUNNING:
                for name, fact in facts.items():
                    claim.trial.set_user_attr(name, fact)
                self.study.tell(claim.trial, value, state=state)

        try:
            self._patiently(tell)
        except UpdateFinishedTrialError:
            raise TakenOverError from None

    def note(self, key: str, value: Any) -> None:
        """Keep something about the study as a whole."""
        self._patiently(lambda: self.study.set_user_attr(key, value))

    def noted(self, key: str) -> Any:
        """What was noted under `key`, or None."""
        return self._patiently(lambda: self.study.user_attrs.get(key))

    @property
    def spans_machines(self) -> bool:
        """Whether processes on other machines may share the study."""
        return isinstance(self._storage, RDBStorage)

    @property
    def place(self) -> str:
        """Where this process works: equal places see each other's folder locks."""
        return self._place

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            study_name=self.name,
            storage=self._storage,
            sampler=make_sampler(self.config.optuna, self.seed, 0),
            pruner=make_pruner(self.config.optuna, self.config.optimizer_config.max_epoch),
            direction="maximize",
            load_if_exists=True,
        )
        if [direction.name for direction in study.directions] != ["MAXIMIZE"]:
            raise UserError(
                f"study '{self.name}': does not maximise one value, so it is another program's; choose another "
                "--study_name"
            )
        return study

    def _check_place(self, storage_url: str | None) -> None:
        """A study stays where it was begun: in its journal, or in a database."""
        has_journal = (self.folder / JOURNAL).exists()
        if storage_url and has_journal:
            raise UserError(
                f"{self.folder}: holds a study with a journal of its own; leave --storage out, or "
                "choose another --study_name"
            )
        if not storage_url and not has_journal and (self.folder / IDENTITY_FILE).exists():
            raise UserError(
                f"{self.folder}: holds the trials of a study that is kept in a database; name it with "
                "--storage, or choose another --study_name"
            )

    def _check_settings(self) -> None:
        """What trials must have in common stands in the study."""
        flat = flatten(config_to_dict(self.config))
        space = flat["optuna.search_space"]
        flat = {key: value for key, value in flat.items() if not key.startswith(FREE_SETTINGS)}
        for key in space:
            flat.pop(key, None)  # each trial has its own
        own = json.loads(json.dumps({"dataset": self.dataset, "seed": self.seed, **flat, "optuna.search_space": space}))
        if "settings" not in self.study.user_attrs:
            if self.study.get_trials(deepcopy=False):
                raise UserError(f"study '{self.name}': is another program's; choose another --study_name")
            self.study.set_user_attr("settings", own)
        if "id" not in self.study.user_attrs:  # also after a kill between the two
            self.study.set_user_attr("id", uuid.uuid4().hex)
        found = self.study.user_attrs["settings"]
        found = {key: value for key, value in found.items() if not key.startswith(FREE_SETTINGS) or key in own}
        for key in sorted(own.keys() | found.keys()):
            if own.get(key) != found.get(key):
                raise UserError(
                    f"study '{self.name}': {key} is {found.get(key)} in it and {own.get(key)} now, so its trials would "
                    "not be comparable; use the same settings, or choose another --study_name"
                )

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """All trials must have the same data and teachers, wherever they lie.

        Raises:
            UserError: names both, by hash.
        """
        if "inputs" not in self.study.user_attrs:
            if self.study.get_trials(deepcopy=False):
                logger.warning(f"study '{self.name}' does not record its data and teacher: taken to be these")
            self.study.set_user_attr("inputs", dict(inputs))
        found = self.study.user_attrs["inputs"]
        changed = [name for name in sorted({*inputs, *found}) if inputs.get(name) != found.get(name)]
        if changed:
            pairs = ", ".join(f"{n} (hash {found.get(n, 'none')} in it, {inputs.get(n, 'none')} now)" for n in changed)
            raise UserError(
                f"study '{self.name}': other data or another teacher than its trials had: {pairs}, so trials would not "
                "be comparable; put the files back, or choose another --study_name"
            )

    def _check_folder(self) -> None:
        """The folder must not hold the trials of another study of the same name."""
        path, own = self.folder / IDENTITY_FILE, self.study.user_attrs["id"]
        if not path.exists():
            atomic_write(path, lambda file: file.write(own.encode()))
        elif path.read_text() != own:
            raise UserError(
                f"{self.folder}: holds the trials of another study of this name, whose storage is not "
                f"this one; choose another --study_name, or rm -r {self.folder}"
            )

    def _take_up(self, stack: contextlib.ExitStack) -> Claim | None:
        """The first running trial whose process is dead."""
        shared = self.spans_machines
        stale = set(self._storage._get_stale_trial_ids(self.study._study_id)) if shared else set()
        for found in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Without a place its process died in the middle of `_begin`, which nobody else can be in now.
            place = found.user_attrs.get("place", self._place)
            if shared and place != self._place and found._trial_id not in stale:
                continue
            try:
                stack.enter_context(folder_lock(self.trial_folder(found.number)))
            except FolderInUseError:
                continue
            self._seed_sampler(found.number)
            optuna.Trial(self.study, found._trial_id)  # the sampler draws as it did for `ask`
            return self._own(stack, found._trial_id, is_taken_up=True)
        return None

    def _draw_again(self, trial: OwnedTrial) -> None:
        """Bring the sampler to where it was when a process died between two values of a new trial."""
        found = self._storage.get_trial(trial._trial_id)
        for key in self.space.distributions:
            if key in found.params and key not in trial.relative_params:
                self.study.sampler.sample_independent(self.study, found, key, found.distributions[key])

    def _begin(self, stack: contextlib.ExitStack, total: int) -> Claim | None:
        """A new trial, if there should be more of them."""
        trials = self.study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= total:
            return None
        self._seed_sampler(len(trials))
        with warnings.catch_warnings():
            # It says that ask() records no heartbeats; we do.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = self.study.ask()
        stack.enter_context(folder_lock(self.trial_folder(trial.number)))
        return self._own(stack, trial._trial_id, is_taken_up=False)

    def _own(self, stack: contextlib.ExitStack, trial_id: int, is_taken_up: bool) -> Claim:
        """Make a trial ours in the eyes of all others."""
        stack.enter_context(Heartbeat(self._storage, trial_id))
        trial = OwnedTrial(self.study, trial_id, self._owner, self._patiently)
        if is_taken_up:
            self._draw_again(trial)
        for key, value in (
            ("owner", self._owner),
            ("place", self._place),
            ("host", platform.node()),
            ("pid", os.getpid()),
        ):
            trial.set_user_attr(key, value)
        return Claim(trial, self.trial_folder(trial.number), self.space.suggest(trial), is_taken_up)

    def _seed_sampler(self, number: int) -> None:
        self.study.sampler = make_sampler(self.config.optuna, self.seed, number)


def ended(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state in ENDED]


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


def _place(folder: Path) -> str:
    """Equal for two processes exactly if a lock in `folder` that one holds is seen by the other.

    That is so within one running system, for the same folder. On two machines that share a disk locks may work
    or not, so their places differ.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    system = boot.read_text().strip() if boot.exists() else f"{platform.node()}-{uuid.getnode()}"
    status = folder.stat()
    return f"{system}/{status.st_dev}/{status.st_ino}"
