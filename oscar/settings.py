"""All settings, from the environment: the one reader of it.

Made once in `app.py` (or by the CLI for `serve`, `demo` and `doctor`) and handed down. Upstream's variable names are
honoured where OSCAR 4.1.2 has one; ours start with `OSCAR_`. `docs/configuration.md` lists them all; a test compares.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from oscar.errors import InvalidField
from oscar.model.quota import Defaults
from oscar.model.quota import Limits as QuotaLimits
from oscar.model.resources import parse_cpu, parse_memory


def _data_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return Path(base) / "oscar"


def _env(name: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, validation_alias=name, description=description, **limits)


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Commas = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


_PODS = (
    'namespace=~"{{services_namespace}}",'
    'pod=~"{{service}}-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|worker|dlp)-.*"'
)
_CPU = f'container_cpu_usage_seconds_total{{{_PODS},container!=""}}'
# Not `increase`: that knows nothing of a pod that was seen once, and short jobs are.
_CPU_QUERY = (
    f"(sum(max_over_time({_CPU}[{{{{range}}}}])) - (sum({_CPU} offset {{{{range}}}} and "
    f"max_over_time({_CPU}[{{{{range}}}}])) or vector(0))) / 3600"
)
_GPU_QUERY = (
    f'sum(sum_over_time(kube_pod_container_resource_requests{{{_PODS},resource="nvidia_com_gpu"}}'
    "[{{range}}:1m])) / 60"
)


class Settings(BaseSettings):
    """Every setting with its environment variable, default and meaning."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore", frozen=True)

    # Names of the installation
    name: str = _env("OSCAR_NAME", "oscar", "Name of the deployment")
    namespace: str = _env("OSCAR_NAMESPACE", "oscar", "Namespace of the deployment (Kubernetes)")
    services_namespace: str = _env(
        "OSCAR_SERVICES_NAMESPACE", "oscar-svc", "Namespace of services (Kubernetes)"
    )
    cluster_id: str = _env(
        "OSCAR_CLUSTER_ID", "", "How FDL files call this cluster; any name is taken when empty"
    )

    # Who may enter
    username: str = _env("OSCAR_USERNAME", "oscar", "Name of the administrator (basic auth)")
    password: str = _env(
        "OSCAR_PASSWORD",
        "",
        "Password of the administrator; made and kept in the data folder when empty",
        repr=False,
    )
    oidc_enable: bool = _env("OIDC_ENABLE", False, "Accept OIDC bearer tokens")
    oidc_issuers: Commas = _env("OIDC_ISSUERS", (), "Trusted OIDC issuers, comma-separated")
    oidc_groups: Commas = _env("OIDC_GROUPS", (), "Members of these groups may enter, comma-separated")
    oidc_subject: str = _env(
        "OIDC_SUBJECT", "", "OIDC subject that may enter without a group: who deployed the installation"
    )
    oidc_audience: Commas = _env(
        "OSCAR_OIDC_AUDIENCE",
        (),
        "What an OIDC token must be for (one of its `aud`), comma-separated; not looked at when empty",
    )
    oidc_skew: float = _env(
        "OSCAR_OIDC_CLOCK_SKEW_SECONDS",
        30,
        "Seconds by which the clocks of the issuers and ours may differ",
        ge=0,
        le=600,
    )
    oidc_client_id: str = _env(
        "OIDC_CLIENT_ID",
        "",
        "Client that refresh tokens of federated services were given to; exchanged at the first of OIDC_ISSUERS",
    )
    oidc_client_secret: str = _env(
        "OIDC_CLIENT_SECRET", "", "Secret of that client, if it has one", repr=False
    )
    users_admin: Commas = _env(
        "USERS_ADMIN",
        (),
        "OIDC subjects that are administrators (if they may enter at all), comma-separated",
    )

    # Where things are
    data: Path = _env("OSCAR_DATA", None, "Data folder; default $XDG_DATA_HOME/oscar")
    database_url: str = _env(
        "OSCAR_DATABASE_URL",
        "",
        "SQLAlchemy URL of the database; SQLite in the data folder when empty",
        repr=False,
    )
    secret_key: str = _env(
        "OSCAR_SECRET_KEY", "", "Keys that seal secrets at rest, newest first, comma-separated", repr=False
    )

    # The web servers
    host: str = _env("OSCAR_HOST", "127.0.0.1", "Address that both servers listen on")
    port: int = _env("OSCAR_SERVICE_PORT", 8080, "Port of the API; 0 takes a free one", ge=0, le=65535)
    s3_port: int = _env("OSCAR_S3_PORT", 9000, "Port of the S3 server; 0 takes a free one", ge=0, le=65535)
    url: str = _env("OSCAR_URL", "", "Public URL of the API, for clients; from host and port when empty")
    read_timeout: int = _env("READ_TIMEOUT", 300, "Seconds that a synchronous call may take", ge=1)
    write_timeout: int = _env("WRITE_TIMEOUT", 300, "Seconds that sending an answer may take", ge=1)

    tls_cert: Path | None = _env(
        "OSCAR_TLS_CERT", None, "Certificate chain (PEM) with which both servers speak TLS themselves"
    )
    tls_key: Path | None = _env("OSCAR_TLS_KEY", None, "Private key (PEM) of that certificate")
    trusted_proxies: Commas = _env(
        "OSCAR_TRUSTED_PROXIES",
        (),
        "Proxies (addresses, networks) whose X-Forwarded-For and -Proto are believed, comma-separated",
    )

    # Objects
    store: Literal["embedded", "minio"] = _env(
        "OSCAR_STORE",
        "embedded",
        "Where the platform's own objects are: in the built-in S3 server, or in a MinIO at MINIO_ENDPOINT",
    )
    minio_access_key: str = _env("MINIO_ACCESS_KEY", "", "Administrator's S3 access key; made when empty")
    minio_secret_key: str = _env(
        "MINIO_SECRET_KEY", "", "Administrator's S3 secret key; made when empty", repr=False
    )
    minio_region: str = _env("MINIO_REGION", "us-east-1", "Region that S3 clients sign for")
    minio_endpoint: str = _env(
        "MINIO_ENDPOINT",
        "",
        "Public URL of the S3 server, as clients reach it; from host and port when empty",
    )
    s3_internal_endpoint: str = _env(
        "OSCAR_S3_INTERNAL_ENDPOINT",
        "",
        "URL of the S3 server as this server and its pods reach it; MINIO_ENDPOINT when empty",
    )
    minio_tls_verify: bool = _env("MINIO_TLS_VERIFY", True, "Clients check the S3 server's certificate")
    s3_domain: str = _env(
        "OSCAR_S3_DOMAIN", "", "Domain for virtual-host style S3 addresses; path style only when empty"
    )
    s3_cors_origins: Commas = _env("OSCAR_S3_CORS_ORIGINS", ("*",), "Origins that browsers may call S3 from")
    disk_reserve: int = _env(
        "OSCAR_DISK_RESERVE_MB",
        256,
        "MiB of disk that are kept free: below, intake is refused with 507",
        ge=0,
    )

    # Events of a MinIO
    internal_url: str = _env(
        "OSCAR_INTERNAL_URL", "", "URL of the API as MinIO and pods reach it; OSCAR_URL when empty"
    )
    events_target: str = _env(
        "OSCAR_EVENTS_TARGET",
        "OSCAR",
        "Name of the webhook in MinIO's environment; unique if several installations share a MinIO",
        pattern=r"^[A-Za-z0-9_]+$",
    )
    events_token: str = _env(
        "OSCAR_EVENTS_TOKEN",
        "",
        "What MinIO proves itself by when it reports uploads; made from OSCAR_SECRET_KEY when empty",
        repr=False,
    )
    store_events: Literal["webhook", "listing"] = _env(
        "OSCAR_STORE_EVENTS",
        "webhook",
        "How uploads to a MinIO are noticed: it reports them, or its inputs are listed (stores without notifications)",
    )
    sweep: float = _env(
        "OSCAR_SWEEP_SECONDS",
        300,
        "Seconds between two looks through the inputs of a MinIO for uploads that were not reported; 0: none",
        ge=0,
    )
    reconcile: float = _env(
        "OSCAR_RECONCILE_SECONDS",
        600,
        "Seconds between two comparisons of what MinIO has (users, policies, rules) with what it should have",
        ge=1,
    )
    rejected_ttl: int = _env(
        "OSCAR_REJECTED_EVENTS_TTL",
        2_592_000,
        "Seconds that reported events are kept of which no job could be made",
        ge=1,
    )

    # Several servers on one PostgreSQL
    lost_server: float = _env(
        "OSCAR_LOST_SERVER_SECONDS",
        3600,
        "Seconds after which the jobs of a server that is away, with an engine of its own machine, are given up",
        ge=60,
    )

    # Engine
    engine: Literal["auto", "podman", "docker", "process", "kubernetes"] = _env(
        "OSCAR_ENGINE",
        "auto",
        "What runs functions; auto takes podman, docker, else processes; kubernetes is never taken unasked",
    )
    unsafe_process: bool = _env(
        "OSCAR_UNSAFE_PROCESS", False, "Let the process engine run scripts without a sandbox"
    )
    max_running: int = _env(
        "OSCAR_MAX_RUNNING_JOBS",
        0,
        "Jobs that run at once over all services; 0: twice the cores, at least 4; on Kubernetes 1000",
        ge=0,
    )
    max_workers: int = _env(
        "OSCAR_MAX_WORKERS", 0, "Warm workers at once over all services; 0: four times the cores", ge=0
    )
    worker_idle: float = _env(
        "OSCAR_WORKER_IDLE_SECONDS", 60, "Seconds after which an idle worker goes", ge=0
    )
    worker_queue: int = _env("OSCAR_WORKER_QUEUE", 100, "Synchronous calls that may wait per service", ge=0)
    worker_wait: float = _env(
        "OSCAR_WORKER_WAIT_SECONDS", 60, "Seconds that a synchronous call may wait", ge=0
    )

    # Kubernetes
    kubeconfig: Path | None = _env(
        "KUBECONFIG", None, "The way to the cluster; the pod's service account when empty (Kubernetes)"
    )
    image: str = _env(
        "OSCAR_IMAGE",
        "",
        "This server's own image, which the containers beside a user's run (Kubernetes)",
    )
    kueue: bool = _env(
        "KUEUE_ENABLE", True, "Have Kueue queue the jobs of users, where the cluster has it (Kubernetes)"
    )
    yunikorn: bool = _env("YUNIKORN_ENABLE", False, "Have YuniKorn schedule jobs (Kubernetes)")
    serverless: Annotated[Literal["", "knative"], BeforeValidator(lambda value: str(value).lower())] = _env(
        "SERVERLESS_BACKEND",
        "",
        "knative: Knative Serving scales synchronous calls; this server does when empty (Kubernetes)",
    )
    waiting_runs: int = _env(
        "OSCAR_MAX_WAITING_RUNS",
        32,
        "Runs that may wait for a place in the cluster; the rest waits here (Kubernetes)",
        ge=1,
    )

    # Managed volumes
    volume_enable: bool = _env("VOLUME_ENABLE", True, "Users can have managed volumes")
    volume_disk: str = _env("OSCAR_VOLUME_DISK", "7Gi", "Size that all volumes of a user may have together")
    volume_count: int = _env("OSCAR_VOLUME_COUNT", 5, "Volumes that a user may have", ge=0)
    volume_largest: str = _env("OSCAR_VOLUME_MAX_DISK", "5Gi", "Largest size of one volume")
    volume_smallest: str = _env("OSCAR_VOLUME_MIN_DISK", "200Mi", "Least size of one volume")
    volume_kind: Literal["auto", "image", "folder"] = _env(
        "OSCAR_VOLUME_KIND",
        "auto",
        "What new volumes are: an image with a file system of its own, which keeps its size, or a folder that is "
        "measured; auto takes an image where that works",
    )

    volume_class: str = _env(
        "OSCAR_VOLUME_STORAGE_CLASS",
        "",
        "Storage class of new volumes; the cluster's default when empty (Kubernetes)",
    )
    volume_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = _env(
        "OSCAR_VOLUME_ACCESS_MODE",
        "ReadWriteMany",
        "How pods share a volume; ReadWriteOnce keeps those of a service on one node (Kubernetes)",
    )

    # Exposed services
    route_kind: Literal["", "ingress", "httproute"] = _env(
        "EXPOSED_SERVICES_ROUTE_KIND",
        "",
        "A direct way to exposed services: ingress or httproute; through this server when empty (Kubernetes)",
    )
    ingress_host: str = _env("INGRESS_HOST", "", "Host name of these ways; any when empty (Kubernetes)")
    ingress_class: str = _env(
        "OSCAR_INGRESS_CLASS", "nginx", "Class of the Ingresses of exposed services (Kubernetes)"
    )
    gateway: str = _env(
        "HTTPROUTE_GATEWAY_NAME", "", "Gateway that the HTTPRoutes of exposed services belong to (Kubernetes)"
    )
    gateway_namespace: str = _env("HTTPROUTE_GATEWAY_NAMESPACE", "", "Namespace of that Gateway (Kubernetes)")
    exposed_wait: float = _env(
        "OSCAR_EXPOSED_WAIT_SECONDS", 10, "Seconds that a request waits for a service's first replica", ge=0
    )
    exposed_drain: float = _env(
        "OSCAR_EXPOSED_DRAIN_SECONDS",
        60,
        "Seconds that requests may go on at a replica that is being replaced",
        ge=0,
    )
    cors_origins: Commas = _env(
        "INGRESS_SERVICES_CORS_ALLOWED_ORIGINS",
        (),
        "Origins that browsers may call exposed services from, comma-separated; empty leaves it to the services",
    )
    cors_methods: str = _env(
        "INGRESS_SERVICES_CORS_ALLOWED_METHODS",
        "GET, PUT, POST, DELETE, PATCH, HEAD",
        "Methods that such browsers may use",
    )
    cors_headers: str = _env(
        "INGRESS_SERVICES_CORS_ALLOWED_HEADERS",
        "Authorization, Content-Type",
        "Headers that such browsers may send",
    )

    # Quotas of users for whom nothing else was set; administrators have none
    quota_cpu: str = _env(
        "OSCAR_QUOTA_CPU",
        "",
        "CPU that the running jobs of a user's services may take together; empty: no limit",
    )
    quota_memory: str = _env("OSCAR_QUOTA_MEMORY", "", "Memory that they may take together; empty: no limit")
    minio_quota_enabled: bool = _env("MINIO_QUOTA_ENABLED", False, "The next two limit the buckets of users")
    quota_buckets: int = _env("OSCAR_QUOTA_BUCKETS", 5, "Buckets that a user may own", ge=0)
    quota_bucket_storage: str = _env(
        "OSCAR_QUOTA_BUCKET_STORAGE", "5Gi", "Size that each of his buckets may have"
    )

    # Federation: jobs that other clusters take
    federation_hosts: Commas = _env(
        "OSCAR_FEDERATION_ALLOWED_HOSTS",
        (),
        "Hosts of other clusters that tokens and events may go to: `host`, `host:port` or `*.domain`, comma-separated",
    )
    resource_manager_enable: bool = _env(
        "RESOURCE_MANAGER_ENABLE",
        False,
        "Jobs of services with replicas go to one when there is no room here",
    )
    resource_manager_interval: float = _env(
        "RESOURCE_MANAGER_INTERVAL", 15, "Seconds between two looks at the room here", gt=0
    )
    rescheduler_enable: bool = _env(
        "RESCHEDULER_ENABLE", False, "Jobs of services with replicas that wait for too long go to one"
    )
    rescheduler_interval: float = _env(
        "RESCHEDULER_INTERVAL", 15, "Seconds between two looks at the jobs that wait", gt=0
    )
    rescheduler_threshold: int = _env(
        "RESCHEDULER_THRESHOLD", 30, "Seconds that a job waits before that; services may have their own", ge=1
    )
    delegation_lost: int = _env(
        "OSCAR_DELEGATION_LOST_SECONDS",
        86_400,
        "Seconds of silence of the cluster that has a job after which nobody knows what became of it",
        ge=1,
    )

    # Limits and retention
    max_body: int = _env("OSCAR_MAX_BODY_MB", 64, "MiB that the body of POST /job and /run may have", ge=1)
    job_listing_limit: int = _env("JOB_LISTING_LIMIT", 70, "Jobs on one page of a list", ge=1, le=10_000)
    ttl_job: int = _env("TTL_JOB", 2_592_000, "Seconds that a finished job and its log are kept", ge=1)
    callback_hosts: Commas = _env(
        "OSCAR_CALLBACK_ALLOWED_HOSTS", (), "Private hosts that callback URLs may name, comma-separated"
    )
    callback_delay: float = _env(
        "OSCAR_CALLBACK_DELAY_SECONDS",
        5,
        "Seconds before a callback that failed is sent again; doubled each time, six times in all",
        gt=0,
    )
    storage_hosts: Commas = _env(
        "OSCAR_STORAGE_ALLOWED_HOSTS",
        (),
        "Private hosts that the storage providers of users' services may name, comma-separated",
    )
    drain: float = _env(
        "OSCAR_DRAIN_SECONDS", 20, "Seconds that a stopping server waits for calls in flight", ge=0
    )
    user_rate: float = _env(
        "OSCAR_USER_RATE", 0, "Requests a second that one user may make in the long run; 0: no limit", ge=0
    )
    user_burst: int = _env("OSCAR_USER_BURST", 100, "Requests that one user may make at once", ge=1)
    login_failures: int = _env(
        "OSCAR_LOGIN_FAILURES",
        30,
        "Wrong log-ins a minute from one address, more are refused; 0: no limit",
        ge=0,
    )
    requests_ttl: int = _env(
        "OSCAR_REQUESTS_TTL",
        34_560_000,
        "Seconds that records of requests are kept (400 days); 0: none, and metrics are counted in the server's log",
        ge=0,
    )
    country_database: Path | None = _env(
        "OSCAR_COUNTRY_DATABASE", None, "File in MMDB format that tells the country of an address"
    )
    # Metrics
    loki_url: str = _env(
        "LOKI_URL", "", "Loki, from whose logs requests are counted; our own records when empty"
    )
    loki_query: str = _env(
        "LOKI_QUERY",
        '{namespace="{{namespace}}", app="{{app}}"} |= "GIN-EXECUTIONS-LOGGER"',
        "LogQL that gives the lines of calls; placeholders {{namespace}}, {{app}}, {{service}} (a regular expression)",
    )
    loki_exposed_query: str = _env(
        "LOKI_EXPOSED_QUERY",
        '{namespace="{{namespace}}", app="{{app}}"} |~ "/system/services/.+/exposed"',
        "LogQL that gives the lines of requests to exposed services; the same placeholders",
    )
    loki_exposed_namespace: str = _env(
        "LOKI_EXPOSED_NAMESPACE", "ingress-nginx", "{{namespace}} of LOKI_EXPOSED_QUERY"
    )
    loki_exposed_app: str = _env("LOKI_EXPOSED_APP", "ingress-nginx", "{{app}} of LOKI_EXPOSED_QUERY")
    prometheus_url: str = _env(
        "PROMETHEUS_URL",
        "",
        "Prometheus, which knows CPU and GPU hours; when empty "
        "http://prometheus-server.monitoring.svc.cluster.local on Kubernetes, else none",
    )
    prometheus_cpu_query: str = _env(
        "PROMETHEUS_CPU_QUERY",
        _CPU_QUERY,
        "PromQL of CPU hours; placeholders {{service}}, {{range}}, {{services_namespace}} (regular expressions)",
    )
    prometheus_gpu_query: str = _env(
        "PROMETHEUS_GPU_QUERY", _GPU_QUERY, "PromQL of GPU hours; the same placeholders"
    )
    metrics_access: Literal["admin", "loopback", "all"] = _env(
        "OSCAR_METRICS_ACCESS",
        "loopback",
        "Who may read GET /metrics: administrators, beside them who asks from this machine, or all",
    )
    otlp_endpoint: str = _env(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "Where traces are sent by OTLP/HTTP, at /v1/traces; none when empty",
    )
    otlp_traces_endpoint: str = _env(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "", "The same with its whole path, which goes before"
    )
    otel_service_name: str = _env(
        "OTEL_SERVICE_NAME", "", "What traces call this server; OSCAR_NAME when empty"
    )
    log_json: bool = _env("OSCAR_LOG_JSON", False, "Write the server's log as JSON lines")
    log_level: str = _env("OSCAR_LOG_LEVEL", "INFO", "Least level of the server's log")

    @field_validator("data", mode="before")
    @classmethod
    def _folder(cls, value: object) -> Path:
        return Path(str(value)).expanduser().absolute() if value else _data_folder()

    @field_validator("volume_disk", "volume_largest", "volume_smallest", "quota_bucket_storage")
    @classmethod
    def _quantity(cls, value: str) -> str:
        try:
            parse_memory(value)
        except InvalidField as error:
            raise ValueError(f"{error.message}. {error.fix}") from None
        return value

    @field_validator("quota_cpu", "quota_memory")
    @classmethod
    def _quota(cls, value: str, info: ValidationInfo) -> str:
        try:
            if value:
                (parse_cpu if info.field_name == "quota_cpu" else parse_memory)(value)
        except InvalidField as error:
            raise ValueError(f"{error.message}. {error.fix}") from None
        return value

    @property
    def quota_defaults(self) -> Defaults:
        """Limits of users for whom nothing else was set."""
        stored = self.minio_quota_enabled
        limits = QuotaLimits(
            cpu=parse_cpu(self.quota_cpu) if self.quota_cpu else None,
            memory=parse_memory(self.quota_memory) if self.quota_memory else None,
            buckets=self.quota_buckets if stored else None,
            storage_per_bucket=parse_memory(self.quota_bucket_storage) if stored else None,
        )
        return Defaults(limits, administrators=frozenset(self.users_admin))

    @property
    def volume_images(self) -> bool | None:
        """Whether new volumes are images; None to find out."""
        return {"auto": None, "image": True, "folder": False}[self.volume_kind]

    @property
    def s3_inside(self) -> str:
        """The S3 server's address for this server and its pods."""
        return self.s3_internal_endpoint or self.minio_endpoint

    @property
    def url_inside(self) -> str:
        """The API's address for MinIO and pods."""
        return self.internal_url or self.url

    @property
    def prometheus(self) -> str:
        """Where Prometheus is; empty for none."""
        on_kubernetes = str(self.engine) == "kubernetes"
        default = "http://prometheus-server.monitoring.svc.cluster.local" if on_kubernetes else ""
        return self.prometheus_url or default

    @property
    def server_log(self) -> Path:
        """The folder in which the server keeps its own log."""
        return self.data / "server-log"

    @property
    def body_limit(self) -> int:
        """The largest body of a call in bytes."""
        return self.max_body * 1024 * 1024

    @property
    def cores(self) -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0))

    @property
    def running_limit(self) -> int:
        """Jobs that may run at once; on Kubernetes the cluster says how many, by what it has no place for."""
        if self.engine == "kubernetes":
            return self.max_running or 1000
        return self.max_running or max(4, 2 * self.cores)

    @property
    def worker_limit(self) -> int:
        """Warm workers that may exist at once."""
        return self.max_workers or 4 * self.cores

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data}/oscar.db"

    def admin_password(self) -> str:
        """The administrator's password: the setting, else the one kept in the data folder (made when absent)."""
        return self.password or kept_secret(self.data / "password", 16)


def kept_secret(file: Path, size: int) -> str:
    """The secret in a file that only we can read; made of `size` random bytes when the file is absent."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        pass
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and linked, so that of two processes starting at once neither reads half of it: the first wins.
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(secrets.token_hex(size) + "\n")
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text().strip()
