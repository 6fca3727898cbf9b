"""The containers of ours in a pod: `python -m oscar.supervisor in|out` stages (`pod`), `serve` serves (`serve`)."""

from __future__ import annotations

import sys


def main(words: list[str]) -> int:
    """Do what the words say; the exit code."""
    match words:
        case ["in" | "out" as step]:
            from oscar.supervisor import pod

            return pod.main(step)
        case ["serve", *rest]:
            from oscar.supervisor import serve

            return serve.main(rest)
    sys.stderr.write("usage: python -m oscar.supervisor in|out|serve …\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
