"""The resources of KServe, without KServe: its controllers can't be had here, so the API server alone judges.

The schemas are written after the published ones (v1beta1 of InferenceService, v1alpha1 and v1alpha2 of
LLMInferenceService), as far as a service can ask for; what pods and containers may hold is taken from the API server's
own description of itself. A test that acts as KServe writes `status`.
"""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.addons.manifests import define
from tests.cluster.cluster import Cluster

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "format": "int32"}
LARGE: Schema = {"type": "integer", "format": "int64"}
FLAG: Schema = {"type": "boolean"}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
ANYTHING: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
NAMED: Schema = {"type": "object", "properties": {"name": TEXT}}
# What a schema of the API server may keep in a resource's definition.
KEPT = {"type", "format", "properties", "items", "additionalProperties", "required", "enum", "nullable"}


def definitions(cluster: Cluster) -> dict[str, Schema]:
    """The API server's schemas of core/v1 by their names."""
    found: dict[str, Schema] = json.loads(cluster.kubectl("get", "--raw", "/openapi/v3/api/v1"))
    return {name.rpartition(".")[2]: it for name, it in found["components"]["schemas"].items()}


def plain(schema: Schema, known: dict[str, Schema]) -> Schema:
    """A schema with all it refers to written out."""
    reference = schema.get("$ref") or (schema.get("allOf") or [{}])[0].get("$ref")
    if reference:
        name = reference.rpartition(".")[2]
        if name in {"Quantity", "IntOrString"}:
            return {"x-kubernetes-int-or-string": True}
        return plain(known[name], known)
    found = {key: value for key, value in schema.items() if key in KEPT}
    if "properties" in found:
        found["properties"] = {key: plain(value, known) for key, value in found["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = plain(found[key], known)
    return found


def fields(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object with these fields."""
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def inference(pod: Schema, container: Schema) -> Schema:
    """The spec of an InferenceService."""
    component = {
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "scaleTarget": COUNT,
        "scaleMetric": {"type": "string", "enum": ["cpu", "memory", "concurrency", "rps"]},
        "containerConcurrency": LARGE,
        "timeout": LARGE,
        "canaryTrafficPercent": LARGE,
        "labels": WORDS,
        "annotations": WORDS,
        "logger": ANYTHING,
        "batcher": ANYTHING,
        "deploymentStrategy": ANYTHING,
        "autoScaling": ANYTHING,
    }
    storage = fields(path=TEXT, key=TEXT, schemaPath=TEXT, parameters=WORDS)
    model = fields(
        ("modelFormat",),
        **container["properties"],
        modelFormat=fields(("name",), name=TEXT, version=TEXT),
        runtime=TEXT,
        protocolVersion=TEXT,
        storageUri=TEXT,
        storage=storage,
    )
    predictor = fields(**component, **pod["properties"], model=model, workerSpec=ANYTHING)
    other = fields(**component, **pod["properties"])
    return fields(("predictor",), predictor=predictor, transformer=other, explainer=ANYTHING)


def language_model(pod: Schema) -> Schema:
    """The spec of an LLMInferenceService."""
    lora = fields(
        adapters={"type": "array", "items": ANYTHING}, maxRank=COUNT, maxAdapters=COUNT, maxCpuAdapters=COUNT
    )
    criticality = {"type": "string", "enum": ["Critical", "Standard", "Sheddable"]}
    workload = {
        "replicas": COUNT | {"minimum": 0},
        "scaling": ANYTHING,
        "parallelism": fields(
            tensor=COUNT, pipeline=COUNT, data=COUNT, dataLocal=COUNT, dataRPCPort=COUNT, expert=FLAG
        ),
        "labels": WORDS,
        "annotations": WORDS,
        "template": pod,
        "worker": pod,
        "rolloutStrategy": ANYTHING,
    }
    router = fields(
        route=fields(http=ANYTHING, group=TEXT, weight=COUNT),
        gateway=fields(refs={"type": "array", "items": ANYTHING}),
        ingress=fields(refs={"type": "array", "items": ANYTHING}),
        scheduler=ANYTHING,
    )
    return fields(
        ("model",),
        **workload,
        model=fields(("uri",), uri=TEXT, name=TEXT, criticality=criticality, lora=lora),
        runtime=TEXT,
        trustRemoteCode=FLAG,
        storageInitializer=fields(enabled=FLAG),
        router=router,
        prefill=fields(**workload),
        tracing=ANYTHING,
        baseRefs={"type": "array", "items": NAMED},
    )


def resource(kind: str, short: str, spec: Schema, *versions: str) -> dict[str, Any]:
    """A definition whose last version is the stored one."""
    plural = f"{kind.lower()}s"
    schema = fields(
        ("spec",), apiVersion=TEXT, kind=TEXT, metadata={"type": "object"}, spec=spec, status=ANYTHING
    )
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.serving.kserve.io"},
        "spec": {
            "group": "serving.kserve.io",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "shortNames": [short]},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": version == versions[-1],
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }
                for version in versions
            ],
        },
    }


def install(cluster: Cluster) -> None:
    """Let the API server know the resources."""
    known = definitions(cluster)
    pod = plain(known["PodSpec"], known)
    # A component's pod is laid over the one of a runtime, so it may lack what a pod must have.
    pod.pop("required", None)
    container = plain(known["Container"], known)
    container.pop("required", None)
    define(
        cluster,
        [
            resource("InferenceService", "isvc", inference(pod, container), "v1beta1"),
            resource("LLMInferenceService", "llmisvc", language_model(pod), "v1alpha2", "v1alpha1"),
        ],
    )
