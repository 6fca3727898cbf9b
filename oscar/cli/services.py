"""`oscar apply`, `delete`, `run` and `service …`: services and synchronous calls.

Calls `oscar.client` and, for FDL files, `oscar.model.fdl`; the job and file commands of the group come from
`cli.jobs` and `cli.files`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from oscar.cli import exposed, files, jobs, output
from oscar.cli.clusters_file import ClustersFile, KnownCluster
from oscar.cli.output import JsonOption
from oscar.cli.session import (
    LOCAL,
    ClusterOption,
    ConfigOption,
    aliases,
    client,
    clusters_file,
    connect,
    find,
    known_clusters,
    run,
)
from oscar.client import Client, Result
from oscar.errors import BadRequest, Misuse
from oscar.model import fdl

T = TypeVar("T")

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]
OwnerOption = Annotated[
    str | None, typer.Option(help="The owner's id, when several owners have a service of that name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("apply")(apply)
    app.command("delete")(delete)
    app.command("run")(call)
    group = typer.Typer(help="Services and what belongs to them.", no_args_is_help=True)
    group.command("get")(get)
    group.command("list")(list_)
    group.command("remove")(remove)
    group.command("run")(call)
    aliases(group, {"g": get, "ls": list_, "rm": remove, "delete": remove, "invoke": call})
    exposed.register_in_service(group)
    jobs.register_in_service(group)
    files.register_in_service(group)
    app.add_typer(group, name="service")


def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An FDL file, or one service in YAML or JSON.")
    ],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            help="Apply to this cluster, whatever the file says.",
            autocompletion=known_clusters,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create or update the services of a file."""
    run(_apply(file, cluster, config, as_json=as_json))


async def _apply(file: Path, cluster: str | None, config: Path | None, *, as_json: bool) -> None:
    known = clusters_file(config)
    # All of the file is read and every cluster found before the first change is made.
    work = [(declared, _cluster_of(declared, cluster, known, config)) for declared in _declared(file)]
    done = []
    for declared, target in work:
        filled = await _filled(declared, known)
        request = _usage(partial(fdl.to_request, filled))
        for warning in request.warnings:
            output.warn(warning)
        async with connect(target) as server:
            applied = await server.apply(request.body)
        for warning in applied.warnings:
            output.warn(f"{request.name}: {warning}")
        verb = "created" if applied.created else "updated"
        done.append(
            {
                "service": request.name,
                "cluster": target.id,
                "result": verb,
                "warnings": [*request.warnings, *applied.warnings],
            }
        )
        if not as_json:
            typer.echo(f"{request.name} {verb} on {target.id} ({target.endpoint})")
    if as_json:
        output.as_json(done)


def _declared(file: Path) -> list[fdl.Declared]:
    """The services of a file, with the scripts that lie beside it.

    Raises:
        Misuse: the file or a script can't be read or understood.
    """

    def read_script(name: str) -> str:
        path = file.parent / name
        try:
            return path.read_bytes().decode()
        except OSError as error:
            raise Misuse(f"{file}: script {name}: {error.strerror} ({path})") from None
        except UnicodeDecodeError:
            raise Misuse(f"{file}: script {name} is not UTF-8 text ({path})") from None

    text = file.read_text()
    return _usage(lambda: fdl.parse_fdl(text, read_script=read_script), str(file))


def _usage(make: Callable[[], T], place: str = "") -> T:
    """What `make` gives; what is wrong with a file is wrong usage, not a refusal of the server."""
    try:
        return make()
    except Misuse:
        raise
    except BadRequest as error:
        message = f"{place}: {error.message}" if place else error.message
        raise Misuse(f"{message}\n  {error.fix}" if error.fix else message) from None


def _cluster_of(
    declared: fdl.Declared, cluster: str | None, known: ClustersFile, config: Path | None
) -> KnownCluster:
    """Where a declared service goes: `--cluster`, else what the file says, else the usual one.

    With no cluster configured at all, everything goes to the server of this machine.
    """
    if cluster or not declared.cluster_id:
        return find(cluster, config)
    if declared.cluster_id in known.clusters:
        return known.clusters[declared.cluster_id]
    if not known.clusters or declared.cluster_id == LOCAL:
        return find(None if not known.clusters else LOCAL, config)
    raise Misuse(
        f'{declared.place}: the cluster "{declared.cluster_id}" is not known (known: {known.names()}); '
        "add it by `oscar cluster add`, or choose one by --cluster"
    )


async def _filled(declared: fdl.Declared, known: ClustersFile) -> fdl.Declared:
    """The service with the stores and clusters that it names and only the file of clusters knows."""
    definition: Mapping[str, Any] = declared.definition
    for name in sorted(fdl.undefined_clusters(definition) & known.clusters.keys()):
        async with connect(known.clusters[name]) as server:
            provider = await server.provider()
        definition = fdl.with_provider(definition, name, provider.model_dump())
    for name in sorted(fdl.undefined_members(definition) & known.clusters.keys()):
        member = known.clusters[name]
        facts = {
            "endpoint": member.endpoint,
            "auth_user": member.user,
            "auth_password": member.password,
            "ssl_verify": member.verify,
        }
        definition = fdl.with_cluster(definition, name, facts)
    return replace(declared, definition=definition)


def delete(
    names: Annotated[
        list[str], typer.Argument(metavar="SERVICE|FILE...", help="Services, or FDL files of them.")
    ],
    data: Annotated[
        bool, typer.Option("--data", help="Also remove its buckets with what they hold.")
    ] = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
) -> None:
    """Remove services. Buckets that hold objects stay, unless --data is given."""
    run(_delete(names, cluster, config, data=data, owner=owner))


async def _delete(
    names: list[str], cluster: str | None, config: Path | None, *, data: bool, owner: str | None
) -> None:
    known = clusters_file(config)
    work: list[tuple[str, KnownCluster]] = []
    for name in names:
        if Path(name).suffix in {".yaml", ".yml", ".json"}:
            for declared in _declared(Path(name)):
                service = str(declared.definition.get("name") or "")
                work.append((service, _cluster_of(declared, cluster, known, config)))
        else:
            work.append((name, find(cluster, config)))
    for name, target in work:
        async with connect(target) as server:
            await server.delete(name, data=data, owner=owner)
        typer.echo(f"{name} removed from {target.id}")


def get(
    service: ServiceName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a service's definition, as YAML or JSON."""
    run(_get(service, client(cluster, config), owner, as_json=as_json))


async def _get(service: str, server: Client, owner: str | None, *, as_json: bool) -> None:
    import yaml

    async with server:
        data = await server.definition(service, owner=owner)
    if as_json:
        output.as_json(data)
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def list_(cluster: ClusterOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the services that you may see."""
    run(_list(client(cluster, config), as_json=as_json))


async def _list(server: Client, *, as_json: bool) -> None:
    async with server:
        found = await server.definitions()
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            data.get("name"),
            data.get("image"),
            data.get("cpu"),
            data.get("memory"),
            data.get("visibility"),
            data.get("owner"),
        )
        for data in found
    ]
    output.table(("NAME", "IMAGE", "CPU", "MEMORY", "VISIBILITY", "OWNER"), rows)


def remove(
    services: Annotated[list[str], typer.Argument(metavar="SERVICE...", help="The services' names.")],
    data: Annotated[
        bool, typer.Option("--data", help="Also remove its buckets with what they hold.")
    ] = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
) -> None:
    """Remove services. Buckets that hold objects stay, unless --data is given."""
    run(_delete(services, cluster, config, data=data, owner=owner))


def call(
    service: ServiceName,
    file_input: Annotated[
        str | None, typer.Option("--file-input", "-f", help="The file to send; - for standard input.")
    ] = None,
    text_input: Annotated[str | None, typer.Option("--text-input", "-i", help="The text to send.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Send the input as it is: JSON or base64.")] = False,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result to this file.")] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", "-e", help="A server that is not among the clusters.")
    ] = None,
    token: Annotated[str | None, typer.Option("--token", "-t", help="The service's token.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for the result.", min=0)] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
    decode_output: Annotated[bool, typer.Option("--decode-output", hidden=True)] = False,  # noqa: ARG001 - always done
) -> None:
    """Call a service and wait for its result."""
    if endpoint and not token:
        raise Misuse("--endpoint needs the service's --token")
    server = Client(endpoint, token=token) if endpoint else client(cluster, config)
    body = payload(file_input, text_input)
    run(
        _call(server, service, body, out, token=token, raw=raw, timeout=timeout, owner=owner, as_json=as_json)
    )


async def _call(
    server: Client,
    service: str,
    body: bytes,
    out: Path | None,
    *,
    token: str | None,
    raw: bool,
    timeout: float | None,
    owner: str | None,
    as_json: bool,
) -> None:
    async with server:
        result = await server.run(service, body, token=token, raw=raw, timeout=timeout, owner=owner)
    if result.exit_code:
        _failed(service, result, as_json=as_json)
    if out:
        out.write_bytes(result.body)
        output.say(f"{output.size(len(result.body))} written to {out}")
    if as_json:
        text = result.raw.decode(errors="replace")
        output.as_json({"output": text, "base64": result.decoded, "exit_code": 0})
    elif not out:
        output.raw(result.body)


def _failed(service: str, result: Result, *, as_json: bool) -> NoReturn:
    log = result.body.decode(errors="replace")
    if as_json:
        output.as_json({"output": log, "base64": False, "exit_code": result.exit_code})
    else:
        output.say(log.rstrip("\n"))
        output.say(f"{service} failed with exit code {result.exit_code}")
    raise typer.Exit(1)


def payload(file: str | None, text: str | None) -> bytes:
    """What a call sends, from its two options.

    Raises:
        Misuse: both are given.
        OSError: the file can't be read.
    """
    if file and text is not None:
        raise Misuse("give a file or a text, not both")
    if text is not None:
        return text.encode()
    if file == "-":
        return sys.stdin.buffer.read()
    return Path(file).read_bytes() if file else b""
