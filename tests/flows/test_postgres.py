"""PostgreSQL as Prefect's database: a command's flow, on a server that keeps its runs there."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pictures
import prefect_site
from prefect_site import wait_for

USER = "postgres"


def _missing() -> str:
    """Return why there is no PostgreSQL here, "" if there is."""
    if not all(map(shutil.which, ("postgres", "initdb", "psql"))):
        return "PostgreSQL is not installed"
    if os.getuid() == 0 and USER not in {each.pw_name for each in pwd.getpwall()}:
        return f"PostgreSQL refuses to run as root, and there is no user {USER}"
    return ""


@pytest.fixture
def database() -> Iterator[Path]:
    """A database cluster; the folder of its socket. It listens on nothing else."""
    # As root, the files belong to another user, who cannot reach pytest's folders.
    with tempfile.TemporaryDirectory(prefix="genenc-test-postgres-", dir="/tmp") as place:
        folder, who = Path(place), {"user": USER} if os.getuid() == 0 else {}
        if who:
            shutil.chown(folder, USER)
        data = folder / "data"
        subprocess.run(
            ["initdb", "-D", data, "-U", "prefect", "-A", "trust", "--no-sync"], check=True, capture_output=True, **who
        )
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        command = ["postgres", "-D", str(data), *settings]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who) as process:
            try:
                wait_for(lambda: (folder / ".s.PGSQL.5432").exists())
                yield folder
            finally:
                process.send_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.skipif(bool(_missing()), reason=_missing())
@prefect_site.CAMPAIGN
def test_a_flow_on_postgresql(database: Path, tmp_path: Path) -> None:
    asked = ["psql", "-h", str(database), "-U", "prefect", "-At", "-c"]
    subprocess.run([*asked, "create database runs", "postgres"], check=True, capture_output=True)
    photos = pictures.write_folder(tmp_path / "photos", 6)
    command = [sys.executable, "-m", "genenc_flows.entry", "extract", str(photos), "--model", "tiny_models:conv"]
    command += ["--weights", "random:0", "--image-size", "32", "--shard-rows", "2", "--out", str(tmp_path / "run")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment = {
        **kept,
        "PYTHONPATH": str(Path(pictures.__file__).parent),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect@/runs?host={database}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    found = subprocess.run([*asked, "select name, state_name from flow_run", "runs"], check=True, capture_output=True)
    assert found.stdout.decode() == "extract photos with tiny_models:conv|Completed\n"
    assert not list((tmp_path / "prefect").glob("*.db"))
