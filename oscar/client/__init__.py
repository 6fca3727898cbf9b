"""A typed, asynchronous client of the REST API and of the object store, for programs and the command line.

`async with Client(endpoint, user=…, password=…) as client: …`; errors of the server are raised as the
classes of `oscar.errors`. Called by `oscar.cli`, by other clusters' servers, by tests and by users;
described in `docs/client.md`.
"""

from oscar.client.metrics import (
    Breakdown,
    BreakdownItem,
    MetricsSummary,
    MetricsTotals,
    MetricValue,
    ServiceMetrics,
    SourceStatus,
)
from oscar.client.records import (
    Bucket,
    BucketContent,
    BucketObject,
    Job,
    JobPage,
    JobSummary,
    Presigned,
    Progress,
    Submitted,
    Volume,
)
from oscar.client.rest import Applied, Client, Result
from oscar.client.transfer import Storage, Stored

__all__ = [
    "Applied",
    "Breakdown",
    "BreakdownItem",
    "Bucket",
    "BucketContent",
    "BucketObject",
    "Client",
    "Job",
    "JobPage",
    "JobSummary",
    "MetricValue",
    "MetricsSummary",
    "MetricsTotals",
    "Presigned",
    "Progress",
    "Result",
    "ServiceMetrics",
    "SourceStatus",
    "Storage",
    "Stored",
    "Submitted",
    "Volume",
]
