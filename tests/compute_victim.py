"""A server with nothing but `LocalCompute`, to be killed: it works off orders from a folder.

`python -m tests.compute_victim <engine> <folder> <image> <endpoint>`; started and killed by
`tests/contract/test_compute_kill.py`. Orders are files `<folder>/orders/<run>` with a script; ends are written to
`<folder>/ends/<run>`, as the dispatcher does in the database, before the run is forgotten. Ends by itself when all
is done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from oscar.compute.base import Phase, Run
from oscar.compute.local import detect
from oscar.compute.local.backend import LocalCompute
from oscar.errors import RunNotFound
from oscar.model.service import Service
from oscar.objects.s3 import S3Store
from tests import s3_server
from tests.computing import BUCKET


def order(folder: Path, name: str, image: str) -> Run:
    script = (folder / "orders" / name).read_text()
    service = Service.model_validate(
        {
            "name": "hello",
            "image": image,
            "script": script,
            "memory": "64Mi",
            "cpu": "1",
            "output": [{"storage_provider": "minio.default", "path": f"{BUCKET}/{folder.name}"}],
        }
    )
    job, _, attempt = name.rpartition("-")
    return Run(name, job, int(attempt), service, b"{}")


def write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    draft.rename(path)


async def main(engine: str, folder: Path, image: str, endpoint: str) -> None:
    place = detect.Place(folder, f"kill-{folder.name}")
    store = S3Store(endpoint, s3_server.ALICE.access_key, s3_server.ALICE.secret_key)
    compute = LocalCompute(await detect.choose(engine, place), folder, store, chosen=True)
    await compute.start()
    ends, claims = folder / "ends", folder / "claims"
    left = {path.name for path in (folder / "orders").iterdir()} - {path.name for path in ends.iterdir()}

    async def claim(name: str) -> None:
        async with turn:
            if done[name].is_set():  # found at its end, recorded and forgotten meanwhile
                return
            run = order(folder, name, image)
            known = (claims / name).exists()
            (claims / name).touch()
            try:
                await compute.submit(run, adopt=known)
            except RunNotFound:
                if done[name].is_set():  # forgotten while it was asked for
                    return
                await compute.submit(run)
            await done[name].wait()

    # A few at a time, so that each life of this process has some in each of their steps.
    turn = asyncio.Semaphore(3)
    done = {name: asyncio.Event() for name in left}
    claimed = sorted(left, key=lambda name: (not (claims / name).exists(), name))
    for path in ends.iterdir():
        await compute.forget(path.name)
    print("ready", flush=True)
    claiming = [asyncio.create_task(claim(name)) for name in claimed]
    if left:
        async for state in compute.observe():
            if state.phase is Phase.DONE and state.name in left:
                write(ends / state.name, json.dumps([state.trouble, state.exit_code, state.message]))
                # Before it is forgotten: a claim must not take it for a new one then.
                left.discard(state.name)
                done[state.name].set()
                await compute.forget(state.name)
            if not left:
                break
    await asyncio.gather(*claiming)
    await compute.idle()
    await compute.stop()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
