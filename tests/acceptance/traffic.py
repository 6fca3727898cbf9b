"""Traffic of many users for the tests of metrics, made through the real program and counted while it is made.

Twenty users with tokens of an OIDC issuer call five services in every way, from addresses in three countries. What they
did is in `Traffic.made`, written down by whoever did it and not read from the server.
"""

from __future__ import annotations

import base64
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
import httpx2
from botocore.config import Config

from tests.oidc import Issuer
from tests.server import Server

USERS = [f"user-{number:02}@example.org" for number in range(20)]
GROUP = "vo.example"
COUNTRIES = {"ES": "192.0.2.", "FR": "198.51.100.", "PT": "203.0.113."}
OWNERS = {
    "alpha": USERS[0],
    "beta": USERS[1],
    "gamma": "cluster_admin",
    "delta": USERS[0],
    "web": USERS[1],
}
"""Five services, each with its owner."""
EXPOSED = "web"


@dataclass(frozen=True, slots=True)
class Made:
    """A request that was made and that counts."""

    service: str
    kind: str
    user: str
    country: str
    member: bool = True


@dataclass
class Traffic:
    """A server, its users, and what they did."""

    server: Server
    issuer: Issuer
    image: str
    made: list[Made] = field(default_factory=list)
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=120))
    rng: random.Random = field(default_factory=lambda: random.Random(4711))
    _tokens: dict[str, str] = field(default_factory=dict)

    def headers(self, who: str, country: str = "ES") -> dict[str, str]:
        """Credentials of somebody, from an address in a country."""
        address = f"{COUNTRIES[country]}{USERS.index(who) + 1 if who in USERS else 99}"
        return {"Authorization": self.authorization(who), "X-Forwarded-For": address}

    def authorization(self, who: str) -> str:
        """Of a user, or of the administrator."""
        if who not in USERS:
            pair = f"{self.server.user}:{self.server.password}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        # For five minutes: of each call a new one would be no different.
        return f"Bearer {self.issuer.token(who, groups=[GROUP], exp=int(time.time()) + 3000)}"

    def call(self, who: str, method: str, path: str, *, country: str = "ES", **more: Any) -> httpx2.Response:
        """A call of somebody."""
        headers = {**self.headers(who, country), **more.pop("headers", {})}
        return self.http.request(method, self.server.endpoint + path, headers=headers, **more)

    def get(self, who: str, path: str, **params: str) -> Any:
        """What somebody is told."""
        answer = self.call(who, "GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def build(self) -> None:
        """Make the services."""
        for name, owner in OWNERS.items():
            definition: dict[str, Any] = {
                "name": name,
                "image": self.image,
                "script": "echo done",
                "memory": "64Mi",
                "cpu": "0.5",
                "visibility": "public",
                "input": [{"storage_provider": "minio.default", "path": f"{name}/in"}],
            }
            if name == EXPOSED:
                script = "mkdir /tmp/www && echo page >/tmp/www/index.html && exec busybox httpd -f -p 8080 -h /tmp/www"
                expose = {"api_port": 8080, "max_scale": 1, "set_auth": True, "auth_type": "forward"}
                definition |= {"script": script, "expose": expose, "input": []}
            answer = self.call(owner, "POST", "/system/services", json=definition)
            assert answer.status_code == 201, answer.text
        deadline = time.monotonic() + 90
        while self.get(OWNERS[EXPOSED], f"/system/services/{EXPOSED}/deployment")["state"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.2)  # states are asked for, not told

    def round(self) -> None:
        """Each user does something, some of it wrong."""
        acts: list[Callable[[str, str], None]] = [self.run, self.run, self.submit, self.visit, self.visit]
        for who in USERS:
            country = self.rng.choice(list(COUNTRIES))
            for act in self.rng.sample(acts, 3):
                act(who, country)
        for who in self.rng.sample(USERS, 4):
            self.upload(who, "FR")
        self.run_by_token("beta", "PT")
        self.go_wrong()

    def run(self, who: str, country: str) -> None:
        """A synchronous call."""
        name = self.rng.choice([name for name in OWNERS if name != EXPOSED])
        answer = self.call(who, "POST", f"/run/{name}", country=country, content=b"aGVsbG8=")
        assert answer.status_code == 200, answer.text
        self.made.append(Made(name, "sync", who, country))

    def submit(self, who: str, country: str) -> None:
        """A job, and the same once more by its key: one request."""
        name = self.rng.choice([name for name in OWNERS if name != EXPOSED])
        key = {"Idempotency-Key": f"{who}-{len(self.made)}"}
        for _ in range(2):
            answer = self.call(who, "POST", f"/job/{name}", country=country, content=b"{}", headers=key)
            assert answer.status_code == 201, answer.text
        self.made.append(Made(name, "async", who, country))

    def visit(self, who: str, country: str) -> None:
        """A request to the exposed service."""
        answer = self.call(who, "GET", f"/system/services/{EXPOSED}/exposed/", country=country)
        assert answer.text == "page\n", answer.text
        self.made.append(Made(EXPOSED, "exposed", who, country))

    def upload(self, who: str, country: str) -> None:
        """An object that starts a job."""
        store = self.store(who, country)
        key = f"in/{len(self.made)}.txt"
        store.put_object(Bucket="alpha", Key=key, Body=b"uploaded")
        self.made.append(Made("alpha", "async", who, country))

    def store(self, who: str, country: str) -> Any:
        """The object store with somebody's keys, from an address in a country."""
        keys = self.get(who, "/system/config")["minio_provider"]
        client = boto3.client(
            "s3",
            endpoint_url=self.server.s3,
            aws_access_key_id=keys["access_key"],
            aws_secret_access_key=keys["secret_key"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        address = self.headers(who, country)["X-Forwarded-For"]

        def tell(request: Any, **_: Any) -> None:
            request.headers["X-Forwarded-For"] = address

        client.meta.events.register("before-send.s3", tell)
        return client

    def run_by_token(self, name: str, country: str) -> None:
        """A call by a service's token: its owner's."""
        token = self.get(OWNERS[name], f"/system/services/{name}")["token"]
        headers = {"Authorization": f"Bearer {token}"}
        answer = self.call(
            OWNERS[name], "POST", f"/run/{name}", country=country, content=b"", headers=headers
        )
        assert answer.status_code == 200, answer.text
        self.made.append(Made(name, "sync", OWNERS[name], country, member=False))

    def go_wrong(self) -> None:
        """What is no request of a service: nobody, no service, a page that asks who one is."""
        nobody = {"Authorization": "Basic eDp5"}
        assert self.call(USERS[2], "POST", "/run/alpha", headers=nobody).status_code == 401
        assert self.call(USERS[2], "POST", "/run/nowhere").status_code == 404
        assert self.call(USERS[2], "POST", "/job/nowhere").status_code == 404
        headers = self.headers(USERS[3]) | {"Authorization": ""}
        page = f"{self.server.endpoint}/system/services/{EXPOSED}/exposed/"
        assert self.http.get(page, headers=headers).status_code == 401

    # What was made, counted.

    def count(self, *fields: str, **wanted: Any) -> Counter[Any]:
        """How many there are of each combination of those fields, among those with these values."""
        chosen = [
            each for each in self.made if all(getattr(each, name) == value for name, value in wanted.items())
        ]
        if len(fields) == 1:
            return Counter(getattr(each, fields[0]) for each in chosen)
        return Counter(tuple(getattr(each, name) for name in fields) for each in chosen)

    def total(self, **wanted: Any) -> int:
        """How many there are with these values."""
        return sum(self.count("service", **wanted).values())

    def different(self, name: str, **wanted: Any) -> set[str]:
        """What values a field has among those with these values."""
        return set(self.count(name, **wanted))
