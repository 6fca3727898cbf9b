"""`oscar job …`, `oscar logs` and `oscar service job|logs …`: jobs and what they write.

Calls `oscar.client`. Waiting and following end with exit code 1 when the job failed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from oscar.cli import output
from oscar.cli.output import JsonOption
from oscar.cli.session import ClusterOption, ConfigOption, aliases, client, run
from oscar.client import Client, Job, JobSummary, Submitted
from oscar.errors import InvocationTimeout, Misuse

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
FileInput = Annotated[str | None, typer.Option("--file-input", "-f", help="The file to send; - for stdin.")]
TextInput = Annotated[str | None, typer.Option("--text-input", "-i", help="The text to send.")]
StatusOption = Annotated[
    str | None,
    typer.Option("--status", "-s", help="Only these: Pending, Running, Succeeded, Failed (with commas)."),
]
Timestamps = Annotated[bool, typer.Option("--timestamps", "--show-timestamps", "-t", help="Show times.")]
STATUSES = {"pending", "running", "succeeded", "failed", "suspended"}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(help="Jobs: work that services do in the background.", no_args_is_help=True)
    group.command("submit")(submit)
    group.command("list")(list_)
    group.command("status")(status)
    group.command("wait")(wait)
    group.command("cancel")(cancel)
    group.command("rerun")(rerun)
    group.command("remove")(remove)
    aliases(group, {"ls": list_, "rm": remove, "delete": remove, "get": status})
    app.add_typer(group, name="job")
    app.command("logs")(logs)


def register_in_service(service: typer.Typer) -> None:
    """Add the commands that `oscar service` has for jobs."""
    service.command("job")(submit)
    logs_group = typer.Typer(help="The logs of a service's jobs.", no_args_is_help=True)
    logs_group.command("list")(list_)
    logs_group.command("get")(logs)
    logs_group.command("remove")(remove)
    aliases(logs_group, {"ls": list_, "g": logs, "rm": remove, "delete": remove})
    service.add_typer(logs_group, name="logs")


def submit(
    service: ServiceName,
    file_input: FileInput = None,
    text_input: TextInput = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the input as it is: an event, JSON, base64.")
    ] = False,
    wait_for_end: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the job's end.")] = False,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="The same key twice is one job.")
    ] = None,
    callback: Annotated[str | None, typer.Option(help="An address that is told of the job's end.")] = None,
    token: Annotated[str | None, typer.Option("--token", help="The service's token.")] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a service do a job in the background; prints the job's id."""
    from oscar.cli.services import payload

    body = payload(file_input, text_input)
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            job = await server.submit(
                service, body, token=token, raw=raw, idempotency_key=key, callback=callback
            )
            if wait_for_end and job.job_id:
                _end(await server.wait(service, job.job_id), as_json=as_json)
            else:
                _submitted(job, as_json=as_json)

    run(work())


def list_(
    service: ServiceName,
    status_filter: StatusOption = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first; 0 for all.", min=0)] = 0,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a service's jobs, newest first."""
    wanted = {word.strip().lower() for word in status_filter.split(",")} if status_filter else STATUSES
    if unknown := wanted - STATUSES:
        raise Misuse(f"no such status: {', '.join(sorted(unknown))}")
    found = run(_jobs(client(cluster, config), service, wanted, limit))
    if as_json:
        output.as_json([job.model_dump(mode="json") for job in found])
        return
    rows = [
        (job.name, job.status, *map(output.time, (job.creation_time, job.start_time, job.finish_time)))
        for job in found
    ]
    output.table(("JOB", "STATUS", "CREATED", "STARTED", "FINISHED"), rows)


async def _jobs(server: Client, service: str, wanted: set[str], limit: int) -> list[JobSummary]:
    found: list[JobSummary] = []
    async with server:
        async for job in server.jobs(service):
            if job.status.lower() in wanted:
                found.append(job)
                if len(found) == limit:
                    break
    return found


def status(
    service: ServiceName,
    job: JobName,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a job."""
    server = client(cluster, config)

    async def work() -> Job:
        async with server:
            return await server.job(service, job)

    _show(run(work()), as_json=as_json)


def wait(
    service: ServiceName,
    job: JobName,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.", min=0)] = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for a job's end; exit code 1 when it failed."""
    server = client(cluster, config)

    async def work() -> Job:
        async with server:
            try:
                return await asyncio.wait_for(server.wait(service, job), timeout)
            except TimeoutError:
                raise InvocationTimeout(f"{job} has not ended within {timeout:g} s") from None

    _end(run(work()), as_json=as_json)


def cancel(
    service: ServiceName, job: JobName, cluster: ClusterOption = None, config: ConfigOption = None
) -> None:
    """Stop a job."""
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            await server.cancel(service, job)

    run(work())
    typer.echo(f"{job} is being cancelled")


def rerun(
    service: ServiceName,
    job: JobName,
    wait_for_end: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the new job's end.")] = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do a job again with the same input, as a new job; prints its id."""
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            again = await server.rerun(service, job)
            if wait_for_end:
                _end(await server.wait(service, again.job_id), as_json=as_json)
            else:
                _submitted(again, as_json=as_json)

    run(work())


def remove(
    service: ServiceName,
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="The jobs' ids.")] = None,
    succeeded: Annotated[bool, typer.Option("--succeeded", "-s", help="All that succeeded.")] = False,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All, running ones too.")] = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove jobs with their logs."""
    if sum((bool(jobs), succeeded, everything)) != 1:
        raise Misuse("give the jobs' ids, or --succeeded, or --all")
    server = client(cluster, config)

    async def work() -> None:
        async with server:
            for job in jobs or []:
                await server.delete_job(service, job)
            if not jobs:
                await server.delete_jobs(service, everything=everything)

    run(work())


def logs(
    service: ServiceName,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="The job; the latest if not given.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job's end.")] = False,
    timestamps: Timestamps = False,
    tail: Annotated[int | None, typer.Option(help="Only the last so many lines.", min=0)] = None,
    latest: Annotated[bool, typer.Option("--latest", "-l", help="The latest job.")] = False,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a job has written; with --follow, exit code 1 when it failed."""
    if job and latest:
        raise Misuse("give a job or --latest, not both")
    server = client(cluster, config)
    run(_logs(server, service, job, follow=follow, timestamps=timestamps, tail=tail, as_json=as_json))


async def _logs(
    server: Client,
    service: str,
    job: str | None,
    *,
    follow: bool,
    timestamps: bool,
    tail: int | None,
    as_json: bool,
) -> None:
    async with server:
        name = job or await _latest(server, service)
        if not job:
            output.say(f"job {name}")
        if not follow:
            text = await server.logs(service, name, timestamps=timestamps, tail=tail)
            if as_json:
                output.as_json({"job_id": name, "lines": text.splitlines()})
            else:
                typer.echo(text, nl=not text.endswith("\n") and bool(text))
            return
        async for item in server.follow(service, name, timestamps=timestamps, tail=tail):
            if isinstance(item, Job):
                _end(item, as_json=as_json, quiet=item.succeeded)
            else:
                typer.echo(item)
                sys.stdout.flush()


async def _latest(server: Client, service: str) -> str:
    page = await server.jobs_page(service)
    if not page.jobs:
        raise Misuse(f"{service} has had no job yet")
    dated = [job for job in page.jobs if job.creation_time]
    return max(dated, key=lambda job: str(job.creation_time)).name if dated else page.jobs[0].name


def _submitted(job: Submitted, *, as_json: bool) -> None:
    if as_json:
        output.as_json(job.model_dump())
    elif job.job_id:
        typer.echo(job.job_id)
    else:
        output.say("accepted; this server does not tell the job's id")


def _end(job: Job, *, as_json: bool, quiet: bool = False) -> None:
    """Show an ended job; exit code 1 when it did not succeed."""
    if not quiet or as_json:
        _show(job, as_json=as_json)
    if not job.succeeded:
        raise typer.Exit(1)


def _show(job: Job, *, as_json: bool) -> None:
    if as_json:
        output.as_json(job.model_dump(mode="json"))
        return
    facts: dict[str, Any] = {
        "job": job.job_id,
        "status": f"{job.status} ({job.state})" if job.state else job.status,
        "reason": job.reason,
        "message": job.message,
        "exit code": job.exit_code,
        "attempt": job.attempt or None,
        "user": job.user or None,
        "created": output.time(job.creation_time) or None,
        "started": output.time(job.start_time) or None,
        "finished": output.time(job.finish_time) or None,
    }
    for name, value in facts.items():
        if value is not None:
            typer.echo(f"{name + ':':<11}{value}")
