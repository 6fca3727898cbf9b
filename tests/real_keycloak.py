"""A real Keycloak for tests, when it is on this machine, with two realms as two issuers and a third that is nobody's.

Called by tests/acceptance/test_keycloak.py. The distribution is that of `OSCAR_KEYCLOAK`; `./scripts/test --real` has
it. The realms are made over the administrator's API: nothing is written into the distribution but its own cache.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.s3_server import free_port

ADMIN = "admin"
PASSWORD = "password of a test"
GROUP = "vo.example"
FEDERATION = "oscar-manager"
FEDERATION_SECRET = "a secret of the manager's"
START_WITHIN = 300.0


class KeycloakMissing(Exception):
    """had by ./scripts/test --real: Keycloak"""


def _mapper(name: str, kind: str, **config: str) -> dict[str, Any]:
    return {"name": name, "protocol": "openid-connect", "protocolMapper": kind, "config": config}


def _client(name: str, *mappers: dict[str, Any], **attributes: str) -> dict[str, Any]:
    return {
        "clientId": name,
        "publicClient": True,
        "directAccessGrantsEnabled": True,
        "standardFlowEnabled": False,
        "attributes": attributes,
        "protocolMappers": list(mappers),
    }


def _user(name: str, group: str | None = None) -> dict[str, Any]:
    return {
        "username": name,
        "enabled": True,
        "email": f"{name}@example.org",
        "emailVerified": True,
        "firstName": name.capitalize(),
        "lastName": "Example",
        "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
        "groups": [group] if group else [],
    }


def _realm(
    name: str, group: str, users: list[str], outside: list[str], client: dict[str, Any]
) -> dict[str, Any]:
    short = {**client, "clientId": "short", "attributes": {"access.token.lifespan": "3"}}
    # Of federated services: tokens are exchanged by the server, which has the client's secret.
    manager = {
        **client,
        "clientId": FEDERATION,
        "publicClient": False,
        "secret": FEDERATION_SECRET,
        "attributes": {"access.token.lifespan": "8"},
    }
    return {
        "realm": name,
        "enabled": True,
        "sslRequired": "none",
        "groups": [{"name": group}],
        "users": [*(_user(user, group) for user in users), *(_user(user) for user in outside)],
        "clients": [client, short, manager],
    }


def _group_mapper(claim: str, *, in_token: bool) -> dict[str, Any]:
    where = {"access.token.claim": str(in_token).lower(), "userinfo.token.claim": "true"}
    return _mapper(
        "groups", "oidc-group-membership-mapper", **{"claim.name": claim, "full.path": "false", **where}
    )


_AUDIENCE = _mapper(
    "audience", "oidc-audience-mapper", **{"included.custom.audience": "oscar", "access.token.claim": "true"}
)

REALMS = [
    # Groups stand in the token, as Keycloak's users have it.
    _realm(
        "lab",
        GROUP,
        ["ann", "bob", "chief"],
        ["eve"],
        _client("cli", _group_mapper("group_membership", in_token=True), _AUDIENCE),
    ),
    # Groups are told by UserInfo only, as URNs, as EGI Check-in has it.
    _realm(
        "egi",
        f"urn:mace:egi.eu:group:{GROUP}:role=member#aai.egi.eu",
        ["dan"],
        ["mia"],
        _client("cli", _group_mapper("eduperson_entitlement", in_token=False), _AUDIENCE),
    ),
    _realm(
        "elsewhere", GROUP, ["ann"], [], _client("cli", _group_mapper("groups", in_token=True), _AUDIENCE)
    ),
]


@dataclass(slots=True)
class Keycloak:
    """A running Keycloak."""

    url: str
    process: subprocess.Popen[bytes]
    seen: list[str] = field(default_factory=list)
    """All access tokens that it gave out here."""

    def issuer(self, realm: str) -> str:
        """The address of a realm as it stands in its tokens."""
        return f"{self.url}/realms/{realm}"

    def login(
        self, realm: str, user: str, client: str = "cli", *, password: str = PASSWORD
    ) -> dict[str, Any]:
        """Access and refresh token of a user, by his password."""
        return self._tokens(
            realm, {"grant_type": "password", "client_id": client, "username": user, "password": password}
        )

    def refresh_token(self, realm: str, user: str) -> str:
        """A refresh token of a user, given to the client of federated services."""
        form = {
            "grant_type": "password",
            "client_id": FEDERATION,
            "client_secret": FEDERATION_SECRET,
            "username": user,
            "password": PASSWORD,
        }
        return str(self._tokens(realm, form)["refresh_token"])

    def withdraw(self, realm: str, refresh_token: str) -> None:
        """End the session of a refresh token of that client."""
        form = {"client_id": FEDERATION, "client_secret": FEDERATION_SECRET, "refresh_token": refresh_token}
        httpx2.post(f"{self.issuer(realm)}/protocol/openid-connect/logout", data=form).raise_for_status()

    def token(self, realm: str, user: str, client: str = "cli") -> str:
        """A new access token of a user."""
        return str(self.login(realm, user, client)["access_token"])

    def logout(self, realm: str, refresh_token: str) -> None:
        """End a session: its tokens are withdrawn."""
        form = {"client_id": "cli", "refresh_token": refresh_token}
        httpx2.post(f"{self.issuer(realm)}/protocol/openid-connect/logout", data=form).raise_for_status()

    def rotate(self, realm: str) -> None:
        """Sign with a new key from now on."""
        component = {
            "name": f"rsa-{secrets.token_hex(4)}",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": [str(int(time.time()))], "algorithm": ["RS256"]},
        }
        self._admin("POST", f"{realm}/components", component)

    def make_realms(self) -> None:
        """Have the realms of this module."""
        for realm in REALMS:
            self._admin("POST", "", realm)

    def _tokens(self, realm: str, form: dict[str, str]) -> dict[str, Any]:
        url = f"{self.issuer(realm)}/protocol/openid-connect/token"
        answer = httpx2.post(url, data={"scope": "openid", **form}, timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        if realm != "master":
            self.seen.append(found["access_token"])
        return found

    def _admin(self, method: str, path: str, body: Any) -> None:
        account = {
            "grant_type": "password",
            "client_id": "admin-cli",
            "username": ADMIN,
            "password": PASSWORD,
        }
        headers = {"Authorization": f"Bearer {self._tokens('master', account)['access_token']}"}
        url = f"{self.url}/admin/realms/{path}".rstrip("/")
        httpx2.request(method, url, json=body, headers=headers, timeout=60).raise_for_status()

    def stop(self) -> None:
        """End it; idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def folder() -> Path:
    """Where the distribution is.

    Raises:
        KeycloakMissing: nowhere, or there is no Java.
    """
    found = os.environ.get("OSCAR_KEYCLOAK")
    if not found or not shutil.which("java"):
        raise KeycloakMissing(KeycloakMissing.__doc__)
    return Path(found)


@contextmanager
def running(work: Path) -> Iterator[Keycloak]:
    """A Keycloak with its realms, for the length of a block; `work` takes its log and temporary files."""
    program = folder() / "bin" / "kc.sh"
    work.mkdir(parents=True, exist_ok=True)
    port = free_port()
    arguments = [
        "start",
        "--optimized",
        "--http-enabled=true",
        "--hostname-strict=false",
        "--http-host=127.0.0.1",
        f"--http-port={port}",
        f"--http-management-port={free_port()}",
        "--cache=local",
    ]
    environment = {
        **os.environ,
        "KC_BOOTSTRAP_ADMIN_USERNAME": ADMIN,
        "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD,
        "JAVA_OPTS_APPEND": f"-Xmx640m -Djava.io.tmpdir={work}",
    }
    log = work / "keycloak.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", str(program), *arguments],
            env=environment,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
    keycloak = Keycloak(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + START_WITHIN
        while not _answers(keycloak.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Keycloak did not start:\n{log.read_text()}")
            time.sleep(0.2)  # nobody tells when it listens
        keycloak.make_realms()
        yield keycloak
    finally:
        keycloak.stop()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/realms/master", timeout=10).status_code == 200
    except httpx2.TransportError:
        return False
