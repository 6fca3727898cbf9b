"""Which images a list allows: by registry and path components, never by a part of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oscar.errors import InvalidField
from oscar.model.images import check_image, is_allowed, parse_allowed, parse_image, parse_list

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("grycap/cowsay", "docker.io/grycap/cowsay:latest"),
        ("index.docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("GHCR.io/grycap/cowsay", "ghcr.io/grycap/cowsay:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}"),
        (f"ghcr.io/a/b:1@{DIGEST}", f"ghcr.io/a/b:1@{DIGEST}"),
        ("docker://ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("  ubuntu ", "docker.io/library/ubuntu:latest"),
    ],
)
def test_references_are_read_as_engines_read_them(text: str, whole: str) -> None:
    assert str(parse_image(text)) == whole


@pytest.mark.parametrize(
    "text",
    ["", " ", "ghcr.io/", "ghcr.io//x", "a/../b", "grycap/Cowsay", "x:", "x@", "x@sha256:12", "x y", "-x", "x:a:b",
     "/images/a.sif", "x" * 600, "ghcr.io/x/", "http://ghcr.io/x"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_image(text)
    assert refused.value.field == "image"


@pytest.mark.parametrize(
    ("entry", "image", "allowed"),
    [
        ("ghcr.io/grycap", "ghcr.io/grycap/x", True),
        ("ghcr.io/grycap", "ghcr.io/grycap/x/y:1", True),
        ("ghcr.io/grycap/", "ghcr.io/grycap/x", True),
        ("ghcr.io/grycap", "evil.io/ghcr.io/grycap/x", False),
        ("ghcr.io/grycap", "ghcr.io/grycapevil/x", False),
        ("ghcr.io/grycap", "ghcr.io.evil.io/grycap/x", False),
        ("ghcr.io/grycap", "ghcr.io:5000/grycap/x", False),
        ("ghcr.io/grycap", "GHCR.IO/grycap/x", True),
        ("GHCR.io/grycap", "ghcr.io/grycap/x", True),
        ("ghcr.io", "ghcr.io/anybody/x", True),
        ("ghcr.io", "quay.io/ghcr.io/x", False),
        ("ubuntu", "docker.io/library/ubuntu:24.04", True),
        ("ubuntu", "docker.io/ubuntu/x", False),
        ("ubuntu", "evil/ubuntu", False),
        ("docker.io/grycap/", "grycap/cowsay", True),
        ("grycap/", "grycap/cowsay", True),
        ("grycap/", "cowsay", False),
        ("grycap/cowsay", "index.docker.io/grycap/cowsay:1", True),
        ("docker.io", "ubuntu", True),
        ("ghcr.io/a/b:1.2", "ghcr.io/a/b:1.2", True),
        ("ghcr.io/a/b:1.2", "ghcr.io/a/b", False),
        ("ghcr.io/a/b:1.2", f"ghcr.io/a/b:1.2@{DIGEST}", False),
        ("ghcr.io/a/b:1.2", "ghcr.io/a/b/c:1.2", False),
        ("ghcr.io/a/b:1.*", "ghcr.io/a/b:1.9", True),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}", True),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST[:-1]}0", False),
        ("ghcr.io/*/cowsay", "ghcr.io/grycap/cowsay", True),
        ("ghcr.io/*/cowsay", "ghcr.io/a/b/cowsay", False),
        ("*.example.org", "a.b.example.org/x", True),
        ("*.example.org", "a.example.org:5000/x", False),
        ("*.example.org", "example.org.evil/x", False),
        ("localhost:5000", "localhost:5000/x", True),
        ("*", "quay.io/x/y", True),
    ],
)  # fmt: skip
def test_an_entry_allows_what_lies_below_it(entry: str, image: str, allowed: bool) -> None:
    assert is_allowed(parse_image(image), [parse_allowed(entry)]) is allowed


@pytest.mark.parametrize("entry", ["", "/", "ghcr.io//x", "a b", "ghcr.io/X", "ghcr.io/x:", "https://ghcr.io",
                                   "ghcr.io/x/:1", "x@sha256:1", "ghcr.io/x#y", "../x", "[x]/y"])  # fmt: skip
def test_a_malformed_entry_is_refused_by_its_place(entry: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_list(["ghcr.io/grycap", entry])
    assert refused.value.field == "allowed_image_repositories[1]"


@pytest.mark.parametrize("value", ["ghcr.io", None, {"a": 1}, ["ghcr.io", 1], 7])
def test_what_is_no_list_is_refused(value: object) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_list(value)
    assert refused.value.field == "allowed_image_repositories"


COMPONENT = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?", fullmatch=True).filter(lambda part: len(part) < 40)
HOST = st.from_regex(r"[a-z0-9]{1,8}\.[a-z]{2,4}(:[0-9]{2,4})?", fullmatch=True)
PATH = st.lists(COMPONENT, min_size=1, max_size=3)


@given(HOST, PATH, HOST, PATH, st.booleans())
def test_only_the_same_registry_and_leading_components_are_allowed(
    host: str, folder: list[str], other: str, path: list[str], below: bool
) -> None:
    entry = parse_allowed(f"{host}/{'/'.join(folder)}/")
    image_path = [*folder, *path] if below else path
    image = f"{other}/{'/'.join(image_path)}"
    same = other == host or (other, host) == (host, other)
    expected = same and image_path[: len(folder)] == folder
    assert entry.allows(parse_image(image)) is expected


@given(HOST, PATH, HOST)
def test_an_allowed_name_inside_another_name_allows_nothing(host: str, folder: list[str], evil: str) -> None:
    name = f"{host}/{'/'.join(folder)}"
    entries = [parse_allowed(name)]
    # As text, all of these contain the entry. A port inside a path is no reference at all.
    for image in (f"{evil}/{name}/x", f"x-{name}/x", f"{name}x/x"):
        if evil == host:
            continue
        try:
            reference = parse_image(image)
        except InvalidField:
            continue
        assert not is_allowed(reference, entries)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    for read in (parse_image, parse_allowed):
        refused: list[InvalidField] = []
        try:
            read(text)
        except InvalidField as error:
            refused.append(error)
        assert all(error.field and error.fix for error in refused)


def test_without_a_list_all_is_allowed_and_with_one_the_error_names_it() -> None:
    check_image("not a reference at all!", (), ())
    with pytest.raises(InvalidField, match=r"quay\.io/x") as refused:
        check_image("quay.io/x", parse_list(["ghcr.io/grycap"]), ["ghcr.io/grycap"])
    assert refused.value.field == "image"
    assert "ghcr.io/grycap" in (refused.value.fix or "")
