"""What the installation is: info, configuration, status.

Called by `api.system`; calls `core.users` for the caller's S3 keys and the engine for its words and capacity.
"""

from __future__ import annotations

import platform as machine
from typing import Any

import oscar
from oscar.auth.rules import require_user
from oscar.core import users
from oscar.core.platform import Platform
from oscar.model.job import FINAL, JobState
from oscar.model.user import Caller


async def info(p: Platform) -> dict[str, Any]:
    """The installation as `types.Info` of the API; `serverless_backend` names the engine."""
    return {
        "version": oscar.__version__,
        "git_commit": "",
        "architecture": machine.machine(),
        "kubernetes_version": "",
        "serverless_backend": {"name": "embedded", "version": p.compute.describe()},
    }


async def config(p: Platform, caller: Caller) -> dict[str, Any]:
    """The configuration with the caller's own S3 keys, as `types.ConfigForUser` of the API."""
    require_user(caller)
    keys = await users.credential(p, caller)
    capacity = await p.compute.capacity()
    settings = p.settings
    return {
        "config": {
            "name": settings.name,
            "namespace": settings.namespace,
            "services_namespace": settings.services_namespace,
            "gpu_available": capacity.gpu > 0,
            "interLink_available": False,
            "kueue_enable": False,
            "yunikorn_enable": False,
            "minio_quota_enabled": False,
            "volume_enable": False,
            "oidc_groups": list(settings.oidc_groups),
            "serverless_backend": "embedded",
        },
        "minio_provider": {
            "endpoint": p.store.endpoint,
            "region": p.store.region,
            "verify": p.store.verify,
            "access_key": keys.access_key,
            "secret_key": keys.secret_key,
        },
        "allowed_image_repositories": [],
    }


async def status(p: Platform) -> dict[str, Any]:
    """Capacity, jobs and objects as `types.StatusInfo` of the API, this machine being the one node."""
    capacity = await p.compute.capacity()
    counts = await p.jobs.counts()
    buckets = await p.buckets.buckets()
    usages = [await p.buckets.usage(bucket.name) for bucket in buckets]
    node = {
        "name": machine.node(),
        "status": "Ready",
        "conditions": [{"type": "Ready", "status": True}],
        "is_interlink": False,
        "gpu": capacity.gpu,
        "cpu": {"capacity_cores": capacity.cpu, "usage_cores": capacity.cpu - capacity.cpu_free},
        "memory": {"capacity_bytes": capacity.memory, "usage_bytes": capacity.memory - capacity.memory_free},
    }
    active = sum(
        count for state, count in counts.items() if state not in FINAL and state is not JobState.QUEUED
    )
    return {
        "cluster": {
            "nodes_count": 1,
            "nodes": [node],
            "metrics": {
                "cpu": {
                    "total_free_cores": capacity.cpu_free,
                    "max_free_on_node_cores": capacity.cpu_free,
                    "total_schedulable_cores": capacity.cpu,
                    "total_schedulable_on_node_cores": capacity.cpu,
                },
                "memory": {
                    "total_free_bytes": capacity.memory_free,
                    "max_free_on_node_bytes": capacity.memory_free,
                    "total_schedulable_bytes": capacity.memory,
                    "max_schedulable_on_node_bytes": capacity.memory,
                },
                "gpu": {"total_gpu": capacity.gpu},
            },
        },
        "oscar": {
            "deployment_name": p.settings.name,
            "ready": True,
            "jobs_count": sum(counts.values()),
            "pods": {"total": active, "states": {state.value: count for state, count in counts.items()}},
            "oidc": {
                "enabled": p.settings.oidc_enable,
                "issuers": list(p.settings.oidc_issuers),
                "groups": list(p.settings.oidc_groups),
            },
        },
        "minio": {
            "buckets_count": len(buckets),
            "total_objects": sum(usage.objects for usage in usages),
        },
    }
