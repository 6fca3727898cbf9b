"""What a container engine can do on this machine, found out by running a container that does nothing.

A tool on the PATH says little: a docker client without a daemon is common, and so is a podman whose runtime
fails. The container's image is made on the spot from one tiny program, so no registry is needed. Called by
`containers`.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import resource
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from oscar.compute.local.cli import Cli
from oscar.compute.local.engine import Facts
from oscar.errors import EngineError, EngineMissing

IMAGE = "localhost/oscar-probe:1"
_LIMIT = 60.0
_OFFLINE = ("--network=none",)
_SEEN = "/oscar/probe/seen"
# mkdir("/oscar/probe/seen", 0777), then exit(0) when that worked and exit(1) when not: shows that the
# container starts and writes into a folder of ours. By machine: ELF e_machine, then the code before the path.
_PROGRAMS = {
    "x86_64": (
        62,
        "b853000000488d3d18000000beff0100000f0585c0400f95c7400fb6ffb83c0000000f05",
    ),
    "aarch64": (
        183,
        "600c809201010010e23f80d2480480d2010000d41f0000f1e0079f1aa80b80d2010000d4",
    ),
}


async def examine(cli: Cli, folder: Path) -> Facts:
    """Find out whether containers start here, with which options, and which limits are kept.

    Args:
        cli: podman or docker.
        folder: of this server; containers must be able to write below it.

    Raises:
        EngineMissing: they don't start, with the engine's own words.
    """
    info = await _info(cli)
    podman = cli.program == "podman"
    version, detail, rootless = _podman_words(info) if podman else _docker_words(info)
    if platform.machine() not in _PROGRAMS:
        return Facts(
            version, detail, rootless=rootless, memory=True, cpu=True, warnings=("not tried on this machine",)
        )
    await _make_image(cli)
    options, runtime = await _options(cli, folder, info)
    offline = await _runs(cli, folder, options, network=())
    if offline is not None:
        options = [*options, *_OFFLINE]
    limits = {
        name: await _runs(cli, folder, [*options, *arguments]) is None
        for name, arguments in (
            ("memory", ["--memory", "67108864"]),
            ("swap", ["--memory", "67108864", "--memory-swap", "67108864"]),
            ("cpu", ["--cpus", "0.5"]),
            ("pids", ["--pids-limit", "4096"]),
        )
    }
    if limits["pids"]:
        options = [*options, "--pids-limit", "4096"]
    warnings = [f"containers have no network: {offline}"] if offline is not None else []
    warnings += [
        f"{what} limits are not kept"
        for name, what in (("memory", "memory"), ("cpu", "CPU"))
        if not limits[name]
    ]
    return Facts(
        version,
        f"{runtime}, {detail}" if runtime else detail,
        tuple(options),
        memory=limits["memory"],
        swap=limits["swap"],
        cpu=limits["cpu"],
        gpu=tuple(await _gpu(cli, folder, options)),
        rootless=rootless,
        warnings=tuple(warnings),
    )


async def _info(cli: Cli) -> dict[str, Any]:
    try:
        said = await cli.run(
            "info", "--format", "json" if cli.program == "podman" else "{{json .}}", limit=_LIMIT
        )
    except EngineError as error:
        raise EngineMissing(error.message) from error
    try:
        info = json.loads(said.out)
    except ValueError:
        info = None
    # A docker client without a daemon prints its own half and exits 0.
    errors = info.get("ServerErrors") if isinstance(info, dict) else None
    if said.code != 0 or not isinstance(info, dict) or errors:
        words = " ".join(errors) if errors else said.words
        raise EngineMissing(f"{cli.program} does not work here: {words}")
    return info


def _podman_words(info: dict[str, Any]) -> tuple[str, str, bool]:
    host = info.get("host", {})
    rootless = bool(host.get("security", {}).get("rootless"))
    detail = f"cgroup {host.get('cgroupVersion', '?')}" + (", rootless" if rootless else "")
    return f"podman {info.get('version', {}).get('Version', '?')}", detail, rootless


def _docker_words(info: dict[str, Any]) -> tuple[str, str, bool]:
    rootless = any("rootless" in option for option in info.get("SecurityOptions") or [])
    detail = f"{info.get('DefaultRuntime', 'runc')}, cgroup v{info.get('CgroupVersion', '?')}"
    return f"docker {info.get('ServerVersion', '?')}", detail + (", rootless" if rootless else ""), rootless


async def _options(cli: Cli, folder: Path, info: dict[str, Any]) -> tuple[list[str], str]:
    """The first set of options with which a container starts, and the runtime's name."""
    ulimits = _ulimits()
    host = info.get("host", {})
    default = host.get("ociRuntime", {}).get("name", "")
    selinux = host.get("security", {}).get("selinuxEnabled") or "selinux" in str(info.get("SecurityOptions"))
    # Our folders are mounted with the labels that they have.
    labels = ["--security-opt", "label=disable"] if selinux else []
    runtimes = [""]
    if cli.program == "podman":
        runtimes += [name for name in ("crun", "runc") if name != default]
    words = ""
    for runtime in runtimes:
        for limits in [[], ulimits] if ulimits else [[]]:
            options = [*([f"--runtime={runtime}"] if runtime else []), *labels, *limits]
            trouble = await _runs(cli, folder, options)
            if trouble is None:
                return options, runtime or default
            words = words or trouble
    raise EngineMissing(f"{cli.program} can't run a container here: {words}")


def _ulimits() -> list[str]:
    """Limits that a server without CAP_SYS_RESOURCE may give; by themselves engines ask for more."""
    # podman lowers its own limit of processes to that of the kernel.
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    arguments: list[str] = []
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            hard = min(hard, most) if kind == resource.RLIMIT_NPROC else hard
            arguments += ["--ulimit", f"{name}={hard}:{hard}"]
    return arguments


async def _runs(
    cli: Cli, folder: Path, options: list[str], *, network: tuple[str, ...] = _OFFLINE
) -> str | None:
    """What is in the way of a container with these options; None when it starts and sees a folder of ours."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".probe") as place:
        mounted = Path(place)
        mounted.chmod(0o777)
        said = await cli.run(
            "run", "--rm", *network, "--pull=never", *options, "-v", f"{mounted}:/oscar/probe", IMAGE,
            limit=_LIMIT,
        )  # fmt: skip
        if said.code != 0:
            return said.words
        seen = mounted / Path(_SEEN).name
        if not seen.exists():
            return f"its containers do not see {folder}: is the engine on another machine?"
        if os.access(mounted, os.W_OK):
            seen.rmdir()
        if "discarded" in said.err or "not supported" in said.err:
            return said.words
        return None


async def _gpu(cli: Cli, folder: Path, options: list[str]) -> list[str]:
    """The arguments that give a container all GPUs, tried where there is a driver."""
    if not Path("/dev/nvidiactl").exists():
        return []
    ways = [["--device", "nvidia.com/gpu=all"], ["--gpus", "all"]]
    for way in ways if cli.program == "podman" else reversed(ways):
        if await _runs(cli, folder, [*options, *way]) is None:
            return way
    return []


async def _make_image(cli: Cli) -> None:
    said = await cli.run("image", "inspect", "--format", "ok", IMAGE, limit=_LIMIT)
    if said.code == 0:
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        await asyncio.to_thread(file.write, image())
        file.flush()
        said = await cli.run("import", "--change", 'ENTRYPOINT ["/probe"]', file.name, IMAGE, limit=_LIMIT)
    if said.code != 0:
        raise EngineMissing(f"{cli.program} can't make an image: {said.words}")


def image() -> bytes:
    """A root file system as a tar archive with one static program, for this machine's processor."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        program = _program(platform.machine())
        entry = tarfile.TarInfo("probe")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
        for name in ("oscar", "oscar/probe", "proc", "dev", "sys", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    return archive.getvalue()


def _program(machine: str) -> bytes:
    """A static executable in the ELF format, see elf(5): header, one loadable segment, code, path."""
    number, code = _PROGRAMS[machine]
    body = bytes.fromhex(code) + _SEEN.encode() + b"\0"
    base, header, size = 0x400000, 64, 64 + 56 + len(body)
    start = base + header + 56
    return (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, number, 1, start, header, 0, 0, header, 56, 1, 64, 0, 0)
        + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
        + body
    )
