"""Our OpenAPI document against the published description of OSCAR 4.1.2 (`tests/data`): nothing of it is missing.

Exceptions are the rows of the table in docs/compatibility.md, each with its reason; one that is no longer needed fails
too. The description is that of github.com/grycap/oscar at tag v4.1.2 (Apache License 2.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from oscar.app.api import BODIES
from tests.api.conftest import Scene

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]


def resolved(schema: Document, document: Document) -> Document:
    """The schema that a reference names; alternatives and parts are put together."""
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    for kind in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(kind, ()):
            schema = {**schema, "properties": properties(schema, document, ()) | properties(part, document)}
    return schema


def properties(schema: Document, document: Document, kinds: tuple[str, ...] | None = None) -> Document:
    """The properties of an object, or of the objects in a list."""
    schema = schema if kinds == () else resolved(schema, document)
    if "items" in schema:
        return properties(schema["items"], document)
    found: Document = schema.get("properties", {})
    return found


def missing(theirs: Document, ours: Document) -> Iterator[tuple[str, str]]:
    """What of their document ours lacks: where, and what."""
    for path, operations in theirs["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            own = ours["paths"].get(path, {}).get(method)
            if own is None:
                yield where, "missing"
            else:
                for what in lacks(operation, own, theirs, ours):
                    yield where, what


def lacks(operation: Document, own: Document, theirs: Document, ours: Document) -> Iterator[str]:
    """What of an operation ours lacks."""
    parameters = {(one["name"], one["in"]) for one in own.get("parameters", ())}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "body":
            yield from lacks_body(parameter["schema"], own, theirs, ours)
        elif (parameter["name"], parameter["in"]) not in parameters:
            yield f"parameter {parameter['name']} in {parameter['in']}"
    for status, answer in operation["responses"].items():
        if status not in own["responses"]:
            yield f"status {status}"
        elif status.startswith("2"):
            yield from lacks_answer(answer.get("schema", {}), own["responses"][status], theirs, ours)


def lacks_answer(schema: Document, answer: Document, theirs: Document, ours: Document) -> Iterator[str]:
    """What of an answer's body ours lacks; that theirs is any text says nothing."""
    wanted = fields(schema, theirs)
    if not wanted:
        return
    content = answer.get("content", {}).get("application/json", {})
    present = fields(content.get("schema", {}), ours)
    if absent := sorted(wanted.keys() - present.keys()):
        yield f"answer without {', '.join(absent)}"
    for name in sorted(wanted.keys() & present.keys()):
        if wanted[name] and present[name] and not wanted[name] & present[name]:
            yield f"answer with {name} as {'/'.join(sorted(present[name]))}"


def fields(schema: Document, document: Document, within: tuple[str, ...] = ()) -> dict[str, set[str]]:
    """The fields of a body and their types, by paths such as `nodes.name`: lists and maps count as their content."""
    kind = schema.get("$ref", "")
    if kind and kind in within:
        return {}
    schema, within = resolved(schema, document), (*within, kind) if kind else within
    inner = schema.get("items") or schema.get("additionalProperties")
    found = fields(inner, document, within) if isinstance(inner, dict) else {}
    for name, value in schema.get("properties", {}).items():
        found[name] = types(resolved(value, document))
        found |= {f"{name}.{below}": of for below, of in fields(value, document, within).items()}
    return found


def types(schema: Document) -> set[str]:
    """The types that a value may have; a number may be a whole one."""
    kinds = {
        part.get("type", "") for part in (schema, *schema.get("anyOf", ())) if part.get("type") != "null"
    }
    kinds.discard("")
    return kinds | ({"number"} if "integer" in kinds else set())


def lacks_body(schema: Document, own: Document, theirs: Document, ours: Document) -> Iterator[str]:
    """What of a request body ours lacks."""
    if "requestBody" not in own:
        yield "body"
        return
    content = next(iter(own["requestBody"]["content"].values()))
    present = properties(content["schema"], ours)
    absent = sorted(name for name in properties(schema, theirs) if name not in present)
    if absent:
        yield f"body without {', '.join(absent)}"


def excepted() -> list[tuple[str, str]]:
    """The rows of the table of exceptions."""
    page = (ROOT / "docs/compatibility.md").read_text()
    return re.findall(r"^\| `([A-Z]+ /[^`]*)` \| ([^|]+?) \| [^|]+ \|$", page, re.MULTILINE)


def test_nothing_of_the_published_api_is_missing(scene: Scene) -> None:
    theirs = yaml.safe_load((ROOT / "tests/data/oscar-4.1.2-swagger.yaml").read_text())
    ours = scene.http.get("/openapi.json").json()
    assert len(theirs["paths"]) > 20, "the published description was read"
    assert sorted(missing(theirs, ours)) == sorted(excepted())


def references(part: Any) -> Iterator[str]:
    """All references below a part of a document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_reference_leads_somewhere(scene: Scene) -> None:
    document = scene.http.get("/openapi.json").json()
    named = set(references(document))
    assert {f"#/components/schemas/{body.__name__}" for body in BODIES} <= named
    for reference in named:
        assert resolved({"$ref": reference}, document)
