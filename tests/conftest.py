"""What every test shares: quiet, private Prefect settings, one test server and one S3 server per session, if needed."""

import collections
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

import ceph
import patient_server
import prefect_home
import s3_server
import session_files
from genenc_flows import local_server

# Set before anything imports torch: its threads and pytest-xdist's processes would wait for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Set before anything imports Prefect, which reads them once.
local_server.quiet_environment()
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "180"
# What inductor writes around its kernels need not be fast; compilers take half as long for it.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
# Runs of tests lie in memory where there is room for them: each waits for its disk a hundred times.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
# What tests trust is not remembered for the person who runs them; processes that tests start inherit it.
_STATE = tempfile.TemporaryDirectory(prefix="genenc-test-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name

# Collection makes a million objects that stay: nothing to look for among them.
gc.disable()
pytest_plugins = ["exported_models"]
_USES: list[IO[str]] = []
_ELSEWHERE: dict[str, object] = {}
"""Modules that lie in no temporary folder: thousands, which each test would ask again."""


@pytest.fixture(autouse=True)
def _artifacts_are_tried_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a process that imports torch for each file: packages get a forked one, `own_process` asks for a new one."""
    import forked
    from genenc_core import spec
    from genenc_core.runtime import artifact_trial

    own = artifact_trial.answer

    def answer(asked: str, *, any_size: bool) -> Mapping[str, Any]:
        package = spec.RuntimeModelSpec.model_validate_json(asked).resolved_backend() == "aotinductor"
        return (own if package else artifact_trial.run_here)(asked, any_size=any_size)

    if "own_process" not in request.keywords:
        monkeypatch.setattr(artifact_trial, "answer", answer)
        monkeypatch.setattr(artifact_trial, "subprocess", forked)


@pytest.fixture(autouse=True)
def _modules_of_a_test_end_with_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget modules in temporary folders: the next test may write others of the same names."""
    yield
    root = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if _ELSEWHERE.get(name) is module:
            continue
        if str(getattr(module, "__file__", None) or "").startswith(root):
            del sys.modules[name]
        else:
            _ELSEWHERE[name] = module


@pytest.fixture(scope="session")
def filled_prefect_home(request: pytest.FixtureRequest) -> Path:
    """A PREFECT_HOME to copy, with a database that no server has to fill."""
    place = session_files.shared(request.config, "prefect")
    prefect_home.begin(place)
    return prefect_home.wait(place)


@pytest.fixture(scope="session")
def prefect_server(filled_prefect_home: Path) -> Iterator[None]:
    """Give flows a temporary Prefect server of their own."""
    from prefect.testing import utilities

    folder = Path(tempfile.mkdtemp(prefix="genenc-test-prefect-"))
    for file in filled_prefect_home.glob("prefect.db*"):
        shutil.copy(file, folder / file.name.replace("prefect.db", "prefect-test.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        patient_server.use(patch)
        with utilities.prefect_test_harness(server_startup_timeout=180):
            yield


def pytest_configure(config: pytest.Config) -> None:
    """Ignore torch's warnings of what it traces; the process that starts the others need not import torch for it."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        config.addinivalue_line("filterwarnings", "ignore::torch.jit.TracerWarning")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the files that need a Prefect server to one process: a server takes as long to start as a hundred tests."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "flows" if file.startswith(("tests/flows/", "tests/test_install.py")) else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files of slow tests first, then those of many: a long file at the end would keep one process busy alone."""
    files = collections.Counter(item.path for item in items)
    slow = collections.Counter(item.path for item in items if "slow" in item.keywords)
    place = {path: (-slow[path] / count, -count) for path, count in files.items()}
    items.sort(key=lambda item: (*place[item.path], str(item.path)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what takes half a minute in the background, where a test wants it."""
    if session.config.option.collectonly:
        return
    gc.freeze()  # what stays need not be looked at again
    gc.enable()
    gc.set_threshold(2000, 10, 20)  # nor those that tests make, a hundred times a minute
    wanted = {mark for item in session.items for mark in _marks(item)}
    if "filled_prefect_home" in wanted:
        prefect_home.begin(session_files.shared(session.config, "prefect"))
    if "s3" in wanted and not os.environ.get("GENENC_TEST_S3"):
        _USES.append(s3_server.begin(session_files.shared(session.config, "s3-server")))


def _marks(item: pytest.Item) -> tuple[object, ...]:
    """Return what says which servers a test needs: its fixtures, and its backend."""
    call = getattr(item, "callspec", None)
    return (*getattr(item, "fixturenames", ()), call.params.get("backend") if call else None)


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> Iterator[s3_server.Server]:
    """An S3 server that the environment names (`AWS_*`) from now on."""
    address, place = os.environ.get("GENENC_TEST_S3"), session_files.shared(request.config, "s3-server")
    try:
        if not address and not _USES:
            _USES.append(s3_server.begin(place))
        server = s3_server.named(address) if address else s3_server.wait(place)
    except ceph.Unavailable as error:
        s3_server.refuse(str(error))
        raise
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server
