"""Callbacks: telling a URL that a job has ended.

`check` is called when a job is accepted, `deliver` by the dispatcher's loop. A callback never reaches loopback,
link-local or private addresses unless its host is allowed, and the address that was checked is the one connected to.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from urllib.parse import urlsplit

import httpx2

from oscar import telemetry
from oscar.core import services
from oscar.core.platform import Platform
from oscar.errors import InvalidField
from oscar.model.job import RetryPolicy, api_status, backoff
from oscar.objects.addresses import is_public, resolve
from oscar.settings import Settings
from oscar.state.jobs import Callback

log = telemetry.get("callbacks")

_TRIES = 6
_TIMEOUT_S = 10.0
_LONGEST_DELAY_S = 300


async def check(settings: Settings, url: str) -> str:
    """The address that a callback may go to.

    Raises:
        InvalidField: no http(s) URL, or its host is not to be called.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused(f'"{url}" is not a URL') from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise _refused("A callback is an http or https URL without credentials")
    found = await resolve(parts.hostname, port or (443 if parts.scheme == "https" else 80))
    if not found:
        raise _refused(f'The host "{parts.hostname}" is not known')
    for address in found:
        if parts.hostname in settings.callback_hosts or is_public(address):
            return address
    raise _refused(f'The host "{parts.hostname}" has only private addresses')


def _refused(message: str) -> InvalidField:
    return InvalidField(
        message,
        field="X-Callback-URL",
        fix="use a public address, or have the administrator add the host to OSCAR_CALLBACK_ALLOWED_HOSTS",
    )


async def deliver(p: Platform) -> int:
    """Send the callbacks that are due; returns how many were tried."""
    due = await p.jobs.due_callbacks()
    await asyncio.gather(*(_send(p, callback) for callback in due))
    return len(due)


async def _send(p: Platform, callback: Callback) -> None:
    job = callback.job
    try:
        status = await _post(p, callback)
        problem = "" if status < httpx2.codes.MULTIPLE_CHOICES else f"status {status}"
    except (InvalidField, httpx2.HTTPError) as error:
        problem = str(error) or type(error).__name__
    if not problem:
        await p.jobs.record_callback(job.id, state="sent")
    elif callback.tries + 1 >= _TRIES:
        log.warning("callback given up", job=job.id, problem=problem)
        await p.jobs.record_callback(job.id, state="failed")
    else:
        await p.jobs.record_callback(job.id, state="due", delay=_pause(p.settings, callback.tries + 1))


def _pause(settings: Settings, failures: int) -> float:
    return backoff(failures, RetryPolicy(delay=settings.callback_delay, max_delay=_LONGEST_DELAY_S))


async def _post(p: Platform, callback: Callback) -> int:
    address = await check(p.settings, callback.url)
    parts = urlsplit(callback.url)
    job = callback.job
    known = await services.by_id(p, job.service_id)
    body = json.dumps(
        {
            "job_id": job.id,
            "service": job.service_name,
            "status": api_status(job.state).value,
            "state": job.state.value,
            "reason": job.reason,
            "exit_code": job.exit_code,
        }
    ).encode()
    stamp = str(int(time.time()))
    headers = {"Host": parts.netloc, "Content-Type": "application/json", "X-Oscar-Timestamp": stamp}
    # A signature by no key would be one that anybody can make.
    if known is not None:
        signature = hmac.digest(known.row.token.encode(), stamp.encode() + b"." + body, "sha256").hex()
        headers["X-Oscar-Signature"] = f"sha256={signature}"
    host = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host).geturl()
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False) as client:
        answer = await client.post(
            target,
            content=body,
            headers=headers,
            extensions={"sni_hostname": parts.hostname},
        )
        return int(answer.status_code)
