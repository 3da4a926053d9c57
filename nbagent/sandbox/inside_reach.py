"""Run as a cell: attempts to see or reach what lies outside of the sandbox. Standard library only.

Each attempt answers with one line that begins with `held: ` or `through: `.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 2.0
SKIPPED = ("/proc", "/sys", "/usr", "/opt/venv", "/lib", "/dev")
"""Folders that are not searched: the image's own, and the kernel's views."""
LARGEST = 1 << 20
SECRET = re.compile(rb"nbagent-canary-[0-9a-f]{32}")
SOCKETS = (
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/dbus/system_bus_socket",
)


def answered(family: int, kind: int, address: tuple[object, ...]) -> str:
    """What came of reaching an address; '' where the network is not there."""
    try:
        with socket.socket(family, kind) as door:
            door.settimeout(WAIT_S)
            door.connect(address)
            if kind == socket.SOCK_DGRAM:
                door.send(b"nbagent")
            return "sent" if kind == socket.SOCK_DGRAM else "connected"
    except TimeoutError:
        return "sent, no answer"
    except OSError as error:
        unreachable = error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EPERM)
        return "" if unreachable or error.errno in (errno.EACCES, errno.EAFNOSUPPORT) else f"{error.strerror}"


def verdict(found: list[str], else_held: str) -> str:
    """One line for all that was found."""
    return f"through: {'; '.join(found[:5])}" if found else f"held: {else_held}"


def network_v4() -> str:
    """TCP and UDP to the internet, the gateway, the clouds' metadata, and by broadcast."""
    hosts = ["1.1.1.1", "169.254.169.254", "172.17.0.1", "10.0.0.1", "192.168.0.1"]
    found = []
    for host in hosts:
        for kind, name in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
            if said := answered(socket.AF_INET, kind, (host, 443)):
                found.append(f"{name} {host}: {said}")
        if found:
            break
    return verdict(found, f"{len(hosts)} addresses unreachable by TCP and UDP")


def network_v6() -> str:
    """The internet over IPv6, and neighbours on every interface."""
    found = []
    for host in ("2606:4700:4700::1111", "fd00:ec2::254"):
        if said := answered(socket.AF_INET6, socket.SOCK_DGRAM, (host, 443, 0, 0)):
            found.append(f"{host}: {said}")
    links = [path for path in Path("/sys/class/net").iterdir() if path.name != "lo"]
    others = [(int((path / "ifindex").read_text()), path.name) for path in links if (path / "ifindex").is_file()]
    for number, name in others:
        if said := answered(socket.AF_INET6, socket.SOCK_DGRAM, ("ff02::1", 9, 0, number)):
            found.append(f"neighbours on {name}: {said}")
    return verdict(found, f"unreachable; interfaces besides lo: {', '.join(name for _, name in others) or 'none'}")


def dns() -> str:
    """Names resolved by the system, and questions sent straight to name servers."""
    found = []
    with contextlib.suppress(OSError):
        found.append(f"debian.org is {socket.getaddrinfo('debian.org', 443)[0][4][0]}")
    servers = ["8.8.8.8", "127.0.0.11"]
    with contextlib.suppress(OSError):
        servers += re.findall(r"^nameserver (\S+)", Path("/etc/resolv.conf").read_text(), re.M)
    question = b"\x13\x37\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06debian\x03org\x00\x00\x01\x00\x01"
    for server in servers:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as door:
            door.settimeout(WAIT_S)
            with contextlib.suppress(OSError):
                door.sendto(question, (server, 53))
                if not server.startswith("127."):
                    found.append(f"question sent to {server}")
                door.recvfrom(512)
                found.append(f"{server} answered")
    return verdict(found, f"no answer from {', '.join(servers)}")


def vsock() -> str:
    """The channel between a virtual machine and its host, which an absent network does not close."""
    try:
        with socket.socket(40, socket.SOCK_STREAM) as door:
            door.settimeout(WAIT_S)
            with contextlib.suppress(OSError):
                door.connect((2, 1024))
            return "through: a vsock socket was made"
    except OSError as error:
        return f"held: {error.strerror}"


def engine_socket() -> str:
    """The engine's and the system's control sockets, by path and over TCP."""
    found = []
    for path in SOCKETS:
        with socket.socket(socket.AF_UNIX) as door, contextlib.suppress(OSError):
            door.settimeout(WAIT_S)
            door.connect(path)
            found.append(f"{path}: connected")
    for port in (2375, 2376):
        for host in ("127.0.0.1", "172.17.0.1"):
            with socket.socket() as door, contextlib.suppress(OSError):
                door.settimeout(WAIT_S)
                door.connect((host, port))
                found.append(f"{host}:{port}: connected")
    return verdict(found, f"none of {len(SOCKETS)} sockets is there, no port answers")


def host_files(folder: str) -> str:
    """Files of the host by their own paths, through other processes' roots, and on its disks."""
    found = []
    for root in ("", *(f"/proc/{pid}/{link}" for pid in pids() for link in ("root", "cwd"))):
        with contextlib.suppress(OSError):
            found += [str(path) for path in Path(f"{root}{folder}").iterdir()]
    for place in ("/dev", "/tmp"):
        found += disks(place)
    return verdict(found, "the folder is not there, no disk can be read")


def disks(place: str) -> Iterator[str]:
    """Block devices that can be read, those made here included."""
    made = Path(place, "nbagent-disk")
    with contextlib.suppress(OSError):
        for major, minor in ((8, 0), (252, 0), (253, 0), (254, 0), (259, 0)):
            os.mknod(made, stat.S_IFBLK | 0o600, os.makedev(major, minor))
            with contextlib.suppress(OSError), made.open("rb") as disk:
                yield f"disk {major}:{minor}: {len(disk.read(512))} bytes read"
            made.unlink()
    for name in ("sda", "vda", "vdb", "xvda", "nvme0n1", "mapper/control", "mem", "kmem", "port"):
        path = Path("/dev", name)
        with contextlib.suppress(OSError):
            if stat.S_ISBLK(path.stat().st_mode):
                with path.open("rb") as disk:
                    yield f"{path}: {len(disk.read(512))} bytes read"


def pids() -> list[int]:
    """Every process that can be seen."""
    return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def secrets() -> Iterator[str]:
    """Places below / and in processes where a planted secret can be read."""
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if not str(Path(folder, name)).startswith(SKIPPED)]
        for name in files:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.stat().st_mode) and path.stat().st_size <= LARGEST:
                    yield from (f"{path}: {hit.decode()}" for hit in SECRET.findall(path.read_bytes()))
    for pid in pids():
        for view in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/{view}").read_bytes()
                yield from (f"process {pid}, {view}: {hit.decode()}" for hit in SECRET.findall(text))


def planted_secrets(ours: str) -> str:
    """Secrets planted in files, environments and command lines of others; `ours` is this sandbox's own."""
    seen = list(secrets())
    if ours and not any(ours in place for place in seen):
        return f"through: the search is blind: it does not see {ours}"
    return verdict([place for place in seen if not ours or ours not in place], "only what is its own was found")


def answer_key(marks: list[str]) -> str:
    """The answer key and the code that grades: by file name, and by import."""
    found = []
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if not str(Path(folder, name)).startswith(("/proc", "/sys"))]
        found += [str(Path(folder, name)) for name in (*names, *files) if name in marks]
    for module in ("nbagent", "nbagent_bixbench", "nbagent_training"):
        with contextlib.suppress(Exception):
            __import__(module)
            found.append(f"module {module} can be imported")
    return verdict(found, "no key, no verifier")


def other_processes(mark: str) -> str:
    """A process of another sandbox, looked for by its command line."""
    seen = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                seen.append(f"process {pid} is seen")
    return verdict(seen, f"{len(pids())} processes are seen, all its own")
