"""Model servers by KServe, as far as the API server judges them by the published schemas; KServe itself isn't there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from oscar.compute.kubernetes import kserve
from oscar.compute.kubernetes.cluster import Cluster
from oscar.compute.kubernetes.kinds import INFERENCE_SERVICE, LLM_SERVICE
from oscar.errors import Unsupported
from oscar.model.service import Service
from tests.cluster.cluster import Cluster as RealCluster
from tests.pods import Site

pytestmark = pytest.mark.real

MODEL = {
    "storage_uri": "gs://models/iris",
    "inference": {"model_format": "sklearn"},
    "cpu": "1",
    "memory": "1Gi",
}
LANGUAGE = {"type": "llm_inference", "storage_uri": "hf://Qwen/Qwen3-0.6B", "cpu": "2", "memory": "8Gi"}


def service(block: dict[str, Any] | None) -> Service:
    return Service.model_validate(
        {"name": "iris", "owner": "somebody", "image": "none", "script": "true", "kserve": block}
    )


def test_its_objects_are_taken_and_follow_the_definition(kubernetes: RealCluster, site: Site) -> None:
    kubernetes.add("kserve")

    async def scenario(cluster: Cluster) -> None:
        models = kserve.Models(cluster, site.names)
        with pytest.raises(Unsupported):
            models.check(service(MODEL))
        await models.start()
        assert models.check(service(MODEL)) == []
        namespace = await site.ensure(cluster, "somebody")
        await models.apply(service(MODEL))
        found = await cluster.get(INFERENCE_SERVICE, "iris", namespace)
        assert found is not None
        # Fields that the schema does not know would have been dropped.
        wanted = service(MODEL)
        assert wanted.kserve is not None
        assert found["spec"] == kserve.manifest(site.names, wanted, wanted.kserve, namespace)["spec"]
        await models.apply(service(LANGUAGE))
        assert await cluster.get(INFERENCE_SERVICE, "iris", namespace) is None
        found = await cluster.get(LLM_SERVICE, "iris", namespace)
        assert found is not None
        assert found["spec"]["model"] == {"uri": "hf://Qwen/Qwen3-0.6B"}
        await models.apply(service(None))
        assert await cluster.get(LLM_SERVICE, "iris", namespace) is None
        await models.remove("somebody", "iris")

    async def run() -> None:
        cluster = site.cluster()
        try:
            await scenario(cluster)
        finally:
            await cluster.close()
            await site.clean()

    asyncio.run(run())
