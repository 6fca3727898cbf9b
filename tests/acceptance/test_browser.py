"""A page in a real browser, from an origin of its own, uploads to a bucket and reads back what the function made.

Debian's Chromium, driven by Playwright, against the real program: CORS preflight, presigned PUT and GET, a form upload.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, sync_playwright

from tests.server import Server

pytestmark = pytest.mark.real

CHROMIUM = "/usr/bin/chromium"
PAGE = b"""<!doctype html><title>upload</title><input type=file id=file><pre id=said></pre>
<script>
async function upload(link) {
  const file = document.getElementById("file").files[0];
  return await new Promise((done) => {
    const request = new XMLHttpRequest();
    let progress = 0;
    request.upload.onprogress = (event) => { progress = event.loaded; };
    request.onload = () => done({status: request.status, etag: request.getResponseHeader("ETag"), progress});
    request.onerror = () => done({status: 0});
    request.open("PUT", link.url);
    for (const [name, value] of Object.entries(link.headers || {})) request.setRequestHeader(name, value);
    request.send(file);
  });
}
async function read(url) {
  const answer = await fetch(url);
  return {status: answer.status, text: await answer.text()};
}
</script>"""


class _Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of a page that is not ours: another port is another origin."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(scope="module")
def page(site: str) -> Iterator[Page]:
    """The page, open in the browser."""
    with sync_playwright() as playwright:
        # Inside a container there is no room for Chromium's own sandbox, and its shared memory is small.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        opened = browser.new_page()
        opened.goto(site)
        yield opened
        browser.close()


def link(server: Server, key: str, operation: str, **more: Any) -> dict[str, Any]:
    """A presigned link, as a dashboard would ask for it."""
    answer = httpx2.post(
        f"{server.endpoint}/system/buckets/browser/presign",
        json={"object_key": key, "operation": operation, **more},
        auth=(server.user, server.password),
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_upload_by_presigned_url_runs_the_function(server: Server, page: Page, tmp_path: Path) -> None:
    service = {
        "name": "browser",
        "image": "none",
        "script": 'tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/loud.txt"',
        "input": [{"storage_provider": "minio.default", "path": "browser/in"}],
        "output": [{"storage_provider": "minio.default", "path": "browser/out"}],
    }
    account = (server.user, server.password)
    made = httpx2.post(f"{server.endpoint}/system/services", json=service, auth=account)
    assert made.status_code == 201, made.text
    content = b"hello from a browser\n" * 100_000
    (tmp_path / "quiet.txt").write_bytes(content)
    page.set_input_files("#file", tmp_path / "quiet.txt")

    said = page.evaluate("upload", link(server, "in/quiet.txt", "upload", content_type="text/plain"))
    assert said["status"] == 200
    assert said["etag"], "the header is exposed to the page"
    assert said["progress"] == len(content)

    jobs = httpx2.get(f"{server.endpoint}/system/logs/browser", auth=account).json()["jobs"]
    [job] = jobs
    ended = httpx2.get(
        f"{server.endpoint}/system/jobs/browser/{job}", params={"wait": "60s"}, auth=account, timeout=70
    ).json()
    assert ended["status"] == "Succeeded", ended
    read = page.evaluate("read", link(server, "out/loud.txt", "download")["url"])
    assert read == {"status": 200, "text": content.decode().upper()}


def test_a_forged_link_is_refused_and_the_page_learns_why(server: Server, page: Page) -> None:
    url = link(server, "out/loud.txt", "download")["url"].replace("loud", "other")
    read = page.evaluate("read", url)
    assert read["status"] == 403
    assert "SignatureDoesNotMatch" in read["text"]
