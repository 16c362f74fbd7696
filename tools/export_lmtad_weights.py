"""Turn a training checkpoint of the public LM-TAD code into a teacher file, which holds plain data only.

uv run python tools/export_lmtad_weights.py --checkpoint ckpt.pt --output weights.pt --grid_size "205 252"

LM-TAD's own code is not needed, and nothing in the checkpoint is run.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import answer_before_imports, run_command_line


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="a training checkpoint (ckpt.pt)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the teacher file to write")
    parser.add_argument(
        "--grid_size",
        type=_grid_size,
        metavar='"ROWS COLUMNS"',
        help="the grid (default: as the checkpoint records it)",
    )
    parser.add_argument(
        "--vocab", type=Path, metavar="FILE", help="vocab.json of LM-TAD's preprocessing (default: token = cell)"
    )
    args = parser.parse_args()
    if args.output.resolve() == args.checkpoint.resolve():
        parser.error("--output: found the checkpoint itself, expected another file")
    return args


def _grid_size(text: str) -> tuple[int, int]:
    numbers = text.split()
    if len(numbers) != 2 or not all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f'found {text!r}, expected rows and columns, such as "205 252"')
    return int(numbers[0]), int(numbers[1])


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from utils.config_sections import ROADS
from utils.distillation.teacher_file import export_checkpoint, read_vocab
from utils.files.tensor_files import save_tensors


def main() -> None:
    """Read the command line, read and check the checkpoint, write the teacher file."""
    args = parse_arguments()
    vocab = read_vocab(args.vocab) if args.vocab else None
    content = export_checkpoint(args.checkpoint, args.grid_size, vocab)
    save_tensors(content, args.output)
    print(f"{args.output}: {describe(content)}")


def describe(content: dict[str, Any]) -> str:
    """Sizes, grid and special tokens, in one line."""
    config, grid = content["model_config"], content.get("grid")
    special = content.get("special_tokens") or {"SOT": config["vocab_size"] - 1}
    kind = "token = road" if content.get("tokens") == ROADS else "token = cell"
    return (
        f"{config['n_layer']} layers, width {config['n_embd']}, vocabulary {config['vocab_size']}, "
        f"{f'grid {grid[0]} x {grid[1]}' if grid else 'grid unknown'}, "
        f"special tokens {', '.join(f'{name} {token}' for name, token in special.items())}, "
        f"{'vocabulary file' if 'vocab' in content else kind}"
        f"{', destination first' if content.get('destination') else ''}"
    )


if __name__ == "__main__":
    run_command_line(main)
