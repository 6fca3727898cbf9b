"""Whether a host that a user names is out in the world, or one that only this machine and its neighbours reach.

Called before anything is fetched or told on somebody's behalf: by `core.callbacks`, `core.providers`, and by
`objects.web` for each redirect. Else a user could have the server read what he can't reach himself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host; empty when it is not known."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether that address is reached over the internet by anybody: no loopback, link-local or private one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    # An IPv4 address in the clothes of an IPv6 one is judged as what it is.
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (mapped is None or mapped.is_global)
