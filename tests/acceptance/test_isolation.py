"""Services of several users: `isolation_level: USER`, in any case, keeps each user's files in his own bucket."""

from __future__ import annotations

import pytest

from tests.acceptance.calls import at, client, create, ended, jobs, objects, put
from tests.server import Server

USERS = ["alice@example.org", "bob@example.org"]
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/result"'


@pytest.mark.parametrize("level", ["user", "USER", "User"])
def test_defect_17b_isolation_holds_in_any_case(server: Server, level: str) -> None:
    with client(server) as http:
        shared = f"iso-{level.swapcase().lower()}{level[0].isupper():d}{level[-1].isupper():d}"
        name = create(
            http,
            COPY,
            input=at(f"{shared}/in"),
            output=at(f"{shared}/out"),
            isolation_level=level,
            visibility="restricted",
            allowed_users=USERS,
        )
        shown = http.get(f"/system/services/{name}").json()
        assert shown["isolation_level"] == "USER"
        private = shown["bucket_list"]
        assert len(private) == len(USERS)
        for bucket in private:
            found = http.get(f"/system/buckets/{bucket}").json()
            assert found["visibility"] == "private"
            put(http, bucket, "in/file", bucket.encode())
        for job in jobs(http, name):
            assert ended(http, name, job)["status"] == "Succeeded"
        assert len(jobs(http, name)) == len(private)
        for bucket in private:
            assert objects(http, bucket) == ["in/file", "out/result"]
        assert objects(http, shared) == [], "nothing of theirs is where all may look"
        # An update says it in the case of the file again, and isolation still holds.
        assert http.put("/system/services", json=shown | {"isolation_level": level}).status_code == 204
        assert http.get(f"/system/services/{name}").json()["bucket_list"] == private
        put(http, private[0], "in/second", b"2")
        for job in jobs(http, name):
            ended(http, name, job)
        assert objects(http, shared) == []
