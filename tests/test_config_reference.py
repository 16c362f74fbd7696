"""config/README.md says what the configuration is."""

import dataclasses
import re

from scripts import PROJECT

from utils.config import config_to_dict, flatten
from utils.config_reference import config_reference
from utils.config_sections import Config

COMMAND = "uv run python -m utils.config_reference > config/README.md"


def test_the_reference_is_up_to_date() -> None:
    found = (PROJECT / "config" / "README.md").read_text(encoding="utf-8")
    assert found == config_reference(), f"run `{COMMAND}`"


def test_the_reference_has_a_row_for_each_key_and_names_the_readers_of_each_section() -> None:
    text = config_reference()
    for field in dataclasses.fields(Config):
        section = text.split(f"\n## {field.name}\n")[1].split("\n## ")[0]
        assert "Read by" in section or "is read by" in section
        rows = re.findall(r"^\| `(\w+)` \| .* \| .+ \| .+ \|$", section, re.MULTILINE)
        keys = flatten({field.name: config_to_dict(Config())[field.name]})
        assert [f"{field.name}.{row}" for row in rows] == list(keys)
