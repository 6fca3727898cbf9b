"""The port `Compute` on each engine: what the dispatcher may rely on.

What needs a real sandbox (users of images, secrets, what a script can see) is in `test_compute_local.py`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from oscar.compute.base import Phase
from oscar.errors import ObjectNotFound, RunNotFound
from oscar.model.trouble import Trouble
from tests.computing import BUCKET, Machine, Server
from tests.contract.conftest import CONTAINERS, REAL

Scenario = Callable[[Server], Awaitable[None]]

pytestmark = pytest.mark.parametrize("machine", ["fake", "process", *CONTAINERS, REAL], indirect=True)


def live(machine: Machine, scenario: Scenario) -> None:
    """Run a scenario on a new server."""

    async def run() -> None:
        async with machine.serve() as server:
            await scenario(server)

    asyncio.run(run())


def output(folder: str = "out") -> list[dict[str, str]]:
    return [{"storage_provider": "minio.default", "path": f"{BUCKET}/{folder}"}]


async def content(machine: Machine, key: str) -> bytes:
    target = machine.folder / uuid.uuid4().hex
    await machine.store.download(BUCKET, key, target)
    return target.read_bytes()


@pytest.mark.brief
def test_a_run_stores_its_results(machine: Machine) -> None:
    folder = uuid.uuid4().hex

    async def scenario(server: Server) -> None:
        order = server.order('echo "hello world" > "$TMP_OUTPUT_DIR/note.txt"', output=output(folder))
        await server.compute.submit(order)
        end = await server.done(order.name)
        assert (end.trouble, end.message, end.exit_code) == (None, None, 0)
        assert await content(machine, f"{folder}/note.txt") == b"hello world\n"
        phases = [state.phase for state in server.seen[order.name]]
        assert phases == [Phase.SUBMITTED, Phase.RUNNING, Phase.SETTLING, Phase.DONE]
        assert end.started is not None
        assert end.finished is not None
        assert end.started <= end.finished

    live(machine, scenario)


@pytest.mark.brief
def test_a_failing_script_has_its_exit_code_and_stores_nothing(machine: Machine) -> None:
    folder = uuid.uuid4().hex

    async def scenario(server: Server) -> None:
        script = 'echo half > "$TMP_OUTPUT_DIR/half.txt"\necho oh dear\nexit 7'
        order = server.order(script, output=output(folder))
        await server.compute.submit(order)
        end = await server.done(order.name)
        assert (end.trouble, end.exit_code) == (Trouble.SCRIPT, 7)
        assert "exit code 7" in (end.message or "")
        assert "oh dear" in await server.text(order.name)
        with pytest.raises(ObjectNotFound):
            await machine.store.stat(BUCKET, f"{folder}/half.txt")

    live(machine, scenario)


def test_a_timeout_counts_from_the_scripts_start(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        end = await server.run("echo begun\nsleep 300", timeout=1.0)
        assert end.trouble is Trouble.TIMEOUT
        assert end.exit_code is None
        assert "1 s" in (end.message or "")
        assert end.started is not None
        assert end.finished is not None
        assert end.finished - end.started >= 1000

    live(machine, scenario)


def test_a_running_script_is_cancelled(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("sleep 300")
        await server.compute.submit(order)
        await server.running(order.name)
        await server.compute.cancel(order.name)
        end = await server.done(order.name)
        assert end.trouble is Trouble.CANCELLED
        await server.compute.cancel(order.name)  # silent

    live(machine, scenario)


def test_a_run_is_cancelled_before_its_script_starts(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("echo started")
        await server.compute.submit(order)
        await server.compute.cancel(order.name)
        end = await server.done(order.name)
        # It may have been too late for that, but never half.
        assert end.trouble is Trouble.CANCELLED or (end.trouble, end.exit_code) == (None, 0)

    live(machine, scenario)


def test_cancelling_nothing_is_silent(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        await server.compute.cancel("nobody-1")
        await server.compute.forget("nobody-1")
        await server.compute.drop_logs("nobody-1")

    live(machine, scenario)


@pytest.mark.brief
def test_the_same_name_twice_is_one_run(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("echo once")
        await asyncio.gather(*(server.compute.submit(order) for _ in range(5)))
        assert (await server.done(order.name)).trouble is None
        await server.compute.submit(order)
        await server.compute.submit(order, adopt=True)
        assert (await server.text(order.name)).count("once") == 1
        assert [state.phase for state in server.seen[order.name]].count(Phase.DONE) == 1

    live(machine, scenario)


def test_a_run_that_nobody_knows_is_not_adopted(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("echo never")
        with pytest.raises(RunNotFound):
            await server.compute.submit(order, adopt=True)
        with pytest.raises(RunNotFound):
            await server.text(order.name)
        await server.compute.submit(order)
        assert (await server.done(order.name)).trouble is None

    live(machine, scenario)


@pytest.mark.parametrize("drop", [False, True], ids=["stopped", "dropped"])
def test_a_running_script_is_found_by_the_next_server(machine: Machine, *, drop: bool) -> None:
    folder = uuid.uuid4().hex

    async def scenario() -> None:
        script = 'echo begun\nsleep 1\necho done > "$TMP_OUTPUT_DIR/late.txt"\necho ended'
        async with machine.serve(drop=drop) as server:
            order = server.order(script, output=output(folder))
            await server.compute.submit(order)
            await server.running(order.name)
        async with machine.serve() as server:
            found = await server.reach(order.name, *Phase)
            assert found.phase is not Phase.SUBMITTED
            await server.compute.submit(order, adopt=True)
            end = await server.done(order.name)
            assert (end.trouble, end.exit_code) == (None, 0)
            text = await server.text(order.name)
            assert (text.count("begun"), text.count("ended")) == (1, 1)
            assert await content(machine, f"{folder}/late.txt") == b"done\n"

    asyncio.run(scenario())


@pytest.mark.brief
def test_a_script_that_ended_meanwhile_is_settled_by_the_next_server(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            order = server.order("echo quick\nsleep 0.3\nexit 5")
            await server.compute.submit(order)
            await server.running(order.name)
        await asyncio.sleep(1)  # nobody looks: that is the point
        async with machine.serve() as server:
            await server.compute.submit(order, adopt=True)
            end = await server.done(order.name)
            assert (end.trouble, end.exit_code) == (Trouble.SCRIPT, 5)
            assert (await server.text(order.name)).count("quick") == 1

    asyncio.run(scenario())


def test_a_found_script_is_cancelled_without_its_order(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            order = server.order("sleep 300")
            await server.compute.submit(order)
            await server.running(order.name)
        async with machine.serve() as server:
            await server.reach(order.name, *Phase)
            await server.compute.cancel(order.name)
            assert (await server.done(order.name)).trouble is Trouble.CANCELLED

    asyncio.run(scenario())


def test_a_done_run_is_known_until_it_is_forgotten(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve() as server:
            order = server.order("echo kept\nexit 3")
            await server.compute.submit(order)
            first = await server.done(order.name)
        async with machine.serve() as server:
            assert await server.reach(order.name, *Phase) == first
            await server.compute.forget(order.name)
            assert "kept" in await server.text(order.name)
            assert "kept" in await server.text(order.name, follow=True)
            with pytest.raises(RunNotFound):
                await server.compute.submit(order, adopt=True)
        async with machine.serve() as server:
            assert order.name not in server.seen
            assert "kept" in await server.text(order.name)
            await server.compute.drop_logs(order.name)
            with pytest.raises(RunNotFound):
                await server.text(order.name)

    asyncio.run(scenario())


def test_logs_are_followed_while_the_script_runs(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("echo first\nsleep 1\necho second")
        await server.compute.submit(order)
        seen = [
            (line.text, server.seen[order.name][-1].phase)
            async for line in server.compute.logs(order.name, follow=True)
            if not line.text.startswith("supervisor")
        ]
        texts = [text for text, _ in seen]
        assert texts == ["first", "second"]
        # The engine may tell of the start a little after the script's first words, never after its end.
        assert seen[0][1] in {Phase.SUBMITTED, Phase.RUNNING}
        assert Phase.RUNNING in {state.phase for state in server.seen[order.name]}
        times = [line.time for line in await server.log(order.name)]
        assert times == sorted(times)
        assert all(
            len(time) == len("2026-01-01T00:00:00.000000000Z") and time.endswith("Z") for time in times
        )

    live(machine, scenario)


def test_the_tail_of_a_log(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("\n".join(f"echo line {number}" for number in range(50)), log_level="CRITICAL")
        await server.compute.submit(order)
        await server.done(order.name)
        assert await server.text(order.name, tail=2) == ["line 48", "line 49"]
        assert await server.text(order.name, tail=0) == []
        assert len(await server.text(order.name, tail=1000)) == 50

    live(machine, scenario)


def test_input_that_is_not_there_and_bad_input_are_refused_at_once(machine: Machine) -> None:
    record = b"""{"Records": [{"eventSource": "minio:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "%s"}, "object": {"key": "%s"}}}]}"""
    source = [{"storage_provider": "minio.default", "path": f"{BUCKET}/in"}]

    async def scenario(server: Server) -> None:
        script = "echo started"
        gone = server.order(script, record % (BUCKET.encode(), b"in/gone.txt"), input=source)
        await server.compute.submit(gone)
        end = await server.done(gone.name)
        assert end.trouble is Trouble.REFUSED
        assert "in/gone.txt" in (end.message or "")
        assert end.started is None
        foreign = server.order(script, record % (b"other", b"in/x.txt"), input=source)
        await server.compute.submit(foreign)
        assert (await server.done(foreign.name)).trouble is Trouble.REFUSED
        for order in (gone, foreign):
            assert "started" not in await server.text(order.name)

    live(machine, scenario)


def test_inputs_and_the_events_variables_reach_the_script(machine: Machine, tmp_path: Path) -> None:
    record = b"""{"Records": [{"eventSource": "minio:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "%s"}, "object": {"key": "in/a+b.txt"}}}]}""" % BUCKET.encode()

    async def scenario(server: Server) -> None:
        (tmp_path / "a.txt").write_text("some input\n")
        await machine.store.upload(BUCKET, "in/a b.txt", tmp_path / "a.txt")
        order = server.order(
            'echo "$STORAGE_OBJECT_KEY"\necho "$INPUT_FILE_PATH"\necho "$COLOUR $JOB_UUID"',
            record,
            input=[{"storage_provider": "minio.default", "path": f"{BUCKET}/in"}],
            environment={"variables": {"COLOUR": "red * blue"}},
        )
        await server.compute.submit(order)
        assert (await server.done(order.name)).trouble is None
        lines = [text for text in await server.text(order.name) if not text.startswith("supervisor")]
        assert lines[0] == "in/a b.txt"
        assert lines[1].endswith("/in/a b.txt")
        assert lines[2] == f"red * blue {order.job_id}"

    live(machine, scenario)


def test_a_payload_may_be_a_file(machine: Machine, tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        body = tmp_path / "body"
        body.write_bytes(b'{"size": "' + b"x" * 300_000 + b'"}')
        end = await server.run('echo "$INPUT_FILE_PATH"', body)
        assert end.trouble is None

    live(machine, scenario)


def test_many_at_once(machine: Machine) -> None:
    folder = uuid.uuid4().hex
    count = 12

    async def scenario(server: Server) -> None:
        orders = [
            server.order(
                f'echo {number} > "$TMP_OUTPUT_DIR/{number}.txt"', output=output(folder), memory="32Mi"
            )
            for number in range(count)
        ]
        await asyncio.gather(*(server.compute.submit(order) for order in orders))
        ends = await asyncio.gather(*(server.done(order.name) for order in orders))
        assert [end.trouble for end in ends] == [None] * count
        found = [each.key async for each in machine.store.list(BUCKET, f"{folder}/")]
        assert len(found) == count

    live(machine, scenario)


def test_limits_of_running_scripts_are_not_free(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        idle = await server.compute.capacity()
        assert idle.cpu_free == idle.cpu > 0
        assert idle.memory_free == idle.memory > 2**30
        order = server.order("sleep 300", cpu="0.5", memory="64Mi")
        await server.compute.submit(order)
        busy = await server.compute.capacity()
        assert busy.cpu_free == idle.cpu - 500
        assert busy.memory_free == idle.memory - 64 * 1024**2
        await server.compute.cancel(order.name)
        await server.done(order.name)
        assert await server.compute.capacity() == idle

    live(machine, scenario)


def test_what_a_service_needs_beforehand_is_made_and_removed(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        service = server.order("true", image_prefetch=True, owner="ann").service
        await server.compute.apply(service)
        await server.compute.apply(service)
        await server.compute.remove("ann", "hello")
        await server.compute.remove("ann", "hello")
        # An image that can't be had beforehand is no error yet: it may be there by the first job.
        await server.compute.apply(service.model_copy(update={"image": "localhost/missing:1"}))
        await server.compute.remove("ann", "hello")

    live(machine, scenario)


def test_what_can_not_be_honoured_is_said(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        assert server.compute.describe()
        warnings = server.compute.check(server.order("true", enable_gpu=True).service)
        assert any("enable_gpu" in warning for warning in warnings)

    live(machine, scenario)


def test_an_image_that_can_not_be_had_is_told_in_the_engines_words(machine: Machine) -> None:
    if machine.engine == "process":
        machine.engine = "process without images"

    async def scenario(server: Server) -> None:
        order = server.order("echo started", image="localhost/missing:1")
        await server.compute.submit(order)
        end = await server.done(order.name)
        if machine.engine == "process without images":
            assert end.trouble is None
            return
        assert end.trouble is Trouble.OUR
        assert "localhost/missing:1" in (end.message or "")
        assert end.started is None

    live(machine, scenario)
