"""What every test shares: quiet, private Prefect settings, one test server and one S3 server per session, if needed."""

import collections
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

import ceph
import s3_server
from genenc_flows import local_server

# Set before anything imports torch: its threads and pytest-xdist's processes would wait for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Set before anything imports Prefect, which reads them once.
local_server.quiet_environment()
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "180"
# What tests trust is not remembered for the person who runs them; processes that tests start inherit it.
_STATE = tempfile.TemporaryDirectory(prefix="genenc-test-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name

_USES: list[IO[str]] = []


@pytest.fixture(autouse=True)
def _artifacts_are_tried_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a process that imports torch for each file; packages need one, tests marked `own_process` ask for it."""
    from genenc_core import spec
    from genenc_core.export import artifact_trial

    own = artifact_trial.answer

    def answer(asked: str, *, any_size: bool) -> Mapping[str, Any]:
        package = spec.RuntimeModelSpec.model_validate_json(asked).resolved_backend() == "aotinductor"
        return (own if package else artifact_trial.here)(asked, any_size=any_size)

    if "own_process" not in request.keywords:
        monkeypatch.setattr(artifact_trial, "answer", answer)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Give flows a temporary Prefect server of their own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, then those of many: a long file at the end would keep one process busy alone."""
    files = collections.Counter(item.path for item in items)
    slow = {item.path for item in items if "slow" in item.keywords}
    place = {path: (path not in slow, -count) for path, count in files.items()}
    items.sort(key=lambda item: (*place[item.path], str(item.path)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the S3 server in the background, where a test wants it: it takes half a minute."""
    wanted = any("s3" in _marks(item) for item in session.items)
    if wanted and not session.config.option.collectonly and not os.environ.get("GENENC_TEST_S3"):
        _USES.append(s3_server.begin(_shared(session.config)))


def _marks(item: pytest.Item) -> tuple[object, ...]:
    """Return what says that a test needs the server: a fixture of it, or S3 as its backend."""
    call = getattr(item, "callspec", None)
    return (*getattr(item, "fixturenames", ()), call.params.get("backend") if call else None)


def _shared(config: pytest.Config) -> Path:
    """Return the folder that the pytest-xdist workers of one session share."""
    base = Path(config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "s3-server"


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> Iterator[s3_server.Server]:
    """An S3 server that the environment names (`AWS_*`) from now on."""
    address = os.environ.get("GENENC_TEST_S3")
    try:
        if not address and not _USES:
            _USES.append(s3_server.begin(_shared(request.config)))
        server = s3_server.named(address) if address else s3_server.wait(_shared(request.config))
    except ceph.Unavailable as error:
        s3_server.refuse(str(error))
        raise
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server
