"""Run as a cell: attempts to use up what is shared, to plant traps for whoever reads along, and not to end.

Standard library only. An attempt that comes to its end answers with one line that begins with `held: ` or `through: `.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STEP = 64 << 20
M_ARENA_MAX = -8


def counted(what: str, reached: int, most: int, why: str) -> str:
    """One line for what stopped at a number, or did not."""
    return f"through: {reached} {what}" if reached >= most else f"held: {reached} {what}, then: {why}"


def forks(most: int) -> str:
    """Processes that stay, until the system refuses one more."""
    children: list[int] = []
    why = ""
    try:
        while len(children) < most:
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
    except OSError as error:
        why = str(error.strerror)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return counted("processes", len(children), most, why)


def threads(most: int) -> str:
    """Threads that stay, each with as little memory as it can have."""
    # Else address space ends before threads do.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    stack = threading.stack_size(1 << 16)
    done, why = threading.Event(), ""
    started: list[threading.Thread] = []
    try:
        while len(started) < most:
            started.append(threading.Thread(target=done.wait))
            started[-1].start()
    except RuntimeError as error:
        started.pop()
        why = str(error)
    done.set()
    for thread in started:
        thread.join()
    threading.stack_size(stack)
    return counted("threads", len(started), most, why)


def memory(most: int) -> str:
    """Memory of one process, in files without a name: no bound on its address space counts them."""
    kept: list[int] = []
    why, block = "", b"x" * (1 << 20)
    try:
        while len(kept) * STEP < most:
            kept.append(os.memfd_create("nbagent"))
            # Written to: a file that was only made longer need not have its memory yet.
            for _ in range(STEP // len(block)):
                os.write(kept[-1], block)
    except OSError as error:
        why = str(error.strerror)
    for file in kept:
        os.close(file)
    return counted("bytes", len(kept) * STEP, most, why)


def memory_shared_out(most: int) -> str:
    """Memory that is written to by many processes, none of which takes much."""
    share = STEP // 2
    children, ends = [], os.pipe()
    for _ in range(-(-most // share)):
        children.append(os.fork())
        if children[-1] == 0:
            with contextlib.suppress(MemoryError):
                block = bytearray(share)
                block[::4096] = b"x" * len(block[::4096])
                os.write(ends[1], b"x")
                signal.pause()
            os._exit(1)
    os.close(ends[1])
    ready, until = 0, time.monotonic() + 20
    while ready < sum(map(alive, children)) and time.monotonic() < until:
        if select.select([ends[0]], [], [], 0.1)[0]:
            ready += len(os.read(ends[0], 100))
    lived = sum(map(alive, children))
    for child in children:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return counted("bytes", lived * share, most, f"{len(children) - lived} of {len(children)} processes ended")


def alive(child: int) -> bool:
    """Whether a child has not ended; one that has is waited for."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(child, os.WNOHANG)[0] == 0
    return False


def connections(most: int) -> str:
    """Memory of connections over the loopback, in which lies what nobody receives; and whether anything counts it."""
    kept: list[socket.socket] = []
    taken, why, before = 0, "", used()
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(2)
        try:
            while taken < most:
                near = socket.create_connection(door.getsockname(), timeout=2)
                kept += [near, door.accept()[0]]
                near.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while taken < most:
                        taken += near.send(bytes(1 << 16))
        except OSError as error:
            why = str(error.strerror or error)
        grown = used() - before
        for end in kept:
            end.close()
    if taken >= most and grown < most // 2:
        return f"through: {taken} bytes are held, of which {grown} count as the sandbox's memory"
    return f"held: {taken} bytes, {grown} of them counted; {why}"


def used() -> int:
    """Bytes that the sandbox's control group counts; 0 where it does not say."""
    for name in ("memory/memory.usage_in_bytes", "memory.current"):
        with contextlib.suppress(OSError):
            return int(Path("/sys/fs/cgroup", name).read_text())
    return 0


def engine_log(most: int) -> str:
    """The engine's log, which lies on the host's disk, through the first process's standard output and error."""
    taken, why, until = 0, "no pipe to it", time.monotonic() + 5
    for number in (1, 2):
        try:
            path = Path(f"/proc/1/fd/{number}")
            if not str(path.readlink()).startswith("pipe:"):
                continue
            log = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            while taken < most and time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    taken += os.write(log, (b"x" * 99 + b"\n") * 40)
            os.close(log)
        except OSError as error:
            why = str(error.strerror)
    return counted("bytes", taken, most, why)


def filled(folder: str, most: int) -> tuple[int, str]:
    """Bytes that a folder took, and why it took no more."""
    taken, why = 0, ""
    made: list[Path] = []
    try:
        while taken < most:
            path = Path(folder, f"nbagent-fill-{len(made)}")
            with path.open("wb") as file:
                made.append(path)
                os.posix_fallocate(file.fileno(), 0, STEP)
            taken += STEP
    except OSError as error:
        why = str(error.strerror)
        if made:
            with contextlib.suppress(OSError):
                taken += made[-1].stat().st_blocks * 512
    finally:
        for path in made:
            path.unlink()
    return taken, why


def fill(folder: str, most: int) -> str:
    """Fill one folder; '.' is the working directory."""
    taken, why = filled(folder, most)
    return counted("bytes", taken, most, why)


def places() -> list[str]:
    """Every mounted folder in which a file can be made."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = []
    for folder in dict.fromkeys([*mounted, "/run", "/var/tmp", "/var/run", "/dev"]):
        probe = Path(folder, "nbagent-probe")
        with contextlib.suppress(OSError):
            probe.touch()
            probe.unlink()
            found.append(folder)
    return found


def fill_others(known: list[str], most: int) -> str:
    """Fill every other place that can be written, folders of sockets among them."""
    known = [os.path.realpath(folder) for folder in known]
    others = {folder: filled(folder, most) for folder in places() if os.path.realpath(folder) not in known}
    through = [f"{taken} bytes into {folder}" for folder, (taken, _) in others.items() if taken >= most]
    held = ", ".join(f"{folder}: {taken} bytes" for folder, (taken, _) in others.items())
    return f"through: {', '.join(through)}" if through else f"held: {held or 'no other place can be written'}"


def print_forever() -> None:
    """Never ends by itself."""
    line = "x" * 10_000
    while True:
        print(line)


def print_at_once(size: int) -> str:
    """One message of this size."""
    with contextlib.suppress(ImportError):
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display({"text/plain": "x" * size}, raw=True)
            return "held: sent"
    print("x" * size)
    return "held: sent"


def plant(secret: str) -> str:
    """Traps for a host that lists, reads or copies the working directory; `secret` is a file of the host's."""
    Path("planted/deep", *("d" * 60)).mkdir(parents=True, exist_ok=True)
    os.chdir("planted")
    for name, target in {
        "result.json": secret,
        "folder": str(Path(secret).parent),
        "root": "/",
        "passwords": "/etc/shadow",
        "environment": "/proc/self/environ",
        "memory": "/proc/self/mem",
        "itself": "itself",
        "climb": "../../../../../../../../../.." + secret,
        "zeros": "/dev/zero",
    }.items():
        with contextlib.suppress(FileExistsError):
            Path(name).symlink_to(target)
    with contextlib.suppress(OSError):
        os.mkfifo("pipe")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as door:
        door.bind("door")
    with contextlib.suppress(OSError):
        os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    for odd in (b"line\nfeed", b"\xff\xfe", b"\x1b[2Jescape", b"a" * 255):
        Path(os.fsdecode(odd)).touch()
    with open("z-sparse", "wb") as file:  # noqa: PTH123
        with contextlib.suppress(OSError):
            file.truncate(1 << 40)
    Path("plain.txt").write_text("plain")
    os.chdir("..")
    return "held: planted"


def channels() -> Iterator[int]:
    """Sockets and pipes of this process, its standard ones aside, and pipes of the others that it may open."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if int(path.name) > 2 and str(path.readlink()).startswith(("socket:", "pipe:")):
                yield os.dup(int(path.name))
    for process in (path for path in Path("/proc").iterdir() if path.name.isdigit() and path.name != str(os.getpid())):
        with contextlib.suppress(OSError):
            for path in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(path.readlink()).startswith("pipe:"):
                        yield os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def write_to_all(size: int) -> str:
    """Bytes that are no message, into every channel there is."""
    junk, written = os.urandom(size), 0
    for channel in channels():
        with contextlib.suppress(OSError):
            os.set_blocking(channel, False)
            written += os.write(channel, junk) > 0
    return f"held: written to {written} channels"


def forge(seconds: float) -> str:
    """Answers in the kernel's name, for this cell and for those to come, from a thread that goes on."""
    from IPython.core.getipython import get_ipython

    send = get_ipython().kernel.iopub_socket.send
    until = time.monotonic() + seconds

    def work() -> None:
        number = 0
        while time.monotonic() < until:
            number += 1
            for parent in ("", "c1", str(number), f"c{number}", "start", "seed", "info"):
                send("stream", {"name": "stdout", "text": "forged\n"}, parent)
                send("execute_reply", {"status": "ok", "execution_count": 999}, parent)
                send("status", {"execution_state": "idle"}, parent)
                send("ready", {"pid": 1, "why": "forged"}, parent)
                send("branch_reply", {"why": "forged"}, parent)
            time.sleep(0.001)

    threading.Thread(target=work, daemon=True).start()
    time.sleep(seconds / 4)
    return "held: sent"


def outlive(mark: str) -> str:
    """A process that has left its parents and takes no polite signal; `mark` is on its command line."""
    code = "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    code += "    except (OSError, ValueError): pass\ntime.sleep(600)"
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", code, mark])
        os._exit(0)
    os.wait()
    return "held: started"


def kill_all() -> str:
    """Every process that can be signalled, the first one included."""
    with contextlib.suppress(OSError):
        os.kill(1, signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        for process in (1, -1):
            with contextlib.suppress(OSError):
                os.kill(process, number)
    time.sleep(1)
    return "held: signals were sent, this process lives"


def swallow() -> None:
    """Takes every interrupt and goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def regex() -> None:
    """A regular expression that does not end, in C, with the interpreter's lock held."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def add_up() -> None:
    """A loop in C that holds the interpreter's lock and looks at no signal."""
    sum(range(10**14))
