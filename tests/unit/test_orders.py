"""What staging containers are told: there and back, and no more secrets than the run's moves need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.supervisor.moves import Download, Output
from oscar.supervisor.order import ORDER, Keys, Marker, Order, read_order
from oscar.supervisor.orders import config_of, order_of
from oscar.supervisor.plan import plan

OWN = MinIOProvider(endpoint="http://store.test", access_key="mine", secret_key="OWN KEY", verify=False)
FAR = {"endpoint": "https://far.test", "access_key": "theirs", "secret_key": "FAR KEY"}


def service(**fields: Any) -> Service:
    return Service.model_validate(
        {
            "name": "f",
            "image": "i",
            "script": "true",
            "environment": {"secrets": {"MINE": "USERS SECRET"}},
            "input": [{"storage_provider": "minio.default", "path": "box/in"}],
            "output": [{"storage_provider": "minio.default", "path": "box/out", "suffix": [".x"]}],
            "storage_providers": {"minio": {"far": FAR}},
            **fields,
        }
    )


def payload(key: str) -> bytes:
    record = {
        "eventSource": "minio:s3",
        "eventName": "s3:ObjectCreated:Put",
        "s3": {"bucket": {"name": "box"}, "object": {"key": key}},
    }
    return json.dumps({"Records": [record]}).encode()


def told(asked: Service, content: bytes, folder: Path, **fields: Any) -> Order:
    """As the container reads it."""
    planned = plan(asked, content, job_id="job")
    order = order_of("job", asked, planned, OWN)._replace(**fields)
    (folder / ORDER).write_bytes(order.as_file())
    found = read_order(folder)
    assert found == order
    return found


def test_it_comes_as_it_was_made(tmp_path: Path) -> None:
    order = told(
        service(),
        payload("in/a"),
        tmp_path,
        hops=3,
        trace="t",
        hosts=("store.test",),
        marker=Marker("put", "get"),
        urls={"payload": "http://store.test/p"},
    )
    assert order.own == Keys("http://store.test", "mine", "OWN KEY", "", verify=False)
    assert order.moves.downloads == (Download("minio.default", "box", "in/a", "a"),)
    assert order.moves.outputs == (Output("minio.default", "box", "out", (), (".x",)),)
    assert (order.hops, order.trace, order.hosts) == (3, "t", ("store.test",))


def test_keys_of_other_stores_come_only_where_something_moves_there(tmp_path: Path) -> None:
    at_home = told(service(), payload("in/a"), tmp_path)
    assert at_home.definition is None
    assert b"FAR KEY" not in at_home.as_file()
    away = told(service(output=[{"storage_provider": "minio.far", "path": "box/out"}]), b"{}", tmp_path)
    assert away.definition is not None
    given = Service.model_validate(away.definition)
    assert given.storage_providers.minio["far"].secret_key == "FAR KEY"
    assert (given.script, given.environment.secrets) == ("", {})
    assert b"USERS SECRET" not in away.as_file() + config_of(service())


def test_a_payload_that_is_wrong_is_told(tmp_path: Path) -> None:
    order = order_of("job", service(), None, OWN)._replace(fault="no")
    (tmp_path / ORDER).write_bytes(order.as_file())
    found = read_order(tmp_path)
    assert (found.fault, found.moves.downloads, found.moves.outputs) == ("no", (), ())


HEAVY = """pydantic httpx2 yaml obstore asyncio concurrent.futures logging dataclasses inspect ssl http.client email
    uuid shutil tempfile oscar.model.service oscar.model.object oscar.model.event oscar.objects.s3
    oscar.objects.embedded"""


@pytest.mark.parametrize("heavy", HEAVY.split())
def test_staging_starts_without_what_takes_long(heavy: str) -> None:
    code = f"import sys; from oscar.supervisor import pod; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
