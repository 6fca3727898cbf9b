"""The server's own log: structured lines, secrets never among them.

`configure` is called once by each process (`app.py`); everybody else takes `get(name)`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from oscar.serverlog import ServerLog


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let an optional import inside the block find nothing, unless the module is there already."""
    modules: dict[str, Any] = sys.modules
    if module in modules:
        yield
        return
    modules[module] = None  # how Python marks what can't be imported
    try:
        yield
    finally:
        del modules[module]


# structlog takes rich for tracebacks where it finds it. Ours are plain, and rich is 5 MB in each process.
with _without("rich"):
    import structlog

_SECRET_NAMES = re.compile(r"password|secret|token|authorization|cookie|credential|signature", re.IGNORECASE)


class _Both:
    """Writes to stderr, and to the log that administrators can read."""

    def __init__(self, kept: ServerLog) -> None:
        self._kept = kept

    def write(self, text: str) -> int:
        self._kept.write(text)
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure(
    *, level: str = "INFO", json: bool = False, keep: Path | None = None, to: TextIO | None = None
) -> None:
    """Say how log lines are written, from now on and in the whole process.

    Args:
        level: the least important ones that are written.
        json: as JSON lines instead of text for people.
        keep: a file that gets them besides, for `GET /system/logs`.
        to: where they go instead of stderr, which belongs to others where the server is a part of a process.
    """
    stream: Any = _Both(ServerLog(keep)) if keep else to or sys.stderr
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact,
            *([structlog.processors.format_exc_info] if json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )


def _redact(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in fields:
        if _SECRET_NAMES.search(name):
            fields[name] = "***"
    return fields


def get(name: str) -> Any:
    """A logger whose lines carry the name of the part that writes them."""
    return structlog.get_logger(part=name)
