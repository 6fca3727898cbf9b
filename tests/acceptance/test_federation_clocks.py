"""Members whose clocks are hours off: real servers that are told another time by a library before the C library's."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import oidc
from tests.acceptance.calls import ended, jobs, put
from tests.acceptance.test_federation import World
from tests.federation import body_of, eventually, grid

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) { const char *text = getenv("TEST_CLOCK_SHIFT"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""
OFF = {"b": timedelta(hours=3), "c": timedelta(hours=-3)}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(SOURCE)
    made = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", made, folder / "clock.c", "-ldl"], check=True)
    return made


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("member", sorted(OFF))
def test_a_member_whose_clock_is_hours_off(library: Path, tmp_path: Path, member: str) -> None:
    seconds = str(int(OFF[member].total_seconds()))
    late = {"LD_PRELOAD": str(library), "TEST_CLOCK_SHIFT": seconds}
    with oidc.running() as issuer:
        tokens = {"OIDC_ISSUERS": issuer.url, "OIDC_CLIENT_ID": oidc.CLIENT}
        with (
            grid(tmp_path / "a", "a", **tokens) as one,
            grid(tmp_path / "m", member, **tokens, **late) as two,
        ):
            world = World(issuer, one | two)
            a, there = world.http(), world.http(member)
            world.make("off", member)
            before = datetime.now(UTC)
            put(a, "off", "in/x", b"on time")
            [job] = eventually(lambda: jobs(a, "off"), lambda found: len(found) == 1)
            found = ended(a, "off", job)
            assert (found["status"], found["delegation"]["cluster_id"]) == ("Succeeded", member), found
            assert body_of(a, "off", f"out/{job}") == b"on time"
            # All times here are by the clock here, and in their order.
            times = [moment(found[part]) for part in ("creation_time", "start_time", "finish_time")]
            second = timedelta(seconds=1)
            assert before - second <= times[0] <= times[1] <= times[2] <= datetime.now(UTC) + second
            # There it was another time indeed.
            said = there.get(f"/system/jobs/off/{job}").json()
            assert abs(moment(said["creation_time"]) - times[0] - OFF[member]) < timedelta(minutes=5)
            assert "pending" not in a.get("/system/federation/off").json()
