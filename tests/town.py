"""A town of users: the application in process with a real SQLite and a real OIDC issuer, and people with credentials.

Called by the tests of the API for many users. The engine is the fake one, because OIDC has no processes and containers
take their time.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from httpx2 import Response
from starlette.testclient import TestClient

from oscar.app.api import build
from oscar.compute.fake import FakeCompute, World
from oscar.model.user import ADMIN, Caller, Entrance
from oscar.settings import Settings
from tests import oidc
from tests.oidc import Issuer

PASSWORD = "a password of tests"
OWNER, ALLY, OTHER, CHIEF, OUTSIDER = "ann@example.org", "bob@example.org", "cid", "chief", "eve"
GROUP = "vo.example"
REFUSED = {"nobody", "wrong password", "outsider", "expired", "forged", "foreign issuer", "not a token"}
"""Who is nobody here."""
KNOWN = {
    "administrator": Caller(ADMIN, Entrance.BASIC, admin=True),
    "oidc administrator": Caller(CHIEF, Entrance.OIDC, admin=True),
    "owner": Caller(OWNER, Entrance.OIDC),
    "allowed user": Caller(ALLY, Entrance.OIDC),
    "other user": Caller(OTHER, Entrance.OIDC),
    "token": Caller(OWNER, Entrance.TOKEN, service_id="the service"),
    "foreign token": Caller(OTHER, Entrance.TOKEN, service_id="another"),
}


@dataclass
class Town:
    """A running application, people with their credentials, and things of the owner's."""

    http: TestClient
    issuer: Issuer
    stranger: Issuer
    tokens: dict[str, str] = field(default_factory=dict)

    def headers(self, who: str) -> dict[str, str]:
        """The credentials of somebody of `KNOWN`, of `REFUSED`, or of a subject."""
        return {"Authorization": self._authorization(who)} if who != "nobody" else {}

    def _authorization(self, who: str) -> str:
        match who:
            case "administrator":
                return basic("oscar", PASSWORD)
            case "wrong password":
                return basic("oscar", "wrong")
            case "not a token":
                return "Bearer x.y.z"
        if who not in self.tokens:
            self.tokens[who] = self._token(who)
        return f"Bearer {self.tokens[who]}"

    def _token(self, who: str) -> str:
        match who:
            case "oidc administrator" | "owner" | "allowed user" | "other user":
                return self.issuer.token(KNOWN[who].id, groups=[GROUP])
            case "outsider":
                return self.issuer.token(OUTSIDER, groups=["elsewhere"])
            case "expired":
                return self.issuer.token(OWNER, groups=[GROUP], exp=int(time.time()) - 600)
            case "forged":
                return oidc.tampered(self.issuer.token(OTHER, groups=[GROUP]), sub=OWNER)
            case "foreign issuer":
                return self.stranger.token(OWNER, groups=[GROUP])
        return self.issuer.token(who, groups=[GROUP])

    def call(self, who: str, method: str, path: str, **more: Any) -> Response:
        """A call of that person."""
        headers = {**self.headers(who), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def service(self, visibility: str = "private", *, who: str = "owner", **more: Any) -> str:
        """A new service of somebody; its name."""
        name = f"s-{uuid.uuid4().hex[:8]}"
        body = {
            "name": name,
            "image": "none",
            "script": "true",
            "visibility": visibility,
            "allowed_users": [ALLY],
        }
        answer = self.call(who, "POST", "/system/services", json=body | more)
        assert answer.status_code == 201, answer.text
        return name

    def own_token(self, service: str, who: str = "owner") -> str:
        """The token of a service as its owner sees it."""
        return str(self.call(who, "GET", f"/system/services/{service}").json()["token"])

    def run(self, service: str, who: str) -> str:
        """A run caused by somebody; its id."""
        answer = self.call(who, "POST", f"/job/{service}", content=b"{}")
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])

    def bucket(self, visibility: str) -> str:
        """A new bucket of the owner's."""
        name = f"b-{uuid.uuid4().hex[:8]}"
        body = {"bucket_name": name, "visibility": visibility, "allowed_users": [ALLY]}
        assert self.call("owner", "POST", "/system/buckets", json=body).status_code == 201
        return name


def basic(user: str, password: str) -> str:
    """The header of basic auth."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@contextmanager
def town_on(data: Path, issuer: Issuer, stranger: Issuer, **more: Any) -> Iterator[Town]:
    settings = Settings(
        data=data,
        url="http://oscar.test",
        minio_endpoint="http://s3.test",
        password=PASSWORD,
        oidc_enable=True,
        **{
            "oidc_issuers": (issuer.url,),
            "oidc_groups": (GROUP,),
            "users_admin": (CHIEF,),
            "login_failures": 0,
            **more,
        },
    )
    fake = FakeCompute(World(store=None))  # type: ignore[arg-type]  # no run of this test has files
    made, _ = build(settings, compute=fake)
    with TestClient(made, base_url=settings.url, raise_server_exceptions=False) as http:
        yield Town(http, issuer, stranger)
