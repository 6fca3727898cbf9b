"""Fixtures of all tests, and the rule that nothing is skipped silently.

A test is skipped only for a reason listed in skips.txt; with CI=true any other skip fails the run, so that a
missing program can't turn a suite green by leaving its tests out.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from _pytest.terminal import TerminalReporter

from oscar import telemetry
from tests import images, postgres, stores
from tests import server as servers
from tests.cluster import images as cluster_images
from tests.cluster import session as cluster_session
from tests.cluster.cluster import Cluster
from tests.cluster.parts import PartMissing

SKIPS = Path(__file__).with_name("skips.txt")
UNEXPECTED = pytest.StashKey[list[tuple[str, str]]]()


def where() -> str:
    """Which of the runs of skips.txt this is."""
    if os.environ.get("OSCAR_TEST_REAL"):
        return "real"
    return "plain" if os.geteuid() == 0 else "user"


def allowed_reasons(text: str, here: str) -> list[str]:
    """The beginnings of the reasons that hold in this run."""
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [reason.strip() for place, reason in rows if place in {here, "any"}]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[UNEXPECTED] = []
    config.pluginmanager.register(SkipWatch(config), "skip-watch")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """All modules of tests stay for the whole run: the collector of garbage need not look at them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class SkipWatch:
    """Collects the skips whose reason is not in the list; in CI they fail the run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.allowed = tuple(allowed_reasons(SKIPS.read_text(), where()))

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # An expected failure is reported as a skip as well, but has `wasxfail`.
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(self.allowed):
            self.config.stash[UNEXPECTED].append((report.nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(self.config, "workerinput"):
            cluster_session.end()
        if self.config.stash[UNEXPECTED] and os.environ.get("CI") == "true":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        unexpected = self.config.stash[UNEXPECTED]
        if unexpected:
            terminalreporter.section("skipped, and tests/skips.txt does not allow it here", red=True)
        for test, reason in unexpected:
            terminalreporter.line(f"{test}: {reason}")


@pytest.fixture
def anyio_backend() -> str:
    """The only event loop there is."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _log_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextIO]:
    """Log lines of our program in this process go into a file.

    How they are written is one thing for a process, and applications of `tests/api` go on in it beside the tests of
    other files: on standard output or error their lines would be among what any test captures.
    """
    with (tmp_path_factory.mktemp("log") / "log").open("w+", buffering=1) as file:
        telemetry.configure(level="DEBUG", to=file)
        yield file


@pytest.fixture
def logged(_log_file: TextIO) -> Callable[[], str]:
    """What our program has logged in this process since the test began; call it to read."""
    begin = _log_file.seek(0, os.SEEK_END)

    def read() -> str:
        with Path(_log_file.name).open() as file:
            file.seek(begin)
            return file.read()

    return read


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """The real program as a process with the process engine, one for a file of tests."""
    with servers.running(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """A real PostgreSQL, started once."""
    try:
        with postgres.server() as server:
            yield server
    except postgres.PostgresMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres_template(postgres_server: postgres.Postgres) -> str:
    """The name of a database with the present schema, to be copied."""
    stores.bring_up(postgres_server.create("present"))
    return "present"


@pytest.fixture
def postgres_url(postgres_server: postgres.Postgres, postgres_template: str) -> Iterator[str]:
    """SQLAlchemy's URL of a database of a real PostgreSQL, for one test; it has the present schema and no rows."""
    database = f"t{uuid.uuid4().hex}"
    yield postgres_server.create(database, template=postgres_template)
    postgres_server.drop(database)


@pytest.fixture
def empty_postgres_url(postgres_server: postgres.Postgres) -> Iterator[str]:
    """The same without a schema, as a server finds it that is started for the first time."""
    database = f"t{uuid.uuid4().hex}"
    yield postgres_server.create(database)
    postgres_server.drop(database)


@pytest.fixture(scope="session")
def container_engine() -> str:
    """`podman` or `docker`, whichever works here."""
    try:
        return images.engine()
    except images.ImageImpossible as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def busybox_image(container_engine: str) -> str:
    """The name of a small image with `/bin/sh`."""
    return images.busybox(container_engine)


@pytest.fixture(scope="session")
def user_image(container_engine: str) -> str:
    """The same with another user than root."""
    return images.busybox(container_engine, "USER 1001")


@pytest.fixture(scope="session")
def kubernetes() -> Cluster:
    """A real Kubernetes, one for the whole run, whose node has the server's image: make names of your own in it."""
    try:
        cluster = cluster_session.get()
        if cluster.place is not None:
            cluster.load(cluster_images.server())
    except PartMissing as missing:
        pytest.skip(str(missing))
    return cluster
