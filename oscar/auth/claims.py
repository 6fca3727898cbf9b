"""What the claims of an OIDC token or of UserInfo say about a person: name and groups. Pure.

Called by `auth.oidc`. Groups are written differently by each provider: EGI Check-in has entitlements (URNs as of
AARC-G002), Keycloak has `group_membership` or `groups`, AI4EOSC has the roles of the realm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from oscar.errors import Unauthorized

_CHALLENGE = {
    "WWW-Authenticate": 'Basic realm="oscar", charset="UTF-8", Bearer realm="oscar", error="invalid_token"'
}
_ENTITLEMENTS = ("eduperson_entitlement", "entitlements")
_MEMBERSHIPS = ("group_membership", "groups")
_EGI_GROUP = "urn:mace:egi.eu:group:"
_NAMES = ("name", "preferred_username", "email")
_LONGEST_NAME = 200


def refusal(message: str, fix: str | None = None, *, genuine: bool = False) -> Unauthorized:
    """A refusal of a bearer token, with the header that RFC 6750 wants.

    Args:
        message: what is wrong, as far as its holder may know.
        fix: what he can do.
        genuine: a trusted issuer has signed it, so nobody has guessed it.
    """
    error = Unauthorized(message, fix=fix, headers=_CHALLENGE)
    error.guess = not genuine
    return error


def groups_of(claims: Mapping[str, Any]) -> frozenset[str]:
    """The groups that the claims name.

    Of an entitlement it is the fifth field of its URN, in lower case: `urn:mace:egi.eu:group:<vo>:role=…#authority`.
    The other names are taken as they are.
    """
    found = {_vo(urn) for claim in _ENTITLEMENTS for urn in _texts(claims.get(claim))}
    found.update(text for claim in _MEMBERSHIPS for text in _texts(claims.get(claim)))
    realm = claims.get("realm_access")
    if isinstance(realm, Mapping):
        found.update(_texts(realm.get("roles")))
    return frozenset(group for group in found if group)


def _vo(urn: str) -> str:
    text = urn.strip().lower()
    if not text.startswith(_EGI_GROUP):
        return ""
    return text.removeprefix(_EGI_GROUP).partition(":")[0].partition("#")[0]


def _texts(value: object) -> Iterator[str]:
    # A provider that knows one value only may send it bare.
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if isinstance(item, str) and item.strip():
            yield item.strip()


def name_of(claims: Mapping[str, Any]) -> str:
    """A name for people to read, "" when the claims have none."""
    for claim in _NAMES:
        value = claims.get(claim)
        if isinstance(value, str) and (shown := "".join(c for c in value if c.isprintable()).strip()):
            return shown[:_LONGEST_NAME]
    return ""


def may_enter(subject: str, groups: Collection[str], *, allowed: Collection[str], always: str) -> bool:
    """Whether a person may use the installation at all.

    Args:
        subject: who it is.
        groups: where he belongs.
        allowed: the groups of `OIDC_GROUPS`.
        always: the subject of `OIDC_SUBJECT`, who needs no group; "" for nobody.
    """
    if always and subject == always:
        return True
    if allowed:
        return not set(allowed).isdisjoint(groups)
    return not always
