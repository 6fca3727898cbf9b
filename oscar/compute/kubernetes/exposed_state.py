"""How an exposed service does, read off its Deployment and its pods; and which pods take requests.

Called by `exposed`. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from oscar.compute.base import DeploymentState
from oscar.compute.kubernetes.exposed_manifests import USER

Body = dict[str, Any]

_BAD = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


def takes_requests(pod: Body) -> bool:
    """Whether the pod is ready, and is not to end."""
    return (
        not is_leaving(pod)
        and bool(address(pod))
        and any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod["status"].get("conditions", ())
        )
    )


def is_leaving(pod: Body) -> bool:
    """Whether it is to end."""
    return "deletionTimestamp" in pod["metadata"]


def address(pod: Body) -> str:
    """Where it listens; empty before it has one."""
    return str(pod.get("status", {}).get("podIP", ""))


def failure(pod: Body) -> str:
    """What is wrong with a pod that can't serve; empty while nothing is."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        return str(status.get("message") or status.get("reason") or "its pod failed")
    for each in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = each.get("state", {}).get("waiting") or {}
        ended = each.get("state", {}).get("terminated") or (
            each.get("lastState", {}).get("terminated") if not each.get("ready") else None
        )
        if ended and each["name"] == USER:
            return _end(ended)
        if waiting.get("reason") in _BAD:
            return str(waiting.get("message") or waiting["reason"])
    return ""


def _end(ended: Body) -> str:
    how = "was killed for its memory" if ended.get("reason") == "OOMKilled" else "ended"
    lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()]
    return f"the server {how} with code {ended.get('exitCode')}" + (f": {lines[-1][:200]}" if lines else "")


def pending(pod: Body) -> str:
    """Why it does not run yet, in the cluster's words; empty when it does not say."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or "")
    return ""


def state_of(
    deployment: Body | None, pods: Collection[Body], *, stopped: bool
) -> tuple[DeploymentState, str, int, int]:
    """How it does, why, how many replicas take requests, and how many of those wanted don't.

    Args:
        deployment: None when the cluster has none yet.
        pods: of the service, those that are to end included.
        stopped: by a user.
    """
    if stopped:
        return DeploymentState.STOPPED, "Stopped by a user", 0, 0
    wanted = int((deployment or {}).get("spec", {}).get("replicas", 1))
    ready = sum(map(takes_requests, pods))
    missing = max(0, wanted - ready)
    present = [pod for pod in pods if not is_leaving(pod)]
    failures = [words for pod in present if (words := failure(pod))]
    refusal = _refusal(deployment)
    if refusal and len(present) < wanted:
        failures.append(refusal)
    if not ready:
        if failures:
            return DeploymentState.FAILED, f"No replica runs: {failures[0]}", 0, missing
        waits = next((words for pod in present if (words := pending(pod))), "")
        reason = f"{wanted} wanted, none answers yet" + (f": {waits}" if waits else "")
        return DeploymentState.PENDING, reason, 0, missing
    if missing:
        why = f": {failures[0]}" if failures else ""
        return DeploymentState.DEGRADED, f"{ready} of {wanted} replicas take requests{why}", ready, missing
    updated = int((deployment or {}).get("status", {}).get("updatedReplicas", 0))
    if updated < wanted or len(present) > wanted:
        if failures:
            return DeploymentState.DEGRADED, f"The new definition does not run: {failures[0]}", ready, 0
        return DeploymentState.READY, "A new definition is being rolled out", ready, 0
    return DeploymentState.READY, f"{ready} of {wanted} replicas take requests", ready, 0


def _refusal(deployment: Body | None) -> str:
    """Why the cluster makes no pod, a quota for instance."""
    for condition in (deployment or {}).get("status", {}).get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return str(condition.get("message") or "")
    return ""


def changed_at(deployment: Body | None) -> int:
    """When its state changed last as far as the cluster says, in Unix milliseconds; 0 when unknown."""
    times = [
        each["lastTransitionTime"]
        for each in (deployment or {}).get("status", {}).get("conditions", ())
        if each.get("lastTransitionTime")
    ]
    return max((int(datetime.fromisoformat(each).timestamp() * 1000) for each in times), default=0)
