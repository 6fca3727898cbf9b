"""The table of settings in docs/configuration.md, made from the settings themselves.

`python -m tests.settings_table` writes it anew; tests/unit/test_docs.py compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from oscar.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: made by `python -m tests.settings_table` -->", "<!-- end of settings -->"


def shown(default: object) -> str:
    """A default as it would be written in the environment."""
    if default is None or default in {"", ()}:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    # Inside of a table, a | would end the cell.
    return f"`{default}`".replace("|", "\\|")


def table() -> str:
    """The table, one row a setting in their order."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, info in Settings.model_fields.items():
        if not info.description:
            raise ValueError(f"the setting {name} has no description")
        variable = info.validation_alias or name.upper()
        rows.append(f"| `{variable}` | {shown(info.default)} | {info.description} |")
    return "\n".join(rows)


def replaced(page: str) -> str:
    """The page with the table as it should be."""
    inside = f"{BEGIN}\n\n{table()}\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: inside, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
