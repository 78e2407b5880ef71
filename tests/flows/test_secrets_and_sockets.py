"""A whole command on a server of its own: nothing listens to others, no secret stays, no file is for others."""

import os
import pickletools
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import forked
import pictures

CANARY = "canary5ecret"
OF_TESTS = ("genenc-test-", "genenc-ceph-", "genenc-crash-", "genenc-faults-", "genenc-fuzz-")
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "AWS_SESSION_TOKEN": CANARY,
    "HF_TOKEN": CANARY,
    "PREFECT_API_KEY": CANARY,
    "DATABASE_URL": f"postgres://user:{CANARY}@host/db",
    "MY_PASSWORD": CANARY,
}


def listening(pids: set[int]) -> dict[str, str]:
    """Return the addresses on which processes listen, as /proc/net writes them, and their inodes."""
    owned = set()
    for pid in pids:
        for descriptor in _entries(Path(f"/proc/{pid}/fd")):
            try:
                owned.add(str(descriptor.readlink()))
            except OSError:
                continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                found[fields[1]] = fields[9]
    return found


def loopback(address: str) -> bool:
    host = address.partition(":")[0]
    return host == "0100007F" or host in ("00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def family(root: int) -> set[int]:
    """Return a process and its descendants."""
    parents = {}
    for folder in _entries(Path("/proc")):
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def test_listening_to_everybody_would_be_seen() -> None:
    with socket.create_server(("", 0)), socket.create_server(("127.0.0.1", 0)):
        found = listening({os.getpid()})
    assert {loopback(address) for address in found} == {True, False}


def _command(tmp_path: Path, name: str) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "genenc_flows.entry",
        "extract",
        str(tmp_path / "photos"),
        "--out",
        str(tmp_path / name),
    ]
    return [*command, "--model", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--device", "cpu"]


@pytest.mark.slow
def test_a_command_on_its_own_server(tmp_path: Path, filled_prefect_home: Path) -> None:
    pictures.write_folder(tmp_path / "photos", 5)
    home, temporary = shutil.copytree(filled_prefect_home, tmp_path / "prefect"), tmp_path / "tmp"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_API")}
    environment |= {"PREFECT_HOME": str(home), "TMPDIR": str(temporary), **SECRETS}
    environment["PYTHONPATH"] = os.pathsep.join((str(Path(pictures.__file__).parent), str(Path(__file__).parents[2])))
    environment["XDG_STATE_HOME"] = str(tmp_path / "state")
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")  # torch makes it when torchvision is imported
    before = _of_genenc(Path(tempfile.gettempdir()))
    process = subprocess.Popen(
        _command(tmp_path, "run"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, umask=0o022
    )
    seen: dict[str, str] = {}
    refused = False
    while process.poll() is None:
        seen |= listening(family(process.pid))
        refused = refused or any(_refuses(address) for address in seen)
        time.sleep(1)
    said, told = (stream.decode() for stream in process.communicate())
    assert process.returncode == 0, told
    assert seen
    assert all(loopback(address) for address in seen), seen
    assert refused, "another user of this machine could read the flow's server"
    refusal = forked.run(
        [*_command(tmp_path, "other"), "--points", f"https://user:{CANARY}@host/p.csv", "--plain"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert refusal.returncode == 2
    kept = [path for folder in (tmp_path / "run", home, temporary) for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 10
    for path in kept:
        assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in said + told + (refusal.stdout + refusal.stderr).decode()
    with sqlite3.connect(home / "prefect.db") as database:
        assert database.execute("select state_name from flow_run").fetchall() == [("Completed",)]
        assert CANARY not in "\n".join(database.iterdump())
    assert_private(tmp_path / "run")
    assert list(temporary.iterdir()) == []
    deadline = time.monotonic() + 300
    while mine := _of_genenc(Path(tempfile.gettempdir())) - before:  # what other tests have there for a while goes
        assert time.monotonic() < deadline, mine
        time.sleep(1)


def _of_genenc(folder: Path) -> set[Path]:
    """Return what genenc made in a folder; folders that tests themselves keep there have names of their own."""
    return {path for path in folder.iterdir() if "genenc" in path.name and not path.name.startswith(OF_TESTS)}


def _refuses(address: str) -> bool:
    """Whether the flow's server turns somebody without its word away."""
    port = int(address.rpartition(":")[2], 16)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/flow_runs/count", data=b"{}", timeout=2):
            return False
    except urllib.error.HTTPError as error:
        return error.code == 401
    except (OSError, ValueError):
        return False


def assert_private(run: Path) -> None:
    """Nothing in a run folder can be written by others or be unpickled."""
    for path in (run, *run.rglob("*")):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
        if path.is_file():
            assert not is_pickle(path.read_bytes()), path


def is_pickle(data: bytes) -> bool:
    if data[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return False
    try:
        for _ in pickletools.genops(data):
            pass
    except Exception:
        return False
    return True


def test_a_pickle_would_be_seen() -> None:
    import pickle

    assert all(is_pickle(pickle.dumps({"a": [1]}, protocol=protocol)) for protocol in (2, 3, 4, 5))
    assert not is_pickle(b'{"a": 1}')
