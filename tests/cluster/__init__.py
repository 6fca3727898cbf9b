"""A real Kubernetes for tests, started from programs that `./scripts/tools cluster` builds, on this machine alone.

A cluster lives in namespaces of its own (network, mounts, processes, host name): its addresses are reached from this
machine by one pair of virtual interfaces, and what it mounts, filters or runs is gone with its first process.

    place.py      folders, addresses and names of a cluster (pure)
    parts.py      where the built programs are
    pki.py        certificates and kubeconfigs
    keeper.py     the process outside: makes the namespaces, ends them when the owner is gone, removes what is left
    init.py       the first process inside: starts, signals and reaps the programs
    inside.py     its client
    core.py       etcd, control plane and node: their command lines and settings
    images.py     container images made here and given to containerd
    cluster.py    up, down, and the object that tests hold
    addons/       what a cluster may have beside: DNS, metrics, storage, Kueue, Knative, an ingress ...
"""
