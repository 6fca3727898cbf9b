"""What this machine, or the cluster, can do as a home for functions, and what is missing: `oscar doctor`.

Called by the CLI without a server. Tries each engine by running something in it (`compute.local.detect`), or looks at
the cluster that the settings name (`compute.kubernetes.survey`), then at the disk and at the ports. Changes nothing
that lasts, but for a tiny image in the container engines.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from oscar.compute.local import machine
from oscar.compute.local.detect import ORDER, Place, Trial, try_all
from oscar.compute.local.logs import keeps_size
from oscar.model.finding import Finding
from oscar.model.resources import format_cpu
from oscar.settings import Settings

_GIB = 1024**3


async def report(settings: Settings) -> list[Finding]:
    """Look at everything; what is wanted and does not work has the level `missing`."""
    findings = await (_cluster(settings) if settings.engine == "kubernetes" else _machine(settings))
    findings += await asyncio.to_thread(_disk, settings)
    findings += [
        _port("API", settings.host, settings.port, "OSCAR_SERVICE_PORT"),
        _port("S3", settings.host, settings.s3_port, "OSCAR_S3_PORT"),
    ]
    return findings


async def _cluster(settings: Settings) -> list[Finding]:
    from oscar.compute.kubernetes.survey import Wish, survey

    wish = Wish(
        kubeconfig=settings.kubeconfig,
        image=settings.image,
        store=urlsplit(settings.s3_inside).hostname or settings.host,
        kueue=settings.kueue,
        knative=settings.serverless == "knative",
        route_kind=settings.route_kind,
        ingress_class=settings.ingress_class,
        gateway=settings.gateway,
        gateway_namespace=settings.gateway_namespace,
        volume_class=settings.volume_class,
    )
    return await survey(wish)


async def _machine(settings: Settings) -> list[Finding]:
    # Engines are tried where they will work: another disk may be mounted differently.
    base = settings.data if settings.data.is_dir() and os.access(settings.data, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".doctor", dir=base) as folder:
        place = Place(Path(folder), "doctor", unsafe=settings.unsafe_process)
        trials = await try_all(place)
        findings = [*_engines(trials, settings.engine)]
    cpu, memory = machine.size()
    findings.append(Finding("machine", "ok", f"{format_cpu(cpu)} cores, {memory / _GIB:.1f} GiB of memory"))
    findings.append(gpus(trials, settings.engine, machine.gpus()))
    return findings


def _engines(trials: list[Trial], wanted: str) -> list[Finding]:
    findings: list[Finding] = []
    for trial in trials:
        level = "ok" if trial.works else "missing" if trial.name == wanted else "warning"
        findings.append(Finding(f"engine {trial.name}", level, trial.words))
        findings += [Finding(f"engine {trial.name}", "warning", words) for words in trial.facts.warnings]
    chosen = _chosen(trials, wanted)
    if wanted not in {"auto", chosen} or not chosen:
        fix = "Install podman, docker or bubblewrap, or choose another engine by OSCAR_ENGINE."
        findings.append(Finding("engine", "missing", f"{wanted} does not work here", fix))
    elif chosen == "process" and wanted == "auto":
        fix = "Install podman or docker; or set OSCAR_ENGINE=process to have scripts use this machine's programs."
        findings.append(
            Finding("engine", "warning", "only processes work: services with images are refused", fix)
        )
    else:
        findings.append(Finding("engine", "ok", f"{chosen} runs the functions"))
    return findings


def gpus(trials: list[Trial], wanted: str, there: int) -> Finding:
    """What services with `enable_gpu` find here.

    Args:
        trials: of all engines.
        wanted: the engine of the settings.
        there: GPUs whose driver is loaded.
    """
    if not there:
        return Finding("GPU", "ok", "none here (no NVIDIA driver is loaded)")
    words = f"{there} of NVIDIA's"
    chosen = _chosen(trials, wanted)
    giving = [trial.name for trial in trials if trial.works and trial.facts.gpu]
    if chosen in giving or not chosen:
        return Finding("GPU", "ok", f"{words}, given to runs by {', '.join(giving) or 'no engine'}")
    fix = (
        "Install NVIDIA's container toolkit, and run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`."
    )
    if chosen == "process":
        fix = "The sandbox can't pass the files /dev/nvidia*: may this user open them?"
    return Finding("GPU", "warning", f"{words}, which {chosen} can't give to runs", fix)


def _chosen(trials: list[Trial], wanted: str) -> str:
    """The engine that a server would take; empty when there is none."""
    working = [trial.name for trial in trials if trial.works]
    return wanted if wanted in working else next((name for name in ORDER if name in working), "")


def _disk(settings: Settings) -> list[Finding]:
    folder = settings.data
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        fix = "Set OSCAR_DATA to a folder that this user can write to."
        return [Finding("data folder", "missing", f"{settings.data} can't be written", fix)]
    free = shutil.disk_usage(folder).free
    reserve = settings.disk_reserve * 1024 * 1024
    words = f"{settings.data}, {free / _GIB:.1f} GiB free"
    findings = [
        Finding("data folder", "ok", words)
        if free > 2 * reserve
        else Finding("data folder", "warning", words, "Uploads are refused when the disk is nearly full.")
    ]
    if not keeps_size(folder):
        fix = "A script that writes without end can fill the disk."
        findings.append(Finding("logs", "warning", "this file system can't drop the middle of a log", fix))
    return findings


def _port(what: str, host: str, port: int, setting: str) -> Finding:
    if port == 0:
        return Finding(f"port of {what}", "ok", "a free one is taken")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = f"A server may be running already; else set {setting} to another port, or to 0."
            return Finding(f"port of {what}", "warning", f"{host}:{port}: {error.strerror}", fix)
    return Finding(f"port of {what}", "ok", f"{host}:{port} is free")
