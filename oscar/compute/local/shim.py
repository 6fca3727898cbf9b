"""Keeps sandboxed processes: a keeper for each, which outlives the server, writes the log, records the exit.

`compute.local.keepers` starts it once, as `python -I -S shim.py` with a socket as standard input. It forks a keeper
for each message, so that no start waits for an interpreter. A message is a byte with three descriptors: the task,
marshalled in a file without a name so that no secret stands in an argument, an environment or this process; a pipe for
the answer (`started`, or what is in the way); the lock. It must stay small: only `os` and built-ins.

Files of a keeper's folder: `pid` (`<keeper> <its start time> <child>`), `exit` (JSON: code, oom, finished, refused, cpu
in microseconds), `kill` (somebody wants it to end: a child that has not begun never begins).
It holds the lock until it ends: whoever can take the lock knows that no keeper lives.
"""

# pathlib and json cost start-up; the task comes from our own server:
# ruff: noqa: PTH104, PTH106, PTH110, PTH123, PTH208, S302, S606

import _signal  # type: ignore[import-not-found] # `signal` brings enum and more along
import _socket
import marshal
import os
import resource
import select
import sys
import time

WORDS = 2000
BLOCK = 65536
INT = 4
"""Bytes of a descriptor in a message: a C int."""
PIPES = 64
"""Blocks after which the child is looked at again: a pipe holds one, at most 16."""


def main() -> None:
    """Fork a keeper for each message until the server is gone; keepers stay."""
    server = _socket.socket(fileno=0)
    # The kernel buries keepers that end before this process, which is never told.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    while given := receive(server):
        try:
            keeper = os.fork()
        except OSError as error:
            report(given[1], f"{error.strerror}: fork".encode())
        else:
            if keeper == 0:
                server.detach()
                begin(*given[:2])
        for descriptor in given:
            os.close(descriptor)


def receive(server: _socket.socket) -> list:  # type: ignore[type-arg] # no typing at run time: it costs memory
    """The descriptors of the next message, none when no more can come."""
    room = _socket.CMSG_SPACE(3 * INT)
    try:
        byte, ancillary, _, _ = server.recvmsg(1, room, _socket.MSG_CMSG_CLOEXEC)
    except OSError:  # reset: the server was killed
        return []
    if not byte:
        return []
    data = ancillary[0][2]
    return [int.from_bytes(data[at : at + INT], sys.byteorder) for at in range(0, 3 * INT, INT)]


def begin(packed: int, answer: int) -> None:
    """In the keeper: do the task. Never returns. The lock stays open until it ends."""
    try:
        os.setsid()
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.dup2(1, 0)  # /dev/null: nothing of the server's socket is left here
        with os.fdopen(packed, "rb") as file:
            file.seek(0)
            task = marshal.load(file)
        keep(task, answer)
    except OSError as error:
        report(answer, f"{error.strerror}: {error.filename or ''}".encode())
    except Exception as error:  # noqa: BLE001 - its words would be seen nowhere else
        report(answer, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)  # whatever happened: never back into the loop


def keep(task: dict, answer: int) -> None:  # type: ignore[type-arg]
    """Run the task's command, its output into the log, its end into `exit`."""
    if task["subreaper"]:
        become_subreaper()
    log = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    me = f"{os.getpid()} {start_time(os.getpid())}"
    # Before the child: a folder with this file and without a living keeper is a run that may have begun.
    replace(task["folder"] + "/pid", me + " 0\n")
    output, theirs = os.pipe()
    status, child_status = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.close(answer)
        if os.read(wait, 1):
            become(task, theirs, child_status)
        os._exit(127)
    os.close(theirs)
    os.close(child_status)
    # The child waits for this, because without it nobody could end it.
    replace(task["folder"] + "/pid", f"{me} {child}\n")
    # Looked for after the child was recorded, as `kill` looks for the child after it has left this word: one sees the
    # other, whoever is first.
    unwanted = os.path.exists(task["folder"] + "/kill")
    if not unwanted:
        os.write(go, b"1")
    os.close(go)
    report(answer, b"started")
    os.close(answer)
    counted = bool(task["subreaper"]) or group_cpu(task["cgroups"]) is not None
    if not counted:
        # bwrap leaves its last process behind; who waits for that one knows what all have used.
        become_subreaper()
    words = copy(output, log, child)
    _, how = os.waitpid(child, 0)
    if task["subreaper"] or not counted:
        end_descendants()
    cpu = group_cpu(task["cgroups"])
    if cpu is None:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = int((used.ru_utime + used.ru_stime) * 1_000_000)
    record(task, -9 if unwanted else os.waitstatus_to_exitcode(how), read_all(status), words, cpu)


def report(answer: int, words: bytes) -> None:
    """Tell the server, unless it was killed meanwhile."""
    try:
        os.write(answer, words)
    except BrokenPipeError:
        return


def become(task: dict, output: int, status: int) -> None:  # type: ignore[type-arg]
    """In the child: turn into the command. Never returns."""
    try:
        os.setsid()
        # What is ignored or blocked stays so over exec. Python ignores some, so that `yes | head` would end with an
        # error; who started the server may have ignored or blocked any other.
        for number in _signal.valid_signals():
            if _signal.getsignal(number) == _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        for cgroup in task["cgroups"]:
            write(cgroup + "/cgroup.procs", "0")
        # When the machine runs out of memory, this goes before the server.
        write("/proc/self/oom_score_adj", "500")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if task["data_limit"]:
            resource.setrlimit(resource.RLIMIT_DATA, (task["data_limit"], task["data_limit"]))
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        argv = list(task["argv"])
        if task["args"] is not None:
            # Of bwrap: what the sandbox is made of and the program's variables come by a file without a name.
            arguments = os.memfd_create("args", 0)
            os.write(arguments, task["args"])
            os.lseek(arguments, 0, os.SEEK_SET)
            os.set_inheritable(status, True)
            argv[1:1] = ["--args", str(arguments), "--json-status-fd", str(status)]
        os.chdir(task["cwd"])
        os.execve(argv[0], argv, task["env"])
    except OSError as error:
        os.write(status, f"{error.strerror}: {error.filename or task['argv'][0]}".encode())
    os._exit(127)


def copy(output: int, log: int, child: int) -> bytes:
    """Write what comes as lines of the log until the child has ended; the first bytes of it."""
    first = b""
    os.set_blocking(output, False)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(ended, select.POLLIN)
    going = True
    while going:
        # What the child wrote before its end is in the pipe then. Left-over processes may hold the pipe open
        # for ever, so its end is not waited for.
        going = ended not in [each for each, _ in poll.poll()]
        for _ in range(PIPES):
            block = read(output)
            if block is None:
                break
            if not block:
                if going:
                    poll.unregister(output)
                break
            first = first or block[:WORDS]
            try:
                os.write(log, lines(block))
            except OSError:
                # The disk is full. The program must not hang on its output for that, and nobody can be told.
                continue
    return first


def read(file: int) -> bytes | None:
    """What a pipe holds, empty at its end, None when there is nothing now."""
    try:
        return os.read(file, BLOCK)
    except BlockingIOError:
        return None


def lines(block: bytes) -> bytes:
    """Output as lines of the CRI format; what has no end yet is a piece that the next line goes on with."""
    nanoseconds = time.time_ns()
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 1_000_000_000))
    head = f"{second}.{nanoseconds % 1_000_000_000:09d}Z stdout ".encode()
    rows = block.split(b"\n")
    rest = rows.pop()
    text = b"".join([head + b"F " + row + b"\n" for row in rows])
    return text + head + b"P " + rest + b"\n" if rest else text


def record(task: dict, code: int, status: bytes, words: bytes, cpu: int) -> None:  # type: ignore[type-arg]
    """Write how it ended, durably."""
    refused = ""
    if task["args"] is None:
        refused = status.decode("utf-8", "replace")
    elif code > 0 and b'"exit-code"' not in status:
        # Before its own first words bwrap's status is empty, and may hold those of `become`.
        refused = (words or status.partition(b"{")[0]).decode(
            "utf-8", "replace"
        ) or "ended while it was set up"
    if code < 0:
        code = 128 - code
    oom = bool(code) and any(oom_kills(cgroup) for cgroup in task["cgroups"])
    for cgroup in task["cgroups"]:
        try:
            os.rmdir(cgroup)
        except OSError:
            continue  # still being emptied: the server removes it with the rest
    finished = time.time_ns() // 1_000_000
    reason = "".join(c if c.isprintable() and c not in '"\\' else " " for c in refused).strip()
    replace(
        task["folder"] + "/exit",
        f'{{"code": {code}, "oom": {str(oom).lower()}, "finished": {finished}, "refused": "{reason}", "cpu": {cpu}}}\n',
        durable=True,
    )


def group_cpu(cgroups: list) -> int | None:  # type: ignore[type-arg]
    """Microseconds of CPU that the groups count: cgroup v2, then v1; None when none does."""
    for cgroup in cgroups:
        try:
            with open(cgroup + "/cpu.stat") as file:
                for row in file:
                    if row.startswith("usage_usec "):
                        return int(row.split()[1])
        except OSError:
            pass
        try:
            with open(cgroup + "/cpuacct.usage") as file:
                return int(file.read()) // 1000
        except OSError:
            continue
    return None


def oom_kills(cgroup: str) -> bool:
    """Whether the kernel has killed a process of the group for memory: cgroup v2, then v1."""
    for name in ("memory.events", "memory.oom_control"):
        try:
            with open(f"{cgroup}/{name}") as file:
                for row in file:
                    if row.startswith("oom_kill ") and row.split()[1] != "0":
                        return True
        except OSError:
            continue
    return False


def become_subreaper() -> None:
    """Have orphaned descendants handed to this process: prctl(2), PR_SET_CHILD_SUBREAPER."""
    import ctypes

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def end_descendants() -> None:
    """Kill all that the program left running; each that dies hands its own children over."""
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit() and parent(int(name)) == os.getpid():
                try:
                    os.kill(int(name), 9)
                except ProcessLookupError:
                    continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def parent(pid: int) -> int:
    """The parent of a process, 0 when it is gone."""
    fields = stat(pid)
    return int(fields[1]) if fields else 0


def start_time(pid: int) -> str:
    """When a process began, in clock ticks since boot: tells it from another with the same id."""
    fields = stat(pid)
    return fields[19] if fields else "0"


def stat(pid: int) -> list:  # type: ignore[type-arg]
    """The fields of /proc/<pid>/stat from the third on, see proc(5); none when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def write(path: str, text: str) -> None:
    """Write into a file that exists."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def replace(path: str, text: str, *, durable: bool = False) -> None:
    """Write a file at once, so that nobody sees half of it."""
    file = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(file, text.encode())
    if durable:
        os.fsync(file)
    os.close(file)
    os.rename(path + ".new", path)


def read_all(file: int) -> bytes:
    """What is left in a pipe whose writers are gone or silent."""
    os.set_blocking(file, False)
    data = b""
    while block := read(file):
        data += block
    return data


if __name__ == "__main__":
    main()
