"""Contour and Envoy: an ingress controller for Ingress and Gateway API, on ports 80 and 443 of the node.

Ingresses name the class `contour`. Routes name the Gateway `contour` in the namespace `projectcontour`; it serves every
host, and TLS for names of `*.oscar.test` by a certificate of the cluster's authority: Contour refuses (421) what names
no host in the TLS greeting, so an address alone won't do.
"""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path

from tests.cluster import parts
from tests.cluster.addons.manifests import container, define, one, program_image, read, rolled_out, use_images
from tests.cluster.cluster import Cluster, until
from tests.cluster.images import Image, layer

NAMESPACE = "projectcontour"
CLASS = "contour"
CONFIGURATION = """
gateway:
  gatewayRef: {name: contour, namespace: projectcontour}
ingress-status-address: %s
"""


def envoy_image(folder: Path) -> Image:
    """Envoy with the libraries of this machine that it is linked to."""
    envoy = folder / "envoy"
    listed = subprocess.run(["ldd", envoy], check=True, capture_output=True, text=True).stdout
    libraries = {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    files = {str(path).lstrip("/"): (path.read_bytes(), 0o755) for path in libraries}
    made = layer(files | {"usr/local/bin/envoy": (envoy.read_bytes(), 0o755)})
    return Image("localhost/oscar-test/envoy:1.40.0", [made], {"Entrypoint": ["envoy"]})


def install(cluster: Cluster) -> None:
    """Start both and wait until the Gateway is programmed."""
    folder = parts.folder("contour")
    contour, envoy = program_image(folder, "contour"), envoy_image(folder)
    cluster.load(contour, envoy)
    examples = folder / "config"
    crds = read(examples / "gateway" / "00-crds.yaml", examples / "contour" / "01-crds.yaml")
    define(cluster, (it for it in crds if it["kind"] == "CustomResourceDefinition"))
    objects = [it for file in sorted((examples / "contour").glob("0*.yaml")) for it in read(file)]
    objects = [it for it in objects if it["kind"] != "CustomResourceDefinition"]
    names = dict.fromkeys(("contour", "shutdown-manager", "envoy-initconfig"), contour.name)
    use_images(objects, names | {"envoy": envoy.name})
    one(objects, "ConfigMap", "contour")["data"]["contour.yaml"] = CONFIGURATION % cluster.node
    deployment = one(objects, "Deployment", "contour")
    deployment["spec"]["replicas"] = 1
    container(deployment, "contour")["readinessProbe"] |= {"periodSeconds": 1}
    daemons = one(objects, "DaemonSet", "envoy")
    container(daemons, "envoy")["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    daemons["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    # Nobody gives out load balancers here: the node's ports lead to Envoy.
    service = one(objects, "Service", "envoy")["spec"]
    del service["externalTrafficPolicy"]
    service["type"] = "ClusterIP"
    cluster.apply(objects)
    cluster.apply([*gateway(), certificate(cluster)])
    rolled_out(cluster, NAMESPACE, "deployment/contour", "daemonset/envoy")
    until(lambda: programmed(cluster), "the Gateway is programmed", pause=0.5)


def programmed(cluster: Cluster) -> bool:
    """Whether the Gateway does what it says."""
    found = cluster.get("gateway", "contour", f"--namespace={NAMESPACE}")
    return any(
        it["type"] == "Programmed" and it["status"] == "True" for it in found["status"].get("conditions", [])
    )


def certificate(cluster: Cluster) -> dict[str, object]:
    """The Secret of the Gateway's certificate."""
    pair = cluster.certificate("ingress", hosts=["*.oscar.test", "oscar.test"])
    data = {"tls.crt": pair.certificate, "tls.key": pair.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "node-certificate", "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "data": {key: base64.b64encode(path.read_bytes()).decode() for key, path in data.items()},
    }


def gateway() -> list[dict[str, object]]:
    """Its class for Ingresses, its class of Gateways and the one Gateway."""
    everybody = {"namespaces": {"from": "All"}}
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": CLASS},
            "spec": {"controller": "projectcontour.io/ingress-controller"},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": "projectcontour.io/gateway-controller"},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "contour", "namespace": NAMESPACE},
            "spec": {
                "gatewayClassName": CLASS,
                "listeners": [
                    {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": everybody},
                    {
                        "name": "https",
                        "protocol": "HTTPS",
                        "port": 443,
                        "allowedRoutes": everybody,
                        "tls": {"mode": "Terminate", "certificateRefs": [{"name": "node-certificate"}]},
                    },
                ],
            },
        },
    ]
