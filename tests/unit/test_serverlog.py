"""The server's own log: bounded, in order, without secrets."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from oscar.serverlog import ServerLog, earlier, entries, without_secrets

KEY = "5d2cc04f4df8db20e755bec1a16c5737"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"authorization=basic {KEY}",
        f"GET /x?token={KEY}&a=1",
        f"GET /x?access_token={KEY}",
        f"https://s3/b/k?X-Amz-Signature={KEY}&X-Amz-Date=1",
        f"X-Amz-Credential={KEY}",
        f"password={KEY}",
        f'{{"password": "{KEY}"}}',
        f"secret_key='{KEY}'",
        f"client_secret: {KEY}",
        f"postgresql+psycopg://oscar:{KEY}@host/db",
        f"refresh_token={KEY}",
    ],
)
def test_what_looks_like_a_secret_is_blanked(text: str, tmp_path: Path) -> None:
    assert KEY not in without_secrets(text)
    ServerLog(tmp_path / "a.log").write(text)
    assert KEY not in (tmp_path / "a.log").read_text()
    assert "***" in entries(tmp_path)[0].text


@pytest.mark.parametrize(
    "text", ["service created service=tokenizer", "GET /job/a | 201 | 1.0ms", "basics", ""]
)
def test_what_is_none_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_entries_of_all_parts_come_in_order_and_keep_their_lines(tmp_path: Path) -> None:
    one, two = ServerLog(tmp_path / "one.log"), ServerLog(tmp_path / "two.log")
    for number in range(10):
        (one if number % 3 else two).write(f"entry {number}\nsecond line\n")
    one.write("\n")
    found = entries(tmp_path)
    assert sorted(entry.text for entry in found) == sorted(
        f"entry {number}\nsecond line" for number in range(10)
    )
    assert [entry.time for entry in found] == sorted(entry.time for entry in found)
    assert entries(tmp_path / "nowhere") == []


def test_files_stay_bounded_and_the_newest_entries_stay(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "a.log", largest=1000)
    for number in range(500):
        log.write(f"entry {number}")
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert all(size < 1100 for size in sizes)
    texts = [entry.text for entry in entries(tmp_path)]
    assert texts == [f"entry {number}" for number in range(500 - len(texts), 500)]
    before = [entry.text for entry in entries(tmp_path, before=True)]
    assert before == texts[: len(before)]
    assert earlier(tmp_path / "a.log").exists()


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    ServerLog(tmp_path / "a.log").write("whole")
    with (tmp_path / "a.log").open("a") as file:
        file.write('[17, "ha')
    assert [entry.text for entry in entries(tmp_path)] == ["whole"]


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "a.log")

    def work(part: int) -> None:
        for number in range(50):
            log.write(f"{part} {number}")

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({entry.text for entry in entries(tmp_path)}) == 400


def test_a_folder_that_cant_be_written_is_no_fault_of_who_logs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ServerLog(tmp_path / "file" / "a.log").write("lost")
    assert not (tmp_path / "file" / "a.log").exists()
