"""A user's list of services by an OIDC token, beside the administrator's by basic auth: the same public services.

The issuer is a small one of the tests, on this machine; it is asked for the first token only. The engine is that of
containers, because OIDC has no processes; nothing runs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx2

from benchmarks.client import Client, repeat
from benchmarks.figures import Row, median, row
from tests import images, oidc, server

SERVICES = (10, 1_000)
"""With few the log-in weighs most, with many the choice of what one may see."""
TRIES = 400


async def run(*, quick: bool = False) -> list[Row]:
    """Rows of the benchmark."""
    with tempfile.TemporaryDirectory(prefix="oscar-oidc-") as place, oidc.running() as issuer:
        settings = {"OSCAR_ENGINE": images.engine(), "OIDC_ENABLE": "true", "OIDC_ISSUERS": issuer.url}
        with server.running(Path(place) / "data", **settings) as at:
            token = issuer.token("ann", exp=2**33)
            rows = await _measure(
                at, token, (10, 100) if quick else SERVICES, TRIES // 10 if quick else TRIES
            )
    if issuer.asked[oidc.KEYS] != 1:
        raise AssertionError(f"the issuer was asked while warm: {issuer.asked}")
    return rows


async def _measure(at: server.Server, token: str, counts: tuple[int, ...], tries: int) -> list[Row]:
    image = images.busybox(images.engine())
    there = 0
    rows = []
    async with httpx2.AsyncClient(base_url=at.endpoint, auth=(at.user, at.password), timeout=60) as http:
        for count in counts:
            for number in range(there, count):
                body = {"name": f"s{number}", "image": image, "script": "true", "visibility": "public"}
                (await http.post("/system/services", json=body)).raise_for_status()
            there = count
            basic, bearer = await _milliseconds(at, token, tries)
            rows.append(row(f"oidc.services.{count}", bearer, "ms", basic))
    return rows


async def _milliseconds(at: server.Server, token: str, tries: int) -> tuple[float, float]:
    """Medians of the list by basic auth and by the token."""
    basic: list[float] = []
    bearer: list[float] = []
    # In turns, so that a noisy moment of the machine falls on both.
    for _ in range(4):
        for times, login in ((basic, ""), (bearer, token)):
            client = await Client(at, "GET", "/system/services", token=login).open()
            times.extend(await repeat(client.call, tries // 4))
            client.close()
    return median(basic) * 1e3, median(bearer) * 1e3
