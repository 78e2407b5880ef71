"""What happens to runs of deployments when servers, workers and their processes end; minutes each.

Server and worker are processes started as deployments/README.md says.
"""

import datetime
import os
import re
import shlex
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling
from prefect.types.entrypoint import EntrypointType

import pictures
import prefect_site
from genenc_core import api
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import status
from genenc_core.run.folder import RunFolder
from genenc_core.system import proc
from genenc_flows import dataset, deploying
from prefect_site import Site, ended, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    prefect_site.CAMPAIGN,
]
NIGHTLY, EXTRACT = "update_dataset/nightly", "extract_features/extract"
MODULE_PATH = EntrypointType.MODULE_PATH
SILENT = datetime.timedelta(seconds=75)
"""Instead of five minutes: two heartbeats."""
OUTAGE_SECONDS = 180.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, filled_prefect_home: Path) -> Iterator[Site]:
    """A server with the deployments and one worker."""
    found = Site(tmp_path_factory.mktemp("site"), filled_prefect_home)
    try:
        found.start_server()
        found.run("genenc_flows.entry", "deploy")
        crash_after(found, SILENT)
        found.start_worker()
        yield found
    finally:
        found.close()


def crash_after(site: Site, silence: datetime.timedelta) -> None:
    """Set after how long without heartbeats a run is Crashed."""
    with site.client() as client:
        (automation,) = client.read_automations_by_name(deploying.WITHOUT_HEARTBEAT)
        trigger = automation.trigger.model_copy(update={"within": silence})
        client.update_automation(automation.id, deploying.without_heartbeat().model_copy(update={"trigger": trigger}))


def given(tmp_path: Path, out: str, model: str = "slow", **changes: object) -> dict[str, Any]:
    values = {"images": str(tmp_path / "photos"), "model": f"tiny_models:{model}", "weights": "random:0", "trust": True}
    more = {"image_size": "32", "shard_rows": 4, "batch_size": 1, "device": "cpu", "out": str(tmp_path / out)}
    return {**values, **more, **changes}


def commits(tmp_path: Path) -> int:
    return len(list(tmp_path.glob("run/_txn/commits/s*.json")))


def in_progress(site: Site, tmp_path: Path, images: int = 80) -> Any:
    """Begin an extraction; return its run after the first commit."""
    pictures.write_folder(tmp_path / "photos", images)
    run = site.begin(EXTRACT, given=given(tmp_path, "run"))
    wait_for(lambda: commits(tmp_path))
    return run


def assert_the_next_firing_continues(site: Site, tmp_path: Path) -> None:
    before = commits(tmp_path)
    assert status.run_status(RunFolder(tmp_path / "run")).failed == ()
    run = site.begin(EXTRACT, given=given(tmp_path, "run"))
    state = site.final_state(run)
    assert state.type == StateType.COMPLETED, state.message
    assert commits(tmp_path) == 20 >= before
    assert api.verify(tmp_path / "run", content=True).ok


@pytest.mark.parametrize("killed", ["worker", "engine", "both"])
def test_a_kill_ends_crashed_and_the_next_firing_continues(site: Site, tmp_path: Path, killed: str) -> None:
    run = in_progress(site, tmp_path)
    engine = site.engine()
    below = [*proc.descendants(engine)]
    if killed in ("worker", "both"):
        site.end("worker", signal.SIGKILL)
    if killed in ("engine", "both"):
        os.kill(engine, signal.SIGKILL)
    if killed != "worker":
        assert wait_for(lambda: ended(below), 60)
    state = site.final_state(run)
    assert state.type == StateType.CRASHED, state.message
    if "worker" not in site.started:
        site.start_worker()
    assert_the_next_firing_continues(site, tmp_path)


def test_a_worker_ended_by_sigterm(site: Site, tmp_path: Path) -> None:
    run = in_progress(site, tmp_path)
    site.end("worker", signal.SIGTERM)
    state = site.final_state(run)
    assert state.type in (StateType.CANCELLED, StateType.CRASHED), state.message
    site.start_worker()
    assert_the_next_firing_continues(site, tmp_path)


def test_cancelling_in_the_ui_cancels_the_tasks(site: Site, tmp_path: Path) -> None:
    run = in_progress(site, tmp_path)
    with site.client() as client:
        client.set_flow_run_state(run, Cancelling())
        state = site.final_state(run, 60)
        assert state.type == StateType.CANCELLED
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[run]))

        def states() -> set[str] | None:
            found = {item.state_type.value for item in client.read_task_runs(flow_run_filter=mine) if item.state_type}
            return found if not found & {"RUNNING", "PENDING"} else None

        assert wait_for(states, 60) <= {"COMPLETED", "CANCELLED"}
    assert commits(tmp_path) < 20
    assert_the_next_firing_continues(site, tmp_path)


def test_a_server_that_is_away_for_minutes_is_told_afterwards(site: Site, tmp_path: Path) -> None:
    """The run ends meanwhile."""
    crash_after(site, deploying.SILENT)  # as shipped: longer than the outage
    run = in_progress(site, tmp_path)
    site.end("server", signal.SIGTERM)
    away = time.monotonic()
    wait_for(lambda: commits(tmp_path) == 20)
    assert time.monotonic() - away < OUTAGE_SECONDS
    time.sleep(OUTAGE_SECONDS - (time.monotonic() - away))
    site.start_server()
    state = site.final_state(run, 600)
    assert (state.type, state.name) == (StateType.COMPLETED, "Completed"), state.message
    crash_after(site, SILENT)
    assert api.verify(tmp_path / "run", content=True).ok
    # The worker goes on, too.
    assert site.final_state(site.begin(EXTRACT, given=given(tmp_path, "run"))).type == StateType.COMPLETED


@pytest.fixture(autouse=True)
def _server_and_worker(site: Site) -> None:
    """Start what an earlier test may have left ended."""
    if "server" not in site.started:
        site.start_server()
    if "worker" not in site.started:
        site.start_worker()


@pytest.fixture
def two_at_a_time(site: Site) -> Iterator[None]:
    """Let the worker execute two runs at a time."""
    site.end("worker")
    site.start_worker(2)
    yield
    site.end("worker")
    site.start_worker()


@pytest.mark.usefixtures("two_at_a_time")
@pytest.mark.parametrize("how", ["ENQUEUE", "CANCEL_NEW"])
def test_firings_that_overlap_wait_or_are_skipped(site: Site, tmp_path: Path, how: str) -> None:
    with site.client() as client:
        nightly = client.read_deployment_by_name(NIGHTLY)
        patch = {"concurrency_options": {"collision_strategy": how}}
        client.request("PATCH", "/deployments/{id}", path_params={"id": nightly.id}, json=patch)
    pictures.write_folder(tmp_path / "photos", 40)
    runs = [site.begin(NIGHTLY, given=given(tmp_path, "dataset")) for _ in range(2)]
    states = [site.final_state(run) for run in runs]
    types = sorted(state.type.value for state in states)
    assert types == (["COMPLETED", "COMPLETED"] if how == "ENQUEUE" else ["CANCELLED", "COMPLETED"])
    assert DatasetFolder(tmp_path / "dataset").version().version == 1
    if how == "ENQUEUE":
        assert sum("nothing new" in str(state.message) for state in states) == 1


@pytest.mark.usefixtures("two_at_a_time")
def test_runs_of_two_deployments_on_one_dataset_share_the_work(site: Site, tmp_path: Path) -> None:
    """The limit of a deployment does not see the other's runs; the dataset itself keeps them apart."""
    with site.client():
        other = dataset.update_dataset.to_deployment("other", work_pool_name="genenc", entrypoint_type=MODULE_PATH)
        other.apply()  # type: ignore[union-attr]
    pictures.write_folder(tmp_path / "photos", 40)
    names = (NIGHTLY, "update_dataset/other")
    states = [site.final_state(run) for run in [site.begin(name, given=given(tmp_path, "dataset")) for name in names]]
    assert [state.type for state in states] == [StateType.COMPLETED] * 2, [state.message for state in states]
    found = DatasetFolder(tmp_path / "dataset").version()
    assert found.counts["rows"] == 40
    assert api.Dataset.open(tmp_path / "dataset").arrays().sizes["image"] == 40


def test_the_documented_schedule_fires_twice(site: Site, tmp_path: Path) -> None:
    """As documented, but every minute; the second time with new, changed, vanished and touched images."""
    guide = (Path(__file__).parents[2] / "deployments" / "README.md").read_text()
    (line,) = re.findall(r"^prefect (deployment schedule create .*)$", guide, re.MULTILINE)
    photos = pictures.write_folder(tmp_path / "photos", 6)
    with site.client() as client:
        nightly = client.read_deployment_by_name(NIGHTLY)
        patch = {"parameters": {"given": given(tmp_path, "dataset", "conv")}}
        client.request("PATCH", "/deployments/{id}", path_params={"id": nightly.id}, json=patch)
    site.run("prefect", *shlex.split(line.replace("0 3 * * *", "* * * * *")))

    def versions() -> list[int]:
        return sorted(int(path.stem.lstrip("v")) for path in (tmp_path / "dataset" / "versions").glob("*.json"))

    def made(version: int) -> bool:
        return bool(versions()) and versions()[-1] >= version

    wait_for(lambda: made(1))
    pictures.write_folder(tmp_path / "new", 8)
    for name in ("img_006.png", "img_007.png"):
        (tmp_path / "new" / name).rename(photos / name)
    (photos / "img_000.png").write_bytes((photos / "img_001.png").read_bytes())
    (photos / "img_002.png").unlink()
    os.utime(photos / "img_003.png")
    wait_for(lambda: made(2))
    with site.client() as client:
        for schedule in client.read_deployment_schedules(nightly.id):
            client.delete_deployment_schedule(nightly.id, schedule.id)
    assert (api.Dataset.open(tmp_path / "dataset", version=1).arrays().sizes["image"]) == 6
    found = api.Dataset.open(tmp_path / "dataset", version=versions()[-1]).arrays()
    assert sorted(found.image_id.values) == [f"img_{index:03d}.png" for index in (0, 1, 3, 4, 5, 6, 7)]


def test_state_survives_a_restart_of_serve(tmp_path: Path, filled_prefect_home: Path) -> None:
    site = Site(tmp_path, filled_prefect_home)
    try:
        for _ in range(2):
            process = site.start("serve", "genenc_flows.entry", "serve", "--port", str(site.port))
            wait_for(lambda: "Ctrl-C ends" in site.log("serve").read_text())
            with site.client() as client:
                nightly = client.read_deployment_by_name(NIGHTLY)
                mine = nightly.parameters.get("mine")
                client.request(
                    "PATCH",
                    "/deployments/{id}",
                    path_params={"id": nightly.id},
                    json={"parameters": {"mine": 1}, "enforce_parameter_schema": False},
                )
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
            site.log("serve").unlink()
        assert mine == 1
        with sqlite3.connect(site.home / "prefect.db") as database:
            assert database.execute("select count(*) from deployment").fetchone()[0] == 5
    finally:
        site.close()
