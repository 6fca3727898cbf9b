"""Real Loki and Prometheus servers for tests, when their programs are on this machine.

Called by the tests of metrics. The programs are those of `OSCAR_LOKI` and `OSCAR_PROMETHEUS`, which
`./scripts/test --real` sets; both listen on loopback only, on free ports, in a folder of the test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.s3_server import free_port

START_WITHIN = 120.0


class PartMissing(Exception):
    """built by ./scripts/test --real: loki, prometheus"""


def program(variable: str, name: str) -> str:
    """Where a program is.

    Raises:
        PartMissing: nowhere.
    """
    found = os.environ.get(variable) or shutil.which(name)
    if not found or not Path(found).is_file():
        raise PartMissing(PartMissing.__doc__)
    return found


@contextmanager
def loki(folder: Path, **limits: Any) -> Iterator[str]:
    """A Loki with those limits beside its own; its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port, other = free_port(), free_port()
    settings: dict[str, Any] = {
        "auth_enabled": False,
        "server": {
            "http_listen_address": "127.0.0.1",
            "http_listen_port": port,
            "grpc_listen_address": "127.0.0.1",
            "grpc_listen_port": other,
            "log_level": "warn",
        },
        "common": {
            "instance_addr": "127.0.0.1",
            "path_prefix": str(folder),
            "replication_factor": 1,
            "ring": {"kvstore": {"store": "inmemory"}, "instance_addr": "127.0.0.1"},
            "storage": {
                "filesystem": {"chunks_directory": f"{folder}/chunks", "rules_directory": f"{folder}/rules"}
            },
        },
        "memberlist": {"bind_addr": ["127.0.0.1"], "bind_port": free_port()},
        "schema_config": {
            "configs": [
                {
                    "from": "2020-01-01",
                    "store": "tsdb",
                    "object_store": "filesystem",
                    "schema": "v13",
                    "index": {"prefix": "index_", "period": "24h"},
                }
            ]
        },
        "limits_config": {
            "reject_old_samples": False,
            "allow_structured_metadata": False,
            "ingestion_rate_mb": 100,
            "ingestion_burst_size_mb": 200,
            "per_stream_rate_limit": "100MB",
            **limits,
        },
        "analytics": {"reporting_enabled": False},
    }
    file = folder / "loki.yaml"
    file.write_text(json.dumps(settings))
    with _served(
        [program("OSCAR_LOKI", "loki"), f"-config.file={file}"], folder, f"http://127.0.0.1:{port}"
    ) as url:
        yield url


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Any] | None = None, files: Sequence[Path] = ()
) -> Iterator[str]:
    """A Prometheus on the data in a folder; its address.

    Args:
        folder: its data is in `data` of it.
        targets: a job of `scrape_configs`.
        files: rules.
    """
    port = free_port()
    settings: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [targets] if targets else [],
        "rule_files": [str(file) for file in files],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings))
    words = [
        program("OSCAR_PROMETHEUS", "prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=400d",
    ]
    with _served(words, folder, f"http://127.0.0.1:{port}", "/-/ready") as url:
        yield url


@contextmanager
def _served(words: Sequence[str], folder: Path, url: str, ready: str = "/ready") -> Iterator[str]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_WITHIN
        while not _is_ready(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)  # nobody tells when it is ready
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=10).status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


def push(url: str, labels: Mapping[str, str], lines: Sequence[tuple[int, str]]) -> None:
    """Ship lines with their moments in nanoseconds to Loki, as a collector does."""
    for start in range(0, len(lines), 2000):
        values = [[str(moment), text] for moment, text in lines[start : start + 2000]]
        answer = httpx2.post(
            f"{url}/loki/api/v1/push",
            json={"streams": [{"stream": dict(labels), "values": values}]},
            timeout=60,
        )
        assert answer.status_code == 204, answer.text


def backfill(folder: Path, openmetrics: str) -> None:
    """Make the data of a Prometheus of text in the form of OpenMetrics, as if it had been scraped then."""
    file = folder / "samples.txt"
    file.write_text(openmetrics)
    tool = Path(program("OSCAR_PROMETHEUS", "prometheus")).with_name("promtool")
    words = [str(tool), "tsdb", "create-blocks-from", "openmetrics", str(file), str(folder / "data")]
    subprocess.run(words, check=True, capture_output=True)
