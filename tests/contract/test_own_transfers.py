"""The own store as staging containers use it: against the built-in server, and one that is in trouble."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from oscar.errors import BucketNotFound, Forbidden, NoAnswer, ObjectNotFound, StorageError
from oscar.model.producer import Producer
from oscar.objects.base import Transfers
from oscar.supervisor.asking import Web
from oscar.supervisor.order import Keys
from oscar.supervisor.own import SMALL, OwnStore
from oscar.supervisor.ways import finish
from tests import s3_server
from tests.contract.test_s3_store import KEYS, ODD_KEYS
from tests.listening import listening

BUCKET = "private"
PRODUCER = Producer("job", 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def store(server: s3_server.Server) -> OwnStore:
    return OwnStore(
        Keys(server.endpoint + "/", s3_server.ALICE.access_key, s3_server.ALICE.secret_key), Web()
    )


def conforms(store: OwnStore) -> Transfers:
    """That this module type-checks says that OwnStore is what staging needs."""
    return store


@pytest.mark.parametrize("key", KEYS + ODD_KEYS)
def test_there_and_back(store: OwnStore, tmp_path: Path, key: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"content of " + key.encode())
    stored = finish(store.upload(BUCKET, key, source, producer=PRODUCER, content_type="text/x-test"))
    found = finish(store.download(BUCKET, key, copy))
    assert (found.key, found.size, found.etag) == (stored.key, stored.size, stored.etag)
    assert copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, 3 * SMALL + 7])
def test_files_of_any_size(store: OwnStore, tmp_path: Path, size: int) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(size))
    for content_type in (None, "image/png"):
        found = finish(store.upload(BUCKET, "sized", source, content_type=content_type))
        assert found.size == size
        assert finish(store.download(BUCKET, "sized", copy)).size == size
        assert copy.read_bytes() == source.read_bytes()


def test_a_job_writes_a_key_once(store: OwnStore, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"first")
    first = finish(store.upload(BUCKET, "once", source, producer=PRODUCER))
    source.write_bytes(b"second, as long")
    again = finish(store.upload(BUCKET, "once", source, producer=PRODUCER))
    assert (again.size, again.etag) == (first.size, first.etag)
    finish(store.upload(BUCKET, "once", source, producer=Producer("another")))
    finish(store.download(BUCKET, "once", copy))
    assert copy.read_bytes() == b"second, as long"


@pytest.mark.parametrize(
    ("bucket", "key", "user", "error"),
    [
        (BUCKET, "nothing", s3_server.ALICE, ObjectNotFound),
        ("no-bucket", "a", s3_server.ALICE, BucketNotFound),
        (BUCKET, "there", s3_server.BOB, Forbidden),
    ],
)
def test_what_can_not_be_had(
    server: s3_server.Server, store: OwnStore, tmp_path: Path, bucket: str, key: str, user: Any, error: Any
) -> None:
    (tmp_path / "source").write_bytes(b"x")
    finish(store.upload(BUCKET, "there", tmp_path / "source"))
    asking = OwnStore(Keys(server.endpoint, user.access_key, user.secret_key), Web())
    with pytest.raises(error):
        finish(asking.download(bucket, key, tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
    if error is not ObjectNotFound:
        for size in (1, SMALL):
            (tmp_path / "source").write_bytes(bytes(size))
            for producer in (None, PRODUCER):
                with pytest.raises(error):
                    finish(asking.upload(bucket, key, tmp_path / "source", producer=producer))


def test_a_link_is_not_followed(store: OwnStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    for path, reason in ((tmp_path / "link", "symbolic links"), (tmp_path, "not a file")):
        with pytest.raises(StorageError, match=reason):
            finish(store.upload(BUCKET, "link", path))


def test_trouble_that_passes_is_not_seen(tmp_path: Path) -> None:
    with troubled([503, 0, 429, 200]) as store:
        assert finish(store.download(BUCKET, "a", tmp_path / "copy")).size == 4
    assert (tmp_path / "copy").read_bytes() == b"body"
    with troubled([500, 409, 200]) as store:
        assert finish(store.upload(BUCKET, "a", tmp_path / "copy")).size == 4


def test_a_part_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    with troubled([206]) as store, pytest.raises(StorageError, match="answered 206"):
        finish(store.download(BUCKET, "a", tmp_path / "copy"))
    assert list(tmp_path.iterdir()) == []


def test_trouble_that_does_not_pass_is_told(tmp_path: Path) -> None:
    with (
        troubled([503] * 5) as store,
        pytest.raises(NoAnswer, match=r"answered 503 .* private/a: Slow & Down"),
    ):
        finish(store.download(BUCKET, "a", tmp_path / "copy"))
    with (
        troubled([0] * 5) as store,
        pytest.raises(NoAnswer, match=r"no answer from 127.*: the answer broke off"),
    ):
        finish(store.download(BUCKET, "a", tmp_path / "copy"))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def troubled(states: list[int]) -> Iterator[OwnStore]:
    """A store that answers with these states, one after the other; 0 breaks off in the middle of a body."""
    left = iter(states)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            state = next(left)
            body = b"body" if state in {0, 200} else b"<Error><Code>Slow &amp; Down</Code></Error>"
            self.send_response(state or 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: -1 if state == 0 else None])

        do_GET = do_PUT = answer  # noqa: N815 - the names of the standard library

    with listening(Handler) as endpoint:
        yield OwnStore(Keys(endpoint, "key", "secret"), Web())
    assert next(left, None) is None
