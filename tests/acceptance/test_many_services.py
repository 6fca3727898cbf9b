"""Services come and go while others work: nothing of theirs is touched, and no event is lost."""

from __future__ import annotations

import threading
import uuid

from tests.acceptance.calls import at, client, create, jobs, objects, put
from tests.server import Server


def test_defect_4_services_come_and_go_and_no_event_is_lost(server: Server) -> None:
    uploaded: list[str] = []
    stop = threading.Event()
    with client(server) as http:
        name = create(http, "true", concurrency=1)
        bucket = f"b-{uuid.uuid4().hex[:8]}"
        definition = {
            "name": name,
            "image": "none",
            "script": "true",
            "input": at(f"{bucket}/in"),
            "concurrency": 1,
        }
        assert http.put("/system/services", json=definition).status_code == 204

        def upload() -> None:
            with client(server) as own:
                while not stop.is_set():
                    key = f"in/{uuid.uuid4().hex}"
                    put(own, bucket, key)
                    uploaded.append(key)

        uploading = [threading.Thread(target=upload) for _ in range(2)]
        for thread in uploading:
            thread.start()
        try:
            number = 0
            # The uploads take as long as they take: services come and go beside at least fifty of them.
            while number < 50 or len(uploaded) <= 50:
                number += 1
                # Some listen on the same bucket, in another folder.
                other = create(http, "true", input=at(f"{bucket}/other" if number % 2 else f"o-{number}/in"))
                assert http.delete(f"/system/services/{other}").status_code == 204
        finally:
            stop.set()
            for thread in uploading:
                thread.join()
        assert len(uploaded) > 50
        assert sorted(objects(http, bucket)) == sorted(uploaded)
        assert len(jobs(http, name)) == len(uploaded)
        assert http.delete(f"/system/logs/{name}", params={"all": "true"}).status_code == 204


def test_deletion_takes_what_is_empty_or_asked_for_and_nothing_of_others(server: Server) -> None:
    with client(server) as http:

        def exists(bucket: str) -> bool:
            return http.get(f"/system/buckets/{bucket}").status_code == 200

        own = f"d-{uuid.uuid4().hex[:8]}"
        mine = f"{own}-mine"
        assert http.post("/system/buckets", json={"bucket_name": mine}).status_code == 201
        one = create(
            http, "true", input=at(f"{own}-in/in", f"{mine}/in"), output=at(f"{own}-out/o", f"{own}-both/o")
        )
        two = create(http, "true", input=at(f"{own}-both/in"))
        put(http, f"{own}-in", "elsewhere/kept")
        assert http.delete(f"/system/services/{one}").status_code == 204
        assert exists(f"{own}-in"), "it holds an object"
        assert http.get(f"/system/buckets/{own}-in").json()["visibility"] == "private"
        assert not exists(f"{own}-out"), "empty, and made for it"
        assert exists(mine), "it was there before"
        assert exists(f"{own}-both"), "another service uses it"
        # The same again, with its data.
        one = create(
            http, "true", input=at(f"{own}-in/in", f"{mine}/in"), output=at(f"{own}-out/o", f"{own}-both/o")
        )
        put(http, f"{own}-out", "o/1")
        put(http, mine, "elsewhere/kept")
        put(http, f"{own}-both", "o/1")
        assert http.delete(f"/system/services/{one}", params={"data": "true"}).status_code == 204
        assert not exists(f"{own}-out")
        assert objects(http, mine) == ["elsewhere/kept"]
        assert objects(http, f"{own}-both") == ["o/1"]
        assert objects(http, f"{own}-in") == ["elsewhere/kept"], "it was there before this one came"
        assert http.delete(f"/system/services/{two}", params={"data": "true"}).status_code == 204
