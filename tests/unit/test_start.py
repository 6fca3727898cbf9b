"""What a start costs: a server loads only what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("loads", "spares"),
    [
        # Of engines and stores that this server may not have, of federations, of tokens.
        (
            "from oscar.cli import server; from oscar.app import serve, api",
            {
                "alembic",
                "joserfc",
                "lightkube",
                "maxminddb",
                "minio",
                "obstore",
                "opentelemetry.sdk",
                "oscar.client",
                "rich",
                "websockets",
            },
        ),
        # Forked before the API is loaded, it would have all that by then.
        (
            "from oscar.cli import server; from oscar.app import serve, s3",
            {"fastapi", "httpx2", "oscar.core.platform"},
        ),
    ],
)
def test_what_a_server_does_not_load(loads: str, spares: set[str]) -> None:
    code = f"import sys; {loads}; print(*sorted({spares} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
