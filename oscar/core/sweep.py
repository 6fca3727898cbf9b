"""Looking through input folders for objects that nobody reported, and keeping a store of its own as it should be.

Started by `app.lifespan` when the objects are in a MinIO; `core.object_events` makes the jobs. MinIO loses an event
when it crashes between storing an object and writing the event down; a store without notifications reports none. An
object that a listing shows and a report about it have the same key, so each is one job whichever comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence

from oscar import telemetry
from oscar.core.object_events import Written, distinct, jobs_of, prune
from oscar.core.platform import Platform
from oscar.errors import BucketNotFound, ObjectNotFound, OscarError
from oscar.model.event import matches, minio_event
from oscar.model.object import Object
from oscar.model.producer import HOPS_METADATA, PRODUCER_METADATA
from oscar.model.record import TRACE_METADATA, as_written, is_partial, written_key
from oscar.objects.base import Found, Upkeep
from oscar.state.events import Input

log = telemetry.get("sweep")

OVERLAP_MS = 15 * 60_000
"""What was written so shortly before a look is looked at again by the next: clocks differ, uploads take time."""
YOUNG_MS = 60_000
"""So old an object is before its report counts as lost: a report tells who wrote it, a listing doesn't."""
_BATCH = 500
_PAUSES = 20
"""A look at a folder pauses for at least so many times what it took, however short the interval is."""
_AGAIN_S = 5.0


async def keep(p: Platform, upkeep: Upkeep) -> None:
    """Sweep, reconcile and prune at their intervals until cancelled, as long as this server leads."""
    await asyncio.gather(
        _every(p, p.settings.reconcile, lambda: _reconcile(p, upkeep), "reconcile", at_once=True),
        _every(p, p.settings.sweep, lambda: Sweep(p, upkeep).look(), "sweep", at_once=_listed(p)),
        _every(p, 3600.0, lambda: prune(p), "prune", at_once=False),
    )


def _listed(p: Platform) -> bool:
    return p.settings.store_events == "listing"


async def _every(
    p: Platform, seconds: float, work: Callable[[], Awaitable[object]], name: str, *, at_once: bool
) -> None:
    if not seconds:
        return
    if not at_once:
        await asyncio.sleep(seconds)
    while True:
        wait = seconds
        if p.leader.mine:
            began = time.monotonic()
            try:
                await work()
            except OscarError as error:
                log.warning(name, trouble=error.message)
                wait = min(seconds, _AGAIN_S)
            except Exception:
                # A bug must not end what all others rely on: said loudly, begun again.
                log.exception(name)
            wait = max(wait, _PAUSES * (time.monotonic() - began)) if name == "sweep" else wait
            await asyncio.sleep(wait)
        else:
            p.leader.changed.clear()
            await _heard(p.leader.changed, seconds)


async def _heard(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _reconcile(p: Platform, upkeep: Upkeep) -> None:
    inputs = await p.events.inputs()
    await upkeep.reconcile({each.listener.bucket for each in inputs})


class Sweep:
    """One look through all input folders."""

    def __init__(self, p: Platform, upkeep: Upkeep) -> None:
        """Look for that platform; `upkeep` tells the metadata of objects."""
        self._p = p
        self._upkeep = upkeep
        self._young = 0 if _listed(p) else YOUNG_MS

    async def look(self) -> int:
        """Look; how many jobs were made."""
        made = 0
        for (bucket, prefix), inputs in distinct(await self._p.events.inputs()).items():
            try:
                made += await self._folder(bucket, prefix, inputs)
            except BucketNotFound:
                log.warning("an input's bucket is gone", bucket=bucket)
        if made:
            log.info("objects found that were not reported", jobs=made)
            self._p.signals.work.set()
        return made

    async def _folder(self, bucket: str, prefix: str, inputs: Sequence[Input]) -> int:
        began = await self._p.events.now()
        since = min(each.since for each in inputs)
        made = 0
        batch: list[Found] = []
        async for found in self._p.objects.list(bucket, f"{prefix}/" if prefix else ""):
            if since <= found.modified <= began - self._young and _is_file(prefix, found.key):
                batch.append(found)
            if len(batch) == _BATCH:
                made += await self._found(bucket, batch, inputs)
                batch = []
        made += await self._found(bucket, batch, inputs)
        await self._p.events.looked(inputs, began - OVERLAP_MS - self._young)
        return made

    async def _found(self, bucket: str, batch: Sequence[Found], inputs: Sequence[Input]) -> int:
        keys = {
            (found.key, each.listener.service_id): written_key(
                each.listener.service_id, bucket, found.key, found.modified
            )
            for found in batch
            for each in inputs
            if each.since <= found.modified
        }
        known = await self._p.events.known(list(keys.values()))
        made = 0
        for found in batch:
            missing = [
                each
                for each in inputs
                if keys.get((found.key, each.listener.service_id), "") not in {"", *known}
            ]
            if missing:
                made += await self._one(bucket, found, missing)
        return made

    async def _one(self, bucket: str, found: Found, missing: Sequence[Input]) -> int:
        try:
            now, metadata = await self._upkeep.metadata(bucket, found.key)
        except ObjectNotFound:
            return 0
        if now.etag != found.etag or now.modified // 1000 != found.modified // 1000:
            # Written again meanwhile: that is another event.
            return 0
        owner = await self._p.buckets.bucket(bucket)
        obj = Object(
            bucket=bucket,
            key=found.key,
            generation=as_written(found.modified),
            size=found.size,
            etag=found.etag,
            modified=found.modified,
            metadata=metadata,
            owner=owner.owner if owner else "",
        )
        text = metadata.get(HOPS_METADATA, "")
        written = Written(
            bucket=bucket,
            key=found.key,
            payload=json.dumps(
                minio_event(obj, region=self._p.settings.minio_region),
                ensure_ascii=False,
                separators=(",", ":"),
            ).encode(),
            user=obj.owner or None,
            hops=int(text) if text.isdigit() else 0,
            job=metadata.get(PRODUCER_METADATA, ""),
            trace=metadata.get(TRACE_METADATA, ""),
            modified=found.modified,
        )
        return await self._p.events.record(await jobs_of(self._p, written, missing), [])


def _is_file(prefix: str, key: str) -> bool:
    return matches(prefix, key) and not is_partial(key.rpartition("/")[2])
