"""FDL files: those of the present implementation's examples, YAML 1.2, scripts, errors by place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from oscar.errors import BadRequest, InvalidField, NotFound
from oscar.model.documents import parse_yaml
from oscar.model.fdl import (
    Declared,
    Request,
    is_inline,
    parse_fdl,
    to_request,
    undefined_clusters,
    undefined_members,
    with_cluster,
    with_provider,
)
from oscar.model.service import parse_service

FILES = Path(__file__).parent / "data" / "fdl"


def script(path: str) -> str:
    return f"#!/bin/sh\r\necho {path}\r\n"


def requests(text: str) -> list[tuple[str, Request]]:
    return [(declared.cluster_id, to_request(declared)) for declared in parse_fdl(text, read_script=script)]


def filled(name: str) -> str:
    """The file with its `<placeholders>` filled in."""
    return re.sub(r"<([a-z-]+)>", r"my-\1", (FILES / name).read_text())


ACCEPTED = {
    "compss_python_workflow.yaml": [("oscar-cluster", "wordcount-compss-python")],
    "cowsay_cowsay.yaml": [("oscar-replica", "cowsay")],
    "expose_services_jupyter_jupyter_expose_mount.yaml": [("oscar-cluster", "jupyter")],
    "expose_services_nginx_nginx_expose.yaml": [("oscar-cluster", "nginx2")],
    "fish-detector_fish-detector-zip.yaml": [("oscar-eu", "fish-detector-zip")],
    "imagemagick_imagemagick.yaml": [("oscar-cluster", "grayify")],
    "kserve-isvc-sklearn_oscar-svc-sklearn.yaml": [("oscar-kserve-y2m", "kserve-isvc-sklearn")],
    "kserve-llmisvc-qwen2-5_fdl.yaml": [("oscar-kserve-y2m", "qwen2-5-05b-instruct")],
    "mask-detector-workflow_mask-detector-workflow.yaml": [
        ("my_oscar", "anon-and-split"),
        ("my_oscar", "mask-detector"),
    ],
    "mount_grayify-mount.yaml": [("oscar-cluster", "grayifymount")],
    "plant-classification-sync_plant-classification-sync.yaml": [
        ("oscar-cluster", "plant-classification-sync")
    ],
    "rucio_rucio-service.yaml": [("oscar-cluster", "rucio-example")],
    "secrets-usage_secret-usage.yaml": [("oscar-replica", "cowsay-secret")],
    "simple-test_simple-test.yaml": [("oscar-cluster", "simple-test")],
    "thermal-detector-interlink_thermal-detector-interlink.yaml": [
        ("oscar-cluster", "thermal-detector-interlink")
    ],
    "video-process_video-process.yaml": [("oscar-cluster", "split-video"), ("oscar-cluster", "darknet")],
    "volumes_volume-demo.yaml": [("oscar-cluster", "volume-demo")],
}
FIRE = "fire-detection_fire_detection_replicas.yaml"


def test_each_file_has_its_test() -> None:
    assert {path.name for path in FILES.glob("*.yaml")} == {*ACCEPTED, FIRE}


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_files_of_the_present_implementation(name: str) -> None:
    found = requests(filled(name))
    assert [(cluster, request.name) for cluster, request in found] == ACCEPTED[name]
    for cluster, request in found:
        assert request.warnings == ()
        assert request.body["cluster_id"] == cluster
        assert parse_service(request.body).name == request.name


def test_fire_detection_is_refused_until_its_placeholders_are_text() -> None:
    """Its placeholders are written as YAML lists, `KEY: [value]`, where text belongs."""
    with pytest.raises(InvalidField) as caught:
        requests((FILES / FIRE).read_text())
    where = "functions.oscar[0].oscar-cluster-edge.environment.variables.AWS_ACCESS_KEY_ID"
    assert caught.value.field == where
    assert "text is expected, not a list" in caught.value.message
    assert caught.value.fix


def test_fire_detection_with_placeholders_filled() -> None:
    text = re.sub(r"\[([a-z_]+)\]", r"my-\1", (FILES / FIRE).read_text())
    edge, central = parse_fdl(text, read_script=script)
    body = to_request(edge).body
    assert (body["cpu"], body["environment"]["variables"]["SEND_SNS"]) == ("1.0", "false")
    assert body["replicas"] == [
        {"type": "oscar", "cluster_id": "oscar-cluster", "service_name": "fire-detection"}
    ]
    assert undefined_members(edge.definition) == {"oscar-cluster"}
    # The second service writes to the store of the first one's cluster: the CLI's configuration knows it.
    assert undefined_clusters(central.definition) == {"oscar-cluster-edge"}
    with pytest.raises(InvalidField, match=r'StorageProvider "minio.oscar-cluster-edge" is not defined'):
        to_request(central)
    provider = {"endpoint": "https://edge.example", "access_key": "a", "secret_key": "s", "verify": True}
    known = Declared(
        central.cluster_id, with_provider(central.definition, "oscar-cluster-edge", provider), central.place
    )
    assert undefined_clusters(known.definition) == set()
    assert to_request(known).body["storage_providers"]["minio"]["oscar-cluster-edge"] == provider


def test_rucio_provider_of_the_file_reaches_its_service() -> None:
    [(_, request)] = requests(filled("rucio_rucio-service.yaml"))
    rucio = request.body["storage_providers"]["rucio"]["rucio"]
    assert rucio["host"] == "my-rucio-endpoint"
    assert rucio["refresh_token"] == "my-oidc-token"
    assert request.body["vo"] == "my-vo"
    assert "script" not in request.body


def test_trailing_tabs() -> None:
    [(_, request)] = requests((FILES / "simple-test_simple-test.yaml").read_text())
    assert request.body["log_level"] == "CRITICAL"


def test_types_in_the_request_are_those_of_the_api() -> None:
    [(_, request)] = requests(filled("expose_services_jupyter_jupyter_expose_mount.yaml"))
    assert request.body["expose"] == {
        "min_scale": 1,
        "max_scale": 1,
        "api_port": [8888],
        "cpu_threshold": 90,
        "rewrite_target": True,
    }
    assert request.body["mount"] == {"storage_provider": "minio.default", "path": "notebook"}


def fdl(fields: str, top: str = "") -> str:
    return f"functions:\n  oscar:\n  - here:\n      name: a\n      image: b\n{fields}{top}"


def body(fields: str, top: str = "") -> dict[str, Any]:
    [(_, request)] = requests(fdl(fields, top))
    return dict(request.body)


def test_scripts_are_inlined() -> None:
    assert body("      script: run.sh\n")["script"] == "#!/bin/sh\necho run.sh\n"
    assert body("      script: |\n        echo 1\n        echo 2\n")["script"] == "echo 1\necho 2\n"
    assert body("      script: '#!/bin/true'\n")["script"] == "#!/bin/true"
    assert is_inline("#!/bin/sh")
    assert not is_inline("scripts/run me.sh\n")


def test_errors_of_reading_scripts_pass() -> None:
    def absent(path: str) -> str:
        raise NotFound(f"no file {path}")

    with pytest.raises(NotFound, match=r"no file run\.sh"):
        parse_fdl(fdl("      script: run.sh\n"), read_script=absent)


def test_shared_providers_and_clusters() -> None:
    fields = (
        "      clusters: {x: {endpoint: own}}\n"
        "      storage_providers: {s3: {one: {region: own}}, webdav: {w: {hostname: h}}}\n"
    )
    top = (
        "storage_providers: {s3: {one: {region: shared, access_key: k}, two: {region: shared}}}\n"
        "clusters: {x: {endpoint: shared, auth_user: u}, y: {endpoint: shared}}\n"
    )
    found = body(fields, top)
    assert found["storage_providers"] == {
        "s3": {"one": {"region": "own", "access_key": "k"}, "two": {"region": "shared"}},
        "webdav": {"w": {"hostname": "h"}},
    }
    assert found["clusters"] == {"x": {"endpoint": "own", "auth_user": "u"}, "y": {"endpoint": "shared"}}


def test_unknown_fields_are_warned_of() -> None:
    [(_, request)] = requests(fdl("      colour: red\n      input:\n      - {path: xyz/in, sufix: []}\n"))
    assert request.warnings == (
        "functions.oscar[0].here.colour is not a field of a service and is ignored",
        "functions.oscar[0].here.input[0].sufix is not a field of a service and is ignored",
    )


def test_undefined_clusters() -> None:
    fields = (
        "      output:\n"
        "      - {storage_provider: minio.far, path: b/o}\n"
        "      - {Storage_Provider: MinIO.near, path: b/o}\n"
        "      - {storage_provider: minio.here, path: b/o}\n"
        "      - {storage_provider: s3.other, path: b/o}\n"
        "      mount: {storage_provider: minio.disk, path: b}\n"
        "      Storage_Providers: {MinIO: {near: {endpoint: e}}}\n"
    )
    [declared] = parse_fdl(fdl(fields), read_script=script)
    assert undefined_clusters(declared.definition) == {"far", "disk"}
    filled_in = with_cluster(declared.definition, "c", {"endpoint": "e"})
    assert filled_in["clusters"] == {"c": {"endpoint": "e"}}


def test_one_service_by_itself() -> None:
    for text in ("name: a\nimage: b\nscript: run.sh\n", '{"Name": "a",\t"image": "b", "script": "run.sh"}'):
        [(cluster, request)] = requests(text)
        assert cluster == ""
        assert request.body == {"name": "a", "image": "b", "script": "#!/bin/sh\necho run.sh\n"}


def test_errors_of_one_service_by_itself_name_the_field() -> None:
    with pytest.raises(InvalidField) as caught:
        requests("name: a\nimage: b\nmemory: abc\n")
    assert caught.value.field == "memory"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no service"),
        ("- a\n", "holds no service"),
        ("image: b\n", "neither `functions` nor `name`"),
        ("functions: {}\n", "functions.oscar"),
        ("functions:\n  oscar:\n    here: {name: a}\n", "not a list"),
        ("functions:\n  oscar: []\n", "not a list"),
        ("functions:\n  oscar:\n  - \n", "names no cluster"),
        ("functions:\n  oscar:\n  - here:\n    name: a\n", "here holds no service"),
        ("functions: [\n", "line 2, column 1"),
        ("{", "line 1, column 2"),
        ("functions:\n\toscar: x\n", "line 2, column 1: a tab"),
        ("a: 1\nb: 2\na: 3\n", 'line 3, column 1: the key "a" stands here twice'),
        ("? [a]\n: b\n", "unhashable"),
        ('name: "\\ud800"\n', "surrogate"),
    ],
)
def test_broken_files(text: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_fdl(text, read_script=script)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.0", "1.0"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("True", "True"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        (".inf", ".inf"),
        ("~", None),
        ("null", None),
        ("", None),
        ("nullable", "nullable"),
        ("'null'", "null"),
        ('"1.0"', "1.0"),
        ("!!int 3", "3"),
        ("a#b", "a#b"),
        ("a # b", "a"),
        ("a\t# b", "a"),
        ("a\t", "a"),
        ("[a,\tb]\t", ["a", "b"]),
        ("<<", "<<"),
    ],
)
def test_scalars_keep_their_text(text: str, value: Any) -> None:
    assert parse_yaml(f"key: {text}\n") == {"key": value}


def test_tabs_in_a_block_of_text_stay() -> None:
    assert parse_yaml("key: |\n  one\t\n  \ttwo\n\t\nother: x\t\r\n") == {
        "key": "one\t\n\ttwo\n",
        "other": "x",
    }


def test_anchors_and_merges() -> None:
    text = "base: &b {cpu: 1.0, image: x}\na:\n  <<: *b\n  cpu: 2.0\n"
    assert parse_yaml(text)["a"] == {"cpu": "2.0", "image": "x"}


plain = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\x85\xa0"), max_size=12
)
documents = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)


@given(documents, st.booleans())
def test_what_yaml_writes_is_read_back(value: Any, flow: bool) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)
    assert parse_yaml(text) == value
