"""Find runs of distillation training on W&B, and download their models.

uv run python tools/download_wandb_model.py --search --distill true --epochs 25
uv run python tools/download_wandb_model.py --run_id abc123xyz --output my_model.pth
"""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import answer_before_imports, run_command_line

SEARCH_ONLY = ("distill", "epochs", "min_val_acc", "state", "limit", "json")
DOWNLOAD_ONLY = ("output", "file", "force")
# A part of entity/project/id; none of it may lead out of a folder.
NAME = re.compile(r"(?!\.+$)[^/\\#?%:\s\x00-\x1f\x7f][^/\\#?%:\x00-\x1f\x7f]*")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--search", action="store_true", help="list runs, newest first")
    action.add_argument(
        "--run_id",
        type=run_path,
        metavar="ID",
        help="download the model of this run: ID, PROJECT/ID, ENTITY/PROJECT/ID",
    )
    search = parser.add_argument_group("with --search")
    search.add_argument("--distill", type=_truth, metavar="true|false", help="runs with or without distillation")
    search.add_argument(
        "--epochs", type=_whole, metavar="N", help="runs configured for N epochs, or that have completed N"
    )
    search.add_argument("--min_val_acc", type=_share, metavar="X", help="runs with at least this validation accuracy")
    search.add_argument(
        "--state", type=_name, metavar="STATE", help="runs in this state: finished, running, crashed, failed, killed"
    )
    search.add_argument("--limit", type=_positive, metavar="N", help="at most N runs (default: 20)")
    search.add_argument("--json", action="store_true", default=None, help="print a JSON list instead of a table")
    download = parser.add_argument_group("with --run_id")
    download.add_argument(
        "--output",
        type=_path,
        metavar="FILE",
        help="file to write (default: by --dataset, else from the name and id of the run)",
    )
    download.add_argument(
        "--file", metavar="NAME", help="file of the run (default: best.pth, else its only model file)"
    )
    download.add_argument("--force", action="store_true", default=None, help="overwrite an existing file")
    parser.add_argument(
        "--entity", type=_name, metavar="NAME", help="user or team (default: the client's setting, the configuration)"
    )
    parser.add_argument(
        "--project", type=_name, metavar="NAME", help="project (default: the client's setting, the configuration)"
    )
    parser.add_argument(
        "--dataset",
        type=_name,
        metavar="NAME",
        help="use config/NAME.yaml; with --run_id and without --output, place the model at save/NAME/wandb_ID/best.pth",
    )
    parser.add_argument("--config", metavar="FILE", help="configuration with a section wandb")
    args = parser.parse_args()
    for name in DOWNLOAD_ONLY if args.search else SEARCH_ONLY:
        if getattr(args, name) is not None:
            parser.error(f"argument --{name}: not allowed with {'--search' if args.search else '--run_id'}")
    return args


def run_path(text: str) -> list[str]:
    """[id], [project, id] or [entity, project, id], also from the address of a run's page."""
    path = urlsplit(text).path if text.startswith(("http://", "https://")) else text
    parts = path.strip("/").split("/")
    if len(parts) == 4 and parts[2] == "runs":
        del parts[2]
    if len(parts) > 3:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected ID, PROJECT/ID or ENTITY/PROJECT/ID")
    return [_name(part) for part in parts]


def _name(text: str) -> str:
    if not NAME.fullmatch(text) or not text.isprintable() or len(text) > 128:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a name, without slashes")
    return text


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of a file")
    return Path(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected true or false")
    return text.lower() == "true"


def _whole(text: str, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {least}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to 1")
    return value


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from loguru import logger

from utils.config import load_config
from utils.config_sections import WandbConfig
from utils.tracking.wandb_client import connect, find_project
from utils.tracking.wandb_download import check_target, default_file_name, download_model, placed_path
from utils.tracking.wandb_search import FoundRun, Search, choose_file, get_run, search_runs


def main() -> None:
    """Read the command line; print the table, or download."""
    args = parse_arguments()
    config = load_config(args.dataset or "", args.config).wandb if args.dataset or args.config else WandbConfig()
    if args.search:
        _search(args, config)
    else:
        _download(args, config)


def _search(args: argparse.Namespace, config: WandbConfig) -> None:
    api = connect()
    entity, project = find_project(api, args.entity, args.project, config)
    search = Search(args.distill, args.epochs, args.min_val_acc, args.state)
    found = search_runs(api, entity, project, search, args.limit or 20)
    if args.json:
        print(json.dumps([dataclasses.asdict(run) for run in found], indent=2))
    elif found:
        print(_table(found))
    if not found:
        logger.info(f"no run of {entity}/{project} matches")


def _download(args: argparse.Namespace, config: WandbConfig) -> None:
    *place, run_id = args.run_id
    output = args.output or (placed_path(args.dataset, run_id) if args.dataset else None)
    if output is not None:
        check_target(output, bool(args.force))  # before asking the service for anything
    api = connect()
    given_entity, given_project = [None, None, *place][-2:]
    entity, project = find_project(api, given_entity or args.entity, given_project or args.project, config)
    run = get_run(api, entity, project, run_id)
    output = output or Path(default_file_name(run))
    file = choose_file(run, args.file)
    if sys.stderr.isatty():
        logger.info(f"downloading {file.name}, {file.size / 1e6:,.1f} MB")
    num_weights = download_model(file, output, bool(args.force))
    row = FoundRun.from_run(run)
    print(
        f"{output}: {file.name} of run {row.id} ({row.name}), "
        f"{row.progress} epochs, val_acc {row.accuracy}, {num_weights:,} weights"
    )


def _table(runs: list[FoundRun]) -> str:
    """Aligned columns; - is what a run does not have."""
    lines = [("id", "name", "distill", "epochs", "val_acc", "state", "created")]
    for run in runs:
        distill = "-" if run.distill is None else str(run.distill).lower()
        created = run.created[:19].replace("T", " ")
        lines.append((run.id, run.name, distill, run.progress, run.accuracy, run.state, created))
    # Names come from elsewhere: nothing in them may steer the terminal.
    shown = [["".join(c if c.isprintable() else "?" for c in cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in shown
    )


if __name__ == "__main__":
    run_command_line(main, kept="no file was changed")
