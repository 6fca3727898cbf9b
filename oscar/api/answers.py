"""What the routes answer, for the OpenAPI document: names, types and meanings of the fields, as classes.

Called by the other modules of `api`, as `shaped(Bucket)` among a route's `responses`. Answers are made by the core as
dictionaries or text and go out as they are: nothing is checked against these classes at run time, so that a list of a
thousand services costs no more. `tests/api/test_schemathesis.py` compares real answers with them. The names in the
docstrings are those of OSCAR's published description.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


def shaped(model: Any, status: int = 200, words: str = "OK") -> dict[int | str, dict[str, Any]]:
    """The good answer of a route, for its `responses`.

    Args:
        model: a class of this module, a list of one, or any other type.
        status: of the answer.
        words: what it is.
    """
    return {status: {"model": model, "description": words}}


class Warned(BaseModel):
    """What the engine can't honour of a definition."""

    warnings: list[str]


class Accepted(BaseModel):
    """What a body of `POST /job` has made."""

    job_id: str | None = Field(description="null when the body started nothing")
    status: str = Field(description="Pending, a later state when the call was repeated, or Ignored")
    service: str = ""
    jobs: list[str] = Field(default=[], description="When there are several: all of them")


class JobInfo(BaseModel):
    """`types.JobInfo`."""

    status: str = Field(description="Pending, Suspended, Running, Succeeded or Failed")
    creation_time: str = ""
    start_time: str = ""
    finish_time: str = ""


class JobsPage(BaseModel):
    """`types.JobsResponse`."""

    jobs: dict[str, JobInfo] = Field(description="By id, newest first")
    next_page: str = ""
    remaining_jobs: int


class JobDetails(JobInfo):
    """A job with all that is known of it."""

    job_id: str
    service: str
    state: str
    kind: str = Field(description="What started it: api, event, rerun, or delegated: another cluster's job")
    attempt: int
    exit_code: int | None
    reason: str | None
    message: str | None
    user: str
    delegation: dict[str, Any] = Field(
        default={}, description="Which member of the service's federation has the job and why, or why none"
    )


class BucketObject(BaseModel):
    """`utils.MinIOObject`."""

    object_name: str
    size_bytes: int
    last_modified: str
    owner: str


class StorageQuota(BaseModel):
    """`utils.MinIOQuota`."""

    max: str
    max_bytes: int
    source: str


class StorageUsage(BaseModel):
    """`utils.MinIOUsage`."""

    used: str
    used_bytes: int
    objects: int


class Bucket(BaseModel):
    """`utils.MinIOBucket`."""

    bucket_name: str
    visibility: str
    allowed_users: list[str]
    owner: str
    metadata: dict[str, str]
    attribution: str = Field(description="`service:` and its name, or user")
    storage_usage: StorageUsage
    storage_quota: StorageQuota | None = None


class BucketPage(Bucket):
    """`buckets.BucketListResponse`: a bucket with a page of its objects."""

    objects: list[BucketObject]
    returned_items: int
    is_truncated: bool
    next_page: str = ""


class Presigned(BaseModel):
    """`buckets.PresignResponse`."""

    url: str
    method: str
    object_key: str
    operation: str
    headers: dict[str, str] = Field(description="What has to be sent with it")
    expires_at: str


class VolumeAttachment(BaseModel):
    """`types.VolumeAttachmentReference`."""

    service_name: str
    mount_path: str


class VolumePhase(BaseModel):
    """`types.VolumeStatus`."""

    phase: str
    message: str
    attachment_count: int


class Volume(BaseModel):
    """`types.ManagedVolume`."""

    name: str
    namespace: str
    owner_user: str
    pvc_name: str
    size: str
    creation_mode: str
    created_by_service: str
    lifecycle_policy: str
    attachments: list[VolumeAttachment]
    status: VolumePhase


class Amount(BaseModel):
    """`types.QuotaValues`: CPU in millicores, memory in bytes; without `max` there is no limit."""

    used: int
    max: int = 0


class MaxText(BaseModel):
    """`types.MinIOStoragePerBucketQuota`."""

    max: str = ""


class UsedText(BaseModel):
    """`types.MinIOStorageTotalUsage`."""

    used: str


class TextAmount(BaseModel):
    """`types.VolumeQuotaValues`."""

    max: str
    used: str


class BucketQuotas(BaseModel):
    """`types.MinIOQuotaResponse`."""

    buckets: Amount
    storage_per_bucket: MaxText
    storage_total: UsedText


class VolumeQuotas(BaseModel):
    """`types.VolumeQuotaResponse`."""

    disk: TextAmount
    volumes: TextAmount
    max_disk_per_volume: str
    min_disk_per_volume: str


class Quotas(BaseModel):
    """`types.QuotaResponse`."""

    user_id: str
    cluster_queue: str
    resources: dict[str, Amount]
    minio: BucketQuotas
    volumes: VolumeQuotas


class Backend(BaseModel):
    """`types.ServerlessBackendInfo`."""

    name: str
    version: str


class Info(BaseModel):
    """`types.Info`."""

    version: str
    git_commit: str
    architecture: str
    kubernetes_version: str
    serverless_backend: Backend
    features: list[str] = Field(default=[], description="Ours: how servers of this kind know one another")


class Config(BaseModel):
    """`types.Config`."""

    name: str
    namespace: str
    services_namespace: str
    controller_service_account: str
    gpu_available: bool
    interLink_available: bool  # noqa: N815 - its name in the API
    kueue_enable: bool
    yunikorn_enable: bool
    minio_quota_enabled: bool
    volume_enable: bool
    oidc_groups: list[str]
    serverless_backend: str


class OwnStore(BaseModel):
    """`types.MinIOProvider`: the S3 server, with the caller's own keys."""

    endpoint: str
    region: str
    verify: bool
    access_key: str
    secret_key: str


class ConfigForUser(BaseModel):
    """`types.ConfigForUser`."""

    config: Config
    minio_provider: OwnStore
    allowed_image_repositories: list[str]


class CpuMetrics(BaseModel):
    """`types.CPUMetrics`, in millicores."""

    total_free_cores: int
    max_free_on_node_cores: int
    total_schedulable_cores: int
    total_schedulable_on_node_cores: int


class MemoryMetrics(BaseModel):
    """`types.MemoryMetrics`."""

    total_free_bytes: int
    max_free_on_node_bytes: int
    total_schedulable_bytes: int
    max_schedulable_on_node_bytes: int


class GpuMetrics(BaseModel):
    """`types.GPUMetrics`."""

    total_gpu: int


class ClusterMetrics(BaseModel):
    """`types.ClusterMetrics`."""

    cpu: CpuMetrics
    memory: MemoryMetrics
    gpu: GpuMetrics


class NodeResource(BaseModel):
    """`types.NodeResource`: of the CPU the cores, in thousandths; of the memory the bytes."""

    capacity_cores: int = 0
    request_cores: int = 0
    usage_cores: int = 0
    capacity_bytes: int = 0
    request_bytes: int = 0
    usage_bytes: int = 0


class NodeCondition(BaseModel):
    """`types.NodeConditionSimple`."""

    type: str
    status: bool


class Node(BaseModel):
    """`types.NodeDetail`."""

    name: str
    status: str
    is_interlink: bool
    gpu: int
    cpu: NodeResource
    memory: NodeResource
    conditions: list[NodeCondition]


class ClusterStatus(BaseModel):
    """`types.ClusterInfo`."""

    nodes_count: int
    metrics: ClusterMetrics
    nodes: list[Node]


class ServerDeployment(BaseModel):
    """`types.OscarDeployment`."""

    replicas: int
    ready_replicas: int
    available_replicas: int
    creation_timestamp: str
    strategy: str
    labels: dict[str, str]


class JobCounts(BaseModel):
    """`types.PodStates`: jobs by the words for their states."""

    total: int
    states: dict[str, int]


class OidcInfo(BaseModel):
    """`types.OIDCInfo`."""

    enabled: bool
    issuers: list[str]
    groups: list[str]


class Server(BaseModel):
    """`types.OscarInfo`."""

    deployment_name: str
    ready: bool
    deployment: ServerDeployment
    jobs_count: int
    pods: JobCounts
    oidc: OidcInfo


class ObjectCounts(BaseModel):
    """`types.MinioInfo`."""

    buckets_count: int
    total_objects: int


class Status(BaseModel):
    """`types.StatusInfo`."""

    cluster: ClusterStatus
    oscar: Server
    minio: ObjectCounts


class LogEntry(BaseModel):
    """An entry of the server's log; those of calls have all fields."""

    timestamp: str
    raw: str
    status: int = 0
    latency: str = ""
    client_ip: str = ""
    method: str = ""
    path: str = ""
    user: str = ""


class LogPage(BaseModel):
    """A page of the server's log."""

    logs: list[LogEntry]
    next_page: str = ""


class DeploymentStatus(BaseModel):
    """`types.ServiceDeploymentStatus`."""

    service_name: str
    namespace: str
    state: str
    reason: str
    resource_kind: str
    last_transition_time: str
    active_instances: int
    affected_instances: int


class DeploymentLogEntry(BaseModel):
    """`types.DeploymentLogEntry`."""

    message: str
    timestamp: str = Field(default="", description="Only when asked for")


class DeploymentLogs(BaseModel):
    """`types.DeploymentLogStream`."""

    service_name: str
    available: bool
    message: str
    entries: list[DeploymentLogEntry]


class Member(BaseModel):
    """`types.Replica`; values of headers are hidden."""

    type: str
    cluster_id: str = ""
    service_name: str = ""
    url: str = ""
    ssl_verify: bool
    priority: int
    headers: dict[str, str] = {}


class Pending(BaseModel):
    """A member that could not be told of a change yet."""

    type: str
    cluster_id: str
    service_name: str
    change: str = Field(description="apply or remove")
    tries: int
    problem: str = Field(default="", description="For who may change the service")


class Members(BaseModel):
    """`types.FederationResponse`; `pending` is ours, and absent when nothing is."""

    topology: str = Field(description="none, star or mesh")
    members: list[Member]
    pending: list[Pending] = []


class Replicas(BaseModel):
    """The same in the form of the older route."""

    topology: str = Field(description="none, tree or mesh")
    replicas: list[Member]
    pending: list[Pending] = []


class SignedResult(BaseModel):
    """Where a copy may store one result; an empty `url` when it is there already."""

    url: str
    method: str
    headers: dict[str, str]
    etag: str


class CopyToken(BaseModel):
    """An access token for a copy in a mesh."""

    access_token: str
    expires_in: int
