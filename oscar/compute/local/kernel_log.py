"""Whom the kernel killed for memory, from its own log: not every engine notices, podman on cgroup v1 for one.

Called by `containers` for containers that failed.
"""

from __future__ import annotations

import os
import re


def oom_killed(container: str) -> bool:
    """Whether the kernel's log, as far as it may be read, tells of such a kill in the container of that id.

    A record looks like `oom-kill:constraint=CONSTRAINT_MEMCG,...,oom_memcg=/libpod_parent/libpod-<id>,...`;
    https://www.kernel.org/doc/Documentation/ABI/testing/dev-kmsg says how the log is read.
    """
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # there is none here, or it is for administrators only
    wanted = re.compile(rb"oom-kill:.*(?:oom_memcg|task_memcg)=[^,]*" + re.escape(container.encode()))
    try:
        while True:
            try:
                record = os.read(log, 8192)
            except BrokenPipeError:
                continue  # this record was overwritten meanwhile
            except OSError:
                return False  # the end
            if wanted.search(record):
                return True
    finally:
        os.close(log)
