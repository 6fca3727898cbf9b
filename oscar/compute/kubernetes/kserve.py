"""Model servers by KServe: the `kserve` block of a service as an InferenceService or LLMInferenceService.

Called by `backend` as one of the parts beside the engine. KServe itself runs and routes the server; here are only its
objects. Tested against the schemas that KServe publishes, not against its controller. The objects are pure functions.
"""

from __future__ import annotations

from typing import Any

from oscar.compute.kubernetes.cluster import Cluster
from oscar.compute.kubernetes.kinds import INFERENCE_SERVICE, LLM_SERVICE, Kind
from oscar.compute.kubernetes.names import Names
from oscar.errors import Unsupported
from oscar.model.service import Service
from oscar.model.serving import Kserve

Body = dict[str, Any]

MODEL = "model"
"""Word of the label that says what an object is for."""
_MODE = "serving.kserve.io/deploymentMode"
_MAIN = "main"
"""KServe's name for the container of a language model."""


class Models:
    """The model servers of one installation."""

    def __init__(self, cluster: Cluster, names: Names) -> None:
        """Nothing happens before `start`."""
        self._cluster = cluster
        self._names = names
        self._there: frozenset[Kind] = frozenset()

    async def start(self) -> None:
        """See what the cluster knows."""
        kinds = (INFERENCE_SERVICE, LLM_SERVICE)
        self._there = frozenset([kind for kind in kinds if await self._cluster.serves(kind)])

    async def apply(self, service: Service) -> None:
        """Have the service's model server as its definition says, if it has one."""
        namespace = self._names.namespace_of(service.owner)
        wanted = kind_of(service.kserve) if service.kserve else None
        for kind in self._there:
            if kind is not wanted:
                await self._cluster.delete(kind, service.name, namespace)
        if wanted in self._there and service.kserve:
            await self._cluster.apply(wanted, manifest(self._names, service, service.kserve, namespace))

    async def remove(self, owner: str, name: str) -> None:
        """Remove the service's model server. Silent if absent."""
        for kind in self._there:
            await self._cluster.delete(kind, name, self._names.namespace_of(owner))

    async def follow(self, service: Service) -> None:
        """See `Follows.follow`: nothing of it is this server's own."""

    async def leave(self, owner: str, name: str) -> None:
        """See `Follows.leave`."""

    def check(self, service: Service) -> list[str]:
        """Refuse what the cluster does not know.

        Raises:
            Unsupported: KServe is not installed.
        """
        if service.kserve and kind_of(service.kserve) not in self._there:
            raise Unsupported(
                f"the cluster knows no {kind_of(service.kserve).kind}",
                field="kserve",
                fix="Have KServe installed, or serve the model by an exposed service.",
            )
        return []


def kind_of(block: Kserve) -> Kind:
    """What the block asks for."""
    return LLM_SERVICE if block.type == "llm_inference" else INFERENCE_SERVICE


def manifest(names: Names, service: Service, block: Kserve, namespace: str) -> Body:
    """The object of a service's model server."""
    make = _language_model if block.type == "llm_inference" else _predictor
    return {
        **kind_of(block).head,
        "metadata": {
            "name": service.name,
            "namespace": namespace,
            "labels": names.service_labels(MODEL, service),
            # By a Deployment: KServe's other way needs routes of Knative.
            "annotations": {**service.annotations, _MODE: "RawDeployment"},
        },
        "spec": make(block),
    }


def _predictor(block: Kserve) -> Body:
    inference = block.inference
    assert inference is not None  # noqa: S101 - the model has checked it
    return {
        "predictor": {
            "minReplicas": block.min_scale,
            "maxReplicas": block.max_scale,
            "model": {
                "modelFormat": {"name": inference.model_format},
                **({"runtime": inference.runtime} if inference.runtime else {}),
                "protocolVersion": block.api_version,
                "storageUri": block.storage_uri,
                **_container(block),
            },
        }
    }


def _language_model(block: Kserve) -> Body:
    image = block.llm_inference.runtime_image if block.llm_inference else ""
    return {
        "model": {"uri": block.storage_uri},
        "replicas": block.min_scale,
        "template": {
            "containers": [{"name": _MAIN, **({"image": image} if image else {}), **_container(block)}]
        },
        # Routes and gateway as KServe is configured.
        "router": {"gateway": {}, "route": {}},
    }


def _container(block: Kserve) -> Body:
    limits = {"cpu": block.cpu, "memory": block.memory} | (
        {"nvidia.com/gpu": "1"} if block.enable_gpu else {}
    )
    requests = {"cpu": block.cpu, "memory": block.memory}
    return {
        **({"args": block.args} if block.args else {}),
        **(
            {"env": [{"name": name, "value": value} for name, value in block.env.items()]}
            if block.env
            else {}
        ),
        "resources": {"limits": limits, "requests": requests},
    }
