"""The server's own log, for administrators: `GET /system/logs`.

Called by `api.system`; reads what `serverlog` keeps. Lines of the request log are shown with their parts, as OSCAR
shows them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from oscar.auth.rules import may_administer
from oscar.core.jobs import rfc3339
from oscar.core.platform import Platform
from oscar.errors import BadRequest, Forbidden
from oscar.model.access_log import REPEATED
from oscar.model.user import Caller
from oscar.serverlog import Entry, entries

REQUEST = "[GIN-EXECUTIONS-LOGGER]"
_PARTS = 6


async def page(
    p: Platform, caller: Caller, *, tail: int, after: str | None, everything: bool, before: bool
) -> tuple[list[Entry], str | None]:
    """A page of the log: its newest entries first asked for, each page in the order of time.

    Args:
        p: the platform.
        caller: an administrator.
        tail: entries on the page.
        after: `next_page` of the page before.
        everything: also what isn't a request for a service.
        before: only what was written before the files were last changed.

    Returns:
        The entries, and where the page with earlier ones is; None when there are none.

    Raises:
        Forbidden (403), BadRequest (400): there is no such page.
    """
    if not may_administer(caller):
        raise Forbidden("Only an administrator may read the server's log")
    found = await asyncio.to_thread(entries, p.settings.server_log, before=before)
    if not everything:
        found = [entry for entry in found if entry.text.startswith(REQUEST)]
    end = len(found) if after is None else _place(found, after)
    start = max(0, end - tail)
    return found[start:end], _token(found, start) if start else None


def described(entry: Entry) -> dict[str, Any]:
    """An entry as the API shows it: all have time and text, requests also their parts."""
    shown: dict[str, Any] = {"timestamp": rfc3339(entry.time), "raw": entry.text}
    parts = [part.strip() for part in entry.text.removeprefix(REQUEST).split(" | ")]
    if not entry.text.startswith(REQUEST) or len(parts) < _PARTS:
        return shown
    # A path may hold the separator; all else does not.
    if len(parts) > _PARTS and parts[-1] == REPEATED:
        del parts[-1]
    moment, status, latency, address, *request, user = parts
    method, _, path = " | ".join(request).partition(" ")
    return {
        **shown,
        "timestamp": moment,
        "status": int(status) if status.isdigit() else 0,
        "latency": latency,
        "client_ip": address,
        "method": method,
        "path": path,
        "user": user,
    }


def _token(found: list[Entry], start: int) -> str:
    """A place that stays the same while entries come: a time, and how many of that time are before it."""
    moment = found[start].time
    same = sum(entry.time == moment for entry in found[:start])
    return f"{moment}-{same}"


def _place(found: list[Entry], token: str) -> int:
    moment, _, same = token.partition("-")
    if not (moment.isascii() and moment.isdigit() and same.isascii() and same.isdigit() and len(token) <= 40):  # noqa: PLR2004 - two numbers
        raise BadRequest(
            "That page does not exist", field="page", fix="use next_page of the page before as it is"
        )
    earlier = sum(entry.time < int(moment) for entry in found)
    return min(earlier + int(same), len(found))
