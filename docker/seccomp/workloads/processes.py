"""What programs do to processes, threads, signals, files and sockets."""

import asyncio
import fcntl
import mmap
import multiprocessing
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path

import zmq


def square(n):
    return n * n


def processes():
    for way in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(way).Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    with ProcessPoolExecutor(2) as pool:
        assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.close()
    memory.unlink()
    lock = multiprocessing.Lock()
    with lock:
        pass
    assert subprocess.run("printf 'b\na\n' | sort | head -n 1", shell=True, capture_output=True).stdout == b"a\n"
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    os.killpg(sleeper.pid, signal.SIGTERM)
    assert sleeper.wait() == -signal.SIGTERM
    handle = os.pidfd_open(os.getpid())
    signal.pidfd_send_signal(handle, 0)
    os.close(handle)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.nice(1)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.getrusage(resource.RUSAGE_CHILDREN)


def signals():
    hits = []
    signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.05)
    signal.signal(signal.SIGUSR1, lambda *_: hits.append(2))
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signal.sigwait({signal.SIGUSR2}) == signal.SIGUSR2
    assert hits == [1, 2]


def files():
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "a").write_bytes(b"x" * 100_000)
        shutil.copy2(here / "a", here / "b")
        shutil.copytree(here, here.parent / f"{here.name}-2")
        shutil.rmtree(here.parent / f"{here.name}-2")
        (here / "b").rename(here / "c")
        (here / "c").chmod(0o600)
        os.link(here / "c", here / "d")
        (here / "e").symlink_to("c")
        os.mkfifo(here / "f")
        os.utime(here / "c", (1, 2))
        os.truncate(here / "c", 10)
        os.statvfs(here)
        os.access(here / "c", os.R_OK)
        with (here / "a").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            os.posix_fallocate(file.fileno(), 0, 200_000)
            os.fsync(file.fileno())
            os.pread(file.fileno(), 10, 0)
            os.pwritev(file.fileno(), [b"a", b"b"], 0)
            with mmap.mmap(file.fileno(), 0) as view:
                view[0:1] = b"y"
                view.flush()
                view.madvise(mmap.MADV_WILLNEED)
        with (here / "a").open("rb") as source, (here / "g").open("wb") as target:
            os.copy_file_range(source.fileno(), target.fileno(), 1000)
            os.sendfile(target.fileno(), source.fileno(), 0, 1000)
        assert sorted(entry.name for entry in os.scandir(here)) == ["a", "c", "d", "e", "f", "g"]
    os.close(os.memfd_create("m"))


def sockets():
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname()) as near, listener.accept()[0] as far:
        near.sendall(b"hello")
        assert far.recv(5) == b"hello"
    listener.close()
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with zmq.Context() as context, context.socket(zmq.REP) as bound:
        bound.bind_to_random_port("tcp://127.0.0.1")
    left, right = socket.socketpair()
    socket.send_fds(left, [b"fd"], [0])
    os.close(socket.recv_fds(right, 10, 1)[1][0])
    assert select.select([], [left], [], 1)[1]
    watched = select.poll()
    watched.register(right, select.POLLOUT)
    assert watched.poll(1000)
    left.close()
    right.close()


async def loop():
    running = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    said, _ = await running.communicate(b"x")
    assert said == b"x"
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), "/tmp/s")
    reader, writer = await asyncio.open_unix_connection("/tmp/s")
    assert await reader.read() == b""
    writer.close()
    server.close()


if __name__ == "__main__":
    processes()
    signals()
    files()
    sockets()
    asyncio.run(loop())
