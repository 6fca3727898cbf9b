"""Calling podman or docker: the command line tools, as asyncio subprocesses.

What is called can be pasted into a shell, and needs no client library. Values of a program's variables go by
the tool's environment or a nameless file, never as arguments. Called by `containers` and its parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oscar.compute.local import environment
from oscar.errors import EngineError

_PROXIES = re.compile(r"(https?|no|all|ftp)_proxy$", re.IGNORECASE)
_WANTED = re.compile(r"LANG$|LC_")
LONGEST_LINE = 4 * 1024 * 1024
"""Bytes of one line of a stream, such as an event with many labels."""


@dataclass(frozen=True, slots=True)
class Said:
    """How a call ended and what the tool said."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """The tool's own words about what went wrong, without its advice to look at the help."""
        rows = [row.strip() for row in (self.err or self.out).splitlines() if row.strip()]
        rows = [row for row in rows if not re.match(r"See '\w+|Run '\w+|Trying to pull|time=", row)] or rows
        text = " ".join(rows[-3:]) or f"exit code {self.code}"
        return re.sub(r"^(docker: )?(Error: |Error response from daemon: )?", "", text)


class Cli:
    """One of the tools; at most so many calls run at once, because they take turns at the engine's locks."""

    def __init__(self, program: str, folder: Path, *, at_once: int = 0) -> None:
        """Make it.

        Args:
            program: `podman` or `docker`.
            folder: where it is called; it exists by then. Some versions of conmon leave a file `oom` there.
            at_once: calls that run at once, 0 for what suits this machine.
        """
        self.program = program
        self.folder = folder
        self._calls: set[asyncio.Task[Said]] = set()
        self._pulling: set[asyncio.Task[Said]] = set()
        self._turn = asyncio.Semaphore(at_once or max(4, 2 * (os.cpu_count() or 1)))

    async def run(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        env_file: str = "",
        urgent: bool = False,
        limit: float | None = None,
    ) -> Said:
        """Call the tool and wait for its end. The call goes on when its caller is cancelled.

        Args:
            args: the arguments.
            env: variables beside those that the tool needs itself.
            env_file: text of an `--env-file`, handed over without a place in the file system.
            urgent: whether it waits for no turn.
            limit: seconds after which it is killed.

        Raises:
            EngineError: the tool can't be called, or took too long.
        """
        environ = {**own_environment(), **(env or {})}
        return await self._going(self._calls, self._run(args, environ, env_file, urgent=urgent, limit=limit))

    async def pull(self, image: str, *, limit: float) -> Said:
        """Pull an image: takes no other call's turn, and may use this server's proxies."""
        call = self._run(
            ["pull", "--quiet", image], own_environment(proxies=True), "", urgent=True, limit=limit
        )
        return await self._going(self._pulling, call)

    async def drain(self) -> None:
        """End pulls, and wait for other calls: the end of the event loop would kill them half-way."""
        for call in self._pulling:
            call.cancel()
        while waiting := self._calls | self._pulling:
            await asyncio.wait(waiting)

    async def _going(self, calls: set[asyncio.Task[Said]], act: Coroutine[Any, Any, Said]) -> Said:
        call = asyncio.create_task(act)
        calls.add(call)
        call.add_done_callback(calls.discard)
        return await asyncio.shield(call)

    async def _run(
        self, args: Sequence[str], env: Mapping[str, str], env_file: str, *, urgent: bool, limit: float | None
    ) -> Said:
        async with contextlib.nullcontext() if urgent else self._turn:
            files: list[int] = []
            if env_file:
                files.append(_nameless_file(env_file))
                args = [args[0], "--env-file", f"/proc/self/fd/{files[0]}", *args[1:]]
            # Not pipes: what the tool leaves running (conmon) inherits their ends under uvloop, and there would be
            # no end of file to wait for.
            out, err = _nameless_file(""), _nameless_file("")
            process: asyncio.subprocess.Process | None = None
            try:
                process = await asyncio.create_subprocess_exec(
                    self.program,
                    *args,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=env,
                    pass_fds=files,
                    # Neither Ctrl-C nor the death of this server ends a call half-way.
                    start_new_session=True,
                    cwd=self.folder,
                )
                code = await asyncio.wait_for(process.wait(), limit)
                return Said(code, _content(out), _content(err))
            except TimeoutError:
                await _killed(process)
                raise EngineError(f"{self.program} {args[0]} did not end in {limit:.0f} s") from None
            except asyncio.CancelledError:
                await _killed(process)
                raise
            except OSError as error:
                raise EngineError(f"{self.program} can't be called: {error.strerror}") from error
            finally:
                for file in (*files, out, err):
                    os.close(file)

    async def call(self, *args: str, limit: float | None = None) -> str:
        """What the tool prints.

        Raises:
            EngineError: it failed, with its own words.
        """
        said = await self.run(*args, limit=limit)
        if said.code != 0:
            raise EngineError(f"{self.program} {args[0]}: {said.words}")
        return said.out

    async def stream(self, *args: str) -> AsyncIterator[bytes]:
        """The lines of a call that goes on, without their ends; the call is ended with the iteration."""
        process = await asyncio.create_subprocess_exec(
            self.program,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=own_environment(),
            start_new_session=True,
            cwd=self.folder,
            limit=LONGEST_LINE,
        )
        assert process.stdout is not None  # noqa: S101 - for the type checker: it was asked for
        try:
            async for row in process.stdout:
                yield row.rstrip(b"\n")
            await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                # Reads to the end, else its pipe is left open.
                await process.communicate()


async def _killed(process: asyncio.subprocess.Process | None) -> None:
    """End a call that nobody waits for any more; None when it has not begun."""
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _nameless_file(text: str) -> int:
    file = os.memfd_create("environment")
    os.write(file, text.encode("utf-8", "surrogateescape"))
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _content(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", "replace")


def own_environment(*, proxies: bool = False) -> dict[str, str]:
    """The variables of this server that the tools may see: what steers them, and nothing of ours."""
    return {
        name: value
        for name, value in os.environ.items()
        if environment.steers(name) or _WANTED.match(name) or (proxies and _PROXIES.match(name))
    }
