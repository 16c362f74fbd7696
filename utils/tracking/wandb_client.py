"""The W&B client. Import it from here: silent, since we say in a line what it has to say, and keeping its errors here.

Its reports of errors would tell its makers the paths of this machine, and delay our end where nobody answers.
"""

import os

for _name, _value in (("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):
    os.environ.setdefault(_name, _value)

import wandb  # noqa: E402
from wandb.apis.public import Api, File, Run  # noqa: E402
from wandb.proto.wandb_internal_pb2 import HistoryRecord, Record  # noqa: E402
from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # noqa: E402

__all__ = ["Api", "File", "HistoryRecord", "Record", "Run", "WandbApiFailedError", "wandb"]
