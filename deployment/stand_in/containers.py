"""What runs a function in the stand-in for Modal: its own container runtime, in a root of its own.

A container sees the machine's programs and libraries, but at /root only the files that the client uploaded, its
volumes where they are mounted, its own /etc/hosts, its own processes, and a network with nothing but itself in it: what
listens there can be reached through tunnels alone. All of this is Linux namespaces, as real containers are made of.
Whoever is not root is root in a namespace of users; neither tunnels nor clusters work there.
"""

import ctypes
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deployment.cloud import HOME

CLONE_NEWNET = 0x40000000
HOSTS = "127.0.0.1 localhost\n::1 localhost i6pn.modal.local\n"
# $1: the container's folder, with the files "hosts" and "mounts"; $2: what is at /root; the rest: the command
MAKE_ROOT = """
set -e
here=$1; home=$2; shift 2
root=$here/rootfs
mkdir -p "$root"; mount -t tmpfs none "$root"
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
    elif [ "$entry" = /root ] || [ "$entry" = /tmp ]; then mkdir "$root$entry"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p "$root/root" "$root$here"; chmod 1777 "$root/tmp"
mount --bind "$home" "$root/root"; mount --bind "$here" "$root$here"
while IFS='|' read -r source target mode; do
    mkdir -p "$root$target"; mount --bind "$source" "$root$target"
    if [ "$mode" = ro ]; then mount -o remount,bind,ro "$root$target"; fi
done < "$here/mounts"
mount --bind "$here/hosts" "$root/etc/hosts"
mount -t proc proc "$root/proc"
[ -n "$JOIN" ] || ip link set lo up
exec chroot "$root" sh -c 'cd /root && exec "$@"' sh "$@"
"""


def why_not() -> str | None:
    """Return why containers cannot be made here, or None if they can."""
    if sys.platform != "linux" or shutil.which("unshare") is None or shutil.which("ip") is None:
        return "containers need Linux with unshare (util-linux) and ip (iproute2)"
    tried = [*unshare("-n"), "mount", "-t", "proc", "proc", "/proc"]
    if subprocess.run(tried, check=False, capture_output=True).returncode:
        return "this user may not make namespaces"
    return None


def unshare(*more: str) -> list[str]:
    """Return the command that begins a container, to be followed by what runs in it."""
    root = [] if os.geteuid() == 0 else ["-U", "--map-root-user"]
    return ["unshare", *root, *more, "-m", "-p", "--fork", "--kill-child"]


@dataclass
class Container:
    """One container: its folder, and its process once it is started."""

    folder: Path
    home: Path
    """What it sees at /root."""
    volumes: Mapping[str, tuple[str, bool]]
    """Mount path of each volume id, and whether it is read-only."""
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    seen: dict[str, set[Path]] = field(default_factory=dict)
    """The files of each volume that it had in common with what is committed."""
    tunnels: list[socket.socket] = field(default_factory=list)
    reader: threading.Thread | None = None
    reading: threading.Lock = field(default_factory=threading.Lock)
    """Held while lines are taken from it and passed on."""

    def start(self, on_line: Callable[[str], None], on_exit: Callable[[], None], peer: "Container | None") -> None:
        """Start Modal's container runtime; with a peer, in its network."""
        import matplotlib  # here only: importing this module must not need it

        (self.folder / "hosts").write_text(HOSTS)
        kept = [prefix for prefix in {sys.prefix, sys.base_prefix} if prefix.startswith((f"{HOME}/", "/tmp/"))]
        mounts = [f"{prefix}|{prefix}|rw" for prefix in kept]
        fonts = shutil.copytree(matplotlib.get_cachedir(), self.folder / "fonts")  # a list that takes seconds to make
        mounts.append(f"{fonts}|{HOME}/.cache/matplotlib|rw")
        mounts += [
            f"{self.volume(name)}|{path}|{'ro' if read_only else 'rw'}"
            for name, (path, read_only) in self.volumes.items()
        ]
        (self.folder / "mounts").write_text("".join(f"{line}\n" for line in mounts))
        runtime = [sys.executable, "-m", "modal._container_entrypoint"]
        make_root = ["sh", "-c", MAKE_ROOT, "sh", str(self.folder), str(self.home), *runtime]
        if peer is None:
            argv = [*unshare("-n"), *make_root]
        else:
            assert peer.process is not None
            argv = ["nsenter", f"--net=/proc/{peer.process.pid}/ns/net", *unshare(), *make_root]
        environment = {**self.environment, "JOIN": "1" if peer else ""}
        self.process = subprocess.Popen(
            argv, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, args=(on_line, on_exit), daemon=True)
        self.reader.start()

    def _read(self, on_line: Callable[[str], None], on_exit: Callable[[], None]) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        begun = b""
        while self._has_printed(None):
            with self.reading:
                if not (piece := os.read(self.process.stdout.fileno(), 65536)):
                    self.process.stdout.close()
                    break
                *lines, begun = (begun + piece).split(b"\n")
                for line in lines:
                    on_line(line.decode("utf-8", "replace") + "\n")
        if begun:
            on_line(begun.decode("utf-8", "replace"))
        self.process.wait()
        on_exit()

    def _has_printed(self, milliseconds: int | None) -> bool:
        """Return whether there is anything to read, be it the end; wait so long at most, or without an end."""
        assert self.process is not None
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        return bool(poll.poll(milliseconds))

    def catch_up(self) -> None:
        """Wait until all lines that it has printed by now are passed on: it may be faster than who reads them."""
        while self.process is not None and self.process.stdout is not None:
            with self.reading:
                if self.process.stdout.closed or not self._has_printed(0):
                    return
            time.sleep(0.001)

    def interrupt(self) -> None:
        """Do what a preemption begins with: SIGINT to the container's first process, a child of `unshare`."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGINT)

    def kill(self) -> None:
        """End it and all that it started, which the end of the first process of a namespace does."""
        for listener in self.tunnels:
            listener.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def join(self) -> None:
        """Wait until all that it printed has been read."""
        if self.reader is not None:
            self.reader.join(60)

    # -- volumes: a container has a copy, until it commits or reloads

    def volume(self, name: str) -> Path:
        """Return the folder that it sees of a volume."""
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def reload(self, name: str, committed: Path) -> None:
        """Take over what others have committed."""
        self.seen[name] = _mirror(committed, self.volume(name), self.seen.get(name, set()))

    def commit(self, name: str, committed: Path) -> None:
        """Hand over what this container has written and deleted."""
        self.seen[name] = _mirror(self.volume(name), committed, self.seen.get(name, set()))

    # -- tunnels

    def tunnel(self, port: int) -> int:
        """Return a port of the machine's loopback address through which a port of the container is reached."""
        listener = listen(lambda: (self, port))
        self.tunnels.append(listener)
        return listener.getsockname()[1]

    def connect(self, port: int) -> socket.socket:
        """Connect to a port inside; the calling thread stays in the container's network for good.

        Raises:
            OSError: if nobody listens there, or the container is gone.
        """
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/ns/net") as file:  # noqa: PTH123 - no file of ours
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the container's network")
        return socket.create_connection(("127.0.0.1", port))


def _mirror(source: Path, target: Path, known: set[Path]) -> set[Path]:
    """Copy what is new or changed; delete what is known to have been in both. Return what is in both now."""
    target.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
            for name in files:
                _copy(source / name, target / name)
            break
        except FileNotFoundError:  # renamed meanwhile: once more, as a snapshot would have it
            continue
    for name in known - files:
        (target / name).unlink(missing_ok=True)
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return files


def _copy(new: Path, old: Path) -> None:
    state = new.stat()
    if old.exists() and (old.stat().st_size, old.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns):
        return
    old.parent.mkdir(parents=True, exist_ok=True)
    partial = old.with_name(f"{old.name}.copying")
    shutil.copy2(new, partial)
    partial.replace(old)


def listen(find: Callable[[], tuple[Container, int]]) -> socket.socket:
    """Return a listener on a free port of the loopback address; each connection goes to the container that is found."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, find), daemon=True).start()
    return listener


def _accept(listener: socket.socket, find: Callable[[], tuple[Container, int]]) -> None:
    while True:
        try:
            outside, _ = listener.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_relay, args=(outside, find), daemon=True).start()


def _relay(outside: socket.socket, find: Callable[[], tuple[Container, int]]) -> None:
    """Pass on all bytes, in both directions."""
    with outside:
        try:
            container, port = find()
            inside = container.connect(port)
        except (OSError, LookupError):
            return
        with inside:
            back = threading.Thread(target=_pump, args=(inside, outside), daemon=True)
            back.start()
            _pump(outside, inside)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def image_environment(commands: list[str]) -> dict[str, str]:
    """Return what the ENV lines of an image set."""
    found = {}
    for line in commands:
        if line.startswith("ENV "):
            for pair in shlex.split(line[4:]):
                name, _, value = pair.partition("=")
                found[name] = value
    return found
