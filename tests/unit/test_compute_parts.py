"""The small parts of compute.local: records of runs, control groups, the machine's size, names and times."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from oscar.compute.base import Phase, Run, RunState
from oscar.compute.local import cgroups, machine
from oscar.compute.local.attempt import _judge
from oscar.compute.local.bubblewrap import Walls, arguments
from oscar.compute.local.containers import _IMAGE, _milliseconds
from oscar.compute.local.engine import Exit, Mount
from oscar.compute.local.pids import group_seconds, group_usage
from oscar.compute.local.records import Asked, RunFolder, Started, boot_id
from oscar.model.service import Service
from oscar.model.trouble import Trouble

SECRET = "planted-secret"

# Records


def order() -> Run:
    service = Service.model_validate(
        {
            "name": "hello",
            "image": "busybox",
            "script": "true",
            "environment": {"secrets": {"PASSWORD": SECRET}},
            "storage_providers": {"s3": {"far": {"access_key": "a", "secret_key": SECRET}}},
        }
    )
    return Run(
        "hello-1", "hello", 1, service, SECRET.encode(), hops=2, timeout=1.5, environment={"T": SECRET}
    )


def test_the_records_of_a_run_tell_how_far_it_has_come(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "runs" / "hello-1")
    place.create(Asked.of(order()))
    assert place.asked() == Asked("hello-1", "hello", 1, "hello", 2, 1.5, 200, 256 * 1024**2)
    assert place.state() == RunState("hello-1", Phase.SUBMITTED)
    place.mark_started(Started(5, boot_id()))
    assert place.state() == RunState("hello-1", Phase.RUNNING, started=5)
    place.mark_exit(Exit("job.hello-1", 3, finished=7))
    assert place.exit() == Exit("job.hello-1", 3, finished=7)
    assert place.state() == RunState("hello-1", Phase.SETTLING, started=5)
    done = RunState("hello-1", Phase.DONE, Trouble.SCRIPT, "words", 3, 5, 9)
    place.mark_done(done)
    assert place.state() == done


def test_no_record_holds_a_secret(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "hello-1")
    place.create(Asked.of(order()))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_text()]


def test_a_start_is_marked_once(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "hello-1")
    place.create(Asked.of(order()))
    place.mark_started(Started(1, "boot"))
    with pytest.raises(FileExistsError):
        place.mark_started(Started(2, "boot"))
    place.unmark_started()
    place.mark_started(Started(3, "boot"))
    assert place.started() == Started(3, "boot")


def test_the_first_reason_of_a_kill_stays(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "hello-1")
    place.create(Asked.of(order()))
    place.mark_kill(Trouble.TIMEOUT)
    place.mark_kill(Trouble.CANCELLED)
    assert place.killed() is Trouble.TIMEOUT


def test_stage_in_begins_anew(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "hello-1")
    place.create(Asked.of(order()))
    place.furnish({"script.sh": b"one"})
    (place.work / "half").write_text("of an input")
    place.furnish({"script.sh": b"two", "event": b"e"})
    assert list(place.work.iterdir()) == []
    assert (place.config / "script.sh").read_bytes() == b"two"
    assert place.work.stat().st_mode & 0o777 == 0o777
    assert (place.config / "event").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_is_left_is_out_of_the_way_at_once(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "hello-1")
    place.create(Asked.of(order()))
    gone = place.leave()
    assert not place.path.exists()
    assert gone.name == ".gone-hello-1"
    place.create(Asked.of(order()))
    assert place.leave() == gone  # what a crash left there before goes
    assert place.leave() == gone


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    place = RunFolder(tmp_path / "hello-1")
    place.path.mkdir()
    (place.path / "run.json.new").write_text('{"half')
    assert place.asked() is None


# What an end means

ASKED = Asked("hello-1", "hello", 1, "hello", 0, 1.5, 200, 256 * 1024**2)


@pytest.mark.parametrize(
    ("ended", "killed", "trouble", "words", "code"),
    [
        (Exit("x", 0), None, None, None, 0),
        (Exit("x", 3), None, Trouble.SCRIPT, "exit code 3", 3),
        (Exit("x", 137, True), None, Trouble.SCRIPT, "killed: out of memory (limit 256Mi)", 137),
        (Exit("x", 137), Trouble.TIMEOUT, Trouble.TIMEOUT, "longer than 1.5 s", None),
        (Exit("x", 0), Trouble.TIMEOUT, None, None, 0),
        (Exit("x", 0), Trouble.CANCELLED, Trouble.CANCELLED, "cancelled", None),
        (Exit("x", None), None, Trouble.LOST, "has lost it", None),
        (Exit("x", None), Trouble.CANCELLED, Trouble.CANCELLED, "cancelled", None),
        (Exit("x", None, refused="no such folder"), None, Trouble.OUR, "no such folder", None),
        (Exit("x", None, refused="ended"), Trouble.TIMEOUT, Trouble.TIMEOUT, "longer", None),
    ],
)
def test_what_an_end_means(
    ended: Exit, killed: Trouble | None, trouble: Trouble | None, words: str | None, code: int | None
) -> None:
    end = _judge(ended, killed, ASKED)
    assert (end.trouble, end.exit_code) == (trouble, code)
    assert (words or "") in (end.message or "")
    assert bool(words) == bool(end.message)


# Names and times of containers


@pytest.mark.parametrize(
    "name",
    [
        "busybox",
        "busybox:1.36",
        "grycap/cowsay",
        "ghcr.io/grycap/cowsay:latest",
        "localhost/bb:1",
        "localhost:5000/a/b:c",
        "127.0.0.1:5000/a",
        "registry.example.org:443/a/b_c-d.e@sha256:" + "0" * 64,
        "a/b@sha256:" + "0" * 64,
    ],
)
def test_names_of_images(name: str) -> None:
    assert _IMAGE.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-v",
        "--privileged",
        "dir:/etc",
        "oci:/etc:x",
        "docker-archive:/x.tar",
        "/etc",
        "a b",
        "A/b",
        "a:b:c",
        "a\n",
        "docker://a",
        "../a",
        "a//b",
        "http://a/b",
        "a;b",
        "$(id)",
        "a" * 5000 + "!",
    ],
)
def test_what_is_no_name_of_an_image(name: str) -> None:
    assert not _IMAGE.fullmatch(name)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-23 20:56:24.294524514 +0000 UTC", 1795467384294),
        ("2026-11-23T20:56:24.49Z", 1795467384490),
        ("2026-11-23T20:56:24Z", 1795467384000),
        ("2026-11-23 21:56:24.5 +0100 CET", 1795467384500),
        ("2026-11-23T15:26:24.5-05:30", 1795467384500),
        ("0001-01-01T00:00:00Z", -62135596800000),
        ("", 0),
    ],
)
def test_times_of_containers(text: str, milliseconds: int) -> None:
    assert _milliseconds(text) == milliseconds


# Control groups


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    root, proc = tmp_path / "sys", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("4:memory:/mine\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n")
    for tree in ("memory/mine", "cpu", "pids"):
        (root / tree).mkdir(parents=True)
    found = cgroups.find("x", proc=proc, root=root)
    assert found.version == 1
    assert found.bases == {
        "memory": root / "memory/mine/oscar-x",
        "cpu": root / "cpu/oscar-x",
        "pids": root / "pids/oscar-x",
    }
    made = found.make("run", cpu=500, memory=64 * 1024**2)
    assert sorted(made) == sorted(str(base / "run") for base in found.bases.values())
    limits = {path.name: path.read_text() for path in root.rglob("oscar-x/run/*")}
    assert limits == {
        "memory.limit_in_bytes": "67108864",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "50000",
        "pids.max": "4096",
    }


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    base = tmp_path / "oscar-x"
    base.mkdir()
    found = cgroups.Cgroups(dict.fromkeys(("cpu", "memory", "pids"), base), 2)
    assert found.make("run", cpu=1500, memory=1024) == [str(base / "run")]
    limits = {path.name: path.read_text() for path in (base / "run").iterdir()}
    assert limits == {"memory.max": "1024", "cpu.max": "150000 100000", "pids.max": "4096"}


def test_without_control_groups_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    assert cgroups.find("x", proc=tmp_path, root=tmp_path / "nothing").bases == {}


# The machine


def test_the_machine_is_as_large_as_its_groups_let_it(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       8000000 kB\nMemFree: 1 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    cpu, memory = machine.size(proc=proc, cgroups=root)
    assert memory == 8000000 * 1024
    assert cpu % 1000 == 0
    (root / "a/b").mkdir(parents=True)
    (root / "a/cpu.max").write_text("50000 100000\n")
    (root / "a/b/cpu.max").write_text("max 100000\n")
    (root / "a/memory.max").write_text("max\n")
    (root / "a/b/memory.max").write_text("1073741824\n")
    assert machine.size(proc=proc, cgroups=root) == (500, 1024**3)


def test_the_machine_with_groups_of_version_1(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       8000000 kB\n")
    (proc / "self/cgroup").write_text("4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n")
    for tree in ("memory", "cpu"):
        (root / tree).mkdir(parents=True)
    # In a container the path is that of the host, and the root of the tree is its own group.
    (root / "memory/memory.limit_in_bytes").write_text("1073741824\n")
    (root / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu/cpu.cfs_period_us").write_text("100000\n")
    cpu, memory = machine.size(proc=proc, cgroups=root)
    assert memory == 1024**3
    assert cpu >= 1000
    (root / "cpu/cpu.cfs_quota_us").write_text("25000\n")
    assert machine.size(proc=proc, cgroups=root)[0] == 250


# The sandbox of a process


def packed(walls: Walls, *mounts: Mount) -> list[str]:
    options, _ = arguments(
        walls, argv=("/bin/sh",), env={}, mounts=mounts, tmp=Path("/data/t"), workdir="/tmp"
    )
    return options.decode().split("\0")[:-1]


def test_a_process_shares_no_folder_that_it_was_not_given() -> None:
    options = packed(Walls("bwrap", None), Mount(Path("/data/work"), "/oscar/work"))
    shown = {options[at + 1] for at, word in enumerate(options) if word in {"--bind", "--ro-bind"}}
    writable = {options[at + 1] for at, word in enumerate(options) if word == "--bind"}
    assert writable == {"/data/t", "/data/work"}
    assert not [path for path in shown if path in {"/", "/etc", "/home", "/root", "/var", "/run", "/data"}]
    assert not [path for path in shown if "shadow" in path or "private" in path]


def test_only_who_asks_for_gpus_gets_their_devices() -> None:
    def devices(*given: str) -> list[str]:
        options, _ = arguments(
            Walls("bwrap", None),
            argv=("/bin/sh",),
            env={},
            mounts=(),
            tmp=Path("/data/t"),
            workdir="/tmp",
            devices=given,
        )
        words = options.decode().split("\0")
        return [words[at + 1] for at, word in enumerate(words) if word == "--dev-bind"]

    assert devices() == []
    assert devices("/dev/nvidia0", "/dev/nvidiactl") == ["/dev/nvidia0", "/dev/nvidiactl"]


def test_device_files_of_gpus(tmp_path: Path) -> None:
    assert machine.gpu_nodes(dev=tmp_path) == ()
    (tmp_path / "nvidia0").touch()
    assert machine.gpu_nodes(dev=tmp_path) == (), "a device without its driver's control file"
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1", "null"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(Path(path).relative_to(tmp_path)) for path in machine.gpu_nodes(dev=tmp_path)]
    assert found == ["nvidia0", "nvidiactl", "nvidia-uvm"]


def test_the_servers_folder_is_covered_where_it_would_be_seen() -> None:
    hidden = Walls(
        "bwrap", None, hidden=(Path("/usr/local/data"), Path("/srv/data")), visible=(Path("/opt"),)
    )
    options = packed(hidden)
    covered = [options[at + 1] for at, word in enumerate(options) if word == "--tmpfs"]
    assert covered == ["/usr/local/data"]
    assert "/opt" in options


# CPU time of a control group


def test_the_root_group_is_nobodys_own(tmp_path: Path) -> None:
    """A process that has ended is in the root group of version 1, which counts the whole machine."""
    for place in ("cpuacct", "."):
        (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "cpuacct/cpuacct.usage").write_text("110000000000000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 110000000000\n")
    with subprocess.Popen(["true"]) as ended:
        stat = Path(f"/proc/{ended.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        rows = [row.split(":", 2) for row in Path(f"/proc/{ended.pid}/cgroup").read_text().splitlines()]
        if all(path == "/" for _, _, path in rows):
            assert group_usage(ended.pid, root=tmp_path) is None
        assert group_usage(ended.pid, "a-container's-number", root=tmp_path) is None


def test_a_group_of_its_own_is_found_by_its_name(tmp_path: Path) -> None:
    rows = [row.split(":", 2) for row in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in rows:
        file = tmp_path / ("cpuacct" if "cpuacct" in controllers else "") / path.lstrip("/")
        file.mkdir(parents=True, exist_ok=True)
        (file / "cpuacct.usage").write_text("1500000000\n")
        (file / "cpu.stat").write_text("usage_usec 1500000\n")
    found = group_usage(os.getpid(), root=tmp_path)
    own = [
        path for _, controllers, path in rows if path != "/" and (not controllers or "cpuacct" in controllers)
    ]
    assert (found is not None) == bool(own)
    if found:
        assert group_seconds(found) == 1.5
        assert group_usage(os.getpid(), "somebody-else", root=tmp_path) is None
