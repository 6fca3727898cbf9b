"""The chart on a real cluster: installed by helm, published with TLS at the node's address, and an upload in it.

The server runs in the cluster with the rights that the chart gives it, MinIO beside it tells it of uploads.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from oscar.compute.kubernetes import survey
from tests.cluster import images, parts
from tests.cluster.addons import contour
from tests.cluster.addons.manifests import program_image
from tests.cluster.cluster import Cluster, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

TREE = Path(__file__).parents[2]
CHART = TREE / "deploy" / "helm" / "oscar"
HOST = "oscar.oscar.test"
SCRIPT = '#!/bin/sh\ntr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$(basename "$INPUT_FILE_PATH")"\n'


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [parts.printed("helm", "OSCAR_HELM"), *words], check=False, capture_output=True, text=True
    )


def rendered(*words: str) -> list[dict[str, Any]]:
    done = helm("template", "o", str(CHART), "--namespace=here", "--kube-version=1.34.2", *words)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def of(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]


def test_it_is_linted() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


def test_several_servers_need_a_database_and_have_a_budget() -> None:
    refused = helm("template", "o", str(CHART), "--kube-version=1.34.2", "--set=replicas=2")
    assert (refused.returncode != 0, "database.url" in refused.stderr) == (True, True)
    objects = rendered("--set=replicas=2,database.existingSecret=db")
    [deployment] = [it for it in of(objects, "Deployment") if it["metadata"]["name"] == "o-oscar"]
    assert deployment["spec"]["strategy"]["type"] == "RollingUpdate"
    assert of(objects, "PodDisruptionBudget")[0]["spec"]["minAvailable"] == 1
    assert not of(objects, "PersistentVolumeClaim")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("publish.host=192.0.2.1", "/publish/host"),
        ("replica=2", "replica"),
        ("store.kind=s3", "/store/kind"),
        ("minio.enabled=false", "store.endpoint"),
        ("publish.tls.mode=secret", "publish.tls.secretName"),
        ("settings.lower=1", "lower"),
    ],
)
def test_what_can_not_be_is_refused_with_its_name(words: str, said: str) -> None:
    done = helm("template", "o", str(CHART), "--kube-version=1.34.2", f"--set={words}")
    assert (done.returncode != 0, said in done.stderr) == (True, True), done.stderr


@pytest.mark.parametrize("routes", ["ingress", "httproute"])
def test_its_account_may_all_that_the_doctor_asks_for(routes: str) -> None:
    words = ",".join(f"services.{part}" for part in (f"routes={routes}", "kueue=true", "knative=true"))
    [role] = of(rendered(f"--set={words}"), "ClusterRole")
    given = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    asked = [*survey.RIGHTS, survey.KUEUE, survey.KNATIVE, survey.ROUTES[routes]]
    needed = {
        (group, resource, verb)
        for group, resources, verbs in asked
        for resource in resources
        for verb in verbs
    }
    assert needed <= given, needed - given


def test_nothing_secret_is_in_the_map_of_settings() -> None:
    objects = rendered(
        "--set=admin.password=planted,store.secretKey=planted,database.url=postgresql+psycopg://planted"
    )
    assert "planted" not in json.dumps(of(objects, "ConfigMap") + of(objects, "Deployment"))


@dataclass(frozen=True)
class Installed:
    cluster: Cluster
    namespace: str
    password: str

    @property
    def client(self) -> httpx2.Client:
        """With the certificate of the cluster's Gateway."""
        return self.trusting(ssl.create_default_context(cafile=str(self.cluster.authority)))

    def trusting(self, context: ssl.SSLContext) -> httpx2.Client:
        """At the node's address; Contour answers 421 to a TLS greeting without a name, so it has one."""

        def named(request: httpx2.Request) -> None:
            request.extensions = {**request.extensions, "sni_hostname": HOST}

        return httpx2.Client(
            base_url=f"https://{self.cluster.node}",
            auth=("oscar", self.password),
            headers={"Host": HOST},
            event_hooks={"request": [named]},
            verify=context,
            timeout=60,
        )

    def helm(self, *words: str) -> None:
        done = helm(*words, f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}")
        assert done.returncode == 0, done.stderr

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl(*words, f"--namespace={self.namespace}")

    def answers(self) -> bool:
        """Whether the API does, by the gateway."""
        with self.client as api:
            return api.get("/ready").status_code == httpx2.codes.OK

    def rolled_out(self) -> None:
        self.kubectl("rollout", "status", "deployment/oscar", "--timeout=300s")


def password(cluster: Cluster, namespace: str) -> str:
    secret = cluster.get("secret", "oscar", f"--namespace={namespace}")
    return base64.b64decode(secret["data"]["OSCAR_PASSWORD"]).decode()


@pytest.fixture(scope="module")
def installed(kubernetes: Cluster) -> Iterator[Installed]:
    kubernetes.add("dns", "storage", "contour")
    minio = program_image(Path(parts.printed("minio", "OSCAR_MINIO")).parent, "minio")
    kubernetes.load(minio)
    namespace = f"oscar-{uuid.uuid4().hex[:6]}"
    repository, _, tag = images.SERVER.rpartition(":")
    values = {
        "image": {"repository": repository, "tag": tag},
        "minio": {"image": minio.name, "storage": "1Gi"},
        "persistence": {"size": "1Gi"},
        "services": {"namespacePrefix": f"{namespace}-svc"},
        "publish": {
            "kind": "gateway",
            "gateway": {"create": False, "name": "contour", "namespace": contour.NAMESPACE},
            "tls": {"mode": "none"},
        },
    }
    done = subprocess.run(
        [
            parts.printed("helm", "OSCAR_HELM"),
            "install",
            "oscar",
            str(CHART),
            f"--kubeconfig={kubernetes.kubeconfig}",
            f"--namespace={namespace}",
            "--create-namespace",
            "--values=-",
        ],
        input=yaml.safe_dump(values),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = Installed(kubernetes, namespace, password(kubernetes, namespace))
    try:
        found.rolled_out()
        # The gateway hears of a server that is ready a moment later.
        until(found.answers, "the API answers at the gateway", patience=60)
        yield found
    finally:
        found.helm("uninstall", "oscar", "--wait")
        kubernetes.kubectl(
            "delete", "namespace", namespace, f"{namespace}-svc", "--ignore-not-found", "--wait=false"
        )
        kubernetes.kubectl(
            "delete", "clusterrole,clusterrolebinding", f"{namespace}-oscar", "--ignore-not-found"
        )


def test_the_api_answers_with_tls_at_the_nodes_address(installed: Installed) -> None:
    with installed.client as api:
        info = api.get("/system/info")
        assert info.status_code == httpx2.codes.OK
        assert api.get("/system/info", auth=("oscar", "wrong")).status_code == httpx2.codes.UNAUTHORIZED
        assert api.get("/docs").status_code == httpx2.codes.OK


def test_an_upload_is_processed(installed: Installed) -> None:
    import obstore
    from obstore.store import S3Store

    with installed.client as api:
        made = api.post(
            "/system/services",
            json={
                "name": "upper",
                "image": images.BUSYBOX,
                "cpu": "0.1",
                "memory": "32Mi",
                "script": SCRIPT,
                "input": [{"storage_provider": "minio", "path": "upper/in"}],
                "output": [{"storage_provider": "minio", "path": "upper/out"}],
            },
        )
        assert made.status_code == httpx2.codes.CREATED, made.text
        keys = api.get("/system/config").json()["minio_provider"]
        service = installed.cluster.get("service", "oscar-minio", f"--namespace={installed.namespace}")
        store = S3Store(
            "upper",
            endpoint=f"http://{service['spec']['clusterIP']}:9000",
            access_key_id=keys["access_key"],
            secret_access_key=keys["secret_key"],
            region=keys["region"],
            client_options={"allow_http": True},
        )
        obstore.put(store, "in/word", b"in the cluster\n")

        def stored() -> bool:
            return any(
                item["path"] == "out/word" for page in obstore.list(store, prefix="out") for item in page
            )

        try:
            until(stored, "the result is stored", patience=240, pause=1)
        except Exception as error:
            log = installed.kubectl("logs", "deployment/oscar", "--tail=60")
            raise AssertionError(f"{api.get('/system/logs/upper').text}\n{log}") from error
        assert bytes(obstore.get(store, "out/word").bytes()) == b"IN THE CLUSTER\n"


def test_the_server_may_what_it_needs_and_no_more(installed: Installed) -> None:
    account = f"--as=system:serviceaccount:{installed.namespace}:oscar"

    def may(verb: str, what: str, part: str = "") -> bool:
        words = ("auth", "can-i", verb, what, f"--subresource={part}", account, "--all-namespaces")
        said = installed.cluster.try_kubectl(*words)
        return said.stdout.strip() == "yes"

    assert may("create", "jobs.batch")
    assert not may("create", "clusterroles.rbac.authorization.k8s.io")
    assert not may("create", "pods")
    assert may("get", "pods", "log")
    assert not may("create", "pods", "exec")
    assert not may("delete", "nodes")
    # A server that asks for more than it has would say so.
    assert "forbidden" not in installed.kubectl("logs", "deployment/oscar", "--tail=-1")


def test_an_upgrade_keeps_keys_and_data(installed: Installed) -> None:
    words = ("upgrade", "oscar", str(CHART), "--reuse-values", "--set=settings.OSCAR_NAME=second")
    installed.helm(
        *words,
        f"--set=publish.kind=ingress,publish.className={contour.CLASS},publish.host={HOST}",
        "--set=publish.tls.mode=self-signed",
    )
    installed.rolled_out()
    assert password(installed.cluster, installed.namespace) == installed.password
    secret = installed.cluster.get("secret", "oscar-tls", f"--namespace={installed.namespace}")
    certificate = base64.b64decode(secret["data"]["tls.crt"]).decode()
    context = ssl.create_default_context(cadata=certificate)

    def answers() -> httpx2.Response | None:
        try:
            with installed.trusting(context) as api:
                return api.get("/system/services", timeout=10)
        except httpx2.TransportError:
            return None

    deadline = time.monotonic() + 120
    while (found := answers()) is None or found.status_code != httpx2.codes.OK:
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert "upper" in {service["name"] for service in found.json()}
