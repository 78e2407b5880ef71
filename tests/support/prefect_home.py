"""A PREFECT_HOME with a migrated database, created once for all pytest-xdist workers: it takes Prefect 20 s."""

import subprocess
import sys
import time
from pathlib import Path

_PROGRAM = """
import os, sys
from pathlib import Path
from genenc_flows import local_server

shared = Path(sys.argv[1])
for name in [name for name in os.environ if name.startswith("PREFECT_API")]:
    del os.environ[name]
os.environ["PREFECT_HOME"] = str(shared / "making")
local_server.quiet_environment()
with local_server.server() as server:
    server.wait_until_ready()
(shared / "making").rename(shared / "home")
"""


def begin(shared: Path) -> None:
    """Start creating it, unless another worker has."""
    shared.mkdir(parents=True, exist_ok=True)
    try:
        (shared / "begun").touch(exist_ok=False)
    except FileExistsError:
        return
    with (shared / "errors").open("w") as said:
        subprocess.Popen([sys.executable, "-c", _PROGRAM, str(shared)], stdin=subprocess.DEVNULL, stderr=said)


def wait(shared: Path, *, seconds: float = 900) -> Path:
    """Return the folder that `begin` creates; use a copy of it."""
    deadline = time.monotonic() + seconds
    while not (shared / "home").exists():
        assert time.monotonic() < deadline, (shared / "errors").read_text()
        time.sleep(0.1)
    return shared / "home"
