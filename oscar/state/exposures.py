"""Whether an exposed service is stopped, and how often it was restarted: what users did beside its definition.

Called by `core.deployments` and `core.exposed`. A service without a row was neither stopped nor restarted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from oscar.state.store import Store, now_ms
from oscar.state.tables import exposures


@dataclass(frozen=True, slots=True)
class ExposureRow:
    """What users did; `changed` is Unix milliseconds, 0 for never."""

    stopped: bool = False
    restarts: int = 0
    changed: int = 0


class Exposures:
    """Statements on exposures; each verb is one transaction."""

    def __init__(self, store: Store) -> None:
        """Work on that Store."""
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def all(self) -> dict[str, ExposureRow]:
        """All of them by the service's id."""
        query = sa.select(exposures)

        def work(connection: sa.Connection) -> dict[str, ExposureRow]:
            return {row.service_id: _row(row) for row in connection.execute(query)}

        return await self._store.read(work)

    async def get(self, service_id: str) -> ExposureRow:
        """That of one service."""
        query = sa.select(exposures).where(exposures.c.service_id == service_id)

        def work(connection: sa.Connection) -> ExposureRow:
            row = connection.execute(query).first()
            return _row(row) if row else ExposureRow()

        return await self._store.read(work)

    async def set_stopped(self, service_id: str, *, stopped: bool) -> ExposureRow:
        """Note that it is stopped, or no longer."""
        return await self._upsert(service_id, {"stopped": stopped}, {"stopped": stopped})

    async def restart(self, service_id: str) -> ExposureRow:
        """Count a restart; a stopped service goes on with it."""
        changes = {"stopped": False, "restarts": exposures.c.restarts + 1}
        return await self._upsert(service_id, {"stopped": False, "restarts": 1}, changes)

    async def _upsert(self, service_id: str, first: dict[str, Any], later: dict[str, Any]) -> ExposureRow:
        statement = (
            self._insert(exposures)
            .values(service_id=service_id, changed=now_ms(), **first)
            .on_conflict_do_update(index_elements=["service_id"], set_={**later, "changed": now_ms()})
            .returning(exposures)
        )
        return await self._store.write(lambda connection: _row(connection.execute(statement).one()))


def _row(row: Any) -> ExposureRow:
    return ExposureRow(bool(row.stopped), row.restarts, row.changed)
