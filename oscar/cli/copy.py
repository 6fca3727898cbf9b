"""`oscar cluster copy`: services, buckets and objects from one server to another, a present OSCAR 4 for instance.

Calls `oscar.client` of both and `model.carried`. What is there already stays as it is unless told otherwise, so that
a copy that broke off is simply begun again.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ConfigOption, connect, find, known_clusters, run
from oscar.client import Bucket, Client
from oscar.errors import Misuse, OscarError
from oscar.model.carried import Carried, carried

ServerName = typer.Argument(
    help="A cluster, as `oscar cluster list` names it.", autocompletion=known_clusters
)


@dataclass(slots=True)
class _Copied:
    """What was done, as `--json` prints it."""

    services: list[dict[str, object]] = field(default_factory=list)
    buckets: list[dict[str, object]] = field(default_factory=list)
    failed: bool = False


def copy(
    source: Annotated[str, ServerName],
    target: Annotated[str, ServerName],
    service: Annotated[
        list[str] | None, typer.Option("--service", "-s", help="Only this service; may be repeated.")
    ] = None,
    objects: Annotated[
        bool, typer.Option("--objects", help="Also the objects of the buckets that the services use.")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Overwrite services that the target has.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy services and their buckets to another server. Objects go first: they start no jobs there."""
    here, there = find(source, config), find(target, config)
    if here.endpoint == there.endpoint:
        raise Misuse("source and target are the same server")
    done = run(
        _copy(
            connect(here),
            connect(there),
            set(service or ()),
            objects=objects,
            update=update,
            dry_run=dry_run,
            quiet=as_json,
        )
    )
    if as_json:
        output.as_json({"services": done.services, "buckets": done.buckets})
    if done.failed:
        raise typer.Exit(3)


async def _copy(
    source: Client,
    target: Client,
    wanted: set[str],
    *,
    objects: bool,
    update: bool,
    dry_run: bool,
    quiet: bool,
) -> _Copied:
    done = _Copied()
    async with source, target:
        shown = {str(data.get("name")): data for data in await source.definitions()}
        if missing := sorted(wanted - shown.keys()):
            raise Misuse(f"the source has no service {', '.join(missing)}")
        present = {service.name for service in await target.services()}
        chosen = {name: data for name, data in sorted(shown.items()) if not wanted or name in wanted}
        if objects:
            used = {place for data in chosen.values() for place in _buckets(data)}
            there = {bucket.bucket_name for bucket in await target.buckets()}
            for bucket in await source.buckets():
                if bucket.bucket_name in used:
                    known = bucket.bucket_name in there
                    await _bucket(source, target, bucket, done, there=known, dry_run=dry_run, quiet=quiet)
        for name, data in chosen.items():
            if name in present and not update:
                _tell(done.services, {"service": name, "result": "kept"}, quiet=quiet)
                continue
            await _service(target, name, carried(data), done, dry_run=dry_run, quiet=quiet)
    return done


async def _service(
    target: Client, name: str, what: Carried, done: _Copied, *, dry_run: bool, quiet: bool
) -> None:
    entry: dict[str, object] = {"service": name, "missing": list(what.blanks)}
    try:
        if dry_run:
            entry["result"] = "would be copied"
        else:
            applied = await target.apply(what.definition)
            entry["result"] = "created" if applied.created else "updated"
            entry["warnings"] = list(applied.warnings)
    except OscarError as error:
        # One that the target can't take must not keep the others from it.
        entry |= {"result": "refused", "error": error.message}
        done.failed = True
    _tell(done.services, entry, quiet=quiet)


async def _bucket(
    source: Client, target: Client, bucket: Bucket, done: _Copied, *, there: bool, dry_run: bool, quiet: bool
) -> None:
    name = bucket.bucket_name
    entry: dict[str, object] = {"bucket": name, "objects": 0, "bytes": 0}
    try:
        if not dry_run and not there:
            await target.create_bucket(name, visibility=bucket.visibility, allowed_users=bucket.allowed_users)
        await _objects(source, target, name, entry, there=there, dry_run=dry_run, quiet=quiet)
        entry["result"] = "would be copied" if dry_run else "copied"
    except OscarError as error:
        entry |= {"result": "broke off", "error": error.message}
        done.failed = True
    _tell(done.buckets, entry, quiet=quiet)


async def _objects(
    source: Client,
    target: Client,
    bucket: str,
    entry: dict[str, object],
    *,
    there: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    origin, copies = await source.storage(), await target.storage()
    have = {found.key: found.size async for found in copies.list(bucket)} if there else {}
    count = size = 0
    with tempfile.TemporaryDirectory() as folder, output.transfers(quiet=quiet) as bars:
        async for found in origin.list(bucket):
            if have.get(found.key) == found.size:
                continue
            if not dry_run:
                file = Path(folder, "object")
                bar = bars.start(found.key)
                bar.expect(2 * found.size)
                await origin.get(bucket, found.key, file, progress=bar.advance)
                await copies.put(file, bucket, found.key, progress=bar.advance)
            count, size = count + 1, size + found.size
            entry["objects"], entry["bytes"] = count, size


def _buckets(definition: dict[str, object]) -> set[str]:
    """First parts of the paths of a definition's inputs, outputs and mount."""
    places: list[object] = []
    for name in ("input", "output"):
        listed = definition.get(name)
        places += listed if isinstance(listed, list) else []
    places.append(definition.get("mount"))
    paths = [str(place.get("path") or "") for place in places if isinstance(place, dict)]
    return {path.strip(" /").partition("/")[0] for path in paths if path.strip(" /")}


def _tell(entries: list[dict[str, object]], entry: dict[str, object], *, quiet: bool) -> None:
    entries.append(entry)
    if quiet:
        return
    words = f"{entry.get('service') or entry.get('bucket')} {entry['result']}"
    if "bytes" in entry:
        words += f" ({entry['objects']} objects, {output.size(int(str(entry['bytes'])))})"
    typer.echo(f"{words}: {entry['error']}" if "error" in entry else words)
    missing = entry.get("missing")
    if isinstance(missing, list) and missing:
        output.warn(f"{entry['service']}: the source does not show {', '.join(missing)}; give it again")
