"""`docs/s3.md` names every operation of the S3 server, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from oscar.objects.embedded.faults import CODES
from oscar.objects.embedded.routes import BUCKET, OBJECT, SERVICE

PAGE = (Path(__file__).parents[2] / "docs" / "s3.md").read_text()


def test_every_operation_is_documented_and_exists() -> None:
    rows = re.findall(r"^\| (service|bucket|object) \| `([A-Z]+)` (?:-|`([\w-]+)`)", PAGE, re.MULTILINE)
    routes = [
        *(("service", method, "") for method in SERVICE),
        *(("bucket", *route) for route in BUCKET),
        *(("object", *route) for route in OBJECT),
    ]
    assert sorted(rows) == sorted(routes)


def test_documented_errors_have_their_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PAGE, re.MULTILINE)
    assert rows
    for code, status in rows:
        assert CODES[code][0] == int(status)
