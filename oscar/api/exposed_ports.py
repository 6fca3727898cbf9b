"""`expose.nodePort`: ports of this machine that lead to exposed services as they are, whatever they speak.

Started by `app.lifespan`; asks `core.deployments` which ports there are and `core.exposed` for a replica. Nobody has to
log in here: that is what such a port is for.
"""

from __future__ import annotations

import asyncio
import contextlib

from oscar import telemetry
from oscar.core import deployments, exposed
from oscar.core.deployments import NodePort
from oscar.core.platform import Platform
from oscar.errors import OscarError

_BLOCK = 256 * 1024
_AGAIN_S = 30.0
"""Seconds after which a port that was taken is tried again."""

log = telemetry.get("node ports")


class NodePorts:
    """The listeners of all services. `run` works until it is cancelled."""

    def __init__(self, platform: Platform) -> None:
        """Listen for that platform's services, on the address that it is configured for."""
        self._p = platform
        self._open: dict[int, tuple[NodePort, asyncio.Server]] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep the listeners as the services say."""
        try:
            while True:
                self._p.signals.exposed.clear()
                try:
                    await self._settle(await deployments.node_ports(self._p))
                except OscarError as error:
                    log.warning("ports of services are not known", reason=error.message)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_S):
                        await self._p.signals.exposed.wait()
        finally:
            for _, server in self._open.values():
                server.close()
            for task in list(self._connections):
                task.cancel()

    async def _settle(self, wanted: dict[int, NodePort]) -> None:
        for port, (present, server) in list(self._open.items()):
            if wanted.get(port) != present:
                server.close()
                del self._open[port]
        for port, target in wanted.items():
            if port not in self._open:
                await self._listen(port, target)

    async def _listen(self, port: int, target: NodePort) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - asyncio runs it as one
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            try:
                await self._pass(target, reader, writer)
            except OscarError as error:
                log.info("connection refused", port=port, service=target.service, reason=error.message)
            finally:
                writer.transport.abort()

        try:
            server = await asyncio.start_server(serve, self._p.settings.host, port, limit=_BLOCK)
        except OSError as error:
            log.warning(
                "port of a service is taken", port=port, service=target.service, reason=error.strerror
            )
            return
        self._open[port] = target, server

    async def _pass(
        self, target: NodePort, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        replica = await exposed.replica_of(self._p, target.owner, target.service)
        replica.enter()
        try:
            back, forth = await asyncio.open_connection(
                replica.host, replica.ports[target.api_port], limit=_BLOCK
            )
        except OSError as error:
            log.info("replica can't be reached", replica=replica.name, reason=str(error))
            replica.leave()
            return
        try:
            # Each direction ends by itself: a client may have said all and still listen.
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, forth))
                group.create_task(_copy(back, writer))
        except* OSError:
            pass  # one side is gone, so the other is closed
        finally:
            forth.transport.abort()
            replica.leave()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_BLOCK):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()
