"""What a job gets, from every kind of event: inputs, environment, and where its results go."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oscar.errors import BadRequest
from oscar.model.event import EventKind, delegate, minio_event
from oscar.model.federation import WORKER
from oscar.model.object import Object
from oscar.model.service import RESERVED_ENVIRONMENT, Service, parse_service
from oscar.supervisor.plan import LARGEST_EVENT, Mode, Plan, function_config, service_environment
from oscar.supervisor.plan import plan as plan_

JOB = "thumbs-0f8a"


def service(**fields: Any) -> Service:
    given = {
        "name": "thumbs",
        "image": "busybox",
        "script": "true",
        "input": [{"storage_provider": "minio.default", "path": "photos/in"}],
        "output": [{"storage_provider": "minio.default", "path": "photos/out"}],
    }
    return parse_service({**given, **fields})


def plan(payload: bytes | dict[str, Any], target: Service | None = None, **options: Any) -> Plan:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return plan_(target or service(), raw, job_id=JOB, **options)


def put(key: str, bucket: str = "photos") -> dict[str, Any]:
    return minio_event(
        Object(bucket=bucket, key=key, generation="7", size=1, etag="e", modified=1700000000123)
    )


def several(*keys: str) -> dict[str, Any]:
    return {"Records": [record for key in keys for record in put(key)["Records"]]}


def names(made: Plan) -> list[str]:
    return [download.name for download in made.moves.downloads]


def test_an_uploaded_file() -> None:
    event = put("in/deep/my photo+1.jpg")
    made = plan(event)
    (download,) = made.moves.downloads
    assert (download.provider, download.bucket, download.key) == (
        "minio.default",
        "photos",
        "in/deep/my photo+1.jpg",
    )
    assert made.moves.files == ()
    assert not made.answers
    environment = dict(made.environment)
    assert json.loads(environment.pop("EVENT")) == event
    assert environment.pop("RESOURCE_ID")
    assert environment == {
        "INPUT_FILE_PATH": "/oscar/work/in/my photo+1.jpg",
        "TMP_INPUT_DIR": "/oscar/work/in",
        "TMP_OUTPUT_DIR": "/oscar/work/out",
        "EVENT_FILE": "/oscar/config/event",
        "STORAGE_OBJECT_KEY": "in/deep/my photo+1.jpg",
        "EVENT_TIME": "2023-11-14T22:13:20.123Z",
        "JOB_UUID": JOB,
        "OSCAR_SERVICE_NAME": "thumbs",
        "OSCAR_SERVICE_BASE_PATH": "",
    }


def test_engines_that_do_not_map_paths() -> None:
    made = plan(put("in/a.jpg"), root="/data/runs/r-1")
    assert made.environment["INPUT_FILE_PATH"] == "/data/runs/r-1/work/in/a.jpg"
    assert made.environment["EVENT_FILE"] == "/data/runs/r-1/config/event"
    made = plan(put("in/a.jpg"), work="/elsewhere")
    assert made.environment["TMP_OUTPUT_DIR"] == "/elsewhere/out"


def test_defect_5_several_objects_are_a_folder_of_inputs() -> None:
    made = plan(several("in/a.jpg", "in/b.jpg"))
    assert names(made) == ["a.jpg", "b.jpg"]
    assert made.environment["INPUT_FILE_PATH"] == made.environment["TMP_INPUT_DIR"]
    assert made.environment["STORAGE_OBJECT_KEY"] == "in/a.jpg"


def test_inputs_of_one_base_name_don_t_collide() -> None:
    made = plan(several("in/x/a", "in/y/a", "in/2", "in/z/a", "in/z/3", "in/w/2"))
    found = names(made)
    assert found[:2] == ["a", "2/a"]
    assert len(set(found)) == len(found)
    folders = {name.partition("/")[0] for name in found if "/" in name}
    assert not folders & set(found)
    assert [name.rpartition("/")[2] for name in found] == ["a", "a", "2", "a", "3", "2"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "2", "3", "4", "b"]), min_size=1, max_size=12))
def test_no_input_takes_the_place_of_another(base_names: list[str]) -> None:
    found = names(plan(several(*(f"in/{index}/{name}" for index, name in enumerate(base_names)))))
    folders = {name.partition("/")[0] for name in found if "/" in name}
    assert len(set(found)) == len(found)
    assert not folders & set(found)


@pytest.mark.parametrize("key", ["in/..", "in/a/.", "in/../..", "in/x/../.."])
def test_keys_that_name_no_file(key: str) -> None:
    with pytest.raises(BadRequest, match="names no file"):
        plan(put(key))


@pytest.mark.parametrize("key", ["in/../../etc/passwd", "in//etc/passwd", "in/./passwd", "in/..\\passwd"])
def test_no_key_leads_out_of_the_input_folder(key: str) -> None:
    (name,) = names(plan(put(key)))
    assert "/" not in name
    assert name not in {"", ".", ".."}


def test_long_names_keep_their_ending() -> None:
    (name,) = names(plan(put("in/" + "ñ" * 300 + ".jpeg")))
    assert name.endswith("ñ.jpeg")
    assert len(name.encode()) <= 255


def test_callers_can_t_read_what_is_no_input_of_the_service() -> None:
    for bucket, key in (
        ("photos", "private/a"),
        ("others", "in/a"),
        ("photos", "inside/a"),
        ("photos", "in/"),
    ):
        with pytest.raises(
            BadRequest, match=f"{bucket}/{key} is in no input of the service thumbs"
        ) as caught:
            plan(put(key, bucket))
        assert caught.value.field == "Records[0].s3.object.key"
    with pytest.raises(BadRequest):
        plan(delegate(json.dumps(put("in/a", "others")).encode(), "minio.default"))
    with pytest.raises(BadRequest):
        plan(delegate(json.dumps(put("in/a", "others")).encode(), "minio.here"), service(cluster_id="here"))


def test_mounted_folders_may_be_read() -> None:
    mounted = service(mount={"storage_provider": "minio.default", "path": "shared/data"})
    assert names(plan(put("data/a", "shared"), mounted)) == ["a"]


@pytest.mark.parametrize("content", [b"\xff\xd8binary", b""])
def test_a_body_in_base64(content: bytes) -> None:
    made = plan(base64.b64encode(content))
    (file,) = made.moves.files
    assert made.answers
    assert file.content == content
    assert file.path.startswith("in/event-file-")
    assert "." not in file.path
    assert made.environment["INPUT_FILE_PATH"] == f"/oscar/work/{file.path}"
    assert not {"EVENT", "STORAGE_OBJECT_KEY", "EVENT_TIME"} & made.environment.keys()
    assert plan(base64.b64encode(content)) == made


def test_a_body_of_json_is_kept_as_it_came() -> None:
    made = plan(b'{"a":   1}')
    assert made.moves.files[0].content == b'{"a":   1}'
    assert made.environment["EVENT"] == '{"a":   1}'


def test_different_jobs_have_different_event_files() -> None:
    assert plan_(service(), b"{}", job_id="a").moves.files != plan_(service(), b"{}", job_id="b").moves.files


def test_defect_7_large_events_come_as_a_file_only() -> None:
    fits = b'"' + b"x" * (LARGEST_EVENT - 2) + b'"'
    assert plan(fits).environment["EVENT"].encode() == fits
    too_large = plan(fits + b" ")
    assert "EVENT" not in too_large.environment
    assert too_large.environment["EVENT_FILE"] == "/oscar/config/event"
    assert too_large.moves.files[0].content == fits + b" "


def test_defect_7_keys_are_not_damaged_by_a_shell() -> None:
    key = "in/two  spaces * $HOME `id` 'q' \"d\".txt"
    made = plan(put(key))
    assert made.environment["STORAGE_OBJECT_KEY"] == key
    assert names(made) == [key.removeprefix("in/")]
    assert json.loads(made.environment["EVENT"]) == put(key)


def test_synchronous_calls_find_their_event_in_the_work_folder() -> None:
    made = plan(b"aGk=", mode=Mode.SYNC)
    assert [(file.path.partition("-")[0], file.content) for file in made.moves.files] == [
        ("in/event", b"hi"),
        ("event", b"aGk="),
    ]
    assert made.environment["EVENT_FILE"] == "/oscar/work/event"
    as_it_is = plan(b"{}", mode=Mode.SYNC)
    assert as_it_is.environment["EVENT_FILE"] == as_it_is.environment["INPUT_FILE_PATH"]
    stored = plan(put("in/a"), mode=Mode.SYNC)
    assert [file.path for file in stored.moves.files] == ["event"]
    assert stored.environment["INPUT_FILE_PATH"] == "/oscar/work/in/a"
    assert not stored.answers


def test_file_stage_in_skips_the_download() -> None:
    for mode in Mode:
        made = plan(put("in/a"), service(file_stage_in=True), mode=mode)
        assert made.moves.downloads == ()
        assert "INPUT_FILE_PATH" not in made.environment
        assert made.environment["STORAGE_OBJECT_KEY"] == "in/a"
    assert plan(b"{}", service(file_stage_in=True)).moves.files[0].content == b"{}"


def test_users_variables_never_take_reserved_names() -> None:
    users = {"MODE": "fast", "LIMIT": "1"}
    taken = dict.fromkeys(RESERVED_ENVIRONMENT, "theirs")
    target = service(
        environment={"Variables": {**users, **taken}, "secrets": {"KEY": "s3cret", **taken}}, token="t0"
    )
    for payload in (b"aGk=", b"{}"):
        environment = plan(payload, target).environment
        assert "theirs" not in environment.values()
        assert {name: environment[name] for name in ("MODE", "LIMIT", "KEY")} == {**users, "KEY": "s3cret"}
        assert environment["OSCAR_SERVICE_TOKEN"] == "t0"
    assert "s3cret" not in repr(plan(b"{}", target))
    assert service_environment(target).keys() <= plan(b"{}", target).environment.keys()


def test_the_callers_variables_win() -> None:
    made = plan(b"{}", environment={"OSCAR_SERVICE_TOKEN": "t1", "JOB_UUID": "other"}, resource_id="node-1")
    assert made.environment["OSCAR_SERVICE_TOKEN"] == "t1"
    assert made.environment["JOB_UUID"] == "other"
    assert made.environment["RESOURCE_ID"] == "node-1"


def test_exposed_services_know_their_path() -> None:
    made = plan(b"{}", service(expose={"api_port": 80}))
    assert made.environment["OSCAR_SERVICE_BASE_PATH"] == "/system/services/thumbs/exposed"


def test_query_parameters_of_an_api_gateway() -> None:
    query = {"size": "10", "a-b": "x", "é": "y"}
    made = plan({"httpMethod": "POST", "body": "aGk=", "queryStringParameters": query})
    assert made.event.kind is EventKind.API
    assert made.answers
    assert made.moves.files[0].content == b"hi"
    assert {name for name in made.environment if name.startswith("CONT_VAR")} == {"CONT_VAR_size"}


def delegated(provider: str, target: Service) -> list[tuple[str, str]]:
    made = plan(delegate(json.dumps(put("in/a", "far")).encode(), provider), target)
    return [(download.provider, download.bucket) for download in made.moves.downloads]


def test_delegated_events_are_fetched_where_they_came_from() -> None:
    far = {"minio": {"far": {"endpoint": "https://far", "access_key": "a", "secret_key": "b"}}}
    assert delegated("minio.far", service(storage_providers=far)) == [("minio.far", "far")]
    # A cluster may name itself instead of a provider.
    assert delegated("far", service(storage_providers=far)) == [("minio.far", "far")]


def test_a_workers_copy_carries_its_origins_store() -> None:
    copy = service(
        annotations={WORKER: "true"},
        storage_providers={
            "minio": {"default": {"endpoint": "https://far", "access_key": "a", "secret_key": "b"}}
        },
    )
    # The bucket is on the other cluster, so what this cluster's inputs are doesn't matter.
    assert delegated("minio.default", copy) == [("minio.default", "far")]


S3_KEYS = {"access_key": "a", "secret_key": "b"}


def test_events_of_amazon_s3() -> None:
    record = {**put("data/a b.txt", "amazon")["Records"][0], "eventSource": "aws:s3"}
    for ids, chosen in ((["one"], "s3.one"), (["one", "default"], "s3.default")):
        target = service(storage_providers={"s3": dict.fromkeys(ids, S3_KEYS)})
        (download,) = plan({"Records": [record]}, target).moves.downloads
        assert (download.provider, download.bucket, download.key) == (chosen, "amazon", "data/a b.txt")
    with pytest.raises(BadRequest, match="no provider for it") as caught:
        plan({"Records": [record]})
    assert caught.value.field == "storage_providers.s3"


def test_outputs_of_stores_without_buckets() -> None:
    target = service(
        output=[
            {"storage_provider": "webdav.w", "path": "/store/out/"},
            {"storage_provider": "onedata.o", "path": "out", "suffix": ["txt"]},
            {"storage_provider": "rucio.r", "path": "out", "prefix": ["sub/"]},
            {"storage_provider": "rucio.scoped", "path": "out"},
        ],
        storage_providers={
            "webdav": {"w": {"hostname": "h"}},
            "onedata": {"o": {"space": "my space"}},
            "rucio": {
                "r": {"host": "h", "account": "ada"},
                "scoped": {"account": "ada", "scope": "user.ada"},
            },
        },
    )
    assert plan({}, target).moves.targets(["sub/a.txt", "b.bin"]) == [
        ("sub/a.txt", "webdav.w", "", "store/out/sub/a.txt"),
        ("sub/a.txt", "onedata.o", "my space", "out/sub/a.txt"),
        ("sub/a.txt", "rucio.r", "ada", "out/sub/a.txt"),
        ("sub/a.txt", "rucio.scoped", "user.ada", "out/sub/a.txt"),
        ("b.bin", "webdav.w", "", "store/out/b.bin"),
        ("b.bin", "rucio.scoped", "user.ada", "out/b.bin"),
    ]


def test_events_of_other_providers() -> None:
    target = service(
        input=[
            {"storage_provider": "webdav.other", "path": "x"},
            {"storage_provider": "webdav.dcache", "path": "/store/in/"},
            {"storage_provider": "rucio.r", "path": "rucio/input"},
        ],
        storage_providers={
            "webdav": {"other": {"hostname": "a"}, "dcache": {"hostname": "b"}},
            "rucio": {"r": {"host": "c"}},
            "onedata": {"one": {"space": "mine"}, "two": {"space": "theirs"}},
        },
    )

    def download(event: dict[str, Any]) -> tuple[str, str, str]:
        (found,) = plan(event, target).moves.downloads
        return found.provider, found.bucket, found.key

    dcache = {"event": {"name": "i.jpg", "mask": ["IN_CREATE"]}, "subscription": "s"}
    assert download(dcache) == ("webdav.dcache", "", "store/in/i.jpg")
    assert plan(dcache, target).environment["STORAGE_OBJECT_KEY"] == "store/in/i.jpg"
    for name in ("rucio/input/f", "rucio__input__f"):
        rucio = {"event_type": "x", "payload": {"scope": "user.ada", "name": name}}
        assert download(rucio) == ("rucio.r", "user.ada", name)
    onedata = {"Key": "/theirs/dir/f", "Records": [{"eventSource": "OneTrigger", "objectKey": "f"}]}
    assert download(onedata) == ("onedata.two", "theirs", "dir/f")
    assert plan(onedata, target).environment["STORAGE_OBJECT_KEY"] == "/theirs/dir/f"
    for event in (dcache, onedata, {"event_type": "x", "payload": {"scope": "s", "name": "f"}}):
        with pytest.raises(BadRequest):
            plan(event)


@pytest.mark.parametrize(
    ("scope", "name", "taken"),
    [
        ("user.ada", "anything", True),  # the provider's own scope
        ("others", "rucio/input/f", True),
        ("others", "rucio__input__sub__f", True),
        ("others", "f", False),
        ("others", "rucio/inputs/f", False),
        ("others", "rucio/input", False),
        ("user.adam", "f", False),
    ],
)
def test_events_name_no_more_of_rucio_than_the_inputs_say(scope: str, name: str, taken: bool) -> None:
    target = service(
        input=[{"storage_provider": "rucio.r", "path": "rucio/input"}],
        storage_providers={"rucio": {"r": {"host": "c", "scope": "user.ada"}}},
    )
    event = {"event_type": "x", "payload": {"scope": scope, "name": name}}
    if taken:
        assert [found.key for found in plan(event, target).moves.downloads] == [name]
        return
    with pytest.raises(BadRequest, match="in no input of the service") as refused:
        plan(event, target)
    assert refused.value.field == "Records[0]"


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "./a"])
def test_events_of_dcache_stay_in_the_folder(name: str) -> None:
    target = service(
        input=[{"storage_provider": "webdav.dcache", "path": "/store/in"}],
        storage_providers={"webdav": {"dcache": {"hostname": "b"}}},
    )
    with pytest.raises(BadRequest, match="in no input of the service"):
        plan({"event": {"name": name}, "subscription": "s"}, target)


def test_a_caller_can_not_name_a_foreign_file_by_an_event_that_looks_delegated() -> None:
    target = service(
        input=[{"storage_provider": "webdav.dcache", "path": "/store/in"}],
        storage_providers={"webdav": {"dcache": {"hostname": "b"}}},
    )
    for bucket, key, taken in (
        ("store", "in/a", True),
        ("store", "secret", False),
        ("store", "in/../x", False),
    ):
        event = {"storage_provider": "webdav.dcache", "event": put(key, bucket)}
        if taken:
            assert [found.key for found in plan(event, target).moves.downloads] == [key]
        else:
            with pytest.raises(BadRequest, match="in no input of the service"):
                plan(event, target)


def keys(target: Service, *files: str, event: Any = b"{}") -> list[tuple[str, str, str, str]]:
    return plan(event, target).moves.targets(files)


def test_results_keep_their_folders() -> None:
    assert keys(service(), "a.txt", "sub/dir/b.txt") == [
        ("a.txt", "minio.default", "photos", "out/a.txt"),
        ("sub/dir/b.txt", "minio.default", "photos", "out/sub/dir/b.txt"),
    ]
    assert keys(service(output=[]), "a.txt") == []
    assert keys(service()) == []


def test_prefixes_and_suffixes_choose_results() -> None:
    target = service(
        output=[
            {"path": "bkt/p", "prefix": ["a", "sub/"], "suffix": [".jpg", ".png"]},
            {"path": "bkt/q", "suffix": [".txt"]},
            {"path": "bkt/r", "prefix": ["z"]},
            {"path": "bkt/all"},
        ]
    )
    files = ["a.jpg", "a.txt", "b.jpg", "sub/x.png", "sub/a.gif", "z"]
    chosen: dict[str, list[str]] = {}
    for name, _, _, key in keys(target, *files):
        folder = key.removesuffix(f"/{name}")
        chosen.setdefault(folder, []).append(name)
    assert chosen == {"p": ["a.jpg", "sub/x.png"], "q": ["a.txt"], "r": ["z"], "all": files}


def test_results_go_to_several_providers() -> None:
    target = service(
        cluster_id="here",
        output=[
            {"storage_provider": "minio", "path": "bkt/out"},
            {"storage_provider": "minio.here", "path": "bkt/out"},
            {"storage_provider": "S3.archive", "path": "cold"},
            {"storage_provider": "minio.other", "path": "b"},
        ],
        storage_providers={
            "s3": {"archive": S3_KEYS},
            "minio": {"other": {"endpoint": "https://o", **S3_KEYS}},
        },
    )
    # The first two are the same place, so it is written once.
    assert keys(target, "f") == [
        ("f", "minio.default", "bkt", "out/f"),
        ("f", "s3.archive", "thumbs", "cold/f"),
        ("f", "minio.other", "thumbs", "b/f"),
    ]


@pytest.mark.parametrize("level", ["USER", "user", "User"])
def test_defect_17b_private_uploads_have_private_results_in_any_spelling(level: str) -> None:
    target = service(
        isolation_level=level,
        bucket_list=["photos-ada", "photos-bob"],
        output=[
            {"path": "photos/out"},
            {"storage_provider": "s3.archive", "path": "cold/out"},
        ],
        storage_providers={"s3": {"archive": S3_KEYS}},
    )
    event = put("in/a.jpg", "photos-ada")
    assert names(plan(event, target)) == ["a.jpg"]
    assert keys(target, "f", event=event) == [
        ("f", "minio.default", "photos-ada", "out/f"),
        ("f", "s3.archive", "cold", "out/f"),
    ]
    shared = keys(target, "f", event=put("in/a.jpg"))
    assert shared[0] == ("f", "minio.default", "photos", "out/f")


def test_without_isolation_results_stay_in_the_shared_bucket() -> None:
    target = service(bucket_list=["photos-ada"], input=[{"path": "photos/in"}, {"path": "photos-ada/in"}])
    assert keys(target, "f", event=put("in/a", "photos-ada"))[0][2] == "photos"


def test_scripts_see_their_services_definition_without_its_secrets() -> None:
    target = service(token="t", environment={"variables": {"A": "é"}, "secrets": {"KEY": "planted"}})
    text = function_config(target)
    shown = yaml.safe_load(text)
    assert (shown["name"], shown["environment"]["variables"]) == (target.name, {"A": "é"})
    assert "planted" not in text
    assert "é" in text


DOCS = Path(__file__).parents[2] / "docs" / "scripts.md"


def test_every_variable_is_documented() -> None:
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert rows == RESERVED_ENVIRONMENT
    target = service(token="t", file_stage_in=False)
    for payload in (put("in/a"), b"aGk=", b"{}"):
        assert plan(payload, target).environment.keys() <= rows


def test_the_documented_script_runs(tmp_path: Path) -> None:
    found = re.search(r"^```sh\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    for folder in ("in", "out"):
        (tmp_path / "work" / folder).mkdir(parents=True)
    (tmp_path / "work" / "in" / "my list.csv").write_text("1\n2\n3\n")
    (tmp_path / "script.sh").write_text(found[1])
    made = plan(put("in/my list.csv"), root=str(tmp_path))
    done = subprocess.run(
        ["/bin/sh", tmp_path / "script.sh"],
        env={"PATH": os.environ["PATH"], **made.environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "counting the lines of my list.csv, stored as in/my list.csv\n"
    assert (tmp_path / "work" / "out" / "counts" / "my list.csv.txt").read_text().strip() == "3"
