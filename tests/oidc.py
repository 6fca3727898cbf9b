"""A small OIDC issuer for tests: a real HTTP server on this machine that signs tokens and counts requests.

Called by the tests of `auth.oidc` and of the API for many users. It can be slow, broken, or somebody else.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from tests.listening import listening

CONFIGURATION = "/.well-known/openid-configuration"
KEYS = "/keys"
USER_INFO = "/me"
TOKEN = "/token"
CLIENT = "oscar-federation"
"""The client that refresh tokens are given to."""
_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


def make_key(algorithm: str = "ES256") -> Key:
    """A new private key for that algorithm."""
    kind = _TYPES[algorithm[:2]]
    if kind == "RSA":
        return RSAKey.generate_key(2048, {"use": "sig", "alg": algorithm}, auto_kid=True)
    if kind == "EC":
        curves = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
        return ECKey.generate_key(curves[algorithm], {"use": "sig", "alg": algorithm}, auto_kid=True)
    return OKPKey.generate_key("Ed25519", {"use": "sig", "alg": algorithm}, auto_kid=True)


@dataclass(slots=True)
class Issuer:
    """An issuer that runs. What it is asked to do wrong holds until it is taken back."""

    url: str = ""
    keys: list[tuple[str, Key]] = field(default_factory=list)
    """What it publishes, the last one signs: algorithm and key."""
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What UserInfo says, by subject; others it does not know."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by path."""
    broken: set[str] = field(default_factory=set)
    """Paths that are answered with 500."""
    says: dict[str, Any] = field(default_factory=dict)
    """Answers in place of the right ones, by path."""
    refresh: dict[str, str] = field(default_factory=dict)
    """Refresh tokens that hold, each with its subject."""
    rotates: bool = False
    """A refresh token holds for one exchange, whose answer has the next one."""
    secret: str = ""
    """Of the client; without one it is public."""
    lives: int = 300
    """Seconds of an access token that was exchanged."""
    gate: threading.Event = field(default_factory=threading.Event)
    """While it is clear, nothing is answered."""

    def rotate(self, algorithm: str = "ES256", *, keep: int = 1) -> None:
        """Sign with a new key; of the old ones so many are still published."""
        self.keys = [*(self.keys[-keep:] if keep else []), (algorithm, make_key(algorithm))]

    def token(
        self,
        subject: str | None,
        *,
        key: tuple[str, Key] | None = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token of that person, for five minutes; claims that are None are left out."""
        algorithm, signer = key or self.keys[-1]
        now = int(time.time())
        standard = {
            "iss": self.url,
            "sub": subject,
            "iat": now,
            "exp": now + 300,
            "name": f"Name of {subject}",
        }
        full = {name: value for name, value in (standard | claims).items() if value is not None}
        head = {"alg": algorithm, "kid": signer.kid, **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return jwt.encode(head, full, signer, algorithms=[algorithm])

    def public_keys(self) -> dict[str, Any]:
        """Its key set."""
        return {"keys": [key.as_dict(private=False) for _, key in self.keys]}

    def refresh_token(self, subject: str) -> str:
        """A new refresh token of that person."""
        token = f"refresh-{secrets.token_hex(16)}"
        self.refresh[token] = subject
        return token

    def exchange(self, form: Mapping[str, str], authorization: str) -> tuple[int, Any]:
        """Status and JSON of a POST to the token endpoint."""
        self.asked[TOKEN] += 1
        self.gate.wait(30)
        if TOKEN in self.broken:
            return 500, {}
        if self.secret:
            shown = base64.b64encode(f"{CLIENT}:{self.secret}".encode()).decode()
            if authorization != f"Basic {shown}":
                return 401, {"error": "invalid_client"}
        if form.get("grant_type") != "refresh_token" or form.get("client_id") != CLIENT:
            return 400, {"error": "unauthorized_client"}
        token = form.get("refresh_token", "")
        subject = self.refresh.get(token)
        if subject is None:
            return 400, {"error": "invalid_grant", "error_description": "Token is not active"}
        now = int(time.time())
        said = {
            "access_token": self.token(subject, exp=now + self.lives, jti=secrets.token_hex(8)),
            "expires_in": self.lives,
            "token_type": "Bearer",
        }
        if self.rotates:
            del self.refresh[token]
            said["refresh_token"] = self.refresh_token(subject)
        return 200, said

    def answer(self, path: str, authorization: str) -> tuple[int, Any]:
        """Status and JSON of a GET."""
        self.asked[path] += 1
        self.gate.wait(30)
        if path in self.broken:
            return 500, {}
        if path in self.says:
            return 200, self.says[path]
        if path == CONFIGURATION:
            return 200, {
                "issuer": self.url,
                "jwks_uri": self.url + KEYS,
                "userinfo_endpoint": self.url + USER_INFO,
                "token_endpoint": self.url + TOKEN,
            }
        if path == KEYS:
            return 200, self.public_keys()
        if path == USER_INFO:
            token = authorization.removeprefix("Bearer ")
            subject = unpacked(token.split(".")[1])["sub"]
            known = self.people.get(subject)
            return (401, {}) if known is None else (200, {"sub": subject, **known})
        return 404, {}


@contextlib.contextmanager
def running(algorithm: str = "ES256") -> Iterator[Issuer]:
    """An issuer with one key."""
    issuer = Issuer()
    issuer.gate.set()
    issuer.rotate(algorithm)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = issuer.answer(self.path, self.headers.get("Authorization", ""))
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def do_POST(self) -> None:
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            status, body = issuer.exchange(form, self.headers.get("Authorization", ""))
            text = json.dumps(body).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the standard library
            pass

    with listening(Handler) as issuer.url:
        try:
            yield issuer
        finally:
            issuer.gate.set()


def packed(value: Any) -> str:
    """JSON as a part of a token."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def unpacked(part: str) -> Any:
    """A part of a token as JSON."""
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def unsigned(
    issuer: Issuer, subject: str, algorithm: str = "none", signature: str = "", **claims: Any
) -> str:
    """A token that nobody has signed."""
    body = {"iss": issuer.url, "sub": subject, "exp": int(time.time()) + 300, **claims}
    return f"{packed({'alg': algorithm, 'typ': 'JWT'})}.{packed(body)}.{signature}"


def confused(issuer: Issuer, subject: str, **claims: Any) -> str:
    """A token signed by HMAC with the issuer's public key as the secret."""
    _, key = issuer.keys[-1]
    body = {"iss": issuer.url, "sub": subject, "exp": int(time.time()) + 300, **claims}
    text = f"{packed({'alg': 'HS256', 'kid': key.kid, 'typ': 'JWT'})}.{packed(body)}"
    assert isinstance(key, RSAKey | ECKey)
    mac = hmac.new(key.as_pem(private=False), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def tampered(token: str, **claims: Any) -> str:
    """The token with other claims and its old signature."""
    head, body, signature = token.split(".")
    return f"{head}.{packed(unpacked(body) | claims)}.{signature}"
