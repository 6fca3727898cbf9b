"""The command line of bubblewrap: what a sandboxed process sees of this machine, and as whom it runs.

System folders read-only, its own /tmp, /proc and /dev, the mounts it was given, and nothing else. Called
by `processes`. Options: bwrap(1). Pure but for looking which system folders there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oscar.compute.local import environment
from oscar.compute.local.engine import Mount

NOBODY = 65534
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Readable by everybody on any machine; without them programs miss names, libraries, fonts, certificates.
_ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "fonts",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "resolv.conf",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)
_ETC_LIKE = ("ImageMagick-*", "java*", "perl", "python3*", "OpenCL")


@dataclass(frozen=True, slots=True)
class Walls:
    """How sandboxes are made on this machine."""

    bwrap: str
    setpriv: str | None
    """As root: the program that gives up root inside; without it, root is only hidden by a user namespace."""
    hidden: tuple[Path, ...] = ()
    """Folders of this server, covered where a visible folder would show them."""
    visible: tuple[Path, ...] = ()
    """Further folders that programs may read."""
    root: bool = False


def arguments(
    walls: Walls,
    *,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    mounts: Sequence[Mount],
    tmp: Path,
    workdir: str,
    devices: Sequence[str] = (),
) -> tuple[bytes, list[str]]:
    """The options for bwrap's `--args`, as they hold secrets, and the command for its real arguments."""
    shown = [*_system(), ("--bind", str(tmp), "/tmp")]  # noqa: S108 - its own one
    shown += [("--ro-bind", str(path), str(path)) for path in walls.visible]
    shown += [("--tmpfs", str(path)) for path in walls.hidden if _is_shown(path, shown)]
    shown += [("--dev-bind", device, device) for device in devices]
    for mount in mounts:
        shown.append(("--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target))
    # What is left of the root is nobody's place to write: it is memory without a limit.
    options = [*_namespaces(walls), *_with_parents(shown), "--remount-ro", "/"]
    drop: tuple[str, ...] = ()
    variables = dict(env)
    if walls.root and walls.setpriv:
        # setpriv runs as root yet, so nothing of a user's may steer it.
        variables, aliases = environment.aliased(env)
        argv = environment.restoring(argv, aliases)
        drop = (
            walls.setpriv,
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        )
        # The first process stays with root: the kernel forgets that a process is to die with its parent when
        # its user changes, and without that a script would outlive its killed keeper.
        drop = ("/bin/sh", "-c", '"$@"; exit $?', "sh", *drop)
    options += ["--clearenv"]
    for name, value in variables.items():
        options += ["--setenv", name, value]
    options += ["--chdir", workdir]
    packed = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in options)
    return packed, [*drop, *argv]


def _namespaces(walls: Walls) -> list[str]:
    # As PID 1, as in a container: so bwrap waits until all processes inside are dead.
    options = ["--die-with-parent", "--new-session", "--as-pid-1"]
    options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not walls.root:
        return [*options, "--unshare-user"]
    if walls.setpriv:
        keep = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
        return [*options, "--cap-drop", "ALL", *(word for cap in keep for word in ("--cap-add", cap))]
    return [*options, "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]


def _system() -> list[tuple[str, ...]]:
    shown: list[tuple[str, ...]] = [("--ro-bind", "/usr", "/usr"), ("--proc", "/proc"), ("--dev", "/dev")]
    for name in _MERGED:
        folder = Path(name)
        if folder.is_symlink():
            shown.append(("--symlink", str(folder.readlink()), name))
        elif folder.is_dir():
            shown.append(("--ro-bind", name, name))
    etc = Path("/etc")
    found = [etc / name for name in _ETC] + [path for like in _ETC_LIKE for path in sorted(etc.glob(like))]
    return shown + [("--ro-bind", str(path), str(path)) for path in found if path.exists()]


def _is_shown(path: Path, shown: Sequence[tuple[str, ...]]) -> bool:
    return any(option == "--ro-bind" and path.is_relative_to(where[0]) for option, *where in shown)


def _with_parents(shown: Sequence[tuple[str, ...]]) -> list[str]:
    """The options, each after its parent folders: bwrap makes those for root only."""
    options: list[str] = []
    made = {"/", *(words[-1] for words in shown)}
    for words in shown:
        for parent in [str(path) for path in reversed(Path(words[-1]).parents)]:
            if parent not in made and not _is_shown(Path(parent), shown):
                options += ["--perms", "0755", "--dir", parent]
                made.add(parent)
        options += words
    return options
