"""The docs keep up with the program: what a user can set, call, type or get as an error is written down."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

import oscar
from oscar.errors import OscarError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def missing(text: str, names: list[str]) -> list[str]:
    """The names that do not stand in backticks in the text, alone or at the end of a dotted path."""
    return [name for name in names if not re.search(rf"`(?:[^`\s]*[.\]])?{re.escape(name)}(?:\[\])?`", text)]


# --- what the program has --------------------------------------------------------------------------------


def models_within(kind: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) in {Union, UnionType, list, dict, tuple}:
        for part in get_args(kind):
            yield from models_within(part)
    elif get_args(kind):  # Annotated
        yield from models_within(get_args(kind)[0])


def fdl_fields() -> list[str]:
    """The JSON name of each field of the service model, those of its parts included."""
    from oscar.model.service import Service

    names: set[str] = set()
    seen: set[type[BaseModel]] = set()
    waiting: list[type[BaseModel]] = [Service]
    while waiting:
        model = waiting.pop()
        if model in seen:
            continue
        seen.add(model)
        for name, info in model.model_fields.items():
            names.add(info.alias or name)
            waiting.extend(models_within(info.annotation))
    return sorted(names)


def error_codes(kind: type[OscarError] = OscarError) -> dict[str, int]:
    """Code and status of each error; adapters have errors of their own beside `oscar.errors`."""
    for module in pkgutil.walk_packages(oscar.__path__, "oscar."):
        if not re.search(r"\.(__main__|migrations\..*)$", module.name):
            importlib.import_module(module.name)
    codes = {kind.code: kind.status}
    for child in kind.__subclasses__():
        codes |= error_codes(child)
    return codes


def cli_commands() -> list[str]:
    """Each command as it is typed: `oscar service list`."""
    import typer.main

    from oscar.cli import program

    def walk(command: Any, words: str) -> Iterator[str]:
        children = getattr(command, "commands", None)
        if children is None:
            yield words
            return
        for name, child in children.items():
            if not child.hidden:
                yield from walk(child, f"{words} {name}")

    return sorted(walk(typer.main.get_command(program()), "oscar"))


def test_the_table_of_settings_is_what_the_program_reads() -> None:
    from tests.settings_table import replaced, table

    text = page("configuration.md")
    assert table() in text, "run: .venv/bin/python -m tests.settings_table"
    assert replaced(text) == text


def test_every_route_is_documented() -> None:
    from tests.routes import routes

    text = page("api.md")
    assert [route for route in routes() if f"`{route}`" not in text] == []


def test_every_documented_route_exists() -> None:
    from tests.routes import routes

    rows = re.findall(r"^\| `((?:GET|POST|PUT|DELETE|PATCH|HEAD) /[^`]*)`", page("api.md"), re.MULTILINE)
    assert rows
    assert sorted(set(rows) - set(routes())) == []


def test_every_command_is_documented() -> None:
    text = page("cli.md")
    assert [command for command in cli_commands() if command not in text] == []


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", page("errors.md"), re.MULTILINE))
    assert {code: int(status) for code, status in rows.items()} == error_codes()


def test_every_field_of_a_service_is_documented() -> None:
    assert missing(page("fdl.md"), fdl_fields()) == []


# --- the docs by themselves ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of code and where it stands."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for path in PAGES:
        text = path.read_text()
        for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(path, line, match[1], match[2]))
    return found


def parse(block: Block) -> None:
    """Read the block by its language's own parser; raises what that raises."""
    match block.language:
        case "python":
            # Examples may await at the top level, as in `python -m asyncio`.
            compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        case "yaml":
            list(yaml.safe_load_all(block.text))
        case "json":
            json.loads(block.text)
        case "toml":
            tomllib.loads(block.text)
        case "bash" | "sh":
            shell = shutil.which("bash") or "/bin/sh"
            subprocess.run([shell, "-n"], input=block.text, text=True, check=True, capture_output=True)


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_code_blocks_parse(block: Block) -> None:
    parse(block)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    text = page("README.md")
    pages = [path.name for path in DOCS.glob("*.md") if path.name != "README.md"]
    assert [name for name in pages if f"({name})" not in text] == []


def test_decisions_are_numbered_from_one_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))
    for path in DECISIONS:
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name)
        title = path.read_text().partition("\n")[0]
        assert re.match(rf"# 0*{int(path.name[:4])}\.? ", title), f"{path.name}: # NNNN title"
