"""Folders, addresses and names of a test cluster, all derived from its name and a number that no other cluster has.

Pure but for `slots_in_use`; called by everything in this package.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

SLOTS = 64
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


def root() -> Path:
    """The folder of all test clusters of this machine: not in /run, which each cluster has its own of."""
    return Path(os.environ.get("OSCAR_TEST_CLUSTERS", "/var/tmp/oscar-test-clusters"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cluster is.

    The slot gives it 10.<100 + slot>.0.0/16: pods in the first /20, services in the /20 at .128, the pair of
    interfaces between this machine and the node in the last /30. Ports are the usual ones: the addresses are its own.
    """

    name: str
    slot: int

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"a cluster's name is 1 to 24 of a-z, 0-9 and '-', and no '-' at an end: {self.name!r}"
            )
        if not 0 <= self.slot < SLOTS:
            raise ValueError(f"a slot is 0 to {SLOTS - 1}: {self.slot}")

    def _address(self, third: int, fourth: int) -> IPv4Address:
        return IPv4Address(f"10.{100 + self.slot}.{third}.{fourth}")

    @property
    def folder(self) -> Path:
        """All its files."""
        return root() / self.name

    @property
    def network(self) -> IPv4Network:
        """All its addresses."""
        return IPv4Network((self._address(0, 0), 16))

    @property
    def pods(self) -> IPv4Network:
        """The addresses of pods."""
        return IPv4Network((self._address(0, 0), 20))

    @property
    def bridge(self) -> IPv4Address:
        """The pods' router."""
        return self._address(0, 1)

    @property
    def services(self) -> IPv4Network:
        """The addresses of services."""
        return IPv4Network((self._address(128, 0), 20))

    @property
    def api_service(self) -> IPv4Address:
        """The API server as pods see it."""
        return self._address(128, 1)

    @property
    def dns(self) -> IPv4Address:
        """The name server of pods."""
        return self._address(128, 10)

    @property
    def host(self) -> IPv4Address:
        """This machine, as pods see it: what a test listens on for them."""
        return self._address(255, 253)

    @property
    def node(self) -> IPv4Address:
        """The node and everything on it, as this machine sees it."""
        return self._address(255, 254)

    @property
    def link(self) -> str:
        """The interface on this machine."""
        return f"octest{self.slot}"

    @property
    def api(self) -> str:
        """The API server's address."""
        return f"https://{self.node}:6443"

    @property
    def control_group(self) -> str:
        """The parent of all its pods' control groups."""
        return f"/oscar-test-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        """For kubectl and clients: an administrator."""
        return self.folder / "admin.kubeconfig"

    @property
    def containerd(self) -> Path:
        """The container runtime's socket."""
        return self.folder / "containerd" / "containerd.sock"

    @property
    def control(self) -> Path:
        """The socket of init.py."""
        return self.folder / "control.sock"

    def log(self, program: str) -> Path:
        """What a program says."""
        return self.folder / "log" / f"{program}.log"


NODE = "node0"
DOMAIN = "cluster.local"
