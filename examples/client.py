"""A service from a Python program: made, called, given a file, and removed again.

Run it beside `oscar serve`: it takes the address and the account that the server has left in its data folder.

    python examples/client.py
"""

from __future__ import annotations

import asyncio
import json

from oscar.client import Client, Job
from oscar.model.service import Service
from oscar.model.storage import StorageIOConfig
from oscar.settings import Settings

SCRIPT = """#!/bin/sh
rev "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/reversed.txt"
echo "reversed $(basename "$INPUT_FILE_PATH")"
"""


async def main() -> None:
    """Show the main calls of the client."""
    account = json.loads((Settings().data / "client.json").read_text())
    async with Client(account["endpoint"], user=account["user"], password=account["password"]) as client:
        service = Service(
            name="reverse",
            image="docker.io/library/busybox",
            script=SCRIPT,
            input=[StorageIOConfig(path="reverse/in")],
            output=[StorageIOConfig(path="reverse/out")],
        )
        await client.apply(service)

        result = await client.run("reverse", b"synchronously")
        print(result.body.decode())

        storage = await client.storage()
        await storage.put_bytes(b"by an upload", "reverse", "in/text.txt")
        async for job in client.jobs("reverse"):
            async for item in client.follow("reverse", job.name):
                print(item.status if isinstance(item, Job) else item)
        print((await storage.get_bytes("reverse", "out/reversed.txt")).decode())

        await client.delete("reverse", data=True)


if __name__ == "__main__":
    asyncio.run(main())
