"""Where the programs of a cluster are. `./scripts/tools` builds them and says their folders in variables.

Called by core.py and the addons. Outside `./scripts/test --real` the variables are missing: the script is asked then.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
CNI = Path("/usr/lib/cni")
# Debian's packages that the core needs, by a program of each.
SYSTEM = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


class PartMissing(Exception):
    """a part of the test cluster is not here"""


@functools.cache
def printed(part: str, variable: str) -> str:
    """What a variable is, in the environment or in what `./scripts/tools PART` prints.

    Raises:
        PartMissing: it could not be built.
    """
    if variable in os.environ:
        return os.environ[variable]
    said = subprocess.run([TREE / "scripts" / "tools", part], check=False, capture_output=True, text=True)
    found = re.search(rf"^export {variable}='(.*)'$", said.stdout, re.MULTILINE)
    if said.returncode != 0 or not found:
        raise PartMissing(f"./scripts/tools {part}: {said.stderr[-2000:]}")
    return found[1]


def folder(part: str) -> Path:
    """The folder of a built part, such as `kubernetes` or `kueue`.

    Raises:
        PartMissing: it could not be built.
    """
    return Path(printed(part, f"OSCAR_TEST_{part.upper().replace('-', '_')}"))


def program(part: str, name: str = "") -> str:
    """The path of a built program; its name is the part's unless told."""
    path = folder(part) / (name or part)
    if not path.is_file():
        raise PartMissing(f"{path} is missing: remove its folder and run ./scripts/tools {part}")
    return str(path)


def check_system() -> None:
    """Raise when a package is not installed, or this process may not make a cluster.

    Raises:
        PartMissing: something is missing.
    """
    if os.geteuid() != 0:
        raise PartMissing("a test cluster needs root")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = {package for name, package in SYSTEM.items() if not shutil.which(name, path=path)}
    if not (CNI / "bridge").exists():
        missing.add("containernetworking-plugins")
    if missing:
        raise PartMissing(f"not installed: {' '.join(sorted(missing))}")
