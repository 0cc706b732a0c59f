"""Machines for Ray on this one, each with an address of its own where that can be had.

    with machines(3) as (head, *workers):
        head.start_ray(cpus=3)
        workers[0].start_ray(cpus=3, head=head)
        workers[0].kill()

Where the test runs as root and `ip netns` works, each machine is a network namespace, 10.0.0.1 and
on, behind a bridge that nobody else is on; elsewhere all of them share the loopback, by different
ports. Each has a home folder of its own, with the token, and a folder for Ray.

python -m tests.cluster.machines FOLDER [NAMESPACE ...]      # the keeper, see below
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "CROSSREC_TEST_MACHINE"
"""A variable of every process of a machine: its folder."""

PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
OF_HEAD = PORTS[:3]
"""Every port is named: a busy machine is too slow for what Ray allows an agent to tell one that is
not."""

STORE_BYTES = 100 * 2**20

ATTEMPTS = 3
"""To start Ray, which a busy machine may be too slow for."""

KEEPER_S = 60
"""For the keeper to end; it takes one or two."""


@dataclass(frozen=True)
class Machine:
    """A machine with all of its processes.

    folder: its home, below which all is that Ray writes. inside: what a command is put behind, to
    run there. ports: by the options of `ray start`.
    """

    folder: Path
    address: str
    inside: tuple[str, ...]
    ports: dict[str, int]

    @property
    def dashboard(self) -> str:
        """The address of the job server, on the machine's own loopback."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    def popen(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command there, in a session of its own; its output goes to a file."""
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            MARK: str(self.folder),
            "SPT_NOENV": "1",  # Ray's workers rename themselves, over their environment
            "HOME": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_PROXY": "127.0.0.1",
            "RAY_AUTH_MODE": "token",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
            "RAY_gcs_server_port_wait_time_s": "120",
        }
        with log.open("wb") as said:
            return subprocess.Popen(
                [*self.inside, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def start_ray(self, cpus: int, head: "Machine | None" = None) -> None:
        """Start a head, or a node of the head's cluster, and wait until it is up."""
        command = ["ray", "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"]
        command += [f"--node-ip-address={self.address}", f"--temp-dir={self.folder}"]
        command += [f"--object-store-memory={STORE_BYTES}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        names = [name for name in PORTS if head is None or name not in OF_HEAD]
        command += [f"--{name}={self.ports[name]}" for name in names]
        if head is None:
            command += ["--head", "--dashboard-host=127.0.0.1"]
        else:
            command += [f"--address={head.address}:{head.ports['port']}"]
        log = self.folder / "ray.log"
        for _ in range(ATTEMPTS):
            process = self.popen(command, log)
            while process.poll() is None:
                if "Ray runtime started" in log.read_text():
                    return
                time.sleep(0.1)
            self.kill()
        raise RuntimeError(log.read_text())

    def processes(self) -> dict[int, str]:
        """Return what runs there: titles by process id."""
        return _marked(str(self.folder))

    def kill(self) -> None:
        """Kill all that runs there, as when the power fails."""
        _kill(str(self.folder))


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Give machines, and see to it that nothing is left of them, whatever becomes of the test.

    That is for the keeper to do, a process that waits until the test lets go of a pipe: by the end
    of the block, or because it died.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie below it
    names = [f"crossrec-{os.getpid()}-{number}" for number in range(count + 1)]
    keeper = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder), *names],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield _make(folder, names)
    finally:
        keeper.communicate(timeout=KEEPER_S)


def _make(folder: Path, names: list[str]) -> list[Machine]:
    """Make a machine of each name but the first, which is the network between them."""
    token, made = secrets.token_hex(32), []
    has_network = _make_network(names)
    with contextlib.ExitStack() as held:
        for number, name in enumerate(names[1:], 1):
            home = folder / str(number)
            (home / ".ray").mkdir(parents=True, mode=0o700)
            (home / ".ray" / "auth_token").write_text(token)
            free = [held.enter_context(socket.create_server(("", 0))) for _ in PORTS]
            ports = [server.getsockname()[1] for server in free]
            inside = ("ip", "netns", "exec", name) if has_network else ()
            address = f"10.0.0.{number}" if has_network else "127.0.0.1"
            made.append(Machine(home, address, inside, dict(zip(PORTS, ports, strict=True))))
    return made


def _make_network(names: list[str]) -> bool:
    """Make namespaces and a bridge in the first of them; return False where that cannot be."""
    if os.geteuid() or shutil.which("ip") is None:
        return False
    bridge, *others = names
    try:
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", bridge, "address", "add", "10.0.0.254/24", "dev", "bridge")
        _ip("-n", bridge, "link", "set", "bridge", "up")
        # Says that there is no way to anywhere else, where a packet would be waited for in vain.
        _ip("netns", "exec", bridge, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for number, name in enumerate(others, 1):
            _ip("netns", "add", name)
            _ip("link", "add", "eth0", "netns", name, "type", "veth",
                "peer", "name", f"port{number}", "netns", bridge)  # fmt: skip
            _ip("-n", bridge, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            # As every machine has one: Ray finds its address by it.
            _ip("-n", name, "route", "add", "default", "via", "10.0.0.254")
    except subprocess.CalledProcessError:
        return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _marked(folder: str) -> dict[int, str]:
    """Return the titles of all processes of the machines in a folder, by their ids."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            variables = (process / "environ").read_bytes().split(b"\0")
            mine = f"{MARK}={folder}".encode()
            if any(variable == mine or variable.startswith(mine + b"/") for variable in variables):
                title = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(process.name)] = title.decode(errors="replace")
    return found


def _kill(folder: str) -> None:
    while found := _marked(folder):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def keep(folder: str, names: list[str]) -> None:
    """Wait for the end of stdin, then remove machines, namespaces and the folder."""
    sys.stdin.read()
    _kill(folder)
    for name in names:
        if Path("/run/netns", name).exists():
            subprocess.run(["ip", "netns", "delete", name], check=False)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    keep(sys.argv[1], sys.argv[2:])
