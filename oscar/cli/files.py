"""`oscar put`, `get`, `ls`, `rm` and `service put-file|get-file|list-files`: files in the object store.

Places are written `BUCKET/KEY`. Calls `oscar.client.Storage`; shows progress on a terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, aliases, client, run
from oscar.client import Client, Storage, Stored
from oscar.errors import Misuse, Unsupported
from oscar.model.provider import OWN_STORE, ProviderRef, ProviderType, parse_provider
from oscar.model.service import Service, parse_service
from oscar.model.storage import MinIOProvider, S3Provider

AT_ONCE = 4
"""Files under way together."""

NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bars.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Folders with all that is in them.")]
ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("put")(put)
    app.command("get")(get)
    app.command("ls")(ls)
    app.command("rm")(rm)


def register_in_service(service: typer.Typer) -> None:
    """Add the commands that `oscar service` has for files."""
    service.command("put-file")(put_file)
    service.command("get-file")(get_file)
    service.command("list-files")(list_files)
    aliases(
        service,
        {
            "pf": put_file,
            "gf": get_file,
            "lsf": list_files,
            "list-file": list_files,
        },
    )


def place(text: str) -> tuple[str, str]:
    """`BUCKET/KEY` taken apart. Raises `Misuse` when there is no bucket."""
    bucket, _, key = text.removeprefix("s3://").lstrip("/").partition("/")
    if not bucket:
        raise Misuse(f'"{text}" names no bucket; write BUCKET/KEY')
    return bucket, key


def put(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, or folders with -r.")],
    target: Annotated[str, typer.Argument(metavar="BUCKET[/KEY]", help="A key, or a folder ending in /.")],
    recursive: Recursive = False,
    no_progress: NoProgress = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload files."""
    bucket, key = place(target)
    files = _local_files(sources, recursive=recursive)
    folder = len(sources) > 1 or any(source.is_dir() for source in sources)
    server = client(cluster, config)

    async def work() -> list[dict[str, object]]:
        async with server:
            storage = await server.storage()
            inside = folder or await _is_folder(server, storage, bucket, key)
        plan = [
            (file, str(PurePosixPath(key) / name) if key else name) if inside else (file, key)
            for file, name in files
        ]
        return await _put_all(storage, bucket, plan, quiet=no_progress or as_json)

    done = run(work())
    if as_json:
        output.as_json(done)


def _local_files(sources: list[Path], *, recursive: bool) -> list[tuple[Path, str]]:
    """The files to upload with their names below the target.

    Raises:
        Misuse: one is absent, or a folder without `recursive`.
    """
    found = []
    for source in sources:
        if not source.exists():
            raise Misuse(f"there is no file {source}")
        if not source.is_dir():
            found.append((source, source.name))
            continue
        if not recursive:
            raise Misuse(f"{source} is a folder; give -r to upload it")
        base = source.resolve()
        found += [
            (file, str(PurePosixPath(base.name) / file.relative_to(base).as_posix()))
            for file in sorted(base.rglob("*"))
            if file.is_file()
        ]
    return found


async def _is_folder(server: Client, storage: Storage, bucket: str, key: str) -> bool:
    """Whether a target is a folder to put files into: written so, the bucket itself, or known as one.

    Known are folders that hold something, and those that a service listens to: an object that has the very name of
    such a folder would start nothing.
    """
    if not key or key.endswith("/"):
        return True
    async for _ in storage.list(bucket, f"{key}/"):
        return True
    folders = (
        str(place.get("path")).strip("/")
        for service in await server.definitions()
        for place in service.get("input") or []
    )
    return f"{bucket}/{key}" in folders


async def _put_all(
    storage: Storage, bucket: str, plan: list[tuple[Path, str]], *, quiet: bool
) -> list[dict[str, object]]:
    places = asyncio.Semaphore(AT_ONCE)
    with output.transfers(quiet=quiet) as transfers:

        async def one(file: Path, key: str) -> dict[str, object]:
            async with places:
                transfer = transfers.start(file.name)
                size = file.stat().st_size
                transfer.expect(size)
                await storage.put(file, bucket, key, progress=transfer.advance)
            return {"file": str(file), "bucket": bucket, "key": key, "size_bytes": size}

        done = await _together([one(file, key) for file, key in plan])
    if not quiet:
        for entry in done:
            output.say(f"{entry['file']} -> {bucket}/{entry['key']}")
    return done


async def _together(work: list[Coroutine[Any, Any, dict[str, object]]]) -> list[dict[str, object]]:
    """The results of all, in order; the first error ends them all and is raised as it is."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def get(
    source: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="An object, or a folder with -r.")],
    target: Annotated[
        str, typer.Argument(metavar="[FILE]", help="File or folder to write; - for standard output.")
    ] = ".",
    recursive: Recursive = False,
    no_progress: NoProgress = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download files."""
    bucket, key = place(source)
    if not recursive and (not key or key.endswith("/")):
        raise Misuse(f'"{source}" is a folder; give -r to download it')
    server = client(cluster, config)

    async def work() -> list[dict[str, object]]:
        async with server:
            storage = await server.storage()
        if target == "-":
            output.raw(await storage.get_bytes(bucket, key))
            return []
        plan = await _download_plan(storage, bucket, key, Path(target), recursive=recursive)
        return await _get_all(storage, bucket, plan, quiet=no_progress or as_json)

    done = run(work())
    if as_json:
        output.as_json(done)


async def _download_plan(
    storage: Storage, bucket: str, key: str, target: Path, *, recursive: bool
) -> list[tuple[str, Path]]:
    """Keys with the files to write them to.

    Raises:
        Misuse: a key would be written outside the target.
    """
    if not recursive:
        return [(key, target / PurePosixPath(key).name if target.is_dir() else target)]
    prefix = f"{key.rstrip('/')}/" if key else ""
    plan = []
    async for found in storage.list(bucket, prefix):
        name = PurePosixPath(found.key.removeprefix(prefix))
        if ".." in name.parts or name.is_absolute():
            raise Misuse(f"the key {found.key} would be written outside {target}")
        plan.append((found.key, target / name))
    return plan


async def _get_all(
    storage: Storage, bucket: str, plan: list[tuple[str, Path]], *, quiet: bool
) -> list[dict[str, object]]:
    places = asyncio.Semaphore(AT_ONCE)
    with output.transfers(quiet=quiet) as transfers:

        async def one(key: str, file: Path) -> dict[str, object]:
            async with places:
                transfer = transfers.start(file.name)
                file.parent.mkdir(parents=True, exist_ok=True)
                size = await storage.get(bucket, key, file, progress=transfer.advance, expect=transfer.expect)
            return {"bucket": bucket, "key": key, "file": str(file), "size_bytes": size}

        done = await _together([one(key, file) for key, file in plan])
    if not quiet:
        for entry in done:
            output.say(f"{bucket}/{entry['key']} -> {entry['file']}")
    return done


def ls(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[BUCKET[/PREFIX]]", help="What to list; all buckets if not given."),
    ] = None,
    recursive: Recursive = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List buckets, or the objects of a bucket."""
    from oscar.cli.buckets import show_buckets

    server = client(cluster, config)
    if target is None:
        show_buckets(server, as_json=as_json)
        return
    bucket, prefix = place(target)

    async def work() -> list[Stored]:
        async with server:
            storage = await server.storage()
        found = [entry async for entry in storage.list(bucket, prefix, recursive=recursive)]
        if not recursive and [entry.key for entry in found] == [f"{prefix}/"]:
            # `ls bucket/folder` means what is in the folder.
            return [entry async for entry in storage.list(bucket, f"{prefix}/", recursive=False)]
        return found

    _show_stored(run(work()), as_json=as_json)


def _show_stored(found: list[Stored], *, as_json: bool) -> None:
    if as_json:
        output.as_json(
            [{"key": entry.key, "size_bytes": entry.size, "last_modified": entry.modified} for entry in found]
        )
        return
    rows = [
        ("" if entry.is_folder else output.size(entry.size), output.time(entry.modified), entry.key)
        for entry in found
    ]
    output.table(("SIZE", "MODIFIED", "KEY"), rows)


def rm(
    targets: Annotated[list[str], typer.Argument(metavar="BUCKET/KEY...", help="Objects.")],
    recursive: Recursive = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove objects."""
    places = [place(target) for target in targets]
    if not recursive and any(not key or key.endswith("/") for _, key in places):
        raise Misuse("a folder; give -r to remove all that is in it")
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            storage = await server.storage()
        for bucket, key in places:
            keys = [key]
            if recursive:
                prefix = f"{key.rstrip('/')}/" if key else ""
                keys = [found.key async for found in storage.list(bucket, prefix)]
            if keys:
                await storage.delete(bucket, *keys)

    run(work())


# --- the commands of `oscar service` ---


def put_file(
    service: ServiceName,
    words: Annotated[
        list[str],
        typer.Argument(metavar="[STORAGE_PROVIDER] LOCAL_FILE [REMOTE_FILE]", help="What and where."),
    ],
    no_progress: NoProgress = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Upload a file to a service's storage; to its input folder if no REMOTE_FILE is given."""
    ref, rest = _provider_first(words)
    if len(rest) not in {1, 2}:
        raise Misuse("write [STORAGE_PROVIDER] LOCAL_FILE [REMOTE_FILE]")
    [(file, name)] = _local_files([Path(rest[0])], recursive=False)
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            definition = await _service(server, service)
            storage = await _storage(server, definition, ref)
        remote = rest[1] if len(rest) > 1 else f"{_folder_of(definition, ref, output_first=False)}/{name}"
        bucket, key = place(remote)
        target = f"{key.rstrip('/')}/{name}".lstrip("/") if not key or key.endswith("/") else key
        await _put_all(storage, bucket, [(file, target)], quiet=no_progress)

    run(work())


def get_file(
    service: ServiceName,
    words: Annotated[
        list[str],
        typer.Argument(metavar="[STORAGE_PROVIDER] REMOTE_FILE [LOCAL_FILE]", help="What and where."),
    ],
    no_progress: NoProgress = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Download a file from a service's storage."""
    ref, rest = _provider_first(words)
    if len(rest) not in {1, 2}:
        raise Misuse("write [STORAGE_PROVIDER] REMOTE_FILE [LOCAL_FILE]")
    bucket, key = place(rest[0])
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            definition = await _service(server, service)
            storage = await _storage(server, definition, ref)
        plan = await _download_plan(
            storage, bucket, key, Path(rest[1] if len(rest) > 1 else "."), recursive=False
        )
        await _get_all(storage, bucket, plan, quiet=no_progress)

    run(work())


def list_files(
    service: ServiceName,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[STORAGE_PROVIDER] [REMOTE_PATH]", help="Where to look.")
    ] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List files in a service's storage; of its first output if no REMOTE_PATH is given."""
    ref, rest = _provider_first(words or [])
    if len(rest) > 1:
        raise Misuse("write [STORAGE_PROVIDER] [REMOTE_PATH]")
    server = client(cluster, config)

    async def work() -> list[Stored]:
        async with server:
            definition = await _service(server, service)
            storage = await _storage(server, definition, ref)
        bucket, prefix = place(rest[0] if rest else f"{_folder_of(definition, ref, output_first=True)}/")
        return [entry async for entry in storage.list(bucket, prefix)]

    _show_stored(run(work()), as_json=as_json)


def _provider_first(words: list[str]) -> tuple[ProviderRef, list[str]]:
    """The provider that stands first among the words, `minio.default` when none does, and the rest."""
    ref = parse_provider(words[0]) if words else None
    return (ref, words[1:]) if ref else (OWN_STORE, words)


async def _service(server: Client, name: str) -> Service:
    return parse_service(await server.definition(name))


async def _storage(server: Client, service: Service, ref: ProviderRef) -> Storage:
    """The store behind a service's provider.

    Raises:
        Unsupported: it speaks no S3, or the server does not show its keys.
    """
    if ref == OWN_STORE:
        return await server.storage()
    found = service.provider(ref)
    if ref.type is ProviderType.S3 and isinstance(found, S3Provider):
        endpoint = f"https://s3.{found.region or 'us-east-1'}.amazonaws.com"
        found = MinIOProvider(endpoint=endpoint, **found.model_dump())
    if not isinstance(found, MinIOProvider):
        raise Unsupported(f"files of {ref} can't be reached from here", fix="Use that store's own program.")
    if not found.secret_key:
        raise Unsupported(f"the server does not show the keys of {ref}", fix="Use that store's own program.")
    return Storage(found)


def _folder_of(service: Service, ref: ProviderRef, *, output_first: bool) -> str:
    """The first folder of a service on that store, among its outputs or inputs.

    Raises:
        Misuse: it has none.
    """
    places = service.output if output_first else service.input
    for found in places:
        if found.provider == ref or (ref == OWN_STORE and service.is_own_store(found)):
            return found.path
    kind = "output" if output_first else "input"
    raise Misuse(f"{service.name} has no {kind} on {ref}; write the path in full")
