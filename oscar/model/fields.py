"""How JSON and YAML values become fields of a model: the base class and the field types of `model.service`.

Clients of OSCAR write keys in any case (its decoder ignores case), `null` for "not given", and numbers or
booleans where text belongs. Called by `model.storage`, `model.service` and `model.federation`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from oscar.errors import InvalidField
from oscar.model import resources


class Model(BaseModel):
    """A frozen record whose input keys match in any case; unknown keys are ignored, `null` means absent."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _fold_keys(cls, data: Any) -> Any:
        return fold_keys(cls, data)


def fold_keys(model: type[BaseModel], data: Any) -> Any:
    """The mapping with its keys in the model's own spelling and without nulls; other values as they are.

    Two spellings of one key are merged when both hold mappings (as OSCAR's decoder does), else the exact
    one wins.
    """
    if not isinstance(data, Mapping):
        return data
    fields = model.model_fields
    if data.keys() <= fields.keys() and None not in data.values():
        return data
    names = {name.lower(): name for name in fields}
    folded: dict[str, Any] = {}
    for key in sorted(data, key=lambda key: key in fields):
        value = data[key]
        if value is None:
            continue
        name = names.get(str(key).lower(), str(key))
        earlier = folded.get(name)
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            value = {**earlier, **value}
        folded[name] = value
    return folded


def refuse(message: str, *, fix: str | None = None, field: str | None = None) -> PydanticCustomError:
    """A validation error to raise in a validator; `field` is relative to the model being validated."""
    context: dict[str, Any] = {"message": message}
    if fix:
        context["fix"] = fix
    if field:
        context["field"] = field
    return PydanticCustomError("oscar", "{message}", context)


def invalid_field(error: ValidationError, *, root: str = "") -> InvalidField:
    """The first fault of a validation as our error: JSON path of the field, what is wrong, how to mend it."""
    first: ErrorDetails = error.errors(include_url=False, include_input=False)[0]
    context: Mapping[str, Any] = first.get("ctx") or {}
    path = json_path(first["loc"], root=root)
    if inner := context.get("field"):
        path = f"{path}.{inner}" if path else str(inner)
    message = str(context.get("message") or _message(first))
    return InvalidField(f"{path}: {message}" if path else message, field=path or None, fix=context.get("fix"))


def json_path(location: tuple[int | str, ...], *, root: str = "") -> str:
    """`("input", 0, "path")` as `input[0].path`."""
    path = root
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            path += f".{part}" if path else part
    return path


_MESSAGES = {
    "missing": "is required",
    "model_type": "a group of fields is expected",
    "dict_type": "a map of names to values is expected",
    "list_type": "a list is expected",
    "int_parsing": "a whole number is expected",
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "bool_parsing": "true or false is expected",
    "bool_type": "true or false is expected",
}


def _message(error: ErrorDetails) -> str:
    known = _MESSAGES.get(error["type"])
    return known or error["msg"][:1].lower() + error["msg"][1:]


def as_text(value: Any) -> str:
    """A scalar as text: the text of numbers and booleans as JSON writes them.

    Raises:
        PydanticCustomError: it is a list or a map.
    """
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return str(value)
        case None:
            return ""
        case list() | tuple():
            raise refuse(
                "text is expected, not a list", fix="Write the value without [ ], or put it in quotes."
            )
        case Mapping():
            raise refuse(
                "text is expected, not a map", fix="Write the value without { }, or put it in quotes."
            )
    raise refuse("text is expected")


def as_list(value: Any) -> Any:
    """A single value as a list of one, as `api_port: 80` is written."""
    return value if isinstance(value, list | tuple) else [value]


_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")


def as_seconds(value: Any) -> float:
    """A duration in seconds: a number, or text such as `30s`, `10m`, `2h`, `1h30m`.

    Raises:
        PydanticCustomError: it is neither, or negative.
    """
    text = as_text(value).strip().lower()
    wrong = refuse(
        f'"{text}" is not a duration', fix='Write seconds or a duration such as "30s", "10m" or "2h".'
    )
    if _DURATION.fullmatch(text):
        parts = re.findall(r"([\d.]+)(ms|[smhd])", text)
        return float(sum(Decimal(number) * _UNITS[unit] for number, unit in parts))
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        raise wrong from None
    if not seconds.is_finite() or seconds < 0:
        raise wrong
    return float(seconds)


def _quantity(parse: Callable[[str], int]) -> Callable[[str], str]:
    def check(text: str) -> str:
        text = text.strip()
        if text:
            try:
                parse(text)
            except InvalidField as error:
                raise refuse(error.message, fix=error.fix) from None
        return text

    return check


Text = Annotated[str, BeforeValidator(as_text)]
"""Text that scalars of other types turn into; lists and maps are refused."""
Name = Annotated[Text, AfterValidator(str.strip)]
"""Text without surrounding spaces."""
Seconds = Annotated[float, BeforeValidator(as_seconds)]
CpuQuantity = Annotated[Text, AfterValidator(_quantity(resources.parse_cpu))]
MemoryQuantity = Annotated[Text, AfterValidator(_quantity(resources.parse_memory))]


def unknown_fields(model: type[BaseModel], data: Any, *, root: str = "") -> list[str]:
    """The JSON paths in `data` that the model does not know and would ignore."""
    if not isinstance(data, Mapping):
        return []
    names = {name.lower(): name for name in model.model_fields}
    unknown: list[str] = []
    for key, value in data.items():
        path = f"{root}.{key}" if root else str(key)
        name = names.get(str(key).lower())
        if name is None:
            unknown.append(path)
            continue
        inner = _model_of(model.model_fields[name].annotation)
        if inner is None:
            continue
        kind, submodel = inner
        if kind is list and isinstance(value, list):
            for index, item in enumerate(value):
                unknown += unknown_fields(submodel, item, root=f"{path}[{index}]")
        elif kind is dict and isinstance(value, Mapping):
            for item_name, item in value.items():
                unknown += unknown_fields(submodel, item, root=f"{path}.{item_name}")
        elif kind is None:
            unknown += unknown_fields(submodel, value, root=path)
    return unknown


def _model_of(annotation: Any) -> tuple[type | None, type[BaseModel]] | None:
    """The model inside an annotation and the container (list, dict or none) that it stands in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None, annotation
    origin = getattr(annotation, "__origin__", None)
    for argument in get_args(annotation):
        found = _model_of(argument)
        if found:
            return (origin if origin in {list, dict} else found[0]), found[1]
    return None
