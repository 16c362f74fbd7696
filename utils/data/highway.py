"""Highway classes: from the texts of roadmap.geo to class ids, in the order of the published code."""

import ast
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A number as pandas reads one: a column of these only is a column of numbers.
WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


def parse_highway(text: str) -> str:
    """A class name or a code as it stands, or the first entry of a list that is not `unclassified`.

    Lists are texts, such as `['primary', 'unclassified']`. Empty where there is no class.
    """
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return stripped
    try:
        names = [name for name in ast.literal_eval(stripped) if isinstance(name, str)]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        names = []
    return next((name for name in names if name != "unclassified"), names[0] if names else "")


def class_ids(column: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class id of each road [N], and the name of each class in the order of the ids.

    `column` is as written in the file. The order is that of the published code, which fits scikit-learn's
    LabelEncoder to the column as pandas reads it: names sort as text; a column of numbers only sorts by value, and
    spellings of one number (`1`, `1.0`, `01`) are one class.
    """
    distinct = set(column)
    if all(WHOLE.fullmatch(text) for text in distinct):
        value_of = {text: int(text) for text in distinct}
    elif all(NUMBER.fullmatch(text) for text in distinct):
        value_of = {text: float(text) for text in distinct}
    else:
        value_of = {text: parse_highway(text) for text in distinct}
    values = sorted(set(value_of.values()))
    rank = {value: i for i, value in enumerate(values)}
    ids = np.array([rank[value_of[text]] for text in column], dtype=np.int64)
    return ids, tuple(value if isinstance(value, str) else f"{value:.15g}" for value in values)
