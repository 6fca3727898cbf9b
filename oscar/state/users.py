"""Rows of users and their S3 keys; keys are sealed.

Called by `core.users`; `state.objects` reads credentials for the S3 server.
"""

from __future__ import annotations

import re
import secrets

import sqlalchemy as sa

from oscar.model.object import Credential
from oscar.state.store import Store, now_ms
from oscar.state.tables import credentials, users

PURPOSE = "credentials.secret"


class Users:
    """Statements on users."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store

    async def ensure(self, user: str, *, name: str = "") -> bool:
        """Have a row of the user; True when it is new."""

        def work(connection: sa.Connection) -> bool:
            if connection.execute(sa.select(users.c.id).where(users.c.id == user)).first():
                return False
            connection.execute(users.insert().values(id=user, name=name, created=now_ms()))
            return True

        return await self._store.write(work)

    async def credential_of(self, user: str, *, admin: bool = False) -> Credential:
        """The user's key pair, made when absent: the access key is the user's id where that is fit for one."""
        query = sa.select(credentials).where(credentials.c.user == user).order_by(credentials.c.created)

        def work(connection: sa.Connection) -> Credential:
            row = connection.execute(query).first()
            if row is not None:
                secret = self._store.sealer.open(row.secret_sealed, PURPOSE).decode()
                return Credential(row.access_key, secret, row.user, row.admin)
            taken = sa.select(credentials.c.access_key).where(credentials.c.access_key == user)
            fit = re.fullmatch(r"[A-Za-z0-9@._|-]{3,128}", user) is not None
            access = user if fit and not connection.execute(taken).first() else secrets.token_hex(10)
            secret = secrets.token_hex(20)
            connection.execute(
                credentials.insert().values(
                    access_key=access,
                    secret_sealed=self._store.sealer.seal(secret.encode(), PURPOSE),
                    user=user,
                    admin=admin,
                    created=now_ms(),
                )
            )
            return Credential(access, secret, user, admin)

        known = await self._store.read(lambda connection: connection.execute(query).first())
        if known is not None:
            secret = self._store.sealer.open(known.secret_sealed, PURPOSE).decode()
            return Credential(known.access_key, secret, known.user, known.admin)
        return await self._store.write(work)

    async def set_credential(self, credential: Credential) -> None:
        """Make this the user's only key pair (the administrator's keys come from the settings)."""

        def work(connection: sa.Connection) -> None:
            connection.execute(credentials.delete().where(credentials.c.user == credential.user))
            connection.execute(
                credentials.insert().values(
                    access_key=credential.access_key,
                    secret_sealed=self._store.sealer.seal(credential.secret_key.encode(), PURPOSE),
                    user=credential.user,
                    admin=credential.admin,
                    created=now_ms(),
                )
            )

        await self._store.write(work)
