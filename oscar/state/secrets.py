"""Sealing of secrets at rest: AEAD with key ids, so that the key can be rotated.

Used by `state.services`, `state.objects` and `state.jobs`. The key comes from `OSCAR_SECRET_KEY` (comma-separated,
newest first) or from a file of the data folder that only the server's user can read.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oscar.errors import OscarError
from oscar.settings import kept_secret

_NONCE = 12
_ID = 4


class SealError(OscarError):
    """A stored secret can't be opened: the key that sealed it is not in OSCAR_SECRET_KEY."""

    code = "seal_error"


class Sealer:
    """Seals with the first key, opens with any of them.

    A sealed value is `key id (4 bytes) + nonce (12) + AES-256-GCM ciphertext`; the purpose is authenticated, so
    that a value can't be moved to another column.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        """Derive one 256-bit key from each text; the first seals."""
        derived = [
            hashlib.blake2b(key.encode(), digest_size=32, person=b"oscar-seal").digest() for key in keys
        ]
        self._keys = {hashlib.blake2b(key, digest_size=_ID).digest(): AESGCM(key) for key in derived}
        self._first = next(iter(self._keys))
        self._mac_keys = [
            hashlib.blake2b(key, digest_size=32, person=b"oscar-mac").digest() for key in derived
        ]

    def seal(self, secret: bytes, purpose: str) -> bytes:
        """Encrypt a secret for one purpose (the column it goes to)."""
        nonce = os.urandom(_NONCE)
        return self._first + nonce + self._keys[self._first].encrypt(nonce, secret, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """Decrypt. Raises SealError when no key fits or the value was tampered with."""
        key = self._keys.get(sealed[:_ID])
        if key is None:
            raise SealError(fix="add the earlier key behind the present one in OSCAR_SECRET_KEY")
        try:
            return key.decrypt(sealed[_ID : _ID + _NONCE], sealed[_ID + _NONCE :], purpose.encode())
        except InvalidTag as error:
            raise SealError("A stored secret is damaged") from error

    def stale(self, sealed: bytes) -> bool:
        """Whether it was sealed by an older key and wants to be sealed anew."""
        return sealed[:_ID] != self._first

    def macs(self, token: str) -> list[bytes]:
        """Look-up values of a token, one per key, the present key's first."""
        return [hmac.digest(key, token.encode(), "sha256") for key in self._mac_keys]


def load_keys(setting: str | None, file: Path) -> list[str]:
    """The keys of the setting, else of the file, which is made (mode 0600) when absent."""
    if setting:
        keys = [key.strip() for key in setting.split(",") if key.strip()]
        if keys:
            return keys
    return kept_secret(file, 32).split()
