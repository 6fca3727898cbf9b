#!/usr/bin/env python3
"""A small web server of the standard library alone, run as the script of exposed services in tests and benchmarks.

Streams both ways, speaks WebSocket, and misbehaves when asked to. It listens where the platform says.
"""

import asyncio
import base64
import hashlib
import json
import os
import signal
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator

BLOCK = bytes(256 * 1024)
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def answer(status: int, body: bytes, headers: "list[str] | None" = None) -> bytes:
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", *(headers or [])]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def body_of(reader: StreamReader, headers: "dict[str, str]") -> AsyncIterator[bytes]:
    """The request's body, piece by piece."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return
    left = int(headers.get("content-length", 0))
    while left:
        data = await reader.read(min(left, len(BLOCK)))
        if not data:
            raise asyncio.IncompleteReadError(data, left)
        left -= len(data)
        yield data


async def whole(reader: StreamReader, headers: "dict[str, str]") -> bytes:
    return b"".join([piece async for piece in body_of(reader, headers)])


async def websocket(reader: StreamReader, writer: StreamWriter, headers: "dict[str, str]") -> None:
    """Echo: text comes back in capitals, bytes as they are; `bye` closes with 4001."""
    key = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + MAGIC).encode()).digest()).decode()  # noqa: S324
    chosen = headers.get("sec-websocket-protocol", "").split(",")[0].strip()
    lines = ["HTTP/1.1 101 -", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {key}"]
    if chosen:
        lines.append(f"Sec-WebSocket-Protocol: {chosen}")
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
    kept = b""
    while True:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size == 126:
            size = struct.unpack(">H", await reader.readexactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", await reader.readexactly(8))[0]
        mask = await reader.readexactly(4)
        data = await reader.readexactly(size)
        repeated = (mask * (size // 4 + 1))[:size]
        data = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
        kind = first & 15
        if kind == 8:
            print("websocket closed with", struct.unpack(">H", data[:2])[0] if data else None, flush=True)
            writer.write(frame(8, data))
            return
        kept += data
        if not first & 128:
            continue
        data, kept = kept, b""
        if data == b"bye":
            writer.write(frame(8, struct.pack(">H", 4001) + b"as you wish"))
            return
        writer.write(frame(kind, data.upper() if kind == 1 else data))
        await writer.drain()


def frame(kind: int, data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        return bytes([128 | kind, size]) + data
    if size < 65536:
        return bytes([128 | kind, 126]) + struct.pack(">H", size) + data
    return bytes([128 | kind, 127]) + struct.pack(">Q", size) + data


async def serve(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        while await one(reader, writer):
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def one(reader: StreamReader, writer: StreamWriter) -> bool:
    """One request; whether another may follow."""
    line = (await reader.readline()).decode("latin-1")
    if not line:
        return False
    method, target, _ = line.split(" ")
    raw: list[list[str]] = []
    while row := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
        name, _, value = row.partition(":")
        raw.append([name.lower(), value.strip()])
    headers = {name: value for name, value in raw}  # noqa: C416 - pairs are lists, for JSON
    prefix = os.environ["OSCAR_SERVICE_BASE_PATH"]
    path = target.partition("?")[0].removeprefix(prefix)
    if headers.get("upgrade", "").lower() == "websocket" and path == "/ws":
        await websocket(reader, writer, headers)
        return False
    if path == "/stream":
        size = int(target.partition("size=")[2])
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        try:
            while size:
                piece = BLOCK[:size] if size < len(BLOCK) else BLOCK
                writer.write(piece)
                await writer.drain()
                size -= len(piece)
        finally:
            if size:
                print("stream left off", flush=True)
        return True
    if path == "/counted":
        # Eight-byte numbers, in pieces of odd sizes: whatever is lost, doubled or moved shows.
        count = int(target.partition("count=")[2])
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {count * 8}\r\n\r\n".encode())
        for start in range(0, count, 99_991):
            writer.write(b"".join(struct.pack(">Q", n) for n in range(start, min(start + 99_991, count))))
            await writer.drain()
        return True
    if path == "/cut":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + bytes(3_000_000))
        await writer.drain()
        return False
    if path == "/upload":
        digest, size = hashlib.sha256(), 0
        async for piece in body_of(reader, headers):
            size += len(piece)
            digest.update(piece)
        writer.write(answer(200, json.dumps({"size": size, "sha256": digest.hexdigest()}).encode()))
        return True
    if path == "/sink":
        size = 0
        async for piece in body_of(reader, headers):
            size += len(piece)
        writer.write(answer(200, b"%d" % size))
        return True
    if path == "/both":
        # Each piece is answered before the next is asked for.
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for piece in body_of(reader, headers):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece.upper()))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return True
    if path == "/sse":
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for number in range(1_000_000):
                text = b"data: %d\n\n" % number
                writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            print("events ended", flush=True)
        return False
    if path == "/close":
        return False
    if path == "/half":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
        return False
    if path == "/until-close":
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall that there is")
        return False
    if path == "/garbage":
        writer.write(b"this is not HTTP\r\n\r\n")
        return False
    if path == "/double":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"5\r\nhello\r\n0\r\n\r\n")
        return False
    if path == "/redirect":
        writer.write(answer(302, b"", ["Location: /elsewhere?a=1"]))
        return True
    if path == "/cookies":
        cookies = [
            "Set-Cookie: mine=1; Path=/; Domain=example.org",
            "Set-Cookie: oscar_session=stolen; Path=/",
        ]
        writer.write(answer(200, b"", cookies))
        return True
    if path == "/unchanged":
        writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: x\r\n\r\n")
        return True
    if path == "/early":
        writer.write(answer(413, b"too large", ["Connection: close"]))
        return False
    if path == "/burn":
        end = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < end:
            pass
        writer.write(answer(200, b"warm"))
        return True
    if path == "/die":
        print("asked to die", flush=True)
        os._exit(7)
    if path == "/wait":
        await asyncio.sleep(float(target.partition("s=")[2]))
        writer.write(answer(200, str(os.environ["WORDS"]).encode()))
        return True
    body = await whole(reader, headers)
    seen: dict[str, object] = {
        "method": method,
        "target": target,
        "headers": raw,
        "body": body.decode("latin-1"),
    }
    seen["environment"] = {key: os.environ.get(key) for key in ("WORDS", "OSCAR_SERVICE_BASE_PATH", "PORT")}
    seen["pid"] = os.getpid()
    status = 404 if path == "/missing" else 200
    writer.write(answer(status, b"" if method == "HEAD" else json.dumps(seen).encode(), ["X-Own: yes"]))
    return True


def leave() -> None:
    print("asked to leave", flush=True)
    os._exit(0)


async def main() -> None:
    host, port = os.environ["OSCAR_BIND_ADDRESS"], int(os.environ["PORT"])
    server = await asyncio.start_server(serve, host, port, limit=1 << 20)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
    print("listening on", host, port, flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
