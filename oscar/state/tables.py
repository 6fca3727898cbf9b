"""The tables of the Store, the same on SQLite and PostgreSQL.

Used by the modules of `oscar.state` only; `state/migrations` creates them. Times are Unix milliseconds of the
database's clock. Columns ending in `_sealed` hold secrets encrypted by `state.secrets`. JSON columns hold plain
data that nobody searches; what is searched has a column of its own.
"""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.types import JSON, String

from oscar.model.quota import RESOURCES, Limits

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Object keys sort by their UTF-8 bytes, as S3 lists them: SQLite compares so by default, PostgreSQL by "C".
Key = Text().with_variant(Text(collation="C"), "postgresql")


def _needs() -> list[Column[int]]:
    """What a run needs: `model.quota.Resources`."""
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in RESOURCES]


meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, server_default=""),
    # The OIDC issuer that speaks for the user; empty for the administrator.
    Column("issuer", Text, nullable=False, server_default=""),
    Column("created", BigInteger, nullable=False),
)

credentials = Table(
    "credentials",
    metadata,
    Column("access_key", String(128), primary_key=True),
    Column("secret_sealed", LargeBinary, nullable=False),
    Column("user", Text, nullable=False, index=True),
    Column("admin", Boolean, nullable=False, server_default=text("false")),
    Column("created", BigInteger, nullable=False),
)

services = Table(
    "services",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(39), nullable=False),
    Column("owner", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("secrets_sealed", LargeBinary, nullable=False),
    Column("token_sealed", LargeBinary, nullable=False),
    Column("token_mac", LargeBinary, nullable=False, index=True),
    Column("concurrency", Integer, nullable=False, server_default="0"),
    *_needs(),
    Column("generation", Integer, nullable=False, server_default="1"),
    # Null: its jobs run here only. Else the seconds after which one may be moved elsewhere, 0 for the server's figure.
    Column("delegates", Integer),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Index("uq_services_name_owner", "name", "owner", unique=True),
)

# Which folder of which bucket starts which service: read in the transaction that makes an object visible.
service_inputs = Table(
    "service_inputs",
    metadata,
    Column("service_id", ForeignKey("services.id", ondelete="CASCADE"), primary_key=True),
    Column("bucket", String(63), primary_key=True, index=True),
    Column("prefix", Key, primary_key=True),
    # What was written before needs no look by the sweep: it was there before the input, or was seen.
    Column("since", BigInteger, nullable=False, server_default="0"),
)

# Which buckets a service uses and which of them it created: what its deletion may take along.
service_buckets = Table(
    "service_buckets",
    metadata,
    Column("service_id", ForeignKey("services.id", ondelete="CASCADE"), primary_key=True),
    Column("bucket", String(63), primary_key=True, index=True),
    Column("created", Boolean, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("service_id", String(36), nullable=False),
    Column("service_name", String(39), nullable=False),
    Column("owner", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(32)),
    Column("message", Text),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("script_failures", Integer, nullable=False, server_default="0"),
    Column("our_failures", Integer, nullable=False, server_default="0"),
    Column("exit_code", Integer),
    Column("hops", Integer, nullable=False, server_default="0"),
    Column("payload", LargeBinary),
    Column("payload_ref", String(64)),
    Column("event_key", Text, unique=True),
    Column("callback_sealed", LargeBinary),
    Column("callback_state", String(8)),
    Column("callback_tries", Integer, nullable=False, server_default="0"),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("lease_owner", String(64)),
    Column("lease_token", String(36)),
    Column("lease_until", BigInteger),
    # The machine that the present attempt is bound to; empty: any server finds it by its name.
    Column("place", String(64), nullable=False, server_default=""),
    # The span that caused it: `traceparent` of W3C, and `tracestate` behind a blank; null when no traces are told.
    Column("trace", String),
    Column("created", BigInteger, nullable=False),
    Column("next_try", BigInteger, nullable=False),
    Column("started", BigInteger),
    Column("finished", BigInteger),
    Column("updated", BigInteger, nullable=False),
    # What the present attempt takes of its owner's quota: a service may change while its jobs run.
    *_needs(),
    # The dispatcher's two questions are about few rows of a long table, so their indexes hold only those rows.
    Index(
        "ix_jobs_queued",
        "service_id",
        "next_try",
        "created",
        "id",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_jobs_active",
        "state",
        "lease_until",
        sqlite_where=text("state IN ('submitting','submitted','running','settling')"),
        postgresql_where=text("state IN ('submitting','submitted','running','settling')"),
    ),
    Index(
        "ix_jobs_remote",
        "state",
        "lease_until",
        sqlite_where=text("state IN ('delegating','delegated')"),
        postgresql_where=text("state IN ('delegating','delegated')"),
    ),
    Index("ix_jobs_service_created", "service_id", "created", "id"),
    Index("ix_jobs_finished", "finished"),
    Index(
        "ix_jobs_callback",
        "callback_state",
        sqlite_where=text("callback_state = 'due'"),
        postgresql_where=text("callback_state = 'due'"),
    ),
)

# What a job has already written into the built-in store: a stage-out repeated after a crash triggers nothing twice.
deliveries = Table(
    "deliveries",
    metadata,
    Column("job_id", String(80), primary_key=True),
    Column("bucket", String(63), primary_key=True),
    Column("key", Key, primary_key=True),
)

buckets = Table(
    "buckets",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("owner", Text, nullable=False, index=True),
    Column("visibility", String(10), nullable=False),
    Column("allowed_users", JSON, nullable=False),
    Column("service", Text),
    Column("tags", JSON, nullable=False),
    Column("cors", Text),
    Column("policy", Text),
    Column("created", BigInteger, nullable=False),
)

# How much each bucket holds: counted in the transaction that changes it. Several rows a bucket, so that writers on
# PostgreSQL don't wait for one another's commit; SQLite has one writer and needs one.
bucket_usage = Table(
    "bucket_usage",
    metadata,
    Column("bucket", String(63), ForeignKey("buckets.name", ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("objects", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    # Bytes of the parts of uploads in progress.
    Column("pending", BigInteger, nullable=False),
)

# Limits of a user's own; NULL: the installation's default, -1: none.
quotas = Table(
    "quotas",
    metadata,
    Column("user", Text, primary_key=True),
    *(Column(field.name, BigInteger) for field in fields(Limits)),
    Column("updated", BigInteger, nullable=False),
)

objects = Table(
    "objects",
    metadata,
    Column("bucket", String(63), ForeignKey("buckets.name"), primary_key=True),
    Column("key", Key, primary_key=True),
    Column("generation", String(40), nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("etag", String(64), nullable=False),
    Column("modified", BigInteger, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("checksums", JSON, nullable=False),
    Column("parts", Integer, nullable=False, server_default="0"),
    Column("owner", Text, nullable=False, server_default=""),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("bucket", String(63), ForeignKey("buckets.name"), nullable=False),
    Column("key", Key, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("checksum_algorithm", String(16), nullable=False, server_default=""),
    Column("checksum_type", String(16), nullable=False, server_default=""),
    Index("ix_uploads_bucket_key", "bucket", "key", "id"),
)

parts = Table(
    "parts",
    metadata,
    Column("upload_id", ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("generation", String(40), nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("etag", String(64), nullable=False),
    Column("modified", BigInteger, nullable=False),
    Column("checksums", JSON, nullable=False),
)

# One row for every call of a service; outlives the service and its jobs. What metrics are counted from.
requests = Table(
    "requests",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("time", BigInteger, nullable=False, index=True),
    Column("kind", String(8), nullable=False),
    Column("service_id", String(36), nullable=False),
    Column("service", String(39), nullable=False),
    Column("owner", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("entrance", String(8), nullable=False),
    Column("status", Integer, nullable=False),
    Column("duration", BigInteger, nullable=False),
    Column("address", String(45), nullable=False),
    Column("country", String(2), nullable=False),
    Index("ix_requests_service_time", "service", "time"),
)

# The row of a volume is there before its place on the engine, and goes after it.
volumes = Table(
    "volumes",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("shown_size", String(64), nullable=False),
    Column("mode", String(8), nullable=False),
    Column("retain", Boolean, nullable=False),
    Column("service", Text, nullable=False),
    Column("phase", String(12), nullable=False),
    Column("created", BigInteger, nullable=False),
)

volume_attachments = Table(
    "volume_attachments",
    metadata,
    Column("service_id", ForeignKey("services.id", ondelete="CASCADE"), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("volume", String(63), nullable=False),
    Column("mount_path", Text, nullable=False),
    Index("ix_volume_attachments_volume", "owner", "volume"),
)

# What an administrator gave to single users; null: the default of the settings holds.
volume_limits = Table(
    "volume_limits",
    metadata,
    Column("user", Text, primary_key=True),
    Column("disk", BigInteger),
    Column("volumes", Integer),
    Column("largest", BigInteger),
    Column("smallest", BigInteger),
)

# What users did with an exposed service beside its definition; absent for one that runs as defined.
exposures = Table(
    "exposures",
    metadata,
    Column("service_id", ForeignKey("services.id", ondelete="CASCADE"), primary_key=True),
    Column("stopped", Boolean, nullable=False, server_default=text("false")),
    Column("restarts", Integer, nullable=False, server_default="0"),
    Column("changed", BigInteger, nullable=False),
)
