"""What a Job and its pod say about a run: phase, trouble, and whether it can still come to anything. Pure.

Called by `backend` for each change. The Job carries our own decisions (a cancellation, a timeout) as an annotation,
made before its pod is ended or in one change with the deadline that ends it, so that they outlive this server.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from oscar.compute.base import Phase, RunState
from oscar.compute.kubernetes.manifests import END, STAGE_IN, STAGE_OUT, TIMEOUT, USER
from oscar.compute.kubernetes.names import RUN
from oscar.model.trouble import Trouble
from oscar.supervisor.order import STARTED_TWICE, TWICE_CODE, report_of

Body = dict[str, Any]

_HOPELESS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""Reasons of the kubelet for a container that does not start; it would try for ever, our queue knows when to stop."""
_REFUSED = frozenset({"StartError", "ContainerCannotRun"})
_UNKNOWN = "ContainerStatusUnknown"
_OOM = "OOMKilled"


@dataclass(frozen=True, slots=True)
class End:
    """Why we ended a run, as it is written on its Job."""

    trouble: Trouble
    message: str
    started: int | None = None

    def as_text(self) -> str:
        """As an annotation."""
        return json.dumps({"trouble": self.trouble, "message": self.message, "started": self.started})


def end_of(job: Body) -> End | None:
    """Our own decision about the run, None when there is none."""
    text = _annotations(job).get(END)
    if not text:
        return None
    said = json.loads(text)
    return End(Trouble(said["trouble"]), said["message"], said["started"])


def half_ended(job: Body) -> End | None:
    """Our own decision about a run that its Job does not carry out yet: the server that made it may be gone."""
    return end_of(job) if "activeDeadlineSeconds" not in job["spec"] else None


def run_of(job: Body) -> str:
    """The run's name."""
    return str(_annotations(job).get(RUN, job["metadata"]["name"]))


def timeout_of(job: Body) -> float | None:
    """Seconds that the script may run."""
    text = _annotations(job).get(TIMEOUT)
    return float(text) if text else None


def state(job: Body, pod: Body | None, *, gone: bool = False) -> RunState:
    """How the run does.

    Args:
        job: as it is, or was last.
        pod: its pod as it is, or was last; None when there has been none yet, or nobody saw it.
        gone: the pod was removed, by somebody else than us, and its Job too or it is suspended: no other pod counts.
    """
    found = _state(job, pod, gone=gone)
    if found.phase is not Phase.DONE or found.started is None:
        return found
    ended = _time(_of(_container(pod, USER), "terminated").get("finishedAt"))
    return replace(found, gpu=_gpus(job), ended=ended)


def _state(job: Body, pod: Body | None, *, gone: bool) -> RunState:
    name = run_of(job)
    script = _container(pod, USER)
    started = _time(_of(script, "running").get("startedAt") or _of(script, "terminated").get("startedAt"))
    finished = _last(pod) or _ended_at(job)
    if _condition(job, "Complete") or (pod is not None and pod["status"].get("phase") == "Succeeded"):
        return RunState(name, Phase.DONE, None, None, 0, started, finished)
    end = end_of(job)
    failed = _condition(job, "Failed")
    if end is not None:
        # Until the Job has failed its pod may still be ending; one that is suspended has none.
        if failed or gone or (suspended(job) and not job.get("status", {}).get("active")):
            ended = _ended_at(job) or finished or end.started
            return RunState(name, Phase.DONE, end.trouble, end.message, None, end.started, ended)
    elif failed or gone or (pod is not None and pod["status"].get("phase") == "Failed"):
        trouble, message, code = _why(job, pod, gone=gone)
        return RunState(name, Phase.DONE, trouble, message, code, started, finished)
    if _of(script, "terminated"):
        return RunState(name, Phase.SETTLING, started=started)
    if _of(script, "running"):
        return RunState(name, Phase.RUNNING, started=started)
    return RunState(name, Phase.SUBMITTED, held=suspended(job))


def hopeless(pod: Body) -> str | None:
    """The kubelet's own words when a container of the pod can't be started; None while there is hope."""
    for container in _containers(pod):
        waiting = _of(container, "waiting")
        if waiting.get("reason") in _HOPELESS:
            return f"{waiting['reason']}: {waiting.get('message') or container.get('image', '')}"
    return None


def suspended(job: Body) -> bool:
    """Whether a queue of the cluster's holds the run back."""
    return bool(job["spec"].get("suspend"))


def waits(job: Body, pod: Body | None) -> bool:
    """Whether the cluster has no place for the run yet."""
    if suspended(job):
        return True
    if pod is None:
        return True
    return pod["status"].get("phase") == "Pending" and not pod["spec"].get("nodeName")


def has_run(pod: Body | None, container: str) -> bool:
    """Whether the container has started, and so may have a log."""
    found = _container(pod, container)
    return bool(_of(found, "running") or _of(found, "terminated"))


def has_ended(pod: Body | None, container: str) -> bool:
    """Whether the container has ended, or never will start."""
    if pod is None or pod["status"].get("phase") in {"Succeeded", "Failed"}:
        return True
    return bool(_of(_container(pod, container), "terminated"))


def reported_lines(pod: Body | None, container: str) -> Sequence[tuple[str, str]] | None:
    """What a staging container said, when it could tell it in its last message."""
    report = report_of(str(_of(_container(pod, container), "terminated").get("message", "")))
    return report.lines if report else None


# Why it failed.


def _why(job: Body, pod: Body | None, *, gone: bool) -> tuple[Trouble, str, int | None]:
    script = _container(pod, USER)
    ended, begun = _of(script, "terminated"), bool(_of(script, "running") or _of(script, "terminated"))
    succeeded = begun and ended.get("exitCode") == 0
    if words := _disrupted(job, pod, gone=gone):
        # Results that were not stored are trouble of ours; a script that was cut short may have had an effect.
        return Trouble.LOST if _may_have_run(pod) and not succeeded else Trouble.OUR, words, None
    if report := _staging(pod, STAGE_IN):
        return report
    if begun and not succeeded:
        return _judged(job, ended)
    if report := _staging(pod, STAGE_OUT):
        return report
    if pod is not None and gone and not _may_have_run(pod):
        return Trouble.OUR, "removed from the cluster by somebody else before the script started", None
    words = _condition(job, "Failed").get("message") or "it was removed from the cluster by somebody else"
    return Trouble.LOST, f"nobody knows how the script ended: {words}", None


def _judged(job: Body, ended: Body) -> tuple[Trouble, str, int | None]:
    code, reason, words = ended.get("exitCode"), ended.get("reason"), str(ended.get("message") or "")
    if not ended or reason == _UNKNOWN:
        return Trouble.LOST, f"nobody knows how the script ended: {words or 'its pod is gone'}", None
    if reason in _REFUSED:
        return Trouble.OUR, f"the container can't be started: {words}", None
    if code == TWICE_CODE and words.strip() == STARTED_TWICE:
        return Trouble.LOST, "the pod was started a second time; the script was not", None
    if reason == _OOM:
        return Trouble.SCRIPT, f"killed: out of memory (limit {_limit(job)})", code
    return Trouble.SCRIPT, f"the script ended with exit code {code}", code


def _staging(pod: Body | None, container: str) -> tuple[Trouble, str, None] | None:
    ended = _of(_container(pod, container), "terminated")
    if not ended or ended.get("exitCode") == 0:
        return None
    report = report_of(str(ended.get("message") or ""))
    if report and report.trouble:
        return report.trouble, report.message, None
    words = f"{container} ended with exit code {ended.get('exitCode')} ({ended.get('reason')})"
    if ended.get("reason") == _UNKNOWN and container == STAGE_IN:
        return Trouble.OUR, "its node lost the pod before the script started", None
    return Trouble.OUR, words, None


def _disrupted(job: Body, pod: Body | None, *, gone: bool) -> str | None:
    """Why the cluster took the pod away, None when it did not."""
    if pod is not None:
        status = pod["status"]
        if status.get("reason") == "Evicted":
            return f"evicted: {status.get('message') or 'its node was short of something'}"
        for condition in status.get("conditions") or ():
            if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                return f"evicted: {condition.get('message') or condition.get('reason')}"
        if status.get("reason") in {"NodeLost", "NodeShutdown"}:
            return f"its node was lost: {status.get('message') or status['reason']}"
        if _taken_back(job, pod, gone=gone):
            return "evicted: its place was taken back, the Job was suspended"
    failed = _condition(job, "Failed")
    if failed.get("reason") == "PodFailurePolicy":
        return f"evicted: {failed.get('message')}"
    return None


def _taken_back(job: Body, pod: Body, *, gone: bool) -> bool:
    """Whether the Job was suspended after it had its pod, as Kueue does when a queue is stopped or has less."""
    if suspended(job):
        return gone or bool(pod["metadata"].get("deletionTimestamp"))
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] == "Suspended" and condition["status"] == "False":
            resumed, made = (
                _time(condition.get("lastTransitionTime")),
                _time(pod["metadata"].get("creationTimestamp")),
            )
            return resumed is not None and made is not None and resumed > made
    return False


def _may_have_run(pod: Body | None) -> bool:
    """Whether the script may have started: certain only where the kubelet said that it waits."""
    if pod is None:
        return True
    if not pod["spec"].get("nodeName"):
        return False
    if _of(_container(pod, USER), "waiting"):
        # The kubelet's last word when it brought the pod to its end; an old one when others removed it without it.
        return pod["status"].get("phase") != "Failed" or _collected(pod)
    return True


def _collected(pod: Body) -> bool:
    """Whether the pod was declared dead without its kubelet, because the node is gone."""
    return any(each.get("reason") == "DeletionByPodGC" for each in pod["status"].get("conditions") or ())


# Parts of objects.


def _annotations(item: Body) -> dict[str, str]:
    return item["metadata"].get("annotations") or {}


def _condition(job: Body, kind: str) -> Body:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            return dict(condition)
    return {}


def _containers(pod: Body) -> list[Body]:
    status = pod["status"]
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _container(pod: Body | None, name: str) -> Body:
    if pod is None:
        return {}
    return next((each for each in _containers(pod) if each["name"] == name), {})


def _of(container: Body, state_: str) -> Body:
    return (container.get("state") or {}).get(state_) or {}


def _limits(job: Body) -> Body:
    for container in job["spec"]["template"]["spec"]["initContainers"]:
        if container["name"] == USER:
            return container.get("resources", {}).get("limits") or {}
    return {}


def _limit(job: Body) -> str:
    return str(_limits(job).get("memory", "?"))


def _gpus(job: Body) -> int:
    """GPUs that the script had for itself."""
    return int(_limits(job).get("nvidia.com/gpu", 0))


def _last(pod: Body | None) -> int | None:
    """When the last container ended."""
    if pod is None:
        return None
    times = [_time(_of(each, "terminated").get("finishedAt")) for each in _containers(pod)]
    return max((at for at in times if at is not None), default=None)


def _ended_at(job: Body) -> int | None:
    done = _condition(job, "Complete") or _condition(job, "Failed")
    return _time(done.get("lastTransitionTime"))


def _time(text: str | None) -> int | None:
    """A time of the API (RFC 3339) in Unix milliseconds."""
    if not text:
        return None
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)
