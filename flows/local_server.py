"""A Prefect API server of this command's own, on loopback, that ends with it; run as `python -m flows.local_server`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

QUIET: Mapping[str, str] = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "genenc_core",
    "PREFECT_CLI_COLORS": "false",
}
START_SECONDS = 180.0


def quiet_environment() -> None:
    """Set what Prefect reads from the environment to quiet and private, where the user has not set it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def local_server() -> Iterator[None]:
    """Start a server as a child process and point this process at it; nothing when PREFECT_API_URL names one.

    The start takes seconds, and goes on beside the caller's work: call `wait_until_ready` before the first flow.
    """
    url = configured_url()
    if url:
        os.environ["PREFECT_API_URL"] = url
        yield
        return
    port = _free_port()
    environment = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    # Its own session: a Ctrl-C meant for the command must not end the server before the last states are told.
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.local_server", str(port)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def configured_url() -> str | None:
    """Return the server that the environment or the active Prefect profile names; None for neither.

    The profile is read as a file, because importing Prefect would fix its settings before a server is started.
    """
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    name = os.environ.get("PREFECT_PROFILE", stored.get("active", ""))
    found = stored.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")
    return str(found) if found else None


def wait_until_ready(*, seconds: float = START_SECONDS) -> None:
    """Return when the server that PREFECT_API_URL names answers.

    Raises:
        TimeoutError: it does not within `seconds`.
    """
    url = os.environ["PREFECT_API_URL"].rstrip("/") + "/health"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"no Prefect server answered at {url} within {seconds:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve(port: int) -> None:
    """Run the server until it is told to end, or until the parent's end of standard input closes."""
    import uvicorn
    from prefect.server.api.server import create_app

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    uvicorn.run(create_app(), host="127.0.0.1", port=port, log_level="critical", lifespan="on")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
