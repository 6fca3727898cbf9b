"""One HTTP request, by the standard library alone: for staging containers, which wait for what they load.

Called by `pod` in a thread, with URLs that the platform has signed. No proxy and no redirect is followed.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


class NoAnswer(Exception):
    """There was no whole answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether it is one of 2xx."""
        return 200 <= self.status < 300  # noqa: PLR2004 - as RFC 9110 says


def ask(method: str, url: str, body: bytes, headers: Mapping[str, str], *, verify: bool = True) -> Answer:
    """Make a request and read the answer.

    Args:
        method: of HTTP.
        url: complete and encoded.
        body: of the request.
        headers: of it.
        verify: whether the server's certificate is checked.

    Raises:
        NoAnswer: it can't be reached, or the answer breaks off.
    """
    parts = urlsplit(url)
    connection = _connection(parts.scheme, parts.netloc, verify=verify)
    try:
        connection.request(method, f"{parts.path or '/'}?{parts.query}", body or None, dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def _connection(scheme: str, place: str, *, verify: bool) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(place, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(place, timeout=TIMEOUT_S, context=context)
