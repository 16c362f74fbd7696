"""The W&B client, silent: log in, limits on waiting, and every failure of the service as one line.

Import the client from here. Its own error reports would send paths of this machine to its makers, and delay the end of
a program where there is no network.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from utils.config_sections import WandbConfig
from utils.errors import UserError, first_line

for _name, _value in (("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):
    os.environ.setdefault(_name, _value)

import wandb  # noqa: E402
from wandb.apis.public import Api, File, Run  # noqa: E402

# Not in a public module, but `Api` raises it as it is.
from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # noqa: E402

__all__ = ["Api", "File", "Run", "connect", "find_project", "service_errors", "wandb"]

ANSWER_LIMIT_S = 9.0  # for one try; with the second one and the client's end, 30 s are not exceeded
TRIES = 2
LOGIN_ADVICE = "run `uv run wandb login`, or set WANDB_API_KEY"


def connect() -> Api:
    """Log in with the key of the environment or of `wandb login`; never asks for one.

    Raises:
        UserError: no key, one that is not accepted, or no answer.
    """
    try:
        limit = float(os.environ["WANDB_HTTP_TIMEOUT"])  # the client's own variable
    except (KeyError, ValueError):
        limit = ANSWER_LIMIT_S
    limits = {
        "x_graphql_retry_max": TRIES - 1,
        "x_graphql_retry_wait_max_seconds": 1,
        "x_graphql_timeout_seconds": limit,
        "x_file_transfer_retry_max": TRIES - 1,
        "x_file_transfer_retry_wait_max_seconds": 1,
    }
    # Any release of the client may drop a name with x_; without it we only wait longer.
    known = {name: value for name, value in limits.items() if name in wandb.Settings.model_fields}
    try:
        wandb.setup(settings=wandb.Settings(silent=True, **known))  # silent: it never asks for a key
        with service_errors():
            return Api(timeout=int(TRIES * limit + 3))
    except wandb.errors.UsageError as error:
        reason = "no API key" if "No API key" in str(error) else first_line(error)
        raise UserError(f"not logged in to W&B ({reason}); {LOGIN_ADVICE}") from None
    except ValueError as error:  # WANDB_... in the environment, or the client's settings file
        key_and_problem = [line.split(" [")[0].strip() for line in str(error).splitlines()[1:3]]
        raise UserError(f"W&B settings: {': '.join(key_and_problem) or error}") from None


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
        raise UserError("the W&B account has no default entity; name the user or team with --entity")
    return entity, project


@contextlib.contextmanager
def service_errors() -> Iterator[None]:
    """Failures of the service inside the block become a `UserError` with the reason.

    Raises:
        UserError: no answer, or an answer that is an error.
        ValueError: what the client raises when there is no such run or project, or a name that it does not accept.
    """
    try:
        yield
    except wandb.errors.UsageError:
        raise
    except (wandb.errors.Error, WandbApiFailedError) as error:
        cause = getattr(error, "exc", None)
        if isinstance(cause, ValueError):
            raise cause from None
        raise UserError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    failure: BaseException | None = error
    while failure is not None and not isinstance(failure, WandbApiFailedError):
        failure = getattr(failure, "exc", None) or failure.__cause__
    text = str(failure or error)
    reason = text.strip().rpartition("\n")[2].rpartition(": ")[2][:200].strip('."{} ')
    status = failure.response.http_status if failure and failure.response else 0
    found = re.search(r"HTTP (?:status )?(\d{3})", text)
    status = status or int(found[1] if found else 0)
    if status in (401, 403):
        return f"W&B does not accept this log-in (HTTP {status}); {LOGIN_ADVICE}"
    if status >= 400:
        return f"W&B answered with an error (HTTP {status}: {reason}); try again later"
    if "input:" in text:  # which the client puts before an error in a GraphQL answer
        return f"W&B answered with an error ({reason})"
    if failure is None:
        return f"W&B: {first_line(error)}; {LOGIN_ADVICE}"
    if status:
        return f"W&B's answer broke off ({reason}); try again later"
    if re.search("timeout|deadline|in time", text, re.IGNORECASE):
        reason = "it took too long"
    return f"no answer from W&B ({reason}); check the network and WANDB_BASE_URL"
