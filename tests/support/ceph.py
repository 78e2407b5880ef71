"""A real S3 server for tests: Ceph's gateway from Debian's packages, unpacked in a cache, on loopback, no root needed.

Mocks must not judge commits: the servers that are a `pip install` away let every `If-None-Match: *` win, or are a
dictionary behind a lock. `serve` is a program of its own, so the server ends with its last user, also a killed one.
"""

import contextlib
import ctypes
import datetime
import fcntl
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
KEY, SECRET, BUCKET = "testkey", "testsecret", "runs"

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}/0
mon initial members = a
public addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
# Without cephx there is no encryption, which the gateway requires by default.
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms client mode = crc
ms service mode = crc
ms cluster mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 2
# The packages are not installed, so their plugins are not where they were built to be.
osd class dir = {libraries}/rados-classes
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
run dir = {data}/run
admin socket = {data}/run/$name.asok
pid file = {data}/run/$name.pid
log file = {data}/log/$name.log
mon cluster log file = {data}/log/cluster.log
mon data = {data}/mon
osd data = {data}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
[client.rgw.x]
# Otherwise every answer with a body waits 40 ms for an acknowledgement.
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw data = {data}/rgw
rgw enable usage log = false
"""


class Unavailable(Exception):
    """The server is not available here; the message gives the reason."""


def unpacked(cache: Path) -> Path:
    """Return the folder of the unpacked packages, downloading them the first time (70 MB, 260 MB on disk).

    Raises:
        Unavailable: not a Debian, or no network.
    """
    root = cache / "root"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        if root.is_dir():
            return root
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise Unavailable(f"there is no {tool}: Ceph's gateway comes from Debian's packages")
        archives, building = cache / "archives", cache / "building"
        shutil.rmtree(building, ignore_errors=True)
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        _download(cache, archives)
        for package in sorted(archives.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(building)])
        plugins = _libraries(building) / "ceph"
        for plugin in (*plugins.glob("erasure-code/*.so*"), *plugins.glob("compressor/*.so*")):
            (plugins / plugin.name).symlink_to(plugin.relative_to(plugins))  # looked for one level up
        building.rename(root)
        shutil.rmtree(archives)
    return root


def _download(cache: Path, archives: Path) -> None:
    """Download the packages and their missing dependencies, with the system's package lists or fresh ones."""
    common = ["apt-get", "-y", "-o", "Debug::NoLocking=1", "-o", f"Dir::Cache={cache}"]
    common += ["-o", f"Dir::Cache::archives={archives}", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20"]
    wanted = ["install", "--no-install-recommends", "--download-only", *PACKAGES]
    try:
        _run([*common, *wanted])
    except Unavailable:
        (cache / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        common += ["-o", f"Dir::State::lists={cache / 'lists'}"]
        _run([*common, "update"])
        _run([*common, *wanted])


@contextlib.contextmanager
def running(cache: Path, *, attempts: int = 3) -> Iterator[str]:
    """Run monitor, one storage daemon and gateway with one bucket; yield the endpoint. They die with this process.

    A start that fails (a port that another program took meanwhile, a daemon that does not answer) is tried again.

    Raises:
        Unavailable: a daemon does not start, `attempts` times.
    """
    root = unpacked(cache)
    with contextlib.ExitStack() as stack:
        for left in reversed(range(attempts)):
            try:
                endpoint = stack.enter_context(_started(root))
            except Unavailable:
                if not left:
                    raise
            else:
                yield endpoint
                return


@contextlib.contextmanager
def _started(root: Path) -> Iterator[str]:
    data = Path(tempfile.mkdtemp(prefix="genenc-ceph-"))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("mon", "osd", "run", "log", "rgw"):
            (data / name).mkdir()
        mon_port, port = _free_ports(2)
        fsid, libraries = str(uuid.uuid4()), _libraries(root)
        text = _CONFIGURATION.format(fsid=fsid, mon_port=mon_port, port=port, libraries=libraries, data=data)
        (data / "ceph.conf").write_text(text)
        environment = _environment(root, data)
        tool = _Tool(environment, daemons, data)
        tool("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", str(data / "map"))
        tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(data / "map"))
        daemons.append(_daemon(["ceph-mon", "-f", "-i", "a"], environment, data))
        osd = str(uuid.uuid4())
        tool("ceph", "osd", "new", osd)
        tool("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        tool("ceph", "osd", "crush", "add", "0", "1.0", "root=default", "host=here")
        daemons.append(_daemon(["ceph-osd", "-f", "-i", "0"], environment, data))
        daemons.append(_daemon(["radosgw", "-f", "-n", "client.rgw.x"], environment, data))
        endpoint = f"http://127.0.0.1:{port}"
        _wait_for(endpoint, daemons, data)
        user = ["user", "create", "--uid=t", "--display-name=t", f"--access-key={KEY}", f"--secret-key={SECRET}"]
        tool("radosgw-admin", "-n", "client.rgw.x", *user)
        make_bucket(endpoint, BUCKET)
        yield endpoint
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()
        shutil.rmtree(data, ignore_errors=True)


def make_bucket(endpoint: str, name: str) -> None:
    """Create a bucket of the test user if it does not exist."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        name,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        client_options={"allow_http": True},
    )
    address = obstore.sign(store, "PUT", "", datetime.timedelta(minutes=5))
    urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=60).close()


def _free_ports(count: int) -> list[int]:
    """Return unused loopback ports, none that the system gives to others who ask for any port."""
    free = []
    for port in random.sample(range(20_000, 32_000), 200):
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise Unavailable("no free port")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a kernel file lock in the block; it is released if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def serve(cache: Path, shared: Path) -> None:
    """Run the server while any process holds `shared/users`; write its endpoint or the failure to `said`."""

    def say(text: str) -> None:
        partial = shared / "said.partial"
        partial.write_text(text)
        partial.replace(shared / "said")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with running(cache) as endpoint, (shared / "users").open("w") as users:
            say(endpoint)
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(0.5)
    except Unavailable as error:
        say(f"unavailable: {error}")
    finally:
        if not (shared / "said").exists():
            say("unavailable: the program that runs it ended")


class _Tool:
    """Runs Ceph's commands, which wait for ever for a daemon that has ended."""

    def __init__(self, environment: Mapping[str, str], daemons: Sequence[subprocess.Popen[bytes]], data: Path) -> None:
        self._environment = environment
        self._daemons = daemons
        self._data = data

    def __call__(self, *command: str) -> None:
        try:
            _run(list(command), environment=self._environment, seconds=120)
        except Unavailable:
            _check_alive(self._daemons, self._data)
            raise


def _run(command: list[str], *, environment: Mapping[str, str] | None = None, seconds: float = 300) -> None:
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=seconds)
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not there") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command[:4])} ... took longer than {seconds:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise Unavailable(f"{' '.join(command[:4])} ... failed: {' | '.join(said)}") from error


def _daemon(command: list[str], environment: Mapping[str, str], data: Path) -> subprocess.Popen[bytes]:
    def die_with_parent() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    with (data / "log" / "output").open("ab") as output:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent
        )


def _check_alive(daemons: Sequence[subprocess.Popen[bytes]], data: Path) -> None:
    for daemon in daemons:
        if daemon.poll() is not None:
            said = (data / "log" / "output").read_text(errors="replace").strip().splitlines()[-3:]
            raise Unavailable(f"{daemon.args[0]!r} ended with code {daemon.returncode}: {' | '.join(said)}")  # type: ignore[index]


def _wait_for(endpoint: str, daemons: Sequence[subprocess.Popen[bytes]], data: Path, *, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _check_alive(daemons, data)
        with contextlib.suppress(OSError):
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        time.sleep(0.3)
    raise Unavailable(f"the gateway did not answer within {seconds:.0f} s")


def _libraries(root: Path) -> Path:
    (libraries,) = (root / "usr" / "lib").glob("*-linux-gnu")
    return libraries


def _environment(root: Path, data: Path) -> dict[str, str]:
    libraries = _libraries(root)
    places = (libraries, libraries / "ceph", root / "usr/lib/ceph", root / "lib" / libraries.name)
    return {
        "PATH": f"{root}/usr/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": ":".join(str(place) for place in places),
        "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages",
        "CEPH_CONF": str(data / "ceph.conf"),
        "HOME": str(data),
    }


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
