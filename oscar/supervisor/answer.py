"""The answer of a synchronous call, in the forms of OSCAR's FaaS supervisor.

One file in the output folder answers as itself in base64, several as a zip archive in base64, none with what the
script printed. Only calls with a body answer with files; a storage event answers with the print. Called by
engines after the script; calls `results`. Files are read piece by piece.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
import zipfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import IO

from oscar.supervisor import results
from oscar.supervisor.plan import Plan
from oscar.supervisor.results import Result

PIECE = 3 * 256 * 1024
"""Bytes that are encoded at a time; a multiple of 3, so that the pieces make one base64 text."""

_COPY = 1024 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)


async def answer(
    plan: Plan, work: Path, log: bytes, *, warn: Callable[[str], None] = lambda _: None
) -> AsyncGenerator[bytes, None]:
    """The body of the answer, piece by piece.

    Args:
        plan: of the call.
        work: the work folder on this machine; the script has ended.
        log: what the script printed.
        warn: told which files were left out and why.

    Yields:
        The body: base64 without line breaks, or the log as it is.

    Raises:
        StorageError: a file can't be read.
        Unsupported: there are too many.
    """
    found = await asyncio.to_thread(results.find, work, plan.moves.work, warn) if plan.answers else []
    if not found:
        yield log
        return
    file = await asyncio.to_thread(_open, work, found)
    try:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield base64.b64encode(piece)
    finally:
        file.close()


async def whole_answer(
    plan: Plan, work: Path, log: bytes, *, warn: Callable[[str], None] = lambda _: None
) -> bytes:
    """The body of the answer at once; see `answer`."""
    return b"".join([piece async for piece in answer(plan, work, log, warn=warn)])


def _open(work: Path, found: list[Result]) -> IO[bytes]:
    """The one file, or an archive of several that is removed when it is closed."""
    if len(found) == 1:
        return os.fdopen(results.open_result(work, found[0]), "rb")
    # Beside the work folder: it has room for the results already, and the script can't reach it.
    archive = tempfile.TemporaryFile(dir=work.parent)  # noqa: SIM115 - closed by the caller
    try:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
            for result in found:
                _pack(packed, work, result)
        archive.seek(0)
    except BaseException:
        archive.close()
        raise
    return archive


def _pack(packed: zipfile.ZipFile, work: Path, result: Result) -> None:
    with os.fdopen(results.open_result(work, result), "rb") as source:
        entry = zipfile.ZipInfo(result.name, _EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        with packed.open(entry, "w", force_zip64=result.size > zipfile.ZIP64_LIMIT // 2) as target:
            while piece := source.read(_COPY):
                target.write(piece)
