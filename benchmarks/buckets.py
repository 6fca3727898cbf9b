"""The S3 server of a running platform by obstore, a Rust library, so that what is measured is the server.

Used by the parts that upload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from obstore.store import S3Store

from benchmarks.client import CLIENTS
from tests.server import Server

PART = 16 * 1024**2
"""Bytes of a part of large uploads."""


def client(at: Server) -> httpx2.AsyncClient:
    """A client of the REST API as the administrator."""
    return httpx2.AsyncClient(base_url=at.endpoint, auth=(at.user, at.password), timeout=600)


def keys(at: Server) -> dict[str, Any]:
    """The administrator's account of the S3 server, as `/system/config` tells it."""
    answer = httpx2.get(f"{at.endpoint}/system/config", auth=(at.user, at.password), timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["minio_provider"]
    return found


def bucket(at: Server, name: str) -> S3Store:
    """A client of that bucket."""
    account = keys(at)
    return S3Store(
        name,
        endpoint=account["endpoint"],
        access_key_id=account["access_key"],
        secret_access_key=account["secret_key"],
        region=account["region"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "600s"},
    )


def make(at: Server, name: str) -> S3Store:
    """Make a bucket that no service listens to."""
    answer = httpx2.post(
        f"{at.endpoint}/system/buckets",
        json={"bucket_name": name},
        auth=(at.user, at.password),
        timeout=60,
    )
    answer.raise_for_status()
    return bucket(at, name)


def service(at: Server, name: str, image: str, script: str, **fields: Any) -> None:
    """Create a service that listens to `<name>/in` and stores into `<name>/out`."""
    definition = {
        "name": name,
        "image": image,
        "script": script,
        "log_level": "CRITICAL",
        "input": [{"storage_provider": "minio.default", "path": f"{name}/in"}],
        "output": [{"storage_provider": "minio.default", "path": f"{name}/out"}],
    }
    answer = httpx2.post(
        f"{at.endpoint}/system/services", json=definition | fields, auth=(at.user, at.password), timeout=60
    )
    answer.raise_for_status()


async def at_once(count: int, act: Callable[[int], Awaitable[None]], clients: int = CLIENTS) -> None:
    """Do it for each number below `count`, so many at a time."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await act(number)

    await asyncio.gather(*(one() for _ in range(clients)))
