"""Ending a flow from outside: signals, the UI's cancel button, a server that is not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zarr
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

import forked
import pictures
from genenc_core import errors
from genenc_core.run import status
from genenc_core.run.folder import RunFolder
from genenc_flows import local_server

pytestmark = pytest.mark.usefixtures("prefect_server")


def started(tmp_path: Path) -> "subprocess.Popen[str]":
    """Start a slow extraction through the command line on the test's server; return after its first commit."""
    photos = pictures.write_folder(tmp_path / "photos", 80)
    command = [sys.executable, "-m", "genenc_flows.entry", "extract", str(photos), "--model", "tiny_models:slow"]
    command += ["--weights", "random:0", "--image-size", "32", "--shard-rows", "4", "--batch-size", "1"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pictures.__file__).parent),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }
    process = forked.Popen(
        [*command, "--out", str(tmp_path / "run")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list((tmp_path / "run" / "_txn" / "commits").glob("s*.json")):
        time.sleep(0.02)
    return process


def run_of(tmp_path: Path) -> Any:
    """Return the flow run on the server that works on this test's images."""
    with get_client(sync_client=True) as client:
        return next(run for run in client.read_flow_runs() if str(tmp_path) in str(run.parameters))


def assert_whole_shards_are_kept(tmp_path: Path, said: str) -> None:
    assert "Traceback" not in said
    assert "genenc resume" in said
    states = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")["status"][:].reshape(20, 4)
    assert ((states == 1).all(axis=1) | (states == 0).all(axis=1)).all()
    found = status.run_status(RunFolder(tmp_path / "run"))
    assert 0 < found.committed < found.shards
    assert found.failed == ()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_flow_cancelled(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert_whole_shards_are_kept(tmp_path, said)
    assert run_of(tmp_path).state_type.value in ("CANCELLED", "CRASHED")


@pytest.mark.slow
def test_cancelling_in_the_ui_stops_the_work(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_of(tmp_path).id, Cancelling())
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert_whole_shards_are_kept(tmp_path, said)
    assert run_of(tmp_path).state_type.value == "CANCELLED"


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "OTHERS_ANSWER_SECONDS", 0.5)
    with pytest.raises(errors.GenencError, match=r"no Prefect server responded at http://127.0.0.1:9/api .* --plain"):
        local_server.Server("http://127.0.0.1:9/api", None, None).wait_until_ready()


def test_the_active_profile_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    assert local_server.configured_url() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "http://lab:4200/api"\n[profiles.home]\n'
    )
    assert local_server.configured_url() == "http://lab:4200/api"
    with local_server.server() as found:
        assert (found.url, os.environ["PREFECT_API_URL"]) == ("http://lab:4200/api", "http://lab:4200/api")
    assert "PREFECT_API_URL" not in os.environ
    monkeypatch.setenv("PREFECT_PROFILE", "home")
    assert local_server.configured_url() is None
