"""The chart beside the program: settings that it sets exist, values that it has are checked, its docs name them.

What Helm makes of it is in tests/acceptance/test_chart.py, with a real helm and a real cluster.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from oscar.settings import Settings

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "oscar"
DOCS = Path(__file__).parents[2] / "docs" / "helm.md"
_VARIABLE = re.compile(r"^  ([A-Z][A-Z0-9_]+):", re.MULTILINE)


def known() -> set[str]:
    return {str(field.validation_alias) for field in Settings.model_fields.values()}


def test_every_variable_of_the_chart_is_a_setting() -> None:
    given = {
        name
        for file in ("configmap.yaml", "secret.yaml")
        for name in _VARIABLE.findall((CHART / "templates" / file).read_text())
    }
    assert {"OSCAR_ENGINE", "OSCAR_PASSWORD", "MINIO_ENDPOINT"} <= given
    assert given - known() == set()


def described(schema: dict[str, Any], value: Any, place: str = "") -> list[str]:
    """Places of values that the schema says nothing of, and of the schema without a value."""
    properties = schema.get("properties")
    if properties is None or not isinstance(value, dict):
        return []
    found = [f"{place}.{name}" for name in properties.keys() ^ value.keys() if name != "global"]
    for name in properties.keys() & value.keys():
        found += described(properties[name], value[name], f"{place}.{name}")
    return found


def test_values_and_their_schema_have_the_same_names() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert described(schema, yaml.safe_load((CHART / "values.yaml").read_text())) == []


def test_the_chart_and_the_program_have_the_same_version() -> None:
    import oscar

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == oscar.__version__


def test_rights_are_in_the_docs() -> None:
    text = (CHART / "templates" / "rbac.yaml").read_text()
    lists = re.findall(r"resources: \[(.*)\]", text)
    named = {word for line in lists for word in re.findall(r"[a-z]+", re.sub(r"{{.*?}}", "", line))}
    rows = "\n".join(line for line in DOCS.read_text().splitlines() if line.startswith("|"))
    assert {word for word in named if word not in rows} - {"if", "end"} == set()
