"""etcd, the control plane and the node: their certificates, settings and command lines, in the order they start.

Called by cluster.py. Every program runs inside the cluster's namespaces (init.py) and listens on the node's address
or loopback there. Command lines are lists, so that a test may stop a program and start it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster import parts, pki
from tests.cluster.place import DOMAIN, NODE, Place

PAUSE = "localhost/oscar-test/pause:3.10"
Extra = Mapping[str, Sequence[str]]


def _kubernetes(name: str) -> str:
    return parts.program("kubernetes", name)


def kubeconfig(place: Place, user: str) -> Path:
    """The kubeconfig of a program of the cluster."""
    return place.folder / "pki" / f"{user}.kubeconfig"


def write_certificates(place: Place) -> None:
    """Make all certificates and kubeconfigs."""
    folder = place.folder / "pki"
    api = pki.Authority(folder, "kubernetes-ca")
    etcd = pki.Authority(folder, "etcd-ca")
    front = pki.Authority(folder, "front-proxy-ca")
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
    api.issue("apiserver", "kube-apiserver", hosts=names, addresses=[place.node, place.api_service])
    api.issue("apiserver-kubelet", "kube-apiserver-kubelet-client")
    api.issue(
        "kubelet", f"system:node:{NODE}", organization="system:nodes", hosts=[NODE], addresses=[place.node]
    )
    etcd.issue("etcd", "etcd", hosts=["localhost"], addresses=[place.node])
    etcd.issue("apiserver-etcd", "kube-apiserver")
    front.issue("front-proxy", "front-proxy-client")
    pki.token_keys(folder)
    users = {
        "kubelet": pki.Pair(folder / "kubelet.crt", folder / "kubelet.key"),
        "controller-manager": api.issue("controller-manager", "system:kube-controller-manager"),
        "scheduler": api.issue("scheduler", "system:kube-scheduler"),
        "proxy": api.issue("proxy", "system:kube-proxy"),
    }
    for user, pair in users.items():
        pki.write_kubeconfig(kubeconfig(place, user), server=place.api, authority=api.pem, user=pair)
    admin = api.issue("admin", "oscar-test-admin", organization="system:masters")
    pki.write_kubeconfig(place.kubeconfig, server=place.api, authority=api.pem, user=admin)


def etcd(place: Place) -> list[str]:
    """The database. Nothing of it outlives the cluster, so it does not wait for the disk."""
    keys = place.folder / "pki"
    client, peer = f"https://{place.node}:2379", f"https://{place.node}:2380"
    return [
        "etcd",
        "--name=node0",
        f"--data-dir={place.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=node0={peer}",
        f"--cert-file={keys / 'etcd.crt'}",
        f"--key-file={keys / 'etcd.key'}",
        f"--trusted-ca-file={keys / 'etcd-ca.crt'}",
        "--client-cert-auth",
        f"--peer-cert-file={keys / 'etcd.crt'}",
        f"--peer-key-file={keys / 'etcd.key'}",
        f"--peer-trusted-ca-file={keys / 'etcd-ca.crt'}",
        "--peer-client-cert-auth",
        "--unsafe-no-fsync",
        "--auto-compaction-retention=10m",
        "--quota-backend-bytes=4294967296",
        "--logger=zap",
        "--log-level=warn",
    ]


def apiserver(place: Place) -> list[str]:
    """The API."""
    keys = place.folder / "pki"
    issuer = f"https://kubernetes.default.svc.{DOMAIN}"
    return [
        _kubernetes("kube-apiserver"),
        f"--etcd-servers=https://{place.node}:2379",
        f"--etcd-cafile={keys / 'etcd-ca.crt'}",
        f"--etcd-certfile={keys / 'apiserver-etcd.crt'}",
        f"--etcd-keyfile={keys / 'apiserver-etcd.key'}",
        f"--bind-address={place.node}",
        f"--advertise-address={place.node}",
        "--secure-port=6443",
        f"--tls-cert-file={keys / 'apiserver.crt'}",
        f"--tls-private-key-file={keys / 'apiserver.key'}",
        f"--client-ca-file={keys / 'kubernetes-ca.crt'}",
        f"--kubelet-certificate-authority={keys / 'kubernetes-ca.crt'}",
        f"--kubelet-client-certificate={keys / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={keys / 'apiserver-kubelet.key'}",
        # The node's name is nowhere to be looked up.
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={keys / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={keys / 'front-proxy.crt'}",
        f"--proxy-client-key-file={keys / 'front-proxy.key'}",
        # Add-ons run beside the control plane, on the node's address: a service of them is asked there.
        "--enable-aggregator-routing=true",
        f"--service-account-key-file={keys / 'tokens.pub'}",
        f"--service-account-signing-key-file={keys / 'tokens.key'}",
        f"--service-account-issuer={issuer}",
        f"--service-cluster-ip-range={place.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def controller_manager(place: Place) -> list[str]:
    """The controllers, each with its own service account's rights."""
    keys = place.folder / "pki"
    config = kubeconfig(place, "controller-manager")
    return [
        _kubernetes("kube-controller-manager"),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--service-account-private-key-file={keys / 'tokens.key'}",
        f"--root-ca-file={keys / 'kubernetes-ca.crt'}",
        f"--cluster-signing-cert-file={keys / 'kubernetes-ca.crt'}",
        f"--cluster-signing-key-file={keys / 'kubernetes-ca.key'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--allocate-node-cidrs=false",
        f"--service-cluster-ip-range={place.services}",
        "--profiling=false",
    ]


def scheduler(place: Place) -> list[str]:
    """The scheduler."""
    config = kubeconfig(place, "scheduler")
    return [
        _kubernetes("kube-scheduler"),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]


def proxy(place: Place) -> list[str]:
    """Addresses of services, by the node's own iptables; the kernel's values for all networks stay as they are."""
    return [
        _kubernetes("kube-proxy"),
        f"--kubeconfig={kubeconfig(place, 'proxy')}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={place.pods}",
        f"--hostname-override={NODE}",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]


def kubelet(place: Place) -> list[str]:
    """The node's agent."""
    return [
        _kubernetes("kubelet"),
        f"--config={place.folder / 'kubelet.json'}",
        f"--kubeconfig={kubeconfig(place, 'kubelet')}",
        f"--root-dir={place.folder / 'kubelet'}",
        f"--hostname-override={NODE}",
        f"--node-ip={place.node}",
    ]


def kubelet_settings(place: Place) -> dict[str, Any]:
    """What kubelet reads."""
    keys = place.folder / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(place.node),
        "tlsCertFile": str(keys / "kubelet.crt"),
        "tlsPrivateKeyFile": str(keys / "kubelet.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(keys / "kubernetes-ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": place.control_group,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{place.containerd}",
        "clusterDNS": [str(place.dns)],
        "clusterDomain": DOMAIN,
        "resolvConf": str(place.folder / "node" / "resolv.conf"),
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "maxPods": 500,
    }


def containerd_settings(place: Place) -> str:
    """What containerd reads."""
    home = place.folder / "containerd"
    return f"""version = 2
root = "{home / "root"}"
state = "{home / "state"}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{place.containerd}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{parts.CNI}"
    conf_dir = "{place.folder / "cni"}"
"""


def network_settings(place: Place) -> dict[str, Any]:
    """The network of pods: one bridge, addresses kept in a folder, and host ports."""
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(place.folder / "ipam"),
                    "ranges": [[{"subnet": str(place.pods), "gateway": str(place.bridge)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def write_settings(place: Place) -> None:
    """Write all that the programs read."""
    write_certificates(place)
    (place.folder / "kubelet.json").write_text(json.dumps(kubelet_settings(place), indent=2))
    (place.folder / "cni").mkdir()
    (place.folder / "cni" / "10-pods.conflist").write_text(json.dumps(network_settings(place), indent=2))
    (place.folder / "containerd").mkdir()
    (place.folder / "containerd" / "config.toml").write_text(containerd_settings(place))


def commands(place: Place, extra: Extra | None = None) -> dict[str, list[str]]:
    """Every program of the core by its name, with a caller's extra arguments, in the order they start."""
    found = {
        "etcd": etcd(place),
        "containerd": ["containerd", f"--config={place.folder / 'containerd' / 'config.toml'}"],
        "kube-apiserver": apiserver(place),
        "kube-controller-manager": controller_manager(place),
        "kube-scheduler": scheduler(place),
        "kube-proxy": proxy(place),
        "kubelet": kubelet(place),
    }
    unknown = set(extra or {}) - set(found)
    if unknown:
        raise ValueError(f"no programs of a cluster: {sorted(unknown)}")
    return {name: [*command, *(extra or {}).get(name, ())] for name, command in found.items()}


def bootstrap() -> list[dict[str, Any]]:
    """What the API must hold beside what it makes itself: the API server may ask kubelets."""
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "oscar-test:apiserver-kubelet"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:kubelet-api-admin",
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": "kube-apiserver-kubelet-client",
                }
            ],
        }
    ]
