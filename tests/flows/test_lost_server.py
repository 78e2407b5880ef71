"""A Prefect server that ends or falls silent in the middle of a command: the work is done all the same."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.settings import get_current_settings

import forked
import pictures
from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.run import driver, model_export, planning, status, worker
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes, ExtractParameters
from genenc_flows import entry, local_server, lost_server

pytestmark = pytest.mark.usefixtures("prefect_server")


class Cuttable(local_server.Server):
    """A server whose connection a test cuts; an own one is a child that ends."""

    def __init__(self, *, own: bool) -> None:
        super().__init__("http://127.0.0.1:9/api", None, None)
        self.own, self.is_cut = own, False

    def wait_until_ready(self) -> None:
        pass

    def has_ended(self) -> bool:
        return self.own and self.is_cut

    def answers(self) -> bool:
        return not self.is_cut


OWN, OTHER = (pytest.mark.parametrize("server", [whose], indirect=True) for whose in ("own", "other"))


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuttable]:
    """Return a server that no request reaches once it is cut."""
    made = Cuttable(own=request.param == "own")
    for transport, name in (
        (httpx.HTTPTransport, "handle_request"),
        (httpx.AsyncHTTPTransport, "handle_async_request"),
    ):
        monkeypatch.setattr(transport, name, refused_when_cut(made, getattr(transport, name)))
    monkeypatch.setattr(lost_server, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(lost_server, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(lost_server, "SILENT_SECONDS", 0.2)
    client, api = get_current_settings().client, get_current_settings().api
    before = client.max_retries, api.request_timeout
    yield made
    (client.max_retries, api.request_timeout), logging.raiseExceptions = before, True


def refused_when_cut(server: Cuttable, send: Callable[..., Any]) -> Callable[..., Any]:
    def handle(transport: object, request: httpx.Request) -> Any:
        if server.is_cut:
            raise httpx.ConnectError("refused")
        return send(transport, request)

    return handle


def parameters(tmp_path: Path, **changes: object) -> ExtractParameters:
    photos = tmp_path / "photos"
    if not photos.exists():
        pictures.write_folder(photos, 8)
    values: dict[str, object] = {"images": str(photos), "model": "tiny_models:conv", "weights": "random:0"}
    values |= {"image_size": "32", "out": str(tmp_path / "run"), "shard_rows": 2, "batch_size": 2, "device": "cpu"}
    return ExtractParameters.model_validate({**values, **changes})


def cut_at(monkeypatch: pytest.MonkeyPatch, server: Cuttable, place: tuple[Any, str]) -> None:
    whole = getattr(*place)

    def cutting(*positional: Any, **named: Any) -> Any:
        server.is_cut = True
        return whole(*positional, **named)

    monkeypatch.setattr(*place, cutting)


def runner_on(server: Cuttable) -> entry.FlowRunner:
    runner = entry.FlowRunner()
    runner._server = server
    return runner


PLACES = {
    "planning": (planning, "create_run"),
    "listing": (driver, "plan"),
    "encoding": (worker, "encode_shards"),
    "end": (driver, "finish"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "place"),
    [
        ("own", None),
        ("own", "planning"),
        ("other", "listing"),
        *((w, "encoding") for w in ("own", "other")),
        ("own", "end"),
    ],
    indirect=["server"],
)
def test_the_run_is_done_wherever_the_server_is_lost(
    tmp_path: Path,
    server: Cuttable,
    place: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = pictures.write_folder(tmp_path / "photos", 8) / "img_002.png"
    broken.write_bytes(b"")
    if place is None:
        server.is_cut = True
    else:
        cut_at(monkeypatch, server, PLACES[place])
    runner = runner_on(server)
    result = runner.extract(parameters(tmp_path))
    assert get_current_settings().client.max_retries == 0
    assert (result.status.committed, result.status.shards, result.status.unreadable) == (4, 4, 1)
    assert (result.asked, result.failures) == (4, ())
    assert runner.undelivered
    assert capsys.readouterr().err.count("continuing without it") == 1


@pytest.mark.slow
@OTHER
def test_a_failed_shard_is_still_a_failure(tmp_path: Path, server: Cuttable, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures.write_folder(tmp_path / "photos", 8) / "img_002.png").write_bytes(b"")
    cut_at(monkeypatch, server, PLACES["encoding"])
    result = runner_on(server).extract(parameters(tmp_path, max_failures="0"))
    assert [failure.shard for failure in result.failures] == [1]
    assert result.status.committed == 3
    again = runner_on(server).resume(RunFolder(tmp_path / "run"), "failed", Changes(max_failures="1"))
    assert (again.asked, again.failures, again.status.committed) == (1, (), 4)


@pytest.mark.slow
@OWN
def test_a_stop_without_the_server_is_a_stop(tmp_path: Path, server: Cuttable, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch, server, PLACES["encoding"])
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        runner_on(server).extract(parameters(tmp_path))
    assert 0 < status.run_status(RunFolder(tmp_path / "run")).committed < 4


@OWN
def test_wrong_input_keeps_its_words(tmp_path: Path, server: Cuttable) -> None:
    server.is_cut = True
    with pytest.raises(errors.InputError, match="resnet18"):
        runner_on(server).extract(parameters(tmp_path, model="resnet81"))


@pytest.mark.slow
@OTHER
def test_an_export_is_done(tmp_path: Path, server: Cuttable, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch, server, (model_export, "export"))
    given = model_export.ExportParameters(
        model="tiny_models:conv", weights="random:0", image_size="32", out=str(tmp_path / "model")
    )
    assert len(runner_on(server).export(given)) == 1


@pytest.mark.slow
def test_a_server_of_the_commands_own_is_killed(tmp_path: Path, filled_prefect_home: Path) -> None:
    photos, run = pictures.write_folder(tmp_path / "photos", 12), tmp_path / "run"
    command = [sys.executable, "-m", "genenc_flows.entry", "extract", str(photos), "--model", "tiny_models:slow"]
    command += ["--weights", "random:0", "--image-size", "32", "--shard-rows", "2", "--batch-size", "1"]
    home = shutil.copytree(filled_prefect_home, tmp_path / "home")
    unset = {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(Path(pictures.__file__).parent), "PREFECT_HOME": str(home)}
    with forked.Popen(
        [*command, "--out", str(run)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not list((run / "_txn" / "commits").glob("s*.json")):
            time.sleep(0.02)
        (child,) = [item for item in psutil.Process(process.pid).children() if "server_process" in str(item.cmdline())]
        child.kill()
        shown, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert said == "warning: the Prefect server exited; continuing without it\n"
    assert "12 of 12 images stored in 6 of 6 shards" in shown


def test_a_server_that_never_came_up_says_what_ended_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    with pytest.raises(errors.GenencError, match=r"did not start \(ended by signal 9\): run without Prefect"):
        local_server.Server("http://127.0.0.1:9/api", process, None).wait_until_ready()
