"""`genenc serve` in an empty folder: deployments run on its worker, and Ctrl-C ends what it started."""

import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.states import Scheduled

import pictures
import prefect_site
from genenc_core import errors
from genenc_core.dataset import update
from genenc_core.system import proc
from genenc_flows import local_server, serving
from prefect_site import Site, ended, wait_for


@pytest.fixture
def site(tmp_path: Path, filled_prefect_home: Path) -> Iterator[Site]:
    found = Site(tmp_path, filled_prefect_home)
    yield found
    found.close()


def given(tmp_path: Path, **changes: object) -> dict[str, Any]:
    """Parameters of a dataset, as a person fills in the form."""
    values = {"images": str(tmp_path / "photos"), "model": "tiny_models:conv", "weights": "random:0", "trust": True}
    more = {"image_size": "32", "shard_rows": 2, "batch_size": 2, "device": "cpu", "out": str(tmp_path / "dataset")}
    return {**values, **more, **changes}


def logs(site: Site, run: Any) -> list[tuple[int, str]]:
    with site.client() as client:
        found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
    return [(line.level, line.message) for line in found]


@pytest.mark.slow
def test_a_deployment_fails_is_mended_and_tried_again_on_the_worker(site: Site, tmp_path: Path) -> None:
    broken = pictures.write_folder(tmp_path / "photos", 6) / "img_003.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:-40])
    soon = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    process = site.start("serve", "genenc_flows.entry", "serve", "--port", str(site.port), **soon)
    told = wait_for(lambda: "Ctrl-C ends" in (said := site.log("serve").read_text()) and said)
    assert f"Prefect: http://127.0.0.1:{site.port}/deployments\n" in told
    assert f"export PREFECT_API_URL={site.url}\n" in told
    assert list(site.folder.iterdir()) == []
    parameters = given(tmp_path, max_failures="0")
    run = site.begin("update_dataset/nightly", given=parameters)
    state = site.final_state(run)
    assert (state.type, state.message) == (StateType.FAILED, "1 of 3 shards not done: 1")
    found = logs(site, run)
    assert not [line for _, line in found if "Traceback" in line]
    # What the core logs is there, not only its warnings.
    assert [line for level, line in found if level == logging.INFO and line.startswith("tiny_models_conv on cpu")]
    broken.write_bytes(good)
    with site.client() as client:
        client.set_flow_run_state(run, Scheduled())  # the UI's Retry
        wait_for(lambda: not client.read_flow_run(run).state.is_final())  # type: ignore[union-attr]
        again = site.final_state(run)
        assert (again.type, again.name) == (StateType.COMPLETED, "Completed")
        outcome = again.result()
    assert isinstance(outcome, update.Updated)
    assert outcome.version is not None
    assert (outcome.version.version, outcome.version.counts["rows"]) == (2, 6)
    assert outcome.version.counts["unreadable"] == 0
    pids = [*proc.descendants(process.pid)]
    assert len(pids) >= 2
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0
    assert wait_for(lambda: ended(pids), 10)
    assert not site.answers()


@prefect_site.CAMPAIGN
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_is_there_is_used_and_stays(site: Site) -> None:
    from prefect.settings import PREFECT_API_URL as USED

    url = str(USED.value())
    process = site.start("serve", "genenc_flows.entry", "serve", PREFECT_API_URL=url)
    told = wait_for(lambda: "Ctrl-C ends" in (said := site.log("serve").read_text()) and said)
    assert "Ctrl-C ends the worker; the server was there" in told
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
    assert local_server.answers(url)


def test_a_taken_port_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
        with pytest.raises(
            errors.InputError, match=rf"--port {port} cannot be used \(Address already in use.*\): give another one"
        ):
            serving.serve(port=port, pool=None, limit=1)


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(serving.processes, "command", lambda *_: ["sh", "-c", "echo no such database; exit 3"])
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with pytest.raises(
        errors.GenencError, match=r"the server ended with 3 \(no such database\); see '.*server-\d+\.log'"
    ):
        serving.serve(port=port, pool=None, limit=1)
