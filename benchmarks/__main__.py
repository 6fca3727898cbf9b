"""`python -m benchmarks [sync|s3|lists …]`: JSON lines, each figure beside its floor; all parts without arguments."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks import lists, s3, sync

PARTS = {"sync": sync.run, "s3": s3.run, "lists": lists.run}


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        sys.exit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for name in wanted:
        for row in asyncio.run(PARTS[name]()):
            print(json.dumps(row), flush=True)


main()
