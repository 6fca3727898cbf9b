"""`python -m oscar.supervisor serve`: the sidecar of a warm worker in a pod; see `serve`."""

from __future__ import annotations

import sys


def main(words: list[str]) -> int:
    """Do what the words say; the exit code."""
    if words[:1] != ["serve"]:
        sys.stderr.write("usage: python -m oscar.supervisor serve …\n")
        return 2
    from oscar.supervisor import serve

    return serve.main(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
