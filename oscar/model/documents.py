"""JSON and YAML text as plain values, with errors that name line and column.

Called by the API (bodies) and `model.fdl` (files). Numbers keep their text where it matters: a CPU limit of
`1.0` must not become `1`. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from oscar.errors import BadRequest

_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"


def parse_json(body: bytes | str) -> Any:
    """A JSON document; fractions come as their text, so that `1.0` stays `1.0`.

    Raises:
        BadRequest: it is not JSON, with line and column.
    """
    if isinstance(body, bytes):
        try:
            body = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRequest(f"The JSON is not UTF-8 text: byte {error.start + 1}") from None
    if not body.strip():
        raise BadRequest("The body is empty", fix="Send a JSON document.")
    try:
        return _encodable(json.loads(body, parse_float=str, parse_constant=_no_constant), body)
    except json.JSONDecodeError as error:
        raise BadRequest(f"Broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise BadRequest(f"Broken JSON: {error}") from None


def _encodable(value: Any, text: str) -> Any:
    """The value, unless an escape of half a surrogate pair made a character that no file or database can hold."""
    if re.search(r"\\u(?:0000)?d[89a-f]", text, re.IGNORECASE):
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise BadRequest("The text holds half of a surrogate pair", fix="Escape both halves.") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise BadRequest(f"Broken JSON: {name} is not a JSON value")


class _Loader(yaml.SafeLoader):
    """YAML as its version 1.2 reads it, every plain scalar kept as the text that stands in the file.

    Types are the model's business: `cpu: 1.0` and `SEND_SNS: false` are text there, `alpine: true` is not.
    """

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def scan_to_next_token(self) -> None:
        # The base class refuses tabs behind a value, which YAML allows and people's editors leave there.
        super().scan_to_next_token()
        while self.peek() == "\t":
            start = self.get_mark()
            indenting = not self.flow_level and not self.buffer[: self.pointer].rpartition("\n")[2].strip(
                " \t"
            )
            while self.peek() in " \t":
                self.forward()
            if indenting and self.peek() not in "\0\r\n#":
                problem = "a tab can't be used for indentation; use spaces"
                raise ScannerError(None, None, problem, start)
            super().scan_to_next_token()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise ConstructorError(
                        None, None, f'the key "{key.value}" stands here twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<$"), ["<"])


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return loader.construct_scalar(node)


for _tag in ("int", "float", "bool", "timestamp", "merge"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _text)


def parse_yaml(text: str) -> Any:
    """One YAML document whose scalars are text or None; maps and lists as usual.

    Raises:
        BadRequest: it is not YAML, with line and column.
    """
    try:
        value = yaml.load(text.replace("\r\n", "\n"), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadRequest(f"Broken YAML{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise BadRequest(f"Broken YAML: {error}") from None
    except RecursionError:
        raise BadRequest("The YAML is nested too deeply") from None
    return _encodable(value, text)
