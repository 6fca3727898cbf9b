"""How rclone is told to mount a store, and which files it has yet to store; whoever runs it.

Called by `compute.local.mount_rclone` (a process beside a sandbox), `compute.kubernetes.attachments` (a container
beside the user's) and `serve`. Pure but for `dirty`, which looks at rclone's notes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from oscar.errors import InvalidField
from oscar.model.storage import MinIOProvider, S3Provider, WebDavProvider
from oscar.objects.webdav import address

REMOTE = "mounted"
VARIABLES = f"RCLONE_CONFIG_{REMOTE.upper()}_"
_DEFAULTS = (
    "--vfs-cache-mode=writes",
    "--vfs-cache-max-size=1Gi",
    "--vfs-write-back=200ms",
    "--dir-cache-time=2s",
    "--umask=000",
    "--dir-perms=0777",
    "--file-perms=0777",
    "--contimeout=15s",
    "--timeout=60s",
    "--low-level-retries=3",
)
"""Before the user's own, which win: any user of an image may write, and a dead server is an error, not a wait."""


def command(program: str, path: str, target: Path, cache: Path, flags: Sequence[str]) -> list[str]:
    """The command line of a mount; pure.

    Args:
        program: rclone.
        path: bucket and folder, or the path of a WebDAV server.
        target: the folder to mount at.
        cache: where it keeps files that it has not stored yet.
        flags: checked ones, from `model.mount.flags`.
    """
    return [
        program,
        "mount",
        f"{REMOTE}:{path}",
        str(target),
        "--config=/dev/null",
        f"--cache-dir={cache}",
        "--allow-other",
        "--log-level=NOTICE",
        *_DEFAULTS,
        *flags,
    ]


def remote(provider: MinIOProvider | S3Provider | WebDavProvider, *, password: str = "") -> dict[str, str]:
    """The variables by which rclone knows the remote; pure.

    Args:
        provider: with its keys.
        password: of a WebDAV server, as `obscured` gives it.
    """
    match provider:
        case MinIOProvider():
            values = {
                "TYPE": "s3",
                "PROVIDER": "Minio",
                "ENDPOINT": provider.endpoint,
                "ACCESS_KEY_ID": provider.access_key,
                "SECRET_ACCESS_KEY": provider.secret_key,
                "REGION": provider.region,
                "FORCE_PATH_STYLE": "true",
                # Making a bucket is the platform's affair, and these keys may not do it.
                "NO_CHECK_BUCKET": "true",
            }
        case S3Provider():
            values = {
                "TYPE": "s3",
                "PROVIDER": "AWS",
                "ACCESS_KEY_ID": provider.access_key,
                "SECRET_ACCESS_KEY": provider.secret_key,
                "REGION": provider.region,
                "NO_CHECK_BUCKET": "true",
            }
        case WebDavProvider():
            values = {
                "TYPE": "webdav",
                "URL": address(provider.hostname, "storage_providers.webdav"),
                "VENDOR": "other",
                "USER": provider.login,
                "PASS": password,
            }
    return {f"{VARIABLES}{name}": value for name, value in values.items() if value}


def webdav_password(provider: WebDavProvider) -> str:
    """The password of a WebDAV provider, refused when a login has none."""
    if provider.login and not provider.password:
        raise InvalidField("the WebDAV provider has no password", field="storage_providers.webdav")
    return provider.password


def dirty(cache: Path) -> set[str]:
    """Files that wait to be stored, by what rclone notes beside its cache."""
    notes = cache / "vfsMeta"
    found = set()
    for place, _, files in os.walk(notes):
        for name in files:
            path = Path(place, name)
            try:
                data = json.loads(path.read_bytes())
            except (OSError, ValueError):
                data = {"Dirty": path.exists()}  # being written just now
            if data.get("Dirty"):
                found.add(str(path.relative_to(notes)).partition("/")[2])
    return found
