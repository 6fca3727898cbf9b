"""The containers of ours in a pod: `python -m oscar.supervisor in|out` stages (`pod`), `serve` serves (`serve`)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main(words: list[str]) -> int:
    """Do what the words say; the exit code."""
    match words:
        case ["in" | "out" as step]:
            from oscar.supervisor import pod

            leave(pod.main(step))
        case ["serve", *rest]:
            from oscar.supervisor import serve

            leave(serve.main(rest))
    sys.stderr.write("usage: python -m oscar.supervisor in|out|serve …\n")
    return 2


def leave(code: int) -> NoReturn:
    """End at once, when all is done and told.

    Threads of native libraries are not joined, and one that comes back into an interpreter which is being taken down
    aborts the process: the kubelet would see a failed container whose work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
