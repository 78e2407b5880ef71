"""Prefect API server for this command's flows: the configured one, or a temporary child process."""

import contextlib
import importlib
import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from genenc_core import errors
from genenc_core.system import processes

PRIVATE: Mapping[str, str] = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
QUIET: Mapping[str, str] = {
    **PRIVATE,
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "genenc_core",
    "PREFECT_CLI_COLORS": "false",
}
OWN_START_SECONDS = 180.0
OTHERS_ANSWER_SECONDS = 15.0


def quiet_environment() -> None:
    """Set quiet and private defaults for Prefect's environment variables that the user has not set."""
    _set_defaults(QUIET)


def private_environment() -> None:
    """Set private defaults for Prefect's environment variables that the user has not set."""
    _set_defaults(PRIVATE)


def _set_defaults(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)


def read_prefect_settings() -> None:
    """Import Prefect's settings, which are read once, without configuration files of the working directory.

    Prefect also reads `prefect.toml`, `pyproject.toml` and `.env` there, which can name a server and code to run, and
    the working directory may be an untrusted folder of images.
    """
    for name in {"PREFECT_HOME", "PREFECT_PROFILES_PATH"} & os.environ.keys():
        os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir("/")
        importlib.import_module("prefect.settings")
    finally:
        os.fchdir(here)
        os.close(here)


_ALTERNATIVE = "run without Prefect with --plain"


class Server:
    """API server used by flows of this process: the user's, or a child process."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes] | None", said: Path | None) -> None:
        self.url = url
        self._process = process
        self._said = said

    def wait_until_ready(self, alternative: str | None = None) -> None:
        """Wait until the server responds; `alternative` is said if it does not, by default to run without Prefect.

        Raises:
            GenencError: it exited, or does not respond in time; the message names the alternative.
        """
        limit, usual = OWN_START_SECONDS, _ALTERNATIVE
        if self._process is None:
            limit, usual = OTHERS_ANSWER_SECONDS, f"unset PREFECT_API_URL to start a server, or {_ALTERNATIVE}"
        alternative = alternative or usual
        deadline = time.monotonic() + limit
        while not answers(self.url):
            if self._process is not None and self._process.poll() is not None:
                raise errors.GenencError(f"the Prefect server did not start ({self._last_words()}): {alternative}")
            if time.monotonic() > deadline:
                raise errors.GenencError(
                    f"no Prefect server responded at {self.url} within {limit:.0f} s: {alternative}"
                )
            time.sleep(0.1)

    def has_ended(self) -> bool:
        """Return whether the server is a child process that has exited."""
        return self._process is not None and self._process.poll() is not None

    def answers(self) -> bool:
        """Return whether the server responds within seconds."""
        return answers(self.url)

    def end(self) -> None:
        """Terminate the server if it is a child process, so that nothing waits for its responses."""
        if self._process is not None:
            _terminate(self._process)

    def _last_words(self) -> str:
        text = self._said.read_text(errors="replace") if self._said is not None else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        code = self._process.returncode if self._process is not None else 0
        ended = f"ended by signal {-code}" if code < 0 else "no message"
        return (telling or lines or [ended])[-1]


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Point this process at the configured server, else start one as a child process for the block.

    A child takes seconds to start, in the background: call `wait_until_ready` before running a flow.
    """
    url = configured_url()
    if url is not None:
        with connected(url) as found:
            yield found
        return
    with socket.create_server(("127.0.0.1", 0)) as listening, tempfile.TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        said = Path(folder) / "server.log"
        loopback = ",".join(filter(None, (os.environ.get("NO_PROXY", os.environ.get("no_proxy")), "127.0.0.1")))
        # Other users of the machine can reach loopback too; the password is in no file and no argument.
        password = f"genenc:{secrets.token_urlsafe(24)}"
        locked = {"PREFECT_SERVER_API_AUTH_STRING": password, "PREFECT_API_AUTH_STRING": password}
        with _environment(PREFECT_API_URL=url, NO_PROXY=loopback, no_proxy=loopback, **locked):
            process = _start(listening, said)
            listening.close()  # inherited by the child; kept open here, a dead child would look merely slow
            try:
                read_prefect_settings()
                yield Server(url, process, said)
            finally:
                _terminate(process)


@contextlib.contextmanager
def connected(url: str) -> Iterator[Server]:
    """Point this process at a server that is not a child process."""
    with _environment(PREFECT_API_URL=url):
        read_prefect_settings()
        yield Server(url, None, None)


def configured_url() -> str | None:
    """Return the server URL of the environment or the active Prefect profile; None if there is neither.

    The profile file is parsed here, because importing Prefect would freeze its settings before a server is started.
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


def answers(url: str) -> bool:
    """Return whether a server responds, even with a demand for credentials. Loopback bypasses proxies."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if "127.0.0.1" in url else None
    ask = urllib.request.urlopen if opener is None else opener.open
    try:
        with ask(url.rstrip("/") + "/health", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(listening: socket.socket, said: Path) -> "subprocess.Popen[bytes]":
    """Start the child on a socket that is already bound, so that no other process can take its port."""
    settings = {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    with said.open("wb") as output:
        return subprocess.Popen(
            processes.command("-m", "genenc_flows.server_process", str(listening.fileno())),
            env=processes.environment(**settings),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[listening.fileno()],
            # Ctrl-C must not terminate the server before the final states are sent.
            start_new_session=True,
        )


def _terminate(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
