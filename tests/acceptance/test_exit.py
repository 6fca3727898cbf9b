"""How the program ends: cleanly on SIGTERM, whatever it was used for, with its S3 process."""

from __future__ import annotations

from pathlib import Path

from tests import server as servers
from tests.acceptance.calls import at, client, create, ended, objects, put, submit


def test_a_server_that_used_another_store_ends_cleanly(tmp_path: Path) -> None:
    """Threads of the S3 library once aborted a process that ended while they came back to Python."""
    with servers.running(tmp_path / "other") as other, client(other) as there:
        keys = there.get("/system/config").json()["minio_provider"]
        for number in range(4):
            with servers.running(tmp_path / "data") as server:
                with client(server) as http:
                    if number == 0:
                        create(
                            http,
                            'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/result"; echo done',
                            name="copies",
                            storage_providers={
                                "minio": {
                                    "other": {
                                        "endpoint": other.s3,
                                        "access_key": keys["access_key"],
                                        "secret_key": keys["secret_key"],
                                        "region": "us-east-1",
                                        "verify": False,
                                    }
                                }
                            },
                            input=at("copies/in"),
                            output=[{"storage_provider": "minio.other", "path": f"copied/{number}"}],
                        )
                    put(http, "copies", f"in/{number}", b"x" * 100_000)
                    wanted = submit(http, "copies", content=b"{}")
                    assert ended(http, "copies", wanted)["status"] == "Succeeded"
                    # Some are on their way when it is told to go.
                    for _ in range(10):
                        submit(http, "copies", content=b"{}")
                assert server.stop() == 0, server.log.read_text()
                log = server.log.read_text()
                for word in ("Traceback", "Fatal Python error", "core dumped", "Task was destroyed"):
                    assert word not in log
        assert "0/result" in objects(there, "copied")
