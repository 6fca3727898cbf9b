"""`python -m benchmarks [part …]`: JSON lines, each figure beside its floor; all parts without arguments."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from benchmarks import (
    burst,
    event,
    exposed,
    federation,
    intake,
    kubernetes,
    kubernetes_jobs,
    kubernetes_size,
    lists,
    metrics,
    oidc,
    s3,
    start,
    sync,
)
from benchmarks.figures import Row

PARTS: dict[str, Callable[..., Coroutine[Any, Any, list[Row]]]] = {
    "sync": sync.run,
    "intake": intake.run,
    "burst": burst.run,
    "event": event.run,
    "lists": lists.run,
    "metrics": metrics.run,
    "oidc": oidc.run,
    "s3": s3.run,
    "exposed": exposed.run,
    "federation": federation.run,
    "start": start.run,
    "kubernetes": kubernetes.run,
    "kubernetes-jobs": kubernetes_jobs.run,
    "kubernetes-size": kubernetes_size.run,
}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for: `parts`, in order and each once, and `quick`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that it runs")
    given = parser.parse_args(words)
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    given.parts = list(dict.fromkeys(given.parts)) or list(PARTS)
    return given


def main() -> None:
    """Measure, and print each part's rows when it has ended."""
    given = arguments()
    for name in given.parts:
        for row in asyncio.run(PARTS[name](quick=given.quick)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
