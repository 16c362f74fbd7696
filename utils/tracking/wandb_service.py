"""Asking the WandB service: log in, limits on waiting, and every failure as one line."""

import contextlib
import os
import re
from collections.abc import Iterator

from utils.config_sections import WandbConfig
from utils.errors import UserError
from utils.tracking.wandb_client import Api, WandbApiFailedError, wandb

ANSWER_LIMIT_S = 9.0  # for one try; with the second one and the client's end, 30 s are not exceeded
TRIES = 2
FAILURES = (wandb.errors.Error, WandbApiFailedError)
LOGIN_ADVICE = "run `uv run wandb login`, or set WANDB_API_KEY"


def answer_limit() -> float:
    """Seconds to wait for an answer; WANDB_HTTP_TIMEOUT, the client's own variable, overrides ours."""
    try:
        return float(os.environ["WANDB_HTTP_TIMEOUT"])
    except (KeyError, ValueError):
        return ANSWER_LIMIT_S


def connect() -> Api:
    """Log in with the key of the environment or of `wandb login`; never asks for one.

    Raises:
        UserError: no key, one that is not accepted, or no answer.
    """
    limit = answer_limit()
    wanted = {
        "x_graphql_retry_max": TRIES - 1,
        "x_graphql_retry_wait_max_seconds": 1,
        "x_graphql_timeout_seconds": limit,
        "x_file_transfer_retry_max": TRIES - 1,
        "x_file_transfer_retry_wait_max_seconds": 1,
    }
    # Names with x_ may go in any release of the client; without them it only waits longer.
    limits = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
    try:
        # Silent: all that the client prints would stand around our one line. It also keeps it from asking.
        wandb.setup(settings=wandb.Settings(silent=True, **limits))
        with service_errors():
            return Api(timeout=int(TRIES * limit + 3))
    except wandb.errors.UsageError as error:
        reason = "no API key" if "No API key" in str(error) else _first_line(error)
        raise UserError(f"not logged in to WandB ({reason}); {LOGIN_ADVICE}") from None
    except ValueError as error:  # WANDB_... in the environment, or the client's settings file
        key_and_problem = [line.split(" [")[0].strip() for line in str(error).splitlines()[1:3]]
        raise UserError(f"WandB settings: {': '.join(key_and_problem) or error}") from None


def find_project(api: Api, entity: str | None, project: str | None, config: WandbConfig) -> tuple[str, str]:
    """Entity and project: as given, else by the client's settings, else by `config`, else the account's own.

    Raises:
        UserError: none of them names an entity.
    """
    project = project or api.settings["project"] or config.project
    entity = entity or api.settings["entity"] or config.entity
    if not entity:
        with service_errors():
            entity = api.default_entity
    if not entity:
        raise UserError("the WandB account has no default entity; name the user or team with --entity")
    return entity, project


@contextlib.contextmanager
def service_errors() -> Iterator[None]:
    """Failures of the service inside the block become a `UserError` with the reason.

    Raises:
        UserError: no answer, or an answer that is an error.
        ValueError: what the client raises when there is no such run or project.
    """
    try:
        yield
    except wandb.errors.UsageError:
        raise
    except FAILURES as error:
        wrapped = getattr(error, "exc", None)
        if isinstance(wrapped, ValueError):
            raise wrapped from None
        raise UserError(_explain(error)) from error


def failure_of(error: BaseException | None) -> WandbApiFailedError | None:
    """The failed request that `error` tells of, if it tells of one."""
    while error is not None and not isinstance(error, WandbApiFailedError):
        error = getattr(error, "exc", None) or error.__cause__
    return error


def is_refusal(error: BaseException) -> bool:
    """Whether the service answered that it does not know such a query."""
    failure = failure_of(error)
    if failure is None:
        return False
    status = failure.response.http_status if failure.response else 0
    # The client puts "input:" before what a GraphQL answer has in its list of errors.
    return status in (200, 400) or (not status and str(failure).startswith("input:"))


def _explain(error: BaseException) -> str:
    failure = failure_of(error)
    text = str(failure or error)
    status = failure.response.http_status if failure and failure.response else 0
    found = re.search(r"HTTP (?:status )?(\d{3})", text)
    status = status or int(found[1] if found else 0)
    if status in (401, 403):
        return f"WandB does not accept this log-in (HTTP {status}); {LOGIN_ADVICE}"
    if status >= 400:
        return f"WandB answered with an error (HTTP {status}: {_last_reason(text)}); try again later"
    if "input:" in text:
        return f"WandB answered with an error ({_last_reason(text)})"
    if failure is None:
        return f"WandB: {_first_line(error)}; {LOGIN_ADVICE}"
    reason = "it took too long" if re.search("timeout|deadline|in time", text, re.IGNORECASE) else _last_reason(text)
    return f"no answer from WandB ({reason}); check the network and WANDB_BASE_URL"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _last_reason(text: str) -> str:
    """The end of `while trying: Post "http://...": dial tcp ...: connection refused`."""
    return (text.strip().splitlines() or [""])[-1].rsplit(": ", 1)[-1][:200].strip('."{} ')
