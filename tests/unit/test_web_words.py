"""Words of foreign servers: their message is found, and no secret is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.errors import StorageError
from oscar.objects.rucio import did_name
from oscar.objects.web_words import LONGEST, place, scrub, words
from oscar.objects.webdav_xml import entries


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "Insufficient Storage"),
        ("  plain\r\nwords ", "plain words"),
        ("<html><head><title>507</title></head><body><h1>Disk</h1> is &amp; stays full</body></html>",
         "Disk is & stays full"),
        ('<?xml version="1.0"?><d:error xmlns:d="DAV:"><s:message>no room</s:message></d:error>', "no room"),
        ('{"error": {"id": "posix", "description": "Operation failed: enospc."}}', "Operation failed: enospc."),
        ('{"ExceptionClass": "X", "ExceptionMessage": "RSE is full"}', "RSE is full"),
        ('{"error": "invalid_grant", "error_description": "Token is not active"}', "Token is not active"),
        ('{"broken', '{"broken'),
        ("x" * 1000, "x" * LONGEST),
    ],
)  # fmt: skip
def test_the_servers_own_words(body: str, said: str) -> None:
    assert words(507, body) == said


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://ada:pw@host:8/a/b?authz=MDA#x now", "at https://host:8/a/b now"),
        ("'Authorization: Bearer abcdefgh123.x-y_z=='", "'Authorization: Bearer ***'"),
        ("basic YWRhOnNlY3JldA==", "basic ***"),
        ("a top/secret here, and top%2Fsecret", "a *** here, and ***"),
        ("nothing", "nothing"),
    ],
)
def test_scrubbed(text: str, clean: str) -> None:
    assert scrub(text, ["top/secret", "a", ""]) == clean


@given(st.text(alphabet="abcXYZ0189-._~", min_size=8), st.text(), st.text())
def test_no_given_secret_is_left(secret: str, before: str, after: str) -> None:
    assert secret not in scrub(f"{before}{secret}{after}", [secret]).replace("***", "")


def test_places_are_shown_as_a_person_writes_them() -> None:
    assert place("https://u:p@host:1/a%20b/%C3%A9?authz=x") == "host:1/a b/é"


@given(st.text())
def test_lists_of_files_raise_nothing_else(document: str) -> None:
    with pytest.raises(StorageError):
        entries(document)


def test_names_in_lists() -> None:
    def response(href: str, properties: str = "", status: str = "HTTP/1.1 200 OK") -> str:
        return (
            f"<response><href>{href}</href><propstat><prop>{properties}</prop><status>{status}</status>"
            "</propstat></response>"
        )

    found = entries(
        '<multistatus xmlns="DAV:">'
        + response("/dav/a%20b/", "<resourcetype><collection/></resourcetype>")
        + response(
            "http://other.host/dav/%C3%A9", '<getcontentlength>7</getcontentlength><getetag>W/"x"</getetag>'
        )
        + response("/dav/%FF")
        + response("/dav/a%2Fb")
        + response("/dav/..")
        + response("/dav/missing", status="HTTP/1.1 404 Not Found")
        + "</multistatus>"
    )
    assert [(entry.parts, entry.folder, entry.size, entry.etag) for entry in found] == [
        (("dav", "a b"), True, 0, ""),
        (("dav", "é"), False, 7, "x"),
    ]


def test_names_of_rucio() -> None:
    assert did_name("/out/a/b.txt") == "out__a__b.txt"
