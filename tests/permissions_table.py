"""What each route of the REST API asks of the rules, and docs/permissions.md made from that and from the rules.

`python -m tests.permissions_table` writes the tables of the page anew; tests/unit/test_permissions.py compares, and
tests/api/test_permissions.py walks every route as everybody. A new route needs a row here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from oscar.auth.rules import RULES, Action, Kind, Standing, Thing, may, may_administer, may_run
from oscar.model.user import Caller, Entrance

PAGE = Path(__file__).parents[1] / "docs" / "permissions.md"
BEGIN, END = (
    "<!-- permissions: made by `python -m tests.permissions_table` -->",
    "<!-- end of permissions -->",
)


@dataclass(frozen=True)
class Need:
    """What a route asks."""

    kind: Kind
    action: Action
    words: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.action}" + (f" ({self.words})" if self.words else "")


def _service(action: Action, words: str = "") -> Need:
    return Need(Kind.SERVICE, action, words)


def _bucket(action: Action, words: str = "") -> Need:
    return Need(Kind.BUCKET, action, words)


def _run(action: Action, words: str = "") -> Need:
    return Need(Kind.RUN, action, words)


def _installation(action: Action, words: str = "") -> Need:
    return Need(Kind.INSTALLATION, action, words)


OPEN = {"GET /health", "GET /ready", "POST /system/events/minio"}
"""Routes that ask for no caller; the last one for a token of its own."""

ROUTES: dict[str, Need] = {
    "GET /system/info": _installation(Action.SEE),
    "GET /system/status": _installation(Action.SEE),
    "PUT /system/config": _installation(Action.CHANGE),
    "GET /system/logs": _installation(Action.CHANGE, "the server's own log"),
    "GET /system/logs/": _installation(Action.CHANGE, "the same"),
    "GET /system/events/rejected": _installation(Action.CHANGE, "reports of a MinIO"),
    "GET /system/config": _installation(Action.CALL, "with one's own S3 keys"),
    "GET /system/services": _installation(Action.CALL, "lists those that one may see"),
    "POST /system/services": _installation(Action.CALL, "one's own"),
    "PUT /system/services": _service(Action.CHANGE),
    "GET /system/services/{serviceName}": _service(Action.SEE, "its token only with change"),
    "DELETE /system/services/{serviceName}": _service(Action.CHANGE),
    "GET /system/services/{serviceName}/auth": _service(Action.CALL),
    "GET /system/services/{serviceName}/deployment": _service(Action.SEE),
    "GET /system/services/{serviceName}/deployment/logs": _service(Action.CHANGE),
    "POST /system/services/{serviceName}/start": _service(Action.CHANGE),
    "POST /system/services/{serviceName}/stop": _service(Action.CHANGE),
    "POST /system/services/{serviceName}/restart": _service(Action.CHANGE),
    "POST /run/{serviceName}": _service(Action.CALL),
    "POST /job/{serviceName}": _service(Action.CALL),
    "GET /system/logs/{serviceName}": _service(Action.CALL, "lists the runs that one may see"),
    "DELETE /system/logs/{serviceName}": _run(Action.CHANGE, "those that one may change"),
    "GET /system/logs/{serviceName}/{jobName}": _run(Action.SEE),
    "DELETE /system/logs/{serviceName}/{jobName}": _run(Action.CHANGE),
    "GET /system/jobs/{serviceName}/{jobName}": _run(Action.SEE),
    "POST /system/jobs/{serviceName}/{jobName}/rerun": _run(Action.CALL),
    "POST /system/jobs/{serviceName}/{jobName}/cancel": _run(Action.CALL),
    "GET /system/buckets": _installation(Action.CALL, "lists those that one may see"),
    "POST /system/buckets": _installation(Action.CALL, "one's own"),
    "PUT /system/buckets": _bucket(Action.CHANGE),
    "GET /system/buckets/{bucket}": _bucket(Action.SEE),
    "DELETE /system/buckets/{bucket}": _bucket(Action.CHANGE),
    "POST /system/buckets/{bucket}/presign": _bucket(Action.CALL),
    "GET /system/volumes": _installation(Action.CALL, "lists one's own"),
    "POST /system/volumes": _installation(Action.CALL, "one's own"),
    "GET /system/volumes/{volumeName}": _bucket(Action.SEE, "a volume is private"),
    "DELETE /system/volumes/{volumeName}": _bucket(Action.CHANGE, "a volume is private"),
    "GET /system/quotas/user": _installation(Action.CALL, "one's own"),
    "GET /system/quotas/user/{userId}": _installation(Action.CHANGE),
    "PUT /system/quotas/user/{userId}": _installation(Action.CHANGE),
    "GET /metrics": _installation(Action.CHANGE, "or from this machine, see OSCAR_METRICS_ACCESS"),
    "GET /system/metrics": _installation(Action.CALL, "of services that one may see"),
    "GET /system/metrics/breakdown": _installation(Action.CALL, "of services that one may see"),
    "GET /system/metrics/{serviceName}": _service(Action.SEE),
    "GET /system/federation/{serviceName}": _service(Action.SEE),
    "POST /system/federation/{serviceName}": _service(Action.CHANGE),
    "PUT /system/federation/{serviceName}": _service(Action.CHANGE),
    "DELETE /system/federation/{serviceName}": _service(Action.CHANGE),
    "GET /system/replicas/{serviceName}": _service(Action.SEE),
    "POST /system/replicas/{serviceName}": _service(Action.CHANGE),
    "PUT /system/replicas/{serviceName}": _service(Action.CHANGE),
    "DELETE /system/replicas/{serviceName}": _service(Action.CHANGE),
}


KEYED = {
    "POST /system/federation/{serviceName}/presign": "the key of a copy of the service",
    "POST /system/federation/{serviceName}/token": "the key of a copy of the service",
}
"""Routes for other clusters, which show a key: no user and no token opens them."""


def outcome(need: Need, caller: Caller, thing: Thing, *, user: str = "") -> int:
    """What the rules say: 200, 403 or 404.

    Args:
        need: what the route asks.
        caller: who calls.
        thing: the service or bucket that the route names, if it names one.
        user: who caused the run that it names, if it names one.
    """
    token = caller.entrance is Entrance.TOKEN
    if need.kind is Kind.INSTALLATION:
        standing = Standing.OWN_TOKEN if token else Standing.ANYBODY
        standing = Standing.ADMIN if may_administer(caller) else standing
        return 200 if need.action in RULES[Kind.INSTALLATION][standing] else 403
    if need.kind is Kind.RUN:
        if not may(caller, Action.CALL, thing):
            return 404
        if not user:
            return 403 if token else 200  # of several runs each takes his own
        seen = may_run(caller, Action.SEE, service=thing, user=user)
        allowed = may_run(caller, need.action, service=thing, user=user)
        return 200 if allowed else 403 if seen else 404
    tokens = RULES[need.kind][Standing.OWN_TOKEN] | RULES[need.kind][Standing.FOREIGN_TOKEN]
    if token and need.action not in tokens:
        return 403  # whatever the thing is: a token is no user
    if may(caller, need.action, thing):
        return 200
    return 403 if may(caller, Action.SEE, thing) else 404


def tables() -> str:
    """The tables of the page."""
    lines = []
    for kind, standings in RULES.items():
        lines += [f"### Of a {kind}" if kind is not Kind.INSTALLATION else "### Of the installation", ""]
        lines += [f"| who | {' | '.join(Action)} |", f"|---|{'---|' * len(Action)}"]
        for standing, actions in standings.items():
            marks = " | ".join("yes" if action in actions else "-" for action in Action)
            who = "any user" if (kind, standing) == (Kind.INSTALLATION, Standing.ANYBODY) else standing
            lines.append(f"| {who} | {marks} |")
        lines.append("")
    lines += ["### Routes", "", "| route | asks |", "|---|---|"]
    lines += [f"| `{route}` | nothing |" for route in sorted(OPEN)]
    lines += [f"| `{route}` | {need} |" for route, need in ROUTES.items()]
    lines += [f"| `{route}` | {key} |" for route, key in KEYED.items()]
    return "\n".join(lines)


def replaced(page: str) -> str:
    """The page with the tables as they should be."""
    inside = f"{BEGIN}\n\n{tables()}\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: inside, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
