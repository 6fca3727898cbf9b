"""Addresses to which tokens and keys may go.

Called by `auth.issuer` and `auth.oidc`, and by `core.members`, which needs none of their libraries. Pure.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_safe(url: str, *, loopback: bool) -> bool:
    """Whether tokens and keys may travel there: https, or on this machine when `loopback` allows."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (loopback and parts.scheme == "http" and is_loopback(url))
