"""What the S3 server's process is told by its parent."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from oscar.app.s3 import read_settings
from oscar.settings import Settings


def test_the_parents_settings_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(
        data=Path("/somewhere/else"),
        secret_key="one,two",
        minio_region="eu-north-1",
        s3_cors_origins=("https://a.example", "https://b.example"),
        disk_reserve=7,
        oidc_issuers=(),
        drain=0.5,
    )
    for name, value in (
        ("OSCAR_DATA", "/from/the/environment"),
        ("OSCAR_SECRET_KEY", "three"),
        ("MINIO_REGION", "mars"),
        ("OSCAR_S3_CORS_ORIGINS", "*"),
        ("OIDC_ISSUERS", "https://issuer.example"),
    ):
        monkeypatch.setenv(name, value)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(given.model_dump_json().encode() + b"\n")
        assert read_settings(theirs) == given


def test_a_parent_that_is_gone_before_it_said_anything() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        assert read_settings(theirs) is None
