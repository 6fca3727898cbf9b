"""What goes wrong around runs on a real cluster: nothing is lost, no script runs twice, and the job says why."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from oscar.compute.base import Phase, Run
from oscar.compute.kubernetes.backend import KubernetesCompute
from oscar.compute.kubernetes.cluster import Body, Changed, Gone, config
from oscar.compute.kubernetes.kinds import JOB, NAMESPACE, NETWORK_POLICY, POD, SECRET, Kind
from oscar.compute.kubernetes.manifests import END
from oscar.compute.kubernetes.names import object_name
from oscar.compute.kubernetes.observed import End
from oscar.errors import EngineError, EngineMissing, RunNotFound
from oscar.model.trouble import Trouble
from tests import computing
from tests.cluster.cluster import Cluster
from tests.computing import BUCKET, Machine, Server

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]

Scenario = Callable[[Server, KubernetesCompute], Awaitable[None]]
OWNER = "ann@example.org"


@pytest.fixture
def machine(kubernetes_machine: Machine) -> Machine:
    return kubernetes_machine


@pytest.fixture
def own(kubernetes: Cluster) -> Cluster:
    """The cluster, whose programs are ours to stop."""
    if kubernetes.place is None:
        pytest.skip("the cluster is the caller's own")
    return kubernetes


def live(machine: Machine, scenario: Scenario) -> None:
    async def run() -> None:
        async with machine.serve() as server:
            assert isinstance(server.compute, KubernetesCompute)
            await scenario(server, server.compute)

    asyncio.run(run())


async def pods(compute: KubernetesCompute, namespace: str) -> list[Body]:
    return await compute.cluster.items(POD, namespace)


def namespace(compute: KubernetesCompute, owner: str = OWNER) -> str:
    return compute.names.namespace_of(owner)


async def until(true: Callable[[], Awaitable[Any]], seconds: float = 120) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            if found := await true():
                return found
            await asyncio.sleep(0.2)


async def evict(compute: KubernetesCompute, place: str) -> None:
    pod = (await pods(compute, place))[0]["metadata"]["name"]
    await compute.cluster.request(
        "POST",
        f"/api/v1/namespaces/{place}/pods/{pod}/eviction",
        body={
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": place},
            "deleteOptions": {"gracePeriodSeconds": 1},
        },
    )


@pytest.mark.brief
def test_a_pod_that_is_evicted_while_its_script_runs_is_not_run_again(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun\nsleep 300", owner=OWNER)
        await compute.submit(order)
        await server.running(order.name)
        await until(lambda: said(server, order.name, "begun"))
        await evict(compute, namespace(compute))
        end = await server.done(order.name)
        assert end.trouble is Trouble.LOST
        assert "evicted" in (end.message or "")
        assert "begun" in await server.text(order.name)
        assert (await server.text(order.name))[-1].startswith("evicted")

    live(machine, scenario)


async def said(server: Server, name: str, words: str) -> bool:
    return words in await server.text(name)


def test_out_of_memory_is_told_as_that_and_the_log_is_kept(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        script = "echo eating\nx=aaaaaaaaaaaaaaaa\nwhile :; do x=$x$x; done"
        order = server.order(script, memory="32Mi")
        await compute.submit(order)
        end = await server.done(order.name)
        assert (end.trouble, end.exit_code) == (Trouble.SCRIPT, 137)
        assert end.message == "killed: out of memory (limit 32Mi)"
        text = await server.text(order.name)
        assert "eating" in text
        assert text[-1] == end.message
        await compute.forget(order.name)
        assert await server.text(order.name) == text

    live(machine, scenario)


def test_a_pod_that_is_deleted_by_hand_is_not_run_again(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun\nsleep 300", owner=OWNER)
        await compute.submit(order)
        await server.running(order.name)
        pod = (await pods(compute, namespace(compute)))[0]["metadata"]["name"]
        await compute.cluster.delete(POD, pod, namespace(compute), grace=1)
        end = await server.done(order.name)
        # An orderly end leaves an exit code, the kubelet's kill: either way it is said, and not run again.
        assert end.trouble in {Trouble.LOST, Trouble.SCRIPT}
        assert len(await pods(compute, namespace(compute))) <= 1

    live(machine, scenario)


def test_a_job_that_is_deleted_by_hand_is_told(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun\nsleep 300", owner=OWNER)
        await compute.submit(order)
        await server.running(order.name)
        await compute.cluster.delete(JOB, object_name(order.name), namespace(compute))
        end = await server.done(order.name)
        assert end.trouble in {Trouble.LOST, Trouble.SCRIPT}
        with pytest.raises(RunNotFound):
            await compute.submit(order, adopt=True)

    live(machine, scenario)


def test_a_script_that_is_ended_gets_no_half_minute(machine: Machine) -> None:
    """It ignores SIGTERM, and a time that the kubelet was told once is never cut short."""

    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun\nsleep 300", owner=OWNER)
        await compute.submit(order)
        await server.running(order.name)

        listed = asyncio.Event()

        async def told() -> int:
            async for news in compute.cluster.follow(POD, namespace(compute)):
                listed.set()
                match news:
                    case Changed(pod) | Gone(pod) if "deletionTimestamp" in pod["metadata"]:
                        return int(pod["metadata"]["deletionGracePeriodSeconds"])
            raise AssertionError("a watch has no end")

        telling = asyncio.create_task(told())
        await listed.wait()
        await compute.cancel(order.name)
        assert (await server.done(order.name)).trouble is Trouble.CANCELLED
        assert await telling == 1

    live(machine, scenario)


def test_what_a_server_had_decided_before_it_was_killed_is_done_by_the_next(machine: Machine) -> None:
    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            order = server.order("echo begun\nsleep 300", owner=OWNER)
            await server.compute.submit(order)
            await server.running(order.name)
            assert isinstance(server.compute, KubernetesCompute)
            name, place = object_name(order.name), namespace(server.compute)
        end = End(Trouble.TIMEOUT, "killed: it ran longer than 1 s")
        async with machine.serve() as server:
            assert isinstance(server.compute, KubernetesCompute)
            change = {"metadata": {"annotations": {END: end.as_text()}}}
            assert await server.compute.cluster.merge(JOB, name, change, place)
            await server.compute.submit(order, adopt=True)
            found = await server.done(order.name)
            assert (found.trouble, found.message) == (end.trouble, end.message)

    asyncio.run(scenario())


@pytest.mark.brief
def test_a_second_pod_of_the_same_run_does_not_start_the_script(machine: Machine) -> None:
    """As after a restore of etcd, or when a Job was deleted and made again: the mark in the own store holds."""

    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo once", owner=OWNER)
        await compute.submit(order)
        assert (await server.done(order.name)).trouble is None
        place = namespace(compute)
        job = await compute.cluster.get(JOB, object_name(order.name), place)
        secret = await compute.cluster.get(SECRET, object_name(order.name), place)
        assert job is not None
        assert secret is not None
        again = copy_of(job)
        await compute.cluster.create(SECRET, copy_of(secret))
        await compute.cluster.create(JOB, again)

        async def ended() -> Body | None:
            found = await compute.cluster.get(JOB, again["metadata"]["name"], place)
            return found if found and found.get("status", {}).get("conditions") else None

        await until(ended)
        copies = [each for each in await pods(compute, place) if "copy" in each["metadata"]["name"]]
        stage_in, script = copies[0]["status"]["initContainerStatuses"]
        assert stage_in["state"]["terminated"]["exitCode"] == 1
        assert "begun by another pod" in stage_in["state"]["terminated"]["message"]
        assert "waiting" in script["state"]

    live(machine, scenario)


def copy_of(item: Body) -> Body:
    """The object under another name, as somebody would make it again."""
    meta = item["metadata"]
    found = {key: value for key, value in item.items() if key != "status"}
    found["metadata"] = {
        "name": f"copy-{meta['name']}"[:60],
        "namespace": meta["namespace"],
        "labels": {"app": "copy"},
    }
    if "spec" in found:
        spec = {key: value for key, value in found["spec"].items() if key != "selector"}
        template = dict(spec["template"])
        template["metadata"] = {"labels": {"app": "copy"}}
        spec["template"] = template
        found["spec"] = spec
    return found


class Proxy:
    """Between this engine and the API server: a proxy of TCP that cuts all its connections when told."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.removeprefix("https://").rpartition(":")
        self._open: set[asyncio.StreamWriter] = set()
        self.cuts = 0
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, away = await asyncio.open_connection(self._host, int(self._port))
        self._open |= {writer, away}
        await asyncio.gather(self._pass(reader, away), self._pass(there, writer))

    @staticmethod
    async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    def cut(self) -> None:
        self.cuts += len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()


def test_a_watch_that_is_cut_goes_on(
    machine: Machine, kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        way = config(kubernetes.kubeconfig)
        proxy = Proxy(way.cluster.server)
        listening = await proxy.start()
        # The certificate is for the API server's own address.
        there = type(way.cluster)(server=f"https://127.0.0.1:{proxy.port}", insecure=True)
        monkeypatch.setattr(computing, "config", lambda _: way._replace(cluster=there))
        async with machine.serve() as server:
            order = server.order("echo begun\nsleep 4\necho ended")
            await server.compute.submit(order)
            await server.running(order.name)
            for _ in range(5):
                # Watches, logs and requests at once, as when a load balancer in between is restarted.
                proxy.cut()
                await asyncio.sleep(0.5)
            end = await server.done(order.name)
            assert end.trouble is None
            text = await server.text(order.name)
            assert (text.count("begun"), text.count("ended")) == (1, 1)
            late = await server.run("echo late")
            assert late.trouble is None
        assert proxy.cuts
        listening.close()

    asyncio.run(scenario())


def test_the_api_server_is_away_for_a_minute(machine: Machine, own: Cluster) -> None:
    """Paused, which is worse than ended: requests hang instead of failing."""
    folder = uuid.uuid4().hex
    results = [{"storage_provider": "minio.default", "path": f"{BUCKET}/{folder}"}]

    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        script = 'echo begun\nsleep 20\necho done > "$TMP_OUTPUT_DIR/$JOB_UUID"\necho ended'
        early = [server.order(script, output=results) for _ in range(2)]
        for order in early:
            await compute.submit(order)
        for order in early:
            await server.running(order.name)
        late = [server.order(script, output=results) for _ in range(2)]
        await asyncio.to_thread(own.inside.send, "kube-apiserver", signal.SIGSTOP)
        try:
            submitting = [asyncio.create_task(compute.submit(order)) for order in late]
            await asyncio.sleep(60)
        finally:
            await asyncio.to_thread(own.inside.send, "kube-apiserver", signal.SIGCONT)
        await asyncio.gather(*submitting)
        for order in [*early, *late]:
            end = await server.done(order.name)
            assert (order.name, end.trouble, end.message) == (order.name, None, None)
            text = await server.text(order.name)
            assert (text.count("begun"), text.count("ended")) == (1, 1)
        found = [each.key async for each in machine.store.list(BUCKET, f"{folder}/")]
        assert len(found) == 4

    live(machine, scenario)


def test_a_namespace_that_is_deleted_by_hand_is_put_back(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun\nsleep 300", owner=OWNER)
        await compute.apply(order.service)
        await compute.submit(order)
        await server.running(order.name)
        place = namespace(compute)
        before = await compute.cluster.get(NAMESPACE, place)
        assert before is not None
        await compute.cluster.delete(NAMESPACE, place)
        end = await server.done(order.name)
        assert end.trouble in {Trouble.LOST, Trouble.SCRIPT}

        async def back() -> Body | None:
            found = await compute.cluster.get(NAMESPACE, place)
            return found if found and found["metadata"]["uid"] != before["metadata"]["uid"] else None

        await until(back)
        await until(lambda: compute.cluster.get(NETWORK_POLICY, "oscar-tenant", place))
        after = server.order("echo again", owner=OWNER)
        await compute.submit(after)
        assert (await server.done(after.name)).trouble is None

    live(machine, scenario)


@pytest.mark.brief
def test_what_was_deleted_by_hand_is_put_back_and_nothing_of_others_is_removed(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        service = server.order("true", owner=OWNER, image_prefetch=True).service
        await compute.apply(service)
        place = namespace(compute)
        daemons = Kind("apps/v1", "daemonsets", "DaemonSet")
        prefetch = await compute.cluster.get(daemons, "hello-prefetch", place)
        assert prefetch is not None
        for name, installation in (("theirs", "another"), ("stale", compute.names.installation)):
            labels = {
                "app.kubernetes.io/managed-by": "oscar",
                "oscar.grycap/installation": installation,
                "oscar.grycap/part": "prefetch",
            }
            meta = {"name": name, "namespace": place, "labels": labels}
            await compute.cluster.create(
                daemons, {**daemons.head, "metadata": meta, "spec": prefetch["spec"]}
            )
        await compute.cluster.delete(NETWORK_POLICY, "oscar-tenant", place)
        await compute.cluster.delete(daemons, "hello-prefetch", place)
        await compute.reconcile({(OWNER, "hello")})
        assert await compute.cluster.get(NETWORK_POLICY, "oscar-tenant", place)
        names = {each["metadata"]["name"] for each in await compute.cluster.items(daemons, place)}
        assert {"hello-prefetch", "theirs"} <= names
        assert "stale" not in names

    live(machine, scenario)


def test_without_a_record_of_the_first_start_there_is_no_engine(machine: Machine) -> None:
    async def scenario(_: Server, compute: KubernetesCompute) -> None:
        with pytest.raises(EngineMissing, match="first start"):
            KubernetesCompute(
                compute.cluster,
                replace(compute.names, installation=""),
                compute.tenancy,
                compute._launcher,
                compute._logs,
                compute._options,
            )

    live(machine, scenario)


@pytest.mark.brief
def test_a_namespace_of_another_installation_is_refused(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        place = namespace(compute, "bob")
        labels = {"oscar.grycap/installation": "another"}
        await compute.cluster.create(
            NAMESPACE, {**NAMESPACE.head, "metadata": {"name": place, "labels": labels}}
        )
        try:
            with pytest.raises(EngineError, match="belongs to another installation"):
                await compute.submit(server.order("true", owner="bob"))
        finally:
            await compute.cluster.delete(NAMESPACE, place)

    live(machine, scenario)


def test_a_server_that_is_killed_with_runs_in_all_phases(machine: Machine) -> None:
    folder = uuid.uuid4().hex
    results = [{"storage_provider": "minio.default", "path": f"{BUCKET}/{folder}"}]
    script = 'echo begun\nsleep 4\necho done > "$TMP_OUTPUT_DIR/$JOB_UUID"\necho ended'

    async def scenario() -> None:
        orders = []
        async with machine.serve(drop=True) as server:
            for _ in range(6):
                order = server.order(script, output=results)
                orders.append(order)
                await server.compute.submit(order)
            await server.running(orders[0].name)
        for _ in range(2):
            async with machine.serve(drop=True) as server:
                for order in orders:
                    await server.compute.submit(order, adopt=True)
                await asyncio.sleep(2)
        async with machine.serve() as server:
            for order in orders:
                await server.compute.submit(order, adopt=True)
            for order in orders:
                end = await server.done(order.name)
                assert (end.trouble, end.exit_code) == (None, 0)
                text = await server.text(order.name)
                assert (text.count("begun"), text.count("ended")) == (1, 1)
        found = [each.key async for each in machine.store.list(BUCKET, f"{folder}/")]
        assert len(found) == len(orders)

    asyncio.run(scenario())


@pytest.mark.brief
@pytest.mark.parametrize("adopted", [True, False])
def test_the_log_of_a_run_that_ended_without_a_server_is_whole(machine: Machine, *, adopted: bool) -> None:
    """The next server tells its end at once, and has yet to fetch what it said."""

    async def scenario() -> None:
        async with machine.serve(drop=True) as server:
            order = server.order("echo quick\nexit 5", owner=OWNER)
            await server.compute.submit(order)
        looking = await machine.make()
        assert isinstance(looking, KubernetesCompute)

        async def ended() -> bool:
            job = await looking.cluster.get(JOB, object_name(order.name), namespace(looking))
            return bool(job and job.get("status", {}).get("conditions"))

        await until(ended)
        await looking.stop()
        async with machine.serve() as server:
            await server.done(order.name)
            if adopted:
                await server.compute.submit(order, adopt=True)
            forgetting = asyncio.create_task(server.compute.forget(order.name))
            await asyncio.sleep(0)
            assert (await server.text(order.name)).count("quick") == 1
            await forgetting
            assert (await server.text(order.name)).count("quick") == 1

    asyncio.run(scenario())


@pytest.mark.brief
def test_what_a_user_sees_of_his_pod(machine: Machine) -> None:
    """No keys, no token, no other services (defects 7 and 15, #499, #497); USER 1001 works."""

    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        payload = b'{"secret body": "  two  spaces * "}'
        order = server.order(
            'env\nls /var/run/secrets 2>&1\nls /run/oscar 2>&1\nid -u\ncat "$INPUT_FILE_PATH"\n'
            'echo fine > "$TMP_OUTPUT_DIR/x"',
            payload,
            image=machine.user_image,
            owner=OWNER,
            environment={"secrets": {"API_KEY": "planted-secret", "refresh_token": "planted-refresh"}},
            output=[{"storage_provider": "minio.default", "path": f"{BUCKET}/seen"}],
        )
        await compute.submit(order)
        end = await server.done(order.name)
        assert end.trouble is None, end.message
        text = "\n".join(await server.text(order.name))
        assert "API_KEY=planted-secret" in text
        assert payload.decode() in text
        assert "1001" in text
        assert "planted-refresh" not in text
        assert "alice-secret" not in text
        pod = (await pods(compute, namespace(compute)))[0]
        job = await compute.cluster.get(JOB, object_name(order.name), namespace(compute))
        for item in (pod, job):
            for word in ("planted", "secret body", "alice-secret"):
                assert word not in str(item)
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
        assert not any("kube-api-access" in each["name"] for each in pod["spec"]["volumes"])

    live(machine, scenario)


def test_a_body_too_large_for_a_secret_runs(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        body = b'{"x": "' + b"y" * 2_999_991 + b'"}'
        order = server.order('wc -c < "$INPUT_FILE_PATH"', body)
        await compute.submit(order)
        end = await server.done(order.name)
        assert end.trouble is None, end.message
        assert "3000000" in await server.text(order.name)
        await compute.forget(order.name)
        bucket = f"oscar-{compute.names.installation}"

        async def clean() -> bool:
            keys = [each.key async for each in machine.store.list(bucket)]
            return not any(key.startswith(("bodies/", "runs/")) for key in keys)

        await until(clean)

    live(machine, scenario)


def test_quotas_of_the_cluster_hold_runs_back_and_others_go_on(kubernetes_limited: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        orders = [server.order("sleep 3", owner=OWNER, cpu="100m") for _ in range(3)]
        for order in orders:
            await compute.submit(order)
        other = server.order("echo other", owner="somebody else", cpu="50m")
        await compute.submit(other)
        assert (await server.done(other.name)).trouble is None
        for order in orders:
            assert (await server.done(order.name)).trouble is None

    live(kubernetes_limited, scenario)


@pytest.mark.brief
def test_a_run_without_a_place_is_withdrawn_and_never_begins(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun", owner=OWNER, cpu="900")
        await compute.submit(order)
        await until(lambda: pods(compute, namespace(compute)))
        assert await compute.withdraw(order.name)
        end = await server.done(order.name)
        assert (end.trouble, end.started) == (Trouble.OUR, None)
        # Asked again, as when the answer was lost: it is over.
        assert not await compute.withdraw(order.name)
        said = await server.text(order.name)
        assert "begun" not in said
        assert said[-1] == "it found no place here, and was taken back"
        await compute.forget(order.name)
        await until(lambda: no_pods(compute))
        assert not await compute.withdraw("nobodys-1")

    live(machine, scenario)


async def no_pods(compute: KubernetesCompute) -> bool:
    return not await pods(compute, namespace(compute))


def test_a_run_that_has_a_place_is_not_withdrawn(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        order = server.order("echo begun; sleep 3", owner=OWNER)
        await compute.submit(order)
        await server.running(order.name)
        assert not await compute.withdraw(order.name)
        assert (await server.done(order.name)).trouble is None

    live(machine, scenario)


def test_a_run_is_begun_or_withdrawn_and_never_both(machine: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        async def ends(order: Run, *, claimed: bool) -> None:
            end = await server.done(order.name)
            assert ("begun" in await server.text(order.name)) is not claimed
            assert end.trouble is (Trouble.OUR if claimed else None)

        async def before() -> None:
            order = server.order("echo begun", owner=OWNER)
            assert await compute._launcher.claim(order.name)
            await compute.submit(order)
            await ends(order, claimed=True)

        async def between(number: int) -> None:
            order = server.order("echo begun", owner=OWNER)
            await compute.submit(order)
            # Somewhere between its making and its script: the marker decides, whatever the cluster does meanwhile.
            await asyncio.sleep(number * 0.4)
            await ends(order, claimed=await compute._launcher.claim(order.name))

        async def after() -> None:
            order = server.order("echo begun", owner=OWNER)
            await compute.submit(order)
            await server.running(order.name)
            assert not await compute._launcher.claim(order.name)
            await ends(order, claimed=False)

        await asyncio.gather(before(), after(), *map(between, range(10)))

    live(machine, scenario)


def test_another_quota_is_applied(kubernetes_limited: Machine) -> None:
    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        await compute.apply(server.order("true", owner=OWNER).service)
        quota = Kind("v1", "resourcequotas", "ResourceQuota")
        found = await compute.cluster.get(quota, "oscar-tenant", namespace(compute))
        assert found is not None
        assert found["spec"]["hard"] == {"requests.cpu": "150m"}
        await compute.cluster.delete(quota, "oscar-tenant", namespace(compute))
        await compute.quota_changed(OWNER)
        assert await compute.cluster.get(quota, "oscar-tenant", namespace(compute))

    live(kubernetes_limited, scenario)


def test_nodes_are_those_of_the_cluster(machine: Machine) -> None:
    async def scenario(_: Server, compute: KubernetesCompute) -> None:
        found = await compute.nodes()
        assert found
        assert all(
            node.ready and node.cpu.capacity >= 1000 and node.memory.capacity > 2**30 for node in found
        )
        assert compute.version().startswith("v1.")
        assert compute.describe().startswith(f"Kubernetes {compute.version()} (")

    live(machine, scenario)


def test_phases_are_never_told_backwards(machine: Machine) -> None:
    order_of = [Phase.SUBMITTED, Phase.RUNNING, Phase.SETTLING, Phase.DONE]

    async def scenario(server: Server, compute: KubernetesCompute) -> None:
        orders = [server.order("true") for _ in range(4)]
        await asyncio.gather(*(compute.submit(order) for order in orders))
        for order in orders:
            await server.done(order.name)
            told = [order_of.index(state.phase) for state in server.seen[order.name]]
            assert told == sorted(told)

    live(machine, scenario)
