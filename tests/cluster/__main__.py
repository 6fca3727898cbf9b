"""The command: `.venv/bin/python -m tests.cluster up|down|status|images [--name N] [--with dns,kueue]`."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.cluster import cluster, images, keeper
from tests.cluster.parts import PartMissing


def main() -> int:
    """Do what the words say."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("do", choices=["up", "down", "status", "images"])
    parser.add_argument("--name", default="dev")
    parser.add_argument("--owner", type=int, default=0, help="the process whose end ends the cluster")
    parser.add_argument("--with", dest="addons", default="", help="add-ons, with commas between")
    chosen = parser.parse_args()
    try:
        match chosen.do:
            case "up":
                start = time.monotonic()
                made = cluster.find(chosen.name) or cluster.up(chosen.name, owner=chosen.owner)
                made.add(*(it for it in chosen.addons.split(",") if it))
                print(f"{chosen.name}: ready after {time.monotonic() - start:.1f} s", file=sys.stderr)
                print(f"export KUBECONFIG='{made.kubeconfig}'")
                print(f"export OSCAR_TEST_HOST='{made.host}'")
                print(f"export OSCAR_TEST_NODE='{made.node}'")
            case "images":
                cluster.need(chosen.name).load(images.server())
                print(images.SERVER)
            case "down":
                cluster.down(chosen.name)
            case _:
                for name in cluster.names():
                    found = cluster.find(name)
                    programs = found.inside.status() if found else {}
                    print(json.dumps({"name": name, **(keeper.state(name) or {}), "programs": programs}))
    except (PartMissing, cluster.ClusterFailed, keeper.Locked) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
