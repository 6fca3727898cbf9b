"""What goes over the wire between the server and a worker's sidecar: an order, and errors by name.

An order holds storage keys of the user who calls, and pods talk in the clear, so it is sealed with a key that only the
two ends have; that it can be opened proves who sent it. Called by `serve` and `compute.kubernetes.sync`. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oscar.errors import EngineError, OscarError, Unauthorized
from oscar.model.storage import MinIOProvider, StorageProviders

ORDER_LENGTH = "x-oscar-order-length"
"""Header: bytes of the body that are the order; the rest is the payload."""
EXIT = "x-oscar-exit"
"""Header of an answer: the script's exit code."""
LOG_LENGTH = "x-oscar-log-length"
"""Header of an answer: bytes of the body that are the log; the rest is the answer; absent when both are the same."""
SPENT = "x-oscar-spent"
"""Header of an answer: the worker must not be used again."""
POD = "x-oscar-pod"
"""Header of an answer: the pod."""
LOST = "x-oscar-lost"
"""Header of an answer: the user's container ended while the script ran."""
REFUSED = "x-oscar-refused"
"""Header of an answer: the request was not taken, nothing was run: `busy`, `draining` or `not ready`."""

_NONCE = 12
_PURPOSE = b"oscar order 1"


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of a call, with keys."""

    own: MinIOProvider = field(repr=False)
    """The platform's own, with the rights of the call's user, at an address that pods reach."""
    providers: StorageProviders = field(repr=False)


@dataclass(frozen=True, slots=True)
class Order:
    """One synchronous call but for its payload."""

    job: str
    hops: int = 0
    trace: str = ""
    timeout: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    stores: Stores | None = None
    """None when the service has neither inputs nor outputs."""


def seal(order: Order, key: bytes) -> bytes:
    """The order as the sidecar with that key (32 bytes) can open it."""
    content: dict[str, Any] = {
        "job": order.job,
        "hops": order.hops,
        "trace": order.trace,
        "timeout": order.timeout,
        "environment": dict(order.environment),
    }
    if order.stores is not None:
        content["own"] = order.stores.own.model_dump(mode="json")
        content["providers"] = order.stores.providers.model_dump(mode="json")
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, json.dumps(content).encode(), _PURPOSE)


def unseal(sealed: bytes, key: bytes) -> Order:
    """The order.

    Raises:
        Unauthorized: it was not sealed with that key.
    """
    try:
        content = json.loads(AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], _PURPOSE))
    except (InvalidTag, ValueError) as error:
        raise Unauthorized("the order is not sealed with this worker's key") from error
    stores = None
    if "own" in content:
        stores = Stores(
            MinIOProvider.model_validate(content["own"]),
            StorageProviders.model_validate(content["providers"]),
        )
    return Order(
        content["job"],
        content["hops"],
        content.get("trace", ""),  # not there from a server that is older than this worker
        content["timeout"],
        content["environment"],
        stores,
    )


def token(key: bytes) -> str:
    """What a request shows before its body is taken."""
    return hmac.new(key, b"oscar worker 1", hashlib.sha256).hexdigest()


def of_error(error: OscarError) -> bytes:
    """An error as the body of an answer."""
    content = {"error": type(error).__name__, "headers": error.headers, **error.as_dict()}
    return json.dumps(content).encode()


def to_error(body: bytes) -> OscarError:
    """The error in the body of an answer; an `EngineError` when it makes no sense."""
    try:
        content = json.loads(body)
        kind = _KINDS.get(content["error"], EngineError)
        message, headers = str(content["message"]), dict(content["headers"])
    except (ValueError, KeyError, TypeError):
        return EngineError(f"the worker answered with {body[:200].decode('utf-8', 'replace')!r}")
    return kind(message, field=content.get("field"), fix=content.get("fix"), headers=headers)


def _subclasses(kind: type[OscarError]) -> Iterator[type[OscarError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)


_KINDS = {kind.__name__: kind for kind in _subclasses(OscarError) if kind.__module__ == "oscar.errors"}
