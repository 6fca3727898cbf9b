"""Names of what the Kubernetes engine makes."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oscar.compute.kubernetes import names
from oscar.compute.kubernetes.names import Names, object_name
from oscar.model.service import Service
from oscar.model.user import ADMIN

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
OURS = Names("abc123", "oscar-svc")


def test_the_administrators_services_have_the_namespace_itself() -> None:
    assert OURS.namespace_of(ADMIN) == "oscar-svc"
    assert OURS.namespace_of("") == "oscar-svc"


def test_a_users_namespace_can_be_read() -> None:
    assert re.fullmatch(r"oscar-svc-ana-garcia-egi-eu-[0-9a-f]{10}", OURS.namespace_of("Ana García@egi.eu"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1234567890abcdef@egi.eu", "1234567890fedcba@egi.eu"),  # OSCAR 4.1.2 takes 8 characters (defect 17)
        ("ann", "Ann"),
        ("ann@x", "ann-x"),
        ("a" * 200, "a" * 201),
    ],
)
def test_owners_that_look_alike_have_namespaces_of_their_own(one: str, other: str) -> None:
    assert OURS.namespace_of(one) != OURS.namespace_of(other)


@PATIENT
@given(st.text(min_size=1, max_size=300))
def test_every_owner_has_a_namespace_that_kubernetes_takes(owner: str) -> None:
    found = OURS.namespace_of(owner)
    assert len(found) <= 63
    assert LABEL.fullmatch(found)


@PATIENT
@given(st.text(min_size=1, max_size=300))
def test_every_run_has_a_name_that_kubernetes_takes(name: str) -> None:
    found = object_name(name)
    assert len(found) <= 63
    assert LABEL.fullmatch(found)


def test_a_good_name_stays_and_a_long_one_is_told_apart() -> None:
    assert object_name("hello-1") == "hello-1"
    assert object_name("a" * 70 + "1") != object_name("a" * 70 + "2")


def test_labels_of_a_service_are_those_of_oscar_and_ours() -> None:
    service = Service(
        name="cat",
        image="busybox",
        script="true",
        owner="José Pérez",
        vo="/vo.example.eu/sub group:x",
        labels={"team": "blue", "oscar.grycap/installation": "stolen"},
    )
    assert OURS.service_labels("run", service) == {
        "team": "blue",
        "vo": "vo.example.eu--sub__group___x",
        "oscar.grycap/user-service": "true",
        "oscar_service": "cat",
        "applicationId": "cat",
        "queue": "root.oscar-queue.cat",
        "owner_name": "Jose_Perez",
        "app.kubernetes.io/managed-by": "oscar",
        "oscar.grycap/installation": "abc123",
        "oscar.grycap/part": "run",
        "oscar.grycap/owner": names.digest("José Pérez"),
    }


def test_selectors_name_the_installation() -> None:
    assert OURS.selector("run", "sync", service="cat") == (
        "oscar.grycap/installation=abc123,oscar.grycap/part in (run,sync),oscar_service=cat"
    )
