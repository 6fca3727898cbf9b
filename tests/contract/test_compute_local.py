"""What only real sandboxes can show: users, secrets, walls, limits, and what a server that died leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from oscar.compute.base import Phase, Run
from oscar.compute.local.attempt import PREFIX
from oscar.compute.local.backend import LocalCompute
from oscar.compute.local.records import RunFolder
from oscar.errors import RunNotFound, Unsupported
from oscar.model.trouble import Trouble
from tests import images
from tests.computing import BUCKET, Machine, Server
from tests.contract.conftest import CONTAINERS
from tests.contract.test_compute import content, live, output
from tests.invoking import alive, until

EVERY = pytest.mark.parametrize("machine", ["process", *CONTAINERS], indirect=True)
CONTAINER = pytest.mark.parametrize("machine", CONTAINERS, indirect=True)
PROCESS = pytest.mark.parametrize("machine", ["process"], indirect=True)
SECRET = f"planted-secret-{uuid.uuid4().hex}"


def local(server: Server) -> LocalCompute:
    assert isinstance(server.compute, LocalCompute)
    return server.compute


# Users and files.


@CONTAINER
def test_an_image_may_have_any_user_and_a_script_any_umask(machine: Machine) -> None:
    folder = uuid.uuid4().hex

    async def scenario(server: Server) -> None:
        script = 'umask 077\nid -u\nmkdir "$TMP_OUTPUT_DIR/deep"\necho mine > "$TMP_OUTPUT_DIR/deep/note.txt"'
        order = server.order(script, image=machine.user_image, output=output(folder))
        await server.compute.submit(order)
        assert (await server.done(order.name)).trouble is None
        assert "1001" in await server.text(order.name)
        assert await content(machine, f"{folder}/deep/note.txt") == b"mine\n"
        await server.compute.forget(order.name)

    live(machine, scenario)


@EVERY
def test_results_are_readable_whatever_the_umask(machine: Machine) -> None:
    folder = uuid.uuid4().hex

    async def scenario(server: Server) -> None:
        order = server.order('umask 777\necho mine > "$TMP_OUTPUT_DIR/note.txt"', output=output(folder))
        await server.compute.submit(order)
        assert (await server.done(order.name)).trouble is None
        assert await content(machine, f"{folder}/note.txt") == b"mine\n"

    live(machine, scenario)


@EVERY
def test_an_input_may_be_changed_by_the_script(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        script = 'echo more >> "$INPUT_FILE_PATH" && cat "$INPUT_FILE_PATH" && rm "$INPUT_FILE_PATH"'
        image = machine.user_image or server.image
        order = server.order(script, b'{"some": "event"}', image=image)
        await server.compute.submit(order)
        assert (await server.done(order.name)).exit_code == 0
        assert '{"some": "event"}more' in await server.text(order.name)

    live(machine, scenario)


@EVERY
def test_the_script_finds_its_definition_without_secrets_and_the_event(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        config = "/oscar/config"
        order = server.order(
            f"cat {config}/event; echo; cat {config}/function_config.yaml; echo > {config}/x || echo closed",
            b'{"the": "event"}',
            environment={"secrets": {"PASSWORD": SECRET}, "variables": {"A": "b"}},
        )
        await server.compute.submit(order)
        assert (await server.done(order.name)).exit_code == 0
        text = await server.text(order.name)
        assert text[0] == '{"the": "event"}'
        assert "name: hello" in text
        assert text[-1] == "closed"
        assert not [line for line in text if SECRET in line]

    live(machine, scenario)


# Images.


@CONTAINER
def test_without_a_script_the_images_own_command_runs(machine: Machine) -> None:
    image = images.busybox(machine.engine, 'CMD ["/bin/sh", "-c", "echo own command in $COLOUR; exit 4"]')

    async def scenario(server: Server) -> None:
        order = server.order("", image=image, environment={"variables": {"COLOUR": "blue", "HOME": "/nice"}})
        await server.compute.submit(order)
        assert (await server.done(order.name)).exit_code == 4
        assert "own command in blue" in await server.text(order.name)

    live(machine, scenario)


@CONTAINER
def test_an_entrypoint_of_the_image_is_not_in_the_way(machine: Machine) -> None:
    image = images.busybox(machine.engine, 'ENTRYPOINT ["/bin/false"]')

    async def scenario(server: Server) -> None:
        assert (await server.run("echo fine", image=image)).trouble is None

    live(machine, scenario)


@CONTAINER
@pytest.mark.parametrize("image", ["--privileged", "dir:/etc", "docker-archive:/etc/passwd", "Not/An Image"])
def test_what_is_no_image_never_reaches_the_engine(machine: Machine, image: str) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("echo started")
        # Past the model's own check: engines must not rely on it.
        service = order.service.model_copy(update={"image": image})
        await server.compute.submit(Run(order.name, order.job_id, 1, service, b"{}"))
        end = await server.done(order.name)
        assert end.trouble is Trouble.OUR
        assert "is not the name of an image" in (end.message or "")

    live(machine, scenario)


@CONTAINER
def test_an_image_that_was_removed_meanwhile_is_had_again(machine: Machine) -> None:
    image = images.busybox(machine.engine, f"LABEL once={uuid.uuid4().hex}")

    async def scenario(server: Server) -> None:
        assert (await server.run("echo there", image=image)).trouble is None
        cli = local(server).engine.cli  # type: ignore[attr-defined] # of Containers
        await cli.call("rmi", "--force", image)
        end = await server.run("echo gone", image=image)
        assert end.trouble is Trouble.OUR
        assert "pull" in (end.message or "")

    live(machine, scenario)


@CONTAINER
def test_jobs_that_wait_for_an_image_share_one_pull_and_hold_up_nobody(machine: Machine) -> None:
    """A registry that takes its time: others start meanwhile, and a stop does not wait for it."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await answer.wait()
        writer.close()

    async def scenario() -> None:
        registry = await asyncio.start_server(slow, "127.0.0.1", 0)
        port = registry.sockets[0].getsockname()[1]
        async with registry:
            async with machine.serve() as server:
                orders = [server.order("true", image=f"127.0.0.1:{port}/slow:1") for _ in range(8)]
                await asyncio.gather(*(server.compute.submit(order) for order in orders))
                await asked.wait()
                assert (await server.run("echo others go on")).trouble is None
                pulls = [line for line in _command_lines() if f"127.0.0.1:{port}/slow:1" in line]
                assert len(pulls) == 1
                await server.compute.cancel(orders[0].name)
                assert (await server.done(orders[0].name)).trouble is Trouble.CANCELLED
            await until(lambda: not [line for line in _command_lines() if f"127.0.0.1:{port}/slow:1" in line])
            answer.set()

    asyncio.run(scenario())


# Environment.


@EVERY
def test_variables_arrive_exactly_and_steer_no_tool_of_ours(machine: Machine) -> None:
    wanted = {
        "SPACES": "two  spaces ",
        "QUOTES": "\"double\" 'single' `id` $HOME \\ *",
        "LINES": "one\ntwo\n",
        "UNICODE": "é€",
        "EMPTY": "",
        "PATH": "/strange:/usr/bin:/bin",
        "LD_LIBRARY_PATH": "/oscar/work/in",
        "HOME": "/oscar/work",
        "CONTAINERS_CONF": "/oscar/work/in/evil.conf",
        "DOCKER_HOST": "tcp://127.0.0.1:1",
        "TMPDIR": "/nowhere",
    }
    # Read from /proc, where nothing interprets them.
    script = (
        'while IFS= read -r line; do echo "$line"; done < /proc/self/environ > "$TMP_OUTPUT_DIR/environ"\n'
        'cat /proc/$$/environ > "$TMP_OUTPUT_DIR/environ"'
    )
    folder = uuid.uuid4().hex

    async def scenario(server: Server) -> None:
        order = server.order(script, environment={"variables": wanted}, output=output(folder))
        await server.compute.submit(order)
        end = await server.done(order.name)
        assert end.trouble is None, end
        raw = (await content(machine, f"{folder}/environ")).decode()
        got = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
        assert {name: got.get(name) for name in wanted} == wanted
        assert not [name for name in got if name.startswith("OSCAR_ALIAS")]
        # Nothing of the server's own.
        assert "VIRTUAL_ENV" not in got
        assert "PYTEST_CURRENT_TEST" not in got

    live(machine, scenario)


@EVERY
def test_a_variable_that_no_program_can_take_is_refused(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        end = await server.run("true", environment={"variables": {"BIG": "x" * 200_000}})
        assert end.trouble is Trouble.REFUSED
        assert "BIG" in (end.message or "")

    live(machine, scenario)


@EVERY
def test_secrets_are_in_no_argument_and_in_no_file_after_the_end(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order(
            'test -n "$PASSWORD" && echo has it && sleep 2',
            environment={"secrets": {"PASSWORD": SECRET, "LD_X": SECRET}},
            storage_providers={
                "s3": {"far": {"access_key": "AKIA", "secret_key": SECRET, "region": "eu-west-1"}}
            },
        )
        await server.compute.submit(order)
        found: list[str] = []
        while (await server.reach(order.name, *Phase)).phase is not Phase.DONE:
            found += [line for line in _command_lines() if SECRET in line]
            await asyncio.sleep(0.005)
        assert "has it" in await server.text(order.name)
        assert found == []
        await server.compute.forget(order.name)
        await local(server).idle()
        assert [str(path) for path in _files_with(machine.folder, SECRET)] == []
        names = await local(server).engine.names()
        assert names == []

    live(machine, scenario)


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# Walls and limits.


@PROCESS
def test_a_process_sees_nothing_of_the_server(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        script = "\n".join(
            (
                "id -u",
                f"test -e {machine.folder} && echo data folder",
                "test -e /root && echo root",
                "test -e /home && echo home",
                "test -e /etc/shadow && echo shadow",
                f"kill -0 {os.getpid()} 2>/dev/null && echo server",
                "touch /usr/x 2>/dev/null && echo usr",
                "touch /etc/x 2>/dev/null && echo etc",
                "ls /proc | grep -c '^[0-9]'",
                "grep -q 'CapEff:.0000000000000000' /proc/self/status && echo powerless",
            )
        )
        order = server.order(script)
        await server.compute.submit(order)
        await server.done(order.name)
        text = [line for line in await server.text(order.name) if not line.startswith("supervisor")]
        user = str(os.geteuid() or 65534)
        assert text[0] == user
        assert int(text[1]) < 8
        assert text[2:] == ["powerless"]

    live(machine, scenario)


@EVERY
def test_nothing_of_a_script_is_left_running(machine: Machine) -> None:
    number = str(100_000 + uuid.uuid4().int % 100_000)

    async def scenario(server: Server) -> None:
        assert (await server.run(f"sleep {number} &\necho left")).trouble is None
        await until(lambda: not alive(number))
        order = server.order(f"sleep {number} & sleep {number}")
        await server.compute.submit(order)
        await server.running(order.name)
        await until(lambda: alive(number))
        await server.compute.cancel(order.name)
        await server.done(order.name)
        assert not alive(number)

    live(machine, scenario)


@EVERY
def test_a_script_that_takes_too_much_memory_is_told_so(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        if not local(server).engine.facts.memory:
            pytest.skip("memory limits are not kept here")
        end = await server.run("x=a; while :; do x=$x$x$x$x; done", memory="32Mi")
        assert end.trouble is Trouble.SCRIPT
        assert end.exit_code == 137
        assert end.message == "killed: out of memory (limit 32Mi)"
        end = await server.run("kill -9 $$; sleep 1; exit 137", memory="32Mi")
        assert (end.trouble, end.exit_code) == (Trouble.SCRIPT, 137)
        assert "memory" not in (end.message or "")

    live(machine, scenario)


@EVERY
def test_both_outputs_keep_their_order_and_an_open_end(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        script = 'for n in 1 2 3 4 5; do echo out $n; echo err $n >&2; done; printf "no end"'
        order = server.order(script, output=output(uuid.uuid4().hex))
        await server.compute.submit(order)
        await server.done(order.name)
        text = [line for line in await server.text(order.name) if not line.startswith("supervisor")]
        assert text == [f"{where} {n}" for n in range(1, 6) for where in ("out", "err")] + ["no end"]

    live(machine, scenario)


@EVERY
def test_long_lines_come_whole(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("head -c 100000 /dev/zero | tr '\\0' x; echo end; echo next")
        await server.compute.submit(order)
        await server.done(order.name)
        assert [len(line) for line in await server.text(order.name, tail=2)] == [100_003, 4]

    live(machine, scenario)


@PROCESS
def test_an_engine_without_images_is_for_those_who_asked_for_it(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        service = server.order("true").service
        assert any(warning.startswith("image") for warning in server.compute.check(service))
        with pytest.raises(Unsupported, match="container engine"):
            LocalCompute(local(server).engine, machine.folder, machine.store).check(service)
        with pytest.raises(Unsupported, match="own command"):
            server.compute.check(service.model_copy(update={"script": ""}))

    live(machine, scenario)


# What a server that died leaves behind.


Dead = Callable[[Server, Run], Awaitable[None]]


def in_two_lives(
    machine: Machine, order_of: Callable[[Server], Run], between: Callable[[RunFolder], None]
) -> Run:
    """Submit a run that says "once", drop the server while it runs, and change its records for the next server."""

    async def first() -> Run:
        async with machine.serve(drop=True) as server:
            order = order_of(server)
            await server.compute.submit(order)
            await server.running(order.name)
            await until(lambda: _log_has(machine, order.name, "once"))
            return order

    order = asyncio.run(first())
    between(RunFolder(machine.folder / "runs" / order.name))
    return order


@EVERY
def test_a_timeout_goes_on_counting_for_the_next_server(machine: Machine) -> None:
    order = in_two_lives(
        machine, lambda server: server.order("echo once; sleep 300", timeout=2.0), lambda _: None
    )

    async def scenario(server: Server) -> None:
        end = await server.done(order.name)
        assert end.trouble is Trouble.TIMEOUT

    live(machine, scenario)


@EVERY
def test_after_a_reboot_a_run_is_lost(machine: Machine) -> None:
    def reboot(place: RunFolder) -> None:
        started = json.loads((place.path / "started").read_bytes())
        (place.path / "started").write_text(json.dumps({**started, "boot": "another"}))

    order = in_two_lives(machine, lambda server: server.order("echo once; sleep 1"), reboot)

    async def scenario(server: Server) -> None:
        await server.compute.submit(order, adopt=True)
        end = await server.done(order.name)
        assert end.trouble is Trouble.LOST
        assert (await server.text(order.name)).count("once") == 1

    live(machine, scenario)


@EVERY
def test_a_sandbox_that_somebody_removed_is_lost_and_not_started_again(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            number = str(100_000 + uuid.uuid4().int % 100_000)
            order = server.order(f"echo once; sleep {number}")
            await server.compute.submit(order)
            await server.running(order.name)
            await until(lambda: _log_has(machine, order.name, "once"))
        if machine.engine == "process":
            # Its keeper; the sandbox dies with it.
            shim = int((machine.folder / "engine" / f"{PREFIX}{order.name}" / "pid").read_text().split()[0])
            os.kill(shim, signal.SIGKILL)
        else:
            compute = await machine.make()
            assert isinstance(compute, LocalCompute)
            cli = compute.engine.cli  # type: ignore[attr-defined] # of Containers
            at_once = ["--time", "0"] if machine.engine == "podman" else []
            await cli.call("rm", "--force", *at_once, f"{PREFIX}{order.name}")
        await until(lambda: not alive(number))
        async with machine.serve() as server:
            await server.compute.submit(order, adopt=True)
            end = await server.done(order.name)
            assert end.trouble is Trouble.LOST
            assert (await server.text(order.name)).count("once") == 1

    asyncio.run(scenario())


def _log_has(machine: Machine, name: str, text: str) -> bool:
    return text in (machine.folder / "logs" / f"{name}.log").read_text()


@EVERY
def test_a_start_that_was_cut_before_the_engine_is_made_good(machine: Machine) -> None:
    """`started` is on the disk, but the server died before the engine heard of it."""

    async def scenario() -> None:
        async with machine.serve() as server:
            order = server.order("echo once")
            place = RunFolder(machine.folder / "runs" / order.name)
        await _plant(place, order)
        async with machine.serve() as server:
            assert (await server.reach(order.name, *Phase)).phase in {Phase.RUNNING, Phase.SUBMITTED}
            await server.compute.submit(order, adopt=True)
            assert (await server.done(order.name)).trouble is None
            assert (await server.text(order.name)).count("once") == 1

    asyncio.run(scenario())


@CONTAINER
def test_a_container_that_was_made_but_not_started_is_started_once(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve() as server:
            order = server.order("echo once")
            place = RunFolder(machine.folder / "runs" / order.name)
            engine = local(server).engine
            installation = engine._installation  # type: ignore[attr-defined]
            await engine.cli.call(  # type: ignore[attr-defined]
                "create", "--name", f"{PREFIX}{order.name}", "--label", f"oscar.installation={installation}",
                machine.image, "/bin/sh", "-c", "echo wrong",
            )  # fmt: skip
        await _plant(place, order)
        async with machine.serve() as server:
            await server.compute.submit(order, adopt=True)
            assert (await server.done(order.name)).trouble is None
            assert [line for line in await server.text(order.name) if "supervisor" not in line] == ["once"]

    asyncio.run(scenario())


async def _plant(place: RunFolder, order: Run) -> None:
    """The records of a run whose script was about to start."""
    from oscar.compute.local.records import Asked, Started, boot_id

    place.create(Asked.of(order))
    place.furnish({})
    place.mark_started(Started(int(time.time() * 1000), boot_id()))
    (place.path.parent.parent / "logs" / f"{order.name}.log").touch()


@EVERY
def test_left_overs_of_forgotten_runs_are_swept_up(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            order = server.order("sleep 300")
            await server.compute.submit(order)
            await server.running(order.name)
        # Forgotten by a server that died before it had removed the sandbox.
        RunFolder(machine.folder / "runs" / order.name).leave()
        async with machine.serve() as server:
            with pytest.raises(RunNotFound):
                await server.compute.submit(order, adopt=True)
            await local(server).idle()
            assert await local(server).engine.names() == []
            assert list((machine.folder / "runs").iterdir()) == []

    asyncio.run(scenario())


@EVERY
def test_the_runs_folder_is_closed_to_others(machine: Machine) -> None:
    async def scenario(server: Server) -> None:
        order = server.order("sleep 300")
        await server.compute.submit(order)
        await server.running(order.name)
        mode = stat.S_IMODE((machine.folder / "runs" / order.name).stat().st_mode)
        assert mode & 0o077 == 0
        await server.compute.cancel(order.name)
        await server.done(order.name)

    live(machine, scenario)


@EVERY
def test_results_are_stored_after_a_server_died_in_between(machine: Machine) -> None:
    """The script has ended and nobody has stored its results yet: they are, once the order is there again."""
    folder = uuid.uuid4().hex

    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            script = 'echo kept > "$TMP_OUTPUT_DIR/kept.txt"; sleep 0.5'
            order = server.order(script, output=output(folder))
            await server.compute.submit(order)
            await server.running(order.name)
        async with machine.serve() as server:
            # Without its order, and so without keys, it waits.
            await server.reach(order.name, Phase.SETTLING)
            assert [each async for each in machine.store.list(BUCKET, f"{folder}/")] == []
            await server.compute.submit(order, adopt=True)
            assert (await server.done(order.name)).trouble is None
            assert await content(machine, f"{folder}/kept.txt") == b"kept\n"

    asyncio.run(scenario())
