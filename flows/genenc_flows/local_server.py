"""The Prefect API server that flows of this command talk to: the user's, or one of its own that ends with it."""

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

from genenc_core import children, errors

QUIET: Mapping[str, str] = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
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
    """Set what Prefect reads from the environment to quiet and private, where the user has not set it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def read_prefect_settings() -> None:
    """Import Prefect's settings, which are read once, without files of the working directory.

    Prefect also reads `prefect.toml`, `pyproject.toml` and `.env` there, which can name a server and code to run, and
    the working directory may be a folder of images from anywhere.
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


class Server:
    """The API server that flows of this process talk to: the user's, or a child process."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes] | None", said: Path | None) -> None:
        self.url = url
        self._process = process
        self._said = said

    def wait_until_ready(self) -> None:
        """Return when the server answers.

        Raises:
            GenencError: it ended, or does not answer in time; says how to do without.
        """
        limit = OTHERS_ANSWER_SECONDS if self._process is None else OWN_START_SECONDS
        deadline = time.monotonic() + limit
        while not _answers(self.url):
            if self._process is not None and self._process.poll() is not None:
                raise errors.GenencError(f"the Prefect server did not start ({self._last_words()}): {_WITHOUT}")
            if time.monotonic() > deadline:
                other = "unset PREFECT_API_URL for a server of genenc's own, or " if self._process is None else ""
                raise errors.GenencError(
                    f"no Prefect server answered at {self.url} within {limit:.0f} s: {other}{_WITHOUT}"
                )
            time.sleep(0.1)

    def has_ended(self) -> bool:
        """Whether it is a child process that has ended."""
        return self._process is not None and self._process.poll() is not None

    def answers(self) -> bool:
        """Whether it answers within seconds."""
        return _answers(self.url)

    def end(self) -> None:
        """End it if it is a child process, so that nobody waits for its answers."""
        if self._process is not None:
            _ended(self._process)

    def _last_words(self) -> str:
        text = self._said.read_text(errors="replace") if self._said is not None else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        code = self._process.returncode if self._process is not None else 0
        ended = f"ended by signal {-code}" if code < 0 else "no message"
        return (telling or lines or [ended])[-1]


_WITHOUT = "go without Prefect with --plain"


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Point this process at the server that the user configured, else at a child process that ends with it.

    The start of a child takes seconds and goes on beside the caller's work: call `wait_until_ready` before a flow.
    """
    url = configured_url()
    if url is not None:
        with _environment(PREFECT_API_URL=url):
            read_prefect_settings()
            yield Server(url, None, None)
        return
    with socket.create_server(("127.0.0.1", 0)) as listening, tempfile.TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        said = Path(folder) / "server.log"
        loopback = ",".join(filter(None, (os.environ.get("NO_PROXY", os.environ.get("no_proxy")), "127.0.0.1")))
        # Other users of the machine reach loopback too; the word is in no file and no argument.
        word = f"genenc:{secrets.token_urlsafe(24)}"
        locked = {"PREFECT_SERVER_API_AUTH_STRING": word, "PREFECT_API_AUTH_STRING": word}
        with _environment(PREFECT_API_URL=url, NO_PROXY=loopback, no_proxy=loopback, **locked):
            process = _started(listening, said)
            listening.close()  # it is the child's now: were it open here, a child that died would seem to be only slow
            try:
                read_prefect_settings()
                yield Server(url, process, said)
            finally:
                _ended(process)


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


def _answers(url: str) -> bool:
    """Whether a server is there; any answer counts, a demand for a key too. Loopback is asked without a proxy."""
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


def _started(listening: socket.socket, said: Path) -> "subprocess.Popen[bytes]":
    """Start the child on a socket that is ours already, so that no other process can take its port."""
    settings = {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    with said.open("wb") as output:
        return subprocess.Popen(
            children.command("-m", "genenc_flows.server_process", str(listening.fileno())),
            env=children.environment(**settings),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[listening.fileno()],
            # A Ctrl-C meant for the command must not end the server before the last states are told.
            start_new_session=True,
        )


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
