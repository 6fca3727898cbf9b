"""Every add-on of the test cluster does its work: the real controllers, not only their objects."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
import uuid
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.addons import contour, in_order, kwok, minio
from tests.cluster.cluster import Cluster, until
from tests.cluster.test_core import pod, run

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def name() -> str:
    return f"a{uuid.uuid4().hex[:8]}"


def web(name: str) -> list[dict[str, Any]]:
    """A pod that answers with its name, and its service."""
    serve = f"mkdir /www && echo {name} > /www/index.html && exec httpd -f -p 8080 -h /www"
    return [
        pod(name, serve),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]


def fetched(url: str, headers: dict[str, str] | None = None) -> str:
    """What an address answers, or nothing."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError):
        return ""


def test_what_an_addon_needs_comes_first() -> None:
    assert in_order(("knative", "dns", "contour")) == ["dns", "knative", "contour"]
    with pytest.raises(ValueError, match="no add-on 'nothing'"):
        in_order(("nothing",))


def test_names_of_services_are_known_in_pods_and_no_others(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("dns")
    kubernetes.apply(web(name))
    kubernetes.kubectl("wait", "--for=condition=ready", f"pod/{name}", "--timeout=120s")
    said = run(kubernetes, f"wget -qO- http://{name}.default.svc.cluster.local; nslookup example.com; true")
    assert said.startswith(f"{name}\n")
    assert "NXDOMAIN" in said


def test_use_of_nodes_and_pods_is_measured_and_scales(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("metrics")
    container = {
        "name": "main",
        "image": images.BUSYBOX,
        "command": ["sh", "-c", "while :; do :; done"],
        "resources": {"requests": {"cpu": "20m"}, "limits": {"cpu": "100m"}},
    }
    labels = {"app": name}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    template = {"metadata": {"labels": labels}, "spec": spec}
    deployment = {"selector": {"matchLabels": labels}, "template": template}
    kubernetes.apply(
        [{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": deployment}]
    )
    kubernetes.kubectl("autoscale", "deployment", name, "--min=1", "--max=2", "--cpu=100%")
    until(lambda: name in kubernetes.try_kubectl("top", "pods", "--no-headers").stdout, "the pod is measured")
    assert "node0" in kubernetes.kubectl("top", "nodes", "--no-headers")
    until(lambda: kubernetes.get("deployment", name)["spec"]["replicas"] == 2, "it is scaled", 300, pause=1)
    kubernetes.kubectl("delete", "hpa,deployment", name)


def test_a_claim_without_a_class_gets_a_volume_that_lasts_between_pods(
    kubernetes: Cluster, name: str
) -> None:
    kubernetes.add("storage")
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}
    kubernetes.apply(
        [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}]
    )
    for number, command in enumerate(("echo kept > /data/file", "cat /data/file")):
        made: dict[str, Any] = pod(f"{name}-{number}", command, images.USER_1001)
        made["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
        made["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        kubernetes.apply([made])
        kubernetes.kubectl(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}-{number}", "--timeout=120s"
        )
    assert kubernetes.kubectl("logs", f"{name}-1") == "kept\n"
    volume = kubernetes.get("pvc", name)["spec"]["volumeName"]
    kubernetes.kubectl("delete", "pod", f"{name}-0", f"{name}-1")
    kubernetes.kubectl("delete", "pvc", name)
    until(lambda: kubernetes.try_kubectl("get", "pv", volume).returncode != 0, "the volume is removed")


def queued_job(name: str, queue: str) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": images.BUSYBOX,
        "command": ["sleep", "600"],
        "resources": {"requests": {"cpu": "100m", "memory": "8Mi"}},
    }
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"kueue.x-k8s.io/queue-name": queue}},
        "spec": {"suspend": True, "template": {"spec": spec}},
    }


def test_kueue_admits_what_the_quota_holds_and_suspends_the_rest(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("kueue")
    quota = [{"name": "cpu", "nominalQuota": "100m"}, {"name": "memory", "nominalQuota": "64Mi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quota}]}
    version = "kueue.x-k8s.io/v1beta1"
    kubernetes.apply(
        [
            {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": name}},
            {
                "apiVersion": version,
                "kind": "ClusterQueue",
                "metadata": {"name": name},
                "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
            },
            {
                "apiVersion": version,
                "kind": "LocalQueue",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterQueue": name},
            },
        ]
    )
    first, second = f"{name}-1", f"{name}-2"
    kubernetes.apply([queued_job(first, name)])
    until(lambda: not kubernetes.get("job", first)["spec"]["suspend"], "the first job is admitted")
    kubernetes.apply([queued_job(second, name)])
    until(lambda: pending(kubernetes, name) == 1, "the second waits in the queue")
    assert kubernetes.get("job", second)["spec"]["suspend"]
    kubernetes.kubectl("delete", "job", first)
    until(lambda: not kubernetes.get("job", second)["spec"]["suspend"], "the second job is admitted")
    kubernetes.kubectl("delete", "job", second)
    refused = {
        "apiVersion": version,
        "kind": "LocalQueue",
        "metadata": {"name": "x"},
        "spec": {"clusterQueue": "A_B"},
    }
    assert kubernetes.try_kubectl("apply", "-f", "-", text=json.dumps(refused)).returncode != 0


def pending(cluster: Cluster, queue: str) -> int:
    found: int = cluster.get("localqueue", queue).get("status", {}).get("pendingWorkloads", 0)
    return found


def test_knative_makes_revisions_scales_them_to_zero_and_back(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("knative")
    serve = f"mkdir /tmp/www; echo {name} > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"
    container = {
        "image": images.USER_1001,
        "command": ["sh", "-c", serve],
        "ports": [{"containerPort": 8080}],
        "resources": {"requests": {"cpu": "10m"}},
    }
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    kubernetes.apply([service])
    revision = f"{name}-00001"
    kubernetes.kubectl("wait", "--for=condition=Ready", f"revision/{revision}", "--timeout=240s")
    address = f"http://{kubernetes.get('service', revision)['spec']['clusterIP']}/"
    until(lambda: deployed(kubernetes, revision) == 0, "it is at zero", 300, pause=1)
    # What an ingress layer would say to the activator.
    headers = {"Knative-Serving-Namespace": "default", "Knative-Serving-Revision": revision}
    until(lambda: fetched(address, headers=headers) == f"{name}\n", "the activator brings it back")
    assert deployed(kubernetes, revision) >= 1
    kubernetes.kubectl("delete", "ksvc", name)


def deployed(cluster: Cluster, revision: str) -> int:
    found: int = cluster.get("deployment", f"{revision}-deployment")["spec"]["replicas"]
    return found


def test_ingresses_and_routes_lead_from_the_nodes_address(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("contour")
    rule = {
        "path": f"/{name}",
        "pathType": "Prefix",
        "backend": {"service": {"name": name, "port": {"number": 80}}},
    }
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name},
        "spec": {
            "ingressClassName": contour.CLASS,
            "rules": [{"host": f"{name}.oscar.test", "http": {"paths": [rule | {"path": "/"}]}}],
        },
    }
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"name": "contour", "namespace": contour.NAMESPACE}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": f"/{name}"}}],
                    "filters": [
                        {
                            "type": "URLRewrite",
                            "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
                        }
                    ],
                    "backendRefs": [{"name": name, "port": 80}],
                }
            ],
        },
    }
    kubernetes.apply([*web(name), ingress, route])
    by_host = {"Host": f"{name}.oscar.test"}
    until(
        lambda: fetched(f"http://{kubernetes.node}/", headers=by_host) == f"{name}\n",
        "the Ingress leads to it",
    )
    # By a name, which Contour wants in the TLS greeting too, at the node's address.
    host = f"{name}.oscar.test"
    command = ["curl", "-sf", "-m", "5", "--cacert", str(kubernetes.authority)]
    command += ["--resolve", f"{host}:443:{kubernetes.node}", f"https://{host}/{name}"]
    until(
        lambda: subprocess.run(command, check=False, capture_output=True).stdout == f"{name}\n".encode(),
        "the Gateway speaks TLS for it",
    )
    kubernetes.kubectl("delete", "ingress,httproute,service,pod", name, "--wait=false")


def test_many_nodes_that_are_only_objects_run_jobs(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("kwok")
    nodes = kwok.nodes(kubernetes, 20)
    container = {"name": "main", "image": "nowhere/nothing", "command": ["true"]}
    spec = {
        "restartPolicy": "Never",
        "nodeSelector": {"type": "kwok"},
        "tolerations": [{"key": kwok.MARK, "operator": "Exists"}],
        "containers": [container],
    }
    kubernetes.apply(
        [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name},
                "spec": {"completions": 100, "parallelism": 100, "template": {"spec": spec}},
            }
        ]
    )
    kubernetes.kubectl("wait", "--for=condition=complete", f"job/{name}", "--timeout=240s")
    kubernetes.kubectl("delete", "job", name)
    kubernetes.kubectl("delete", "node", *nodes)


def test_minio_answers_pods_and_comes_back_with_its_data(kubernetes: Cluster) -> None:
    kubernetes.add("minio")
    live = f"{minio.endpoint(kubernetes)}/minio/health/live"
    assert run(kubernetes, f"wget -qO- {live} && echo answered") == "answered\n"
    kubernetes.stop("minio")
    assert fetched(live) == ""
    minio.start(kubernetes)
    assert minio.ready(kubernetes)


def test_resources_of_kserve_are_judged_by_their_schemas(kubernetes: Cluster, name: str) -> None:
    kubernetes.add("kserve")
    model: dict[str, Any] = {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/iris"}
    good = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"predictor": {"minReplicas": 1, "maxReplicas": 2, "model": model}},
    }
    words = ("apply", "--validate=strict", "-f", "-")
    assert kubernetes.try_kubectl(*words, text=json.dumps(good)).returncode == 0
    wrongs: list[dict[str, Any]] = [
        {"modelFormat": {}},
        model | {"storageURI": "x"},
        model | {"resources": {"limits": "many"}},
    ]
    for wrong in wrongs:
        bad = good | {
            "metadata": {"name": f"{name}-bad", "namespace": "default"},
            "spec": {"predictor": {"model": wrong}},
        }
        assert kubernetes.try_kubectl(*words, text=json.dumps(bad)).returncode != 0, wrong
    language = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"uri": "hf://a/b", "name": "b"},
            "replicas": 1,
            "router": {"route": {}, "gateway": {}},
        },
    }
    assert kubernetes.try_kubectl(*words, text=json.dumps(language)).returncode == 0
    language["spec"] = {"replicas": 1}
    assert kubernetes.try_kubectl(*words, text=json.dumps(language)).returncode != 0
    kubernetes.kubectl("delete", "isvc,llmisvc", name)
