"""The service model: defaults, rules, errors with path and fix, JSON of the API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.errors import BadRequest, InvalidField
from oscar.model.documents import parse_json
from oscar.model.job import RetryPolicy
from oscar.model.object import Visibility
from oscar.model.provider import ProviderRef, ProviderType, parse_provider
from oscar.model.service import (
    RESERVED_ENVIRONMENT,
    Service,
    Watched,
    definition,
    parse_service,
    unknown_fields,
    with_own_store,
)
from oscar.model.storage import MinIOProvider

BASE = {"name": "grayify", "image": "busybox", "script": "#!/bin/sh\n"}


def service(**fields: Any) -> Service:
    return parse_service({**BASE, **fields})


def refused(**fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        service(**fields)
    return caught.value


def test_defaults() -> None:
    it = parse_service({"name": "a-1", "image": "busybox"})
    assert (it.memory, it.cpu, it.log_level) == ("256Mi", "0.2", "INFO")
    assert (it.visibility, it.isolation_level) == (Visibility.PRIVATE, "SERVICE")
    assert (it.cpu_millicores, it.memory_bytes) == (200, 256 * 1024**2)
    assert it.script == ""
    assert (it.synchronous.min_scale, it.synchronous.max_scale) == (0, 0)
    assert it.retry_policy() == RetryPolicy()
    assert it.timeout_seconds is None
    assert it.concurrency == 0
    assert not it.expose.active
    assert [it.alpine, it.image_prefetch, it.enable_gpu, it.enable_sgx, it.file_stage_in] == [False] * 5
    assert it.storage_inputs == []
    assert it.buckets() == []


@pytest.mark.parametrize("name", ["a", "a" * 39, "0x", "my-function-2"])
def test_names(name: str) -> None:
    assert service(name=name).name == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is required"),
        ("  ", "is required"),
        ("a" * 40, "40 characters"),
        ("Upper", "not a name"),
        ("under_score", "not a name"),
        ("-a", "not a name"),
        ("a-", "not a name"),
        ("a/b", "not a name"),
        ("a\n", ""),
        ("breakdown", "reserved"),
        ("user", "reserved"),
        (["a"], "not a list"),
    ],
)
def test_names_refused(name: Any, words: str) -> None:
    if name == "a\n":
        assert service(name=name).name == "a"  # surrounding space is trimmed
        return
    error = refused(name=name)
    assert error.field == "name"
    assert words in error.message
    assert error.fix or words == "is required"
    assert error.as_dict()["field"] == "name"


def test_missing_name_and_image() -> None:
    with pytest.raises(InvalidField, match="name: is required"):
        parse_service({"image": "x"})
    with pytest.raises(InvalidField, match="image: is required"):
        parse_service({"name": "x"})


@pytest.mark.parametrize("image", ["", " ", "--privileged", "a b", "a\tb"])
def test_images_refused(image: str) -> None:
    assert refused(image=image).field == "image"


def test_image_forms() -> None:
    for image in ("docker://ai4oshub/x", "/cvmfs/x.sif", "ghcr.io/a/b:1@sha256:00"):
        assert service(image=image).image == image


@pytest.mark.parametrize("field", ["memory", "cpu", "total_memory", "total_cpu", "ephemeral_storage_request"])
def test_quantities_refused(field: str) -> None:
    error = refused(**{field: "abc"})
    assert error.field == field
    assert error.message == f'{field}: "abc" is not a quantity'
    assert error.fix


def test_scalars_where_text_belongs_keep_their_text() -> None:
    it = parse_service(
        parse_json('{"name":"a","image":"b","cpu":1.0,"memory":1000,"environment":{"variables":{"F":false}}}')
    )
    assert (it.cpu, it.memory) == ("1.0", "1000")
    assert it.environment.variables == {"F": "false"}


@pytest.mark.parametrize("value", [["x"], {"x": "y"}])
def test_lists_and_maps_where_text_belongs(value: Any) -> None:
    error = refused(environment={"Variables": {"AWS_KEY": value}})
    assert error.field == "environment.variables.AWS_KEY"
    assert "text is expected" in error.message
    assert error.fix


def test_keys_in_any_case() -> None:
    it = parse_service(
        {
            "Name": "a",
            "IMAGE": "b",
            "Environment": {"Variables": {"A": "1"}, "variables": {"B": "2"}, "SECRETS": {"C": "3"}},
            "Input": [{"Storage_Provider": "minio", "Path": "bucket/in"}],
            "Synchronous": {"MIN_SCALE": 2},
            "expose": {"nodeport": 30000, "API_PORT": "80"},
        }
    )
    assert it.environment.variables == {"A": "1", "B": "2"}
    assert it.environment.secrets == {"C": "3"}
    assert it.input[0].path == "bucket/in"
    assert it.synchronous.min_scale == 2
    assert (it.expose.nodePort, it.expose.api_port) == ([30000], [80])


def test_exact_key_wins_over_another_case() -> None:
    assert parse_service({"image": "exact", "Image": "other", "name": "a"}).image == "exact"
    assert parse_service({"Image": "other", "image": "exact", "name": "a"}).image == "exact"


def test_null_means_absent() -> None:
    it = service(memory=None, input=None, environment={"variables": {"A": None}}, volume=None, labels=None)
    assert it.memory == "256Mi"
    assert it.input == []
    assert it.environment.variables == {"A": ""}


@pytest.mark.parametrize(
    ("given_level", "level"), [("debug", "DEBUG"), ("Critical", "CRITICAL"), ("loud", "INFO"), ("", "INFO")]
)
def test_log_level(given_level: str, level: str) -> None:
    assert service(log_level=given_level).log_level == level


def test_visibility() -> None:
    assert service(visibility="PUBLIC").visibility is Visibility.PUBLIC
    assert service(visibility="").visibility is Visibility.PRIVATE
    assert refused(visibility="secret").field == "visibility"


@pytest.mark.parametrize("level", ["user", "USER", "User", " user "])
def test_defect_17b_isolation_level_in_any_case(level: str) -> None:
    assert service(isolation_level=level).isolation_level == "USER"


def test_isolation_level() -> None:
    assert service(isolation_level="service").isolation_level == "SERVICE"
    assert refused(isolation_level="none").field == "isolation_level"


def test_user_isolation_watches_private_buckets() -> None:
    it = service(
        isolation_level="user",
        bucket_list=["grayify-abc", "grayify-def"],
        input=[{"storage_provider": "minio", "path": "grayify/in"}],
    )
    assert it.storage_inputs == [
        Watched("grayify", "in"),
        Watched("grayify-abc", "in"),
        Watched("grayify-def", "in"),
    ]


def test_script_lines_end_in_newlines() -> None:
    assert service(script="#!/bin/sh\r\necho 'a\rb'\r\n").script == "#!/bin/sh\necho 'a\rb'\n"


# --- storage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("minio", (ProviderType.MINIO, "default")),
        ("MinIO.Default", (ProviderType.MINIO, "Default")),
        ("S3.my.id", (ProviderType.S3, "my.id")),
        ("webdav.", (ProviderType.WEBDAV, "default")),
        ("ftp", None),
        ("", None),
    ],
)
def test_provider_strings(text: str, ref: tuple[ProviderType, str] | None) -> None:
    assert parse_provider(text) == (ProviderRef(*ref) if ref else None)


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("bucket/in", "bucket/in"),
        (" /bucket/in/ ", "bucket/in"),
        ("input", "grayify/input"),
        ("/input/", "grayify/input"),
        ("bucket//a///b", "bucket/a/b"),
    ],
)
def test_paths(path: str, stored: str) -> None:
    it = service(
        input=[{"storage_provider": "minio", "path": path}],
        output=[{"storage_provider": "s3.x", "path": path}],
        storage_providers={"s3": {"x": {"access_key": "a"}}},
    )
    assert it.input[0].path == it.output[0].path == stored


@pytest.mark.parametrize("path", ["", " ", "/", " / "])
def test_empty_paths(path: str) -> None:
    error = refused(input=[{"storage_provider": "minio", "path": path}])
    assert error.field == "input[0].path"
    assert "empty" in error.message
    assert error.fix


def test_missing_path() -> None:
    error = refused(
        output=[{"storage_provider": "minio", "path": "bucket/out"}, {"storage_provider": "minio"}]
    )
    assert error.field == "output[1].path"


@pytest.mark.parametrize("path", ["bucket/../x", "./bucket", "bucket/."])
def test_climbing_paths(path: str) -> None:
    assert refused(input=[{"storage_provider": "minio", "path": path}]).field == "input[0].path"


@pytest.mark.parametrize("path", ["UPPER/in", "a_b/in", "-x/in", "ab/in", "a..b/in", "x" * 64 + "/in"])
def test_bucket_names(path: str) -> None:
    error = refused(input=[{"storage_provider": "minio", "path": path}])
    assert error.field == "input[0].path"
    assert "not a name for a bucket" in error.message


def test_unknown_provider_type() -> None:
    error = refused(input=[{"storage_provider": "ftp.x", "path": "a/b"}])
    assert error.field == "input[0].storage_provider"
    assert "unknown type" in error.message


def test_undefined_provider() -> None:
    error = refused(output=[{"storage_provider": "S3.mine", "path": "a/b"}])
    assert error.field == "output[0].storage_provider"
    assert 'the StorageProvider "s3.mine" is not defined' in error.message
    assert error.fix == "Add storage_providers.s3.mine."


PROVIDERS = {
    "minio": {"far": {"endpoint": "https://far.example", "verify": False}},
    "s3": {"x": {"region": "eu"}},
    "onedata": {"x": {"space": "s"}},
    "webdav": {"x": {"hostname": "h"}},
    "rucio": {"x": {"host": "h"}},
}


@pytest.mark.parametrize("provider", ["minio", "minio.default", "MINIO.default", "webdav.x", "rucio.x"])
def test_inputs_allowed(provider: str) -> None:
    assert service(
        storage_providers=PROVIDERS, input=[{"storage_provider": provider, "path": "bucket/in"}]
    ).input


@pytest.mark.parametrize("provider", ["s3.x", "onedata.x", "minio.far"])
def test_inputs_refused(provider: str) -> None:
    error = refused(storage_providers=PROVIDERS, input=[{"storage_provider": provider, "path": "bucket/in"}])
    assert "unrecognized input (valid inputs are MinIO and dCache)" in error.message
    assert error.field == "input[0].storage_provider"


@pytest.mark.parametrize("provider", ["minio", "minio.far", "s3.x", "onedata.x", "webdav.x", "rucio.x"])
def test_outputs_allowed(provider: str) -> None:
    it = service(storage_providers=PROVIDERS, output=[{"storage_provider": provider, "path": "bucket/out"}])
    assert it.buckets() == (["bucket"] if provider == "minio" else [])
    assert it.provider(it.output[0].provider) is not None or provider == "minio"


def test_cluster_id_names_the_own_store() -> None:
    it = service(cluster_id="here", input=[{"storage_provider": "minio.here", "path": "bucket/in"}])
    assert it.storage_inputs == [Watched("bucket", "in")]
    error = refused(input=[{"storage_provider": "minio.here", "path": "bucket/in"}])
    assert "not defined" in error.message


def test_buckets_and_inputs() -> None:
    it = service(
        storage_providers=PROVIDERS,
        input=[
            {"storage_provider": "minio", "path": "bucket/in"},
            {"storage_provider": "minio", "path": "other/a/b"},
            {"storage_provider": "webdav.x", "path": "dav/in"},
        ],
        output=[
            {"storage_provider": "minio", "path": "bucket/out"},
            {"storage_provider": "s3.x", "path": "far/out"},
        ],
        mount={"storage_provider": "minio", "path": "/disk"},
    )
    assert it.storage_inputs == [Watched("bucket", "in"), Watched("other", "a/b")]
    assert it.buckets() == ["bucket", "other", "disk"]
    assert it.mount is not None
    assert (it.mount.path, it.mount.bucket, it.mount.folder) == ("disk", "disk", "")


@pytest.mark.parametrize(
    ("source", "target", "loops"),
    [
        ("bucket/in", "bucket/in", True),
        ("bucket/in", "bucket/in/sub", True),
        ("bucket/in", "/bucket/in/", True),
        ("in", "grayify/in/x", True),
        ("bucket/in", "bucket/in2", False),
        ("bucket/in", "bucket/out", False),
        ("bucket/in/deep", "bucket/in", False),
        ("bucket/in", "other/in", False),
    ],
)
def test_an_output_under_an_own_input_is_refused(source: str, target: str, loops: bool) -> None:
    fields = {
        "input": [{"storage_provider": "minio", "path": source}],
        "output": [{"storage_provider": "minio.default", "path": target}],
    }
    if loops:
        error = refused(**fields)
        assert error.field == "output[0].path"
        assert "input[0]" in error.message
    else:
        assert service(**fields)


def test_loops_are_about_one_provider() -> None:
    places: Callable[[str], list[dict[str, str]]] = lambda provider: [  # noqa: E731 - a table's row
        {"storage_provider": provider, "path": "bucket/x"}
    ]
    assert service(storage_providers=PROVIDERS, input=places("minio"), output=places("minio.far"))
    assert refused(storage_providers=PROVIDERS, input=places("webdav.x"), output=places("webdav.x"))
    assert refused(cluster_id="here", input=places("minio"), output=places("minio.here"))


def test_prefixes_and_suffixes() -> None:
    it = service(
        output=[{"storage_provider": "minio", "path": "b-1/o", "suffix": [".png", 1], "prefix": ["x"]}]
    )
    assert it.output[0].suffix == [".png", "1"]
    error = refused(output=[{"storage_provider": "minio", "path": "b-1/o", "suffix": ".png"}])
    assert error.field == "output[0].suffix"
    assert "a list is expected" in error.message


@pytest.mark.parametrize("options", ["--vfs-cache-mode=full", "--dir-perms 0777 --read-only", ""])
def test_mount_options(options: str) -> None:
    it = service(mount={"storage_provider": "minio", "path": "disk", "options": options})
    assert it.mount is not None
    assert it.mount.options == options


@pytest.mark.parametrize(
    "options", ["; rm -rf /", "$(id)", "`id`", "a|b", "a\nb", "ä", "--rc", "--x", "/a_b.c"]
)
def test_mount_options_refused(options: str) -> None:
    error = refused(mount={"storage_provider": "minio", "path": "disk", "options": options})
    assert error.field == "mount.options"


def test_mount_providers() -> None:
    error = refused(storage_providers=PROVIDERS, mount={"storage_provider": "rucio.x", "path": "a/b"})
    assert error.field == "mount.storage_provider"


def test_own_store_is_filled_in() -> None:
    it = with_own_store(service(), MinIOProvider(endpoint="http://s3", access_key="k", secret_key="s"))
    assert it.storage_providers.minio["default"].endpoint == "http://s3"
    assert "storage_providers" not in definition(service())


# --- environment, retry, timeout ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1A", "A B", "A=B", "", "ä"])
def test_variable_names(name: str) -> None:
    assert refused(environment={"variables": {name: "x"}}).field == "environment.variables"


def test_variable_values() -> None:
    error = refused(environment={"secrets": {"KEY": "secret\x00value"}})
    assert error.field == "environment.secrets.KEY"
    assert "secret\x00value" not in str(error.as_dict())


def test_reserved_environment() -> None:
    for name in ("EVENT", "INPUT_FILE_PATH", "TMP_OUTPUT_DIR", "OSCAR_SERVICE_TOKEN"):
        assert name in RESERVED_ENVIRONMENT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30),
        ("30", 30),
        ("30s", 30),
        ("10m", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        (0.5, 0.5),
        ("500ms", 0.5),
    ],
)
def test_timeout(value: Any, seconds: float) -> None:
    it = service(timeout=value)
    assert it.timeout_seconds == seconds
    assert definition(it)["timeout"] == seconds


@pytest.mark.parametrize("value", ["soon", "-1", -1, "1x", "nan", "inf", "", [1]])
def test_timeout_refused(value: Any) -> None:
    assert refused(timeout=value).field == "timeout"


def test_no_timeout() -> None:
    assert service(timeout=0).timeout_seconds is None


def test_retry() -> None:
    it = service(retry={"attempts": 5, "delay": "1m", "max_delay": "1h", "interrupted": True}, concurrency=3)
    assert it.retry_policy() == RetryPolicy(attempts=5, delay=60, max_delay=3600, interrupted=True)
    assert refused(retry={"attempts": -1}).field == "retry.attempts"
    assert refused(concurrency=-1).field == "concurrency"
    assert refused(concurrency="many").field == "concurrency"


# --- serving, volume, federation ------------------------------------------------------------------


def test_expose_defaults() -> None:
    expose = service(expose={"api_port": 80}).expose
    assert expose.active
    assert (expose.min_scale, expose.max_scale, expose.cpu_threshold) == (1, 10, 80)
    assert (expose.health_path, expose.probe_mode, expose.auth_type) == ("/", "legacy", "basic")
    assert [expose.set_auth, expose.rewrite_target, expose.default_command] == [False] * 3


def test_expose_zeros_of_present_answers_are_defaults() -> None:
    expose = service(expose={"api_port": 0, "min_scale": 0, "max_scale": 0, "cpu_threshold": 0}).expose
    assert not expose.active
    assert (expose.min_scale, expose.max_scale, expose.cpu_threshold) == (1, 10, 80)


def test_expose_several_ports() -> None:
    assert service(expose={"api_port": [80, "8080"]}).expose.api_port == [80, 8080]


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"api_port": 70000}, "expose.api_port[0]"),
        ({"api_port": "http"}, "expose.api_port[0]"),
        ({"auth_type": "magic"}, "expose.auth_type"),
        ({"probe_mode": "x"}, "expose.probe_mode"),
        ({"min_scale": 5, "max_scale": 2}, "expose.min_scale"),
    ],
)
def test_expose_refused(block: dict[str, Any], field: str) -> None:
    assert refused(expose=block).field == field


def test_synchronous_order() -> None:
    assert refused(synchronous={"min_scale": 3, "max_scale": 2}).field == "synchronous.min_scale"
    assert service(synchronous={"min_scale": 3}).synchronous.max_scale == 0


def test_kserve_inference() -> None:
    block = {"storage_uri": "gs://x", "inference": {"model_format": "sklearn"}, "min_scale": 3}
    kserve = service(kserve=block).kserve
    assert kserve is not None
    assert (kserve.type, kserve.api_version, kserve.set_auth) == ("inference", "v1", True)
    assert (kserve.min_scale, kserve.max_scale) == (3, 3)
    assert (kserve.cpu, kserve.memory) == ("0.2", "256Mi")


def test_kserve_language_model_keeps_one_replica() -> None:
    kserve = service(kserve={"type": "llm_inference", "storage_uri": "oci://x"}).kserve
    assert kserve is not None
    assert (kserve.min_scale, kserve.max_scale) == (1, 1)


def test_kserve_api_version_within_inference() -> None:
    block = {"storage_uri": "x", "inference": {"model_format": "onnx", "api_version": "v2"}}
    kserve = service(kserve=block).kserve
    assert kserve is not None
    assert kserve.api_version == "v2"


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "inference", "inference": {"model_format": "onnx"}}, "kserve.storage_uri"),
        ({"storage_uri": "x"}, "kserve.inference.model_format"),
        ({"storage_uri": "x", "type": "other"}, "kserve.type"),
        (
            {"storage_uri": "x", "type": "llm_inference", "inference": {"model_format": "o"}},
            "kserve.inference",
        ),
        ({"storage_uri": "x", "inference": {"model_format": "o"}, "memory": "abc"}, "kserve.memory"),
        ({"storage_uri": "x", "inference": {"model_format": "o"}, "api_version": "v3"}, "kserve.api_version"),
    ],
)
def test_kserve_refused(block: dict[str, Any], field: str) -> None:
    assert refused(kserve=block).field == field


def test_volume_created() -> None:
    volume = service(volume={"size": "1Gi", "mount_path": "/data/"}).volume
    assert volume is not None
    assert (volume.name, volume.mount_path, volume.kept) == ("grayify", "/data", False)
    retained = service(volume={"size": "1Gi", "mount_path": "/d", "lifecycle_policy": "Retain"}).volume
    assert retained is not None
    assert retained.kept


def test_volume_attached() -> None:
    volume = service(volume={"name": "shared", "mount_path": "/data"}).volume
    assert volume is not None
    assert volume.kept


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"size": "1Gi"}, "volume.mount_path"),
        ({"size": "1Gi", "mount_path": "data"}, "volume.mount_path"),
        ({"size": "1Gi", "mount_path": "/"}, "volume.mount_path"),
        ({"size": "1Gi", "mount_path": "/oscar/bin"}, "volume.mount_path"),
        ({"size": "1Gi", "mount_path": "/oscar/x/../config/y"}, "volume.mount_path"),
        ({"size": "big", "mount_path": "/data"}, "volume.size"),
        ({"mount_path": "/data"}, "volume.name"),
        ({"name": "Bad_Name", "mount_path": "/data"}, "volume.name"),
        ({"name": "x", "mount_path": "/data", "lifecycle_policy": "delete"}, "volume.lifecycle_policy"),
        ({"size": "1Gi", "mount_path": "/data", "lifecycle_policy": "burn"}, "volume.lifecycle_policy"),
    ],
)
def test_volume_refused(block: dict[str, Any], field: str) -> None:
    error = refused(volume=block)
    assert error.field == field
    assert error.fix


def test_federation_defaults() -> None:
    federation = service(federation={"members": [{"cluster_id": "c", "service_name": "s"}]}).federation
    assert federation is not None
    assert (federation.topology, federation.delegation, federation.group_id) == ("none", "static", "grayify")
    member = federation.members[0]
    assert (member.type, member.ssl_verify, member.priority) == ("oscar", True, 0)


LEGACY: dict[str, Any] = {"replicas": [{"type": "OSCAR", "cluster_id": "c", "service_name": "s"}]}


def test_top_level_replicas_take_jobs_without_a_federation() -> None:
    it = service(**LEGACY, Delegation="random", rescheduler_threshold=30)
    assert it.federation is not None
    assert [replica.cluster_id for replica in it.delegates_to] == ["c"]
    assert (it.federation.members, it.copies) == ([], [])
    assert (it.federation.delegation, it.federation.rescheduler_threshold) == ("random", 30)
    assert unknown_fields({**BASE, "replicas": [], "delegation": "static"}) == []


def test_top_level_replicas_of_a_tree_are_its_members() -> None:
    token = {"secrets": {"refresh_token": "t"}}
    it = service(**LEGACY, federation={"topology": "tree"}, environment=token)
    assert it.federation is not None
    assert (it.federation.topology, it.replicas) == ("star", [])
    assert [member.cluster_id for member in it.copies] == ["c"]
    # A copy in a mesh has replicas and no members: nothing is made of them.
    copy = service(
        **LEGACY, federation={"topology": "mesh"}, annotations={"oscar.grycap/federation-worker": "true"}
    )
    assert [replica.cluster_id for replica in copy.delegates_to] == ["c"]
    assert copy.copies == []


def test_topology_none_disables_delegation_to_members() -> None:
    it = service(federation={"members": [{"cluster_id": "c", "service_name": "s"}]})
    assert (it.delegates_to, it.copies) == ([], [])


def test_members_are_unique() -> None:
    member = {"cluster_id": "c", "service_name": "s"}
    federation = service(federation={"members": [member, {**member, "type": "OSCAR"}]}).federation
    assert federation is not None
    assert len(federation.members) == 1


def test_federation_needs_a_refresh_token() -> None:
    block = {"topology": "star", "members": [{"cluster_id": "c"}]}
    assert refused(federation=block).field == "environment.secrets.refresh_token"
    assert service(federation=block, environment={"secrets": {"refresh_token": "t"}})
    assert service(federation=block, annotations={"oscar.grycap/federation-worker": "true"})


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"topology": "ring"}, "federation.topology"),
        ({"delegation": "best"}, "federation.delegation"),
        ({"members": [{"type": "ftp"}]}, "federation.members[0].type"),
        ({"members": [{"type": "endpoint"}]}, "federation.members[0].url"),
        ({"members": [{"type": "oscar"}]}, "federation.members[0].cluster_id"),
        ({"members": [{"cluster_id": "c", "priority": -1}]}, "federation.members[0].priority"),
    ],
)
def test_federation_refused(block: dict[str, Any], field: str) -> None:
    assert refused(federation=block).field == field


# --- documents ------------------------------------------------------------------------------------


def test_unknown_fields() -> None:
    data = {
        **BASE,
        "colour": "red",
        "Input": [{"path": "a/b", "storage_provider": "minio", "sufix": []}],
        "storage_providers": {"minio": {"x": {"endpont": ""}}, "ftp": {}},
        "environment": {"Variables": {"anything": 1}, "vars": {}},
        "kserve": {"inference": {"format": "x"}},
    }
    assert unknown_fields(data) == [
        "colour",
        "Input[0].sufix",
        "storage_providers.minio.x.endpont",
        "storage_providers.ftp",
        "environment.vars",
        "kserve.inference.format",
    ]
    assert parse_service({**BASE, "colour": "red"}) == service()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"name": "a",\n "image" "b"}', "line 2, column 10"),
        (b"", "empty"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b"[" * 100_000, "deep"),
        (b"9" * 5000, "digits"),
        (rb'{"\ud800": 1}', "surrogate"),
        (rb'["\uDC00\ud800"]', "surrogate"),
    ],
)
def test_broken_json(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_json(body)


def test_json_of_other_scripts() -> None:
    assert parse_json(rb'["\ud83d\ude00", "\u00e4"]') == ["😀", "ä"]
    assert parse_json("\ufeff[1.50, 2]".encode()) == ["1.50", 2]


@pytest.mark.parametrize("data", [[], "text", 1, None])
def test_not_a_definition(data: Any) -> None:
    with pytest.raises(InvalidField):
        parse_service(data)


def test_secrets_are_not_in_repr() -> None:
    it = service(
        token="T0KEN",
        environment={"secrets": {"A": "S3CRET"}},
        storage_providers={"minio": {"x": {"secret_key": "S3CRET", "access_key": "S3CRET"}}},
        clusters={"c": {"auth_password": "S3CRET"}},
    )
    assert "S3CRET" not in repr(it)
    assert "T0KEN" not in repr(it)


def test_definition_has_the_names_of_the_api() -> None:
    data = definition(
        service(
            input=[{"storage_provider": "minio", "path": "bucket/in"}],
            output=[{"storage_provider": "minio", "path": "bucket/out", "suffix": [".png"]}],
        )
    )
    assert data["input"] == [{"storage_provider": "minio.default", "path": "bucket/in"}]
    assert data["output"][0]["suffix"] == [".png"]
    assert data["environment"] == {"variables": {}, "secrets": {}}
    assert data["visibility"] == "private"
    for absent in ("federation", "kserve", "volume", "mount", "clusters", "retry", "timeout", "deployment"):
        assert absent not in data


def test_present_answers_can_be_sent_back() -> None:
    """OSCAR's own answers carry empty blocks and nulls for what was not given."""
    it = service(
        input=None,
        mount={"storage_provider": "", "path": ""},
        volume={"name": "", "size": "", "mount_path": ""},
        federation={"group_id": "", "topology": "", "members": None},
        expose={"api_port": None, "nodePort": 0, "min_scale": 0},
        allowed_users=None,
        synchronous={"min_scale": 0, "max_scale": 0},
    )
    assert it == service()


texts = st.text(max_size=20)
words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=8)
services = st.fixed_dictionaries(
    {"name": words.filter(lambda name: name != "user"), "image": words},
    optional={
        "script": texts,
        "memory": st.sampled_from(["1Gi", "100M", "1e9"]),
        "cpu": st.sampled_from(["1", "0.5", "250m"]),
        "enable_gpu": st.booleans(),
        "log_level": st.sampled_from(["debug", "INFO", "x"]),
        "input": st.lists(
            st.fixed_dictionaries(
                {"storage_provider": st.just("minio"), "path": words.map(lambda w: f"{w}/in")}
            ),
            max_size=2,
        ),
        "output": st.lists(
            st.fixed_dictionaries(
                {
                    "storage_provider": st.sampled_from(["minio", "s3.other"]),
                    "path": words.map(lambda w: f"{w}/out"),
                },
                optional={"suffix": st.lists(texts, max_size=2)},
            ),
            max_size=2,
        ),
        "environment": st.fixed_dictionaries({"variables": st.dictionaries(words, words)}),
        "labels": st.dictionaries(texts, texts),
        "allowed_users": st.lists(words),
        "visibility": st.sampled_from(["private", "RESTRICTED", "public"]),
        "expose": st.fixed_dictionaries({"api_port": st.integers(1, 65535)}),
        "retry": st.fixed_dictionaries({"attempts": st.integers(0, 9), "delay": st.floats(0, 1e6)}),
        "timeout": st.integers(0, 10**6),
        "concurrency": st.integers(0, 10),
        "volume": st.just({"size": "1Gi", "mount_path": "/data"}),
    },
)


@given(services)
def test_definition_comes_back_the_same(data: dict[str, Any]) -> None:
    it = parse_service({**data, "storage_providers": {"s3": {"other": {"region": "eu"}}}})
    again = parse_service(parse_json(json.dumps(definition(it))))
    assert again == it
    assert definition(again) == definition(it)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(field=st.sampled_from(sorted(Service.model_fields)), value=json_values)
def test_any_value_of_any_field_is_taken_or_refused_by_name(field: str, value: Any) -> None:
    refusal: InvalidField | None = None
    try:
        it = parse_service({**BASE, field: value})
    except InvalidField as error:
        refusal = error
    if refusal is None:
        assert parse_service(definition(it)) == it
    else:
        assert str(refusal.field).startswith((field, "environment"))
