"""Synchronous calls when something goes wrong: workers that die, scripts that misbehave, servers that are killed."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oscar.compute.base import Answer
from oscar.compute.crew import Limits
from oscar.compute.local import worker
from oscar.compute.local.engine import Mount, Sandbox
from oscar.compute.local.processes import Processes
from oscar.compute.local.workers import Workers
from oscar.errors import EngineError, ImageError, InvocationTimeout, ServiceNotFound, Unavailable
from tests.contract.conftest import CONTAINERS, REAL, Tools
from tests.invoking import House, Street, alive, as_json, lasting, open_house, until

each_engine = pytest.mark.parametrize("street", ["process", *CONTAINERS], indirect=True)
everywhere = pytest.mark.parametrize("street", ["process", *CONTAINERS, REAL], indirect=True)
on_processes = pytest.mark.parametrize("street", ["process"], indirect=True)
in_images = pytest.mark.parametrize("street", [*CONTAINERS, REAL], indirect=True)


# Workers that die.


@everywhere
def test_a_worker_that_dies_idle_is_replaced(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("echo alive", synchronous={"min_scale": 1})
        assert await house.text(service) == "alive\n"
        (name,) = await house.present()
        await house.kill(name)
        await until(lambda: house.stats().cold_starts == 2 and house.stats().idle == 1)
        assert await house.text(service) == "alive\n"
        await until(lambda: house.stats().trouble is None)

    street.live(scenario)


@pytest.mark.brief
@everywhere
def test_a_worker_that_dies_with_a_request_fails_it_and_the_next_works(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f'[ "$FAST" ] && echo fine && exit 0; sleep {word}')
        call = asyncio.create_task(house.call(service))
        await until(lambda: alive(word))
        (name,) = await house.present()
        await house.kill(name)
        with pytest.raises(EngineError) as died:
            await call
        assert died.value.status == 502
        assert "died while the script ran" in died.value.message
        assert await house.text(service, environment={"FAST": "1"}) == "fine\n"

    street.live(scenario)


@everywhere
def test_out_of_memory_is_an_answer_or_an_error_but_no_hang(street: Street) -> None:
    async def scenario(house: House) -> None:
        # tail keeps all that it reads of a line.
        service = house.service(
            '[ "$FAST" ] && echo fine && exit 0; head -c 400000000 /dev/zero | tail -c 400000000 | wc -c',
            memory="32Mi",
        )
        (end,) = await asyncio.gather(house.call(service), return_exceptions=True)
        if isinstance(end, Answer):
            assert (end.exit_code, end.body) != (0, b"400000000\n")
        else:
            assert isinstance(end, EngineError)
            assert "memory" in end.message or "died" in end.message
        assert await house.text(service, environment={"FAST": "1"}) == "fine\n"

    street.live(scenario)


@in_images
def test_a_crash_loop_backs_off_and_says_why(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("echo never", synchronous={"min_scale": 1})
        with pytest.raises(ImageError) as first:
            await house.call(service)
        assert "localhost/nowhere" in first.value.message
        with pytest.raises(ImageError) as second:
            await house.call(service)
        assert int(second.value.headers["Retry-After"]) >= 1
        assert house.stats().trouble
        repaired = service.model_copy(update={"image": street.image, "script": "echo repaired"})
        await house.workers.apply(repaired)
        assert await house.text(repaired) == "repaired\n"

    street.live(scenario, image="localhost/nowhere:1")


# Scripts that misbehave.


@everywhere
def test_left_over_processes_cost_the_worker(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f'echo "$WHO"; [ "$LEAVE" ] && sleep {word} & echo x > "$TMP_OUTPUT_DIR/f"')
        answer = await house.call(service, environment={"LEAVE": "1"})
        assert base64.b64decode(answer.body) == b"x\n"
        assert not alive(word), "it could change the files of the next request"
        assert (await house.call(service, environment={"WHO": "next"})).log == b"next\n"
        assert house.stats().cold_starts == 2

    street.live(scenario)


@everywhere
def test_processes_that_end_in_a_moment_are_waited_for(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("(sleep 0.03; echo late) & for i in 1 2 3 4; do (exit 0) & done; echo early")
        for _ in range(5):
            assert await house.text(service) == "early\nlate\n"
        assert house.stats().cold_starts == 1

    street.live(scenario)


@everywhere
def test_a_script_may_remove_its_folders(street: Street) -> None:
    async def scenario(house: House) -> None:
        script = (
            'cat "$INPUT_FILE_PATH"; echo x > "$TMP_OUTPUT_DIR/f" || exit 3;'
            ' rm -rf "$TMP_INPUT_DIR" "$TMP_OUTPUT_DIR"'
        )
        service = house.service(script)
        for number in range(3):
            answer = await house.call(service, as_json(number))
            assert answer.log.startswith(as_json(number))
        keeps = house.service('rm -rf "$TMP_INPUT_DIR"/*; echo kept > "$TMP_OUTPUT_DIR/f"', name="keeps")
        for _ in range(3):
            assert base64.b64decode((await house.call(keeps)).body) == b"kept\n"
        assert {crew.service: crew.cold_starts for crew in house.workers.stats()}["keeps"] == 1

    street.live(scenario)


@everywhere
def test_links_of_a_script_lead_nowhere(street: Street, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("the server's own")

    async def scenario(house: House) -> None:
        link = house.service(
            f'echo log; ln -s {secret}/file "$TMP_OUTPUT_DIR/f"; ln -s / "$TMP_OUTPUT_DIR/r"'
        )
        assert (await house.call(link)).body == b"log\n"
        # As the owner of the folder above, a script can put a link in the place of a folder.
        swap = house.service(
            'echo log; exec 2>&-; cd "$TMP_OUTPUT_DIR/.."; rmdir out;'
            f" ln -s {secret} out; rm -rf in; ln -s {secret} in; :",
            name="swap",
        )
        for _ in range(3):
            assert (await house.call(swap, as_json("input"))).body == b"log\n"
        fifo = house.service('echo log; mkfifo "$TMP_OUTPUT_DIR/fifo"', name="fifo")
        assert (await house.call(fifo)).body == b"log\n"
        assert [path.name for path in secret.iterdir()] == ["file"]
        assert (secret / "file").read_text() == "the server's own"

    street.live(scenario)


@everywhere
def test_words_in_the_fifos_harm_only_their_own_request(street: Street) -> None:
    async def scenario(house: House) -> None:
        script = '[ "$BAD" ] && echo "$BAD" > "$TMP_OUTPUT_DIR/../replies"; sleep 0.1; echo fine'
        service = house.service(script)
        for words in ("nonsense", "1 2 3 4", "1 x 0", "x" * 5000):
            with pytest.raises(EngineError, match="FIFO"):
                await house.call(service, environment={"BAD": words})
            assert await house.text(service) == "fine\n"
        assert await house.text(service, environment={"BAD": "99 0 0"}) == "fine\n"
        asks = house.service('echo 7 > "$TMP_OUTPUT_DIR/../requests"; echo fine', name="asks")
        for _ in range(3):
            assert (await house.call(asks)).exit_code == 0

    street.live(scenario)


@everywhere
def test_no_descriptor_of_the_loop_reaches_the_script(street: Street) -> None:
    async def scenario(house: House) -> None:
        said = await house.text(
            house.service("for f in /proc/self/fd/*; do echo ${f##*/}; done; cat; echo end")
        )
        # 3 is the shell's own look at the folder, 10 and above its script.
        assert {int(fd) for fd in said.split()[:-1]} <= {0, 1, 2, 3, 10, 11, 255}
        assert said.endswith("end\n"), "its input is empty"

    street.live(scenario)


# The server comes and goes.


@everywhere
def test_removal_ends_everything(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f"sleep {word}", synchronous={"max_scale": 1, "min_scale": 1})
        calls = [asyncio.create_task(house.call(service)) for _ in range(3)]
        await until(lambda: alive(word))
        await house.workers.remove("somebody", "hello")
        await house.workers.remove("somebody", "nobody")
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [ServiceNotFound] * 3
        assert not alive(word)
        assert await house.present() == []

    street.live(scenario)


@everywhere
def test_a_stopping_server_lets_requests_end(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("sleep 0.5; echo done", synchronous={"max_scale": 1})
        await house.workers.apply(service)
        under_way = asyncio.create_task(house.text(service))
        await until(lambda: house.stats().busy == 1)
        waits = asyncio.create_task(house.call(service))
        await until(lambda: house.stats().waiting == 1)
        stopping = asyncio.create_task(house.workers.stop())
        with pytest.raises(Unavailable):
            await waits
        with pytest.raises(Unavailable):
            await house.call(service)
        assert await under_way == "done\n"
        await stopping

    street.live(scenario)


@everywhere
def test_a_stopping_server_does_not_wait_for_ever(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        call = asyncio.create_task(house.call(house.service(f"sleep {word}")))
        await until(lambda: alive(word))
        await house.workers.stop()
        with pytest.raises(Unavailable):
            await call
        assert not alive(word)

    street.live(scenario, Limits(drain=0.2))


@pytest.fixture
def killed_server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server with a warm and a busy worker, to be killed."""
    program = """
import asyncio, sys
from pathlib import Path
from tests.invoking import Street
async def scenario(house):
    warm = house.service("echo warm", synchronous={"min_scale": 1})
    await house.call(warm)
    busy = asyncio.create_task(house.call(house.service(f"sleep {input()}", name="busy")))
    print("begun", flush=True)
    await busy
Street("process", Path(sys.argv[1])).live(scenario)
"""
    word = lasting()
    # Not as an argument: the server itself would be found by it.
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    server = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert server.stdin
    assert server.stdout
    server.stdin.write(f"{word}\n")
    server.stdin.flush()
    assert server.stdout.readline() == "begun\n"
    asyncio.run(until(lambda: alive(word)))
    yield server
    server.kill()
    server.wait()


@on_processes
def test_workers_of_a_killed_server_end_and_are_removed(
    street: Street, killed_server: subprocess.Popen[str]
) -> None:
    killed_server.send_signal(signal.SIGKILL)
    killed_server.wait()

    async def idle_ones_end() -> None:
        engine = await street.engine()
        names = await engine.names("w-")
        assert len(names) == 2
        running = [await engine.running(name) for name in names]
        while sum(map(bool, running)) > 1:
            await asyncio.sleep(0.01)
            running = [await engine.running(name) for name in names]

    async def scenario(house: House) -> None:
        # open_house asserts in its end that nothing is left.
        assert await house.text(house.service("echo new")) == "new\n"

    asyncio.run(idle_ones_end())
    street.live(scenario)


# Where no warm worker is possible.


@each_engine
def test_without_fifos_each_request_has_a_sandbox_of_its_own(street: Street) -> None:
    async def scenario(house: House) -> None:
        assert isinstance(house.workers, Workers)
        word = lasting()
        house.workers.machine.shares_fifo = False
        service = house.service(
            '[ "$SLOW" ] && exec sleep "$SLOW"; echo "$ODD"; echo two >&2; cat "$INPUT_FILE_PATH"; exit $CODE'
        )
        answer = await house.call(service, b'{"a":  1}', environment={"ODD": "a  *\n'b'", "CODE": "3"})
        assert answer.exit_code == 3
        assert answer.body.startswith(b"a  *\n'b'\ntwo\n{\"a\":  1}")
        file = house.service('echo x > "$TMP_OUTPUT_DIR/f"', name="file")
        assert base64.b64decode((await house.call(file)).body) == b"x\n"
        call = asyncio.create_task(house.call(service, environment={"SLOW": word}))
        await until(lambda: alive(word))
        call.cancel()
        await asyncio.wait([call])
        await until(lambda: not alive(word))
        with pytest.raises(InvocationTimeout):
            await house.call(service, environment={"SLOW": word}, timeout=0.5)
        assert not alive(word)
        removed = asyncio.create_task(house.call(service, environment={"SLOW": word}))
        await until(lambda: alive(word))
        await house.workers.remove("somebody", "hello")
        with pytest.raises(ServiceNotFound):
            await removed
        assert not alive(word)

    street.live(scenario)


class DeafProcesses(Processes):
    """Sandboxes that see copies of FIFOs, as those of a machine within this machine do."""

    async def start(self, sandbox: Sandbox) -> None:
        work = sandbox.mounts[0]
        if (work.source / "requests").exists():
            twin = work.source.parent / "twin"
            if not twin.exists():
                twin.mkdir()
                for path in work.source.iterdir():
                    if path.is_fifo():
                        os.mkfifo(twin / path.name)
                        (twin / path.name).chmod(0o666)
                    elif path.is_dir():
                        (twin / path.name).mkdir()
                    else:
                        shutil.copy(path, twin)
            ready = Mount(work.source / "ready", f"{work.target}/ready")
            mounts = (Mount(twin, work.target), ready, *sandbox.mounts[1:])
            sandbox = replace(sandbox, mounts=mounts)
        await super().start(sandbox)


def test_deaf_sandboxes_are_noticed(tmp_path: Path) -> None:
    async def run() -> None:
        engine = DeafProcesses(tmp_path / "engine", installation=f"test-{os.getpid()}")
        await engine.probe()
        async with open_house(engine, "none", tmp_path / "workers") as house:
            service = house.service('cat "$INPUT_FILE_PATH"')
            assert await house.text(service, b"[1]") == "[1]"
            assert await house.text(service, b"[2]") == "[2]"

    asyncio.run(run())


def test_without_a_sandbox_workers_serve_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are not walled in: left-over ones can't be told, so no worker is used again."""
    monkeypatch.setenv("PATH", str(tmp_path))

    async def run() -> None:
        engine = Processes(tmp_path / "engine", installation="test", unsafe=True)
        await engine.probe()
        assert not engine.maps_paths
        async with open_house(engine, "none", tmp_path / "workers") as house:
            word = lasting()
            service = house.service(
                'cat "$INPUT_FILE_PATH"; cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/f"; sleep "$LEAVE" &'
            )
            for number in range(3):
                answer = await house.call(service, as_json(number), environment={"LEAVE": word})
                assert answer.log == as_json(number)
                assert base64.b64decode(answer.body) == as_json(number)
                assert not alive(word)
            assert house.stats().cold_starts == 3

    asyncio.run(run())


# Shells and users.


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_shells(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop runs in whatever the image has as /bin/sh."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    folder = tmp_path / "shells"
    folder.mkdir()
    for path in (tmp_path, folder):
        path.chmod(0o755)
    shutil.copy(program, folder / "sh")
    monkeypatch.setattr(worker, "SHELL", str(folder / "sh"))

    async def run() -> None:
        engine = Processes(tmp_path / "engine", installation="test", visible=(folder,))
        await engine.probe()
        async with open_house(engine, "none", tmp_path / "workers") as house:
            word = lasting()
            every = os.fsdecode(bytes(range(1, 256)))
            service = house.service(
                'printf %s "$ODD"; [ "$LEAVE" ] && { (sleep "$LEAVE") & }; (exit 0) & exit ${CODE:-0}'
            )
            for code in (0, 1, 255):
                answer = await house.call(service, environment={"ODD": every, "CODE": str(code)})
                assert (answer.exit_code, answer.body) == (code, os.fsencode(every))
            assert house.stats().cold_starts == 1
            await house.call(service, environment={"LEAVE": "0.03"})
            assert house.stats().cold_starts == 1
            await house.call(service, environment={"LEAVE": word})
            assert not alive(word)
            assert await house.text(service, environment={"ODD": "x"}) == "x"
            assert house.stats().cold_starts == 2

    asyncio.run(run())


@in_images
def test_any_user_of_the_image(street: Street, tools: Tools) -> None:
    """With umask 077 as well: the work folder must work, and what the script leaves must be readable."""

    async def scenario(house: House) -> None:
        service = house.service(
            'umask 077; id -u; cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/f";'
            ' mkdir "$TMP_OUTPUT_DIR/d" "$TMP_INPUT_DIR/d";'
            ' echo two > "$TMP_OUTPUT_DIR/d/g"; echo more >> "$INPUT_FILE_PATH"; echo err >/dev/stderr'
        )
        for _ in range(2):
            answer = await house.call(service, b"[1]")
            assert answer.exit_code == 0
            assert answer.log == b"1001\nerr\n"
            assert base64.b64decode(answer.body).startswith(b"PK")
        assert house.stats().cold_starts == 1

    old = os.umask(0o077)
    try:
        street.live(scenario, image=street.user_image)
    finally:
        os.umask(old)
