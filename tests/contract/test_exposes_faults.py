"""What goes wrong around exposed services on a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from oscar.compute.base import Exposure
from oscar.compute.kubernetes.cluster import Cluster, News
from oscar.compute.kubernetes.exposed import PodExposes
from oscar.compute.kubernetes.exposed_manifests import EXPOSED, USER
from oscar.compute.kubernetes.kinds import DEPLOYMENT, POD, Kind
from oscar.compute.kubernetes.observed import has_run
from tests import pods
from tests.contract.test_exposes import OWNER, PodPlace, ready

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def place(site: pods.Site, tmp_path: Path) -> PodPlace:
    return PodPlace("kubernetes", tmp_path, pods.BUSYBOX, None, cpu=pods.CPU, site=site)


@pytest.mark.brief
def test_nobody_waits_for_a_pod_that_was_told_to_go(place: PodPlace, logged: Callable[[], str]) -> None:
    """It takes all its time for that, and this server may not have heard of it yet."""

    async def scenario(_: object) -> None:
        async with place.serve() as exposes:
            assert isinstance(exposes, PodExposes)
            await exposes.expose(Exposure(place.service()))
            [replica] = await ready(exposes)
            watches = list(exposes._tasks)
            for watch in watches:
                watch.cancel()
            await asyncio.wait(watches)
            await pods.kill_pod(place.there, replica.name, grace=None)
            await exposes.unexpose(OWNER, "web")
        assert "do not end" not in logged()

    place.live(scenario)


@pytest.mark.brief
def test_no_replica_of_a_service_that_is_deleted_takes_its_time(place: PodPlace) -> None:
    """The cluster ends pods whose Deployment is gone, and would let them wait for requests that nobody sends."""

    async def scenario(_: object) -> None:
        async with place.serve(drain=60) as exposes:
            assert isinstance(exposes, PodExposes)
            await exposes.expose(Exposure(place.service(expose={"min_scale": 4, "max_scale": 4})))
            await ready(exposes, 4)
            await exposes.unexpose(OWNER, "web")
            labels = place.there.names.selector(EXPOSED, service="web")
            left = await exposes._cluster.items(POD, labels=labels)
        # What was made in their place before the Deployment was gone does not start.
        assert [pod["metadata"] for pod in left if has_run(pod, USER)] == []

    place.live(scenario)


def test_what_belongs_to_no_service_is_removed_whatever_is_listed_first(
    place: PodPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Cluster.follow
    pods_known = asyncio.Event()

    async def late(self: Cluster, kind: Kind, *args: Any, **how: Any) -> AsyncIterator[News]:
        if kind is DEPLOYMENT:
            await pods_known.wait()
        async for news in follow(self, kind, *args, **how):
            yield news
            if kind is POD:
                pods_known.set()

    async def scenario(_: object) -> None:
        async with place.serve() as exposes:
            await exposes.expose(Exposure(place.service()))
            [replica] = await ready(exposes)
        monkeypatch.setattr(Cluster, "follow", late)
        async with place.serve() as exposes:
            await exposes.keep([])
            await place.gone(replica)

    place.live(scenario)
