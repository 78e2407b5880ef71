"""S3 server of a test session: a configured one, or Ceph's gateway, started once for all pytest-xdist workers.

- `GENENC_TEST_S3=http://KEY:SECRET@HOST:PORT/BUCKET`: use this server.
- `GENENC_TESTS_REQUIRE=s3`: fail where there is no server, instead of skipping.
- `XDG_CACHE_HOME`: where the packages are kept (`genenc-tests/`).
"""

import fcntl
import os
import platform
import subprocess
import sys
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

import ceph

ON_BOTH = pytest.mark.parametrize("backend", ["local", "s3"], indirect=True)
"""Runs a test on a local folder and on S3."""
ON_S3 = pytest.mark.parametrize("backend", ["s3"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An S3 server and a bucket on it."""

    endpoint: str
    bucket: str
    environment: dict[str, str]
    """Environment variables that point programs to it."""


def named(address: str) -> Server:
    """Return the server of `GENENC_TEST_S3`."""
    parts = urllib.parse.urlsplit(address)
    return _server(
        f"{parts.scheme}://{parts.hostname}:{parts.port}",
        bucket=parts.path.strip("/") or ceph.BUCKET,
        key=parts.username or ceph.KEY,
        secret=parts.password or ceph.SECRET,
    )


def begin(shared: Path) -> IO[str]:
    """Start the server in a separate process, unless already started; return the file that keeps it alive."""
    shared.mkdir(parents=True, exist_ok=True)
    users = (shared / "users").open("a")
    fcntl.flock(users, fcntl.LOCK_SH)
    with ceph.locked(shared / "lock"):
        if not (shared / "begun").exists():
            (shared / "begun").touch()
            subprocess.Popen(
                [sys.executable, ceph.__file__, str(_cache()), str(shared)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(shared / "errors").open("w"),
                start_new_session=True,  # Ctrl-C is for pytest, which still needs it to end its tests
            )
    return users


def wait(shared: Path, *, seconds: float = 600) -> Server:
    """Return the server that `begin` started.

    Raises:
        Unavailable: it cannot be had.
    """
    deadline = time.monotonic() + seconds
    while not (shared / "said").exists():
        if time.monotonic() > deadline:
            raise ceph.Unavailable(f"it did not start within {seconds:.0f} s")
        time.sleep(0.1)
    said = (shared / "said").read_text()
    if said.startswith("unavailable: "):
        raise ceph.Unavailable(said.removeprefix("unavailable: "))
    return _server(said, bucket=ceph.BUCKET, key=ceph.KEY, secret=ceph.SECRET)


def refuse(reason: str) -> None:
    """Skip the test, or fail it if the server is required."""
    text = f"no S3 server: {reason}"
    if "s3" in os.environ.get("GENENC_TESTS_REQUIRE", "").split(","):
        pytest.fail(f"{text} (GENENC_TESTS_REQUIRE=s3)")
    pytest.skip(text)


def _cache() -> Path:
    try:
        system = platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")
    except OSError:
        system = "unknown"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "genenc-tests" / f"ceph-{system}-{platform.machine()}"


def _server(endpoint: str, *, bucket: str, key: str, secret: str) -> Server:
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
    }
    return Server(endpoint=endpoint, bucket=bucket, environment=environment)
