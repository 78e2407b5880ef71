"""Flows on a real Prefect server: the same bytes as the core alone, states that name what failed, what the UI shows."""

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import TaskRun
from prefect.states import State

import forked
import pictures
import task_runs
from genenc_core.encoding import cancellation
from genenc_core.run import driver, model_export, planning, worker
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store import leases
from genenc_flows import extraction, model
from genenc_tasks import reporting

pytestmark = pytest.mark.usefixtures("prefect_server")


def parameters(tmp_path: Path, **changes: object) -> ExtractParameters:
    photos = tmp_path / "photos"
    if not photos.exists():
        pictures.write_folder(photos, 9)
    values = {
        "images": str(photos),
        "model": "tiny_models:conv",
        "weights": "random:0",
        "image_size": "32",
        "out": str(tmp_path / "run"),
        "shard_rows": 2,
        "batch_size": 2,
        "device": "cpu",
    }
    return ExtractParameters.model_validate({**values, **changes})


def objects(root: Path) -> dict[str, bytes]:
    store = root / "features.zarr"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def states(runs: Sequence[TaskRun]) -> set[str]:
    return {str(run.state_type and run.state_type.value) for run in runs}


def flow_run(client: SyncPrefectClient, state: State[Any]) -> Any:
    return client.read_flow_run(state.state_details.flow_run_id)


@pytest.mark.slow
def test_the_flow_stores_the_bytes_of_the_core_and_shows_what_it_did(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pictures.write_folder(tmp_path / "photos", 9)
    (tmp_path / "photos" / "img_003.png").write_bytes(b"")
    state = extraction.extract_features(parameters(tmp_path), shards_per_task=2, return_state=True)
    driver.extract(parameters(tmp_path, out=str(tmp_path / "plain")))
    assert objects(tmp_path / "run") == objects(tmp_path / "plain")
    result = state.result()
    assert isinstance(result, driver.Result)
    assert (result.asked, result.status.ok, result.status.unreadable) == (5, 8, 1)
    assert state.is_completed()
    assert state.message == "8 of 9 images stored, 1 unreadable"
    with get_client(sync_client=True) as client:
        run = flow_run(client, state)
        assert run.name == "extract photos with tiny_models:conv"
        assert run.state.name == "Completed with unreadable images"
        shown = task_runs.artifacts(client, run.id)
        assert set(shown) >= {"progress", "shards", "failed-images", "report"}
        assert shown["progress"]["data"] == 100
        assert "\n- limited by " in shown["report"]["data"]
        (failed,) = json.loads(shown["failed-images"]["data"])
        assert failed["row"] == "3"
        # As OpenLineage's producer for Prefect reads them.
        tables = {kind: shown[f"lineage-{kind}"] for kind in ("images", "model", "features")}
        read = {kind: ast.literal_eval(table["data"])[0] for kind, table in tables.items()}
        assert [table["description"].split("_")[-1] for table in tables.values()] == ["input", "input", "output"]
        assert (read["features"]["database_uri"], read["features"]["rows"]) == ("file", 9)
        assert read["features"]["table"] == str(tmp_path / "run" / "features.zarr")
        assert read["model"]["version"] == f"sha256:{result.run.identity['weights']}"
        events = [json.loads(line) for line in shown["openlineage"]["data"].splitlines() if line.startswith("{")]
        assert [event["eventType"] for event in events] == ["START", "COMPLETE"]
    expected = ["create run", "shard 00000-00001 (2 shards), rows 0-3"]
    expected += [f"{stage} shard 00004, rows 8-8" for stage in ("load", "encode", "reduce", "store")]
    names = {item.name for item in task_runs.of(state.state_details.flow_run_id, task_runs.with_names(*expected))}
    assert names >= set(expected)


@pytest.mark.slow
def test_the_stages_of_shards_are_task_runs_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pictures.write_folder(tmp_path / "photos", 9)
    (tmp_path / "photos" / "img_003.png").write_bytes(b"")
    given = parameters(tmp_path, max_failures="0", shard_rows=3)
    state = extraction.extract_features(given, shards_per_task=3, return_state=True)
    shown = "shard 00000-00002 (3 shards), rows 0-8"
    expected = [shown, *(f"{stage} {shown}" for stage in ("load", "encode", "reduce", "store"))]
    runs = {run.name: run for run in task_runs.of(state.state_details.flow_run_id, task_runs.with_names(*expected))}
    whole = runs[shown]
    said = {stage: runs[f"{stage} {shown}"].state for stage in ("load", "encode", "reduce", "store")}
    assert {stage: item.type.value for stage, item in said.items()} == {  # type: ignore[union-attr]
        "load": "COMPLETED",
        "encode": "FAILED",
        "reduce": "COMPLETED",
        "store": "COMPLETED",
    }
    assert "img_003.png" in str(said["encode"].message)  # type: ignore[union-attr]
    with get_client(sync_client=True) as client:
        table = task_runs.artifacts(client, flow_run(client, state).id)["failed-images"]
    assert [row["image_id"] for row in json.loads(table["data"])] == ["img\\_003.png"]
    assert table["description"] == "0 unreadable images, and 1 for which shards failed"
    assert said["store"].message == "2 shards"  # type: ignore[union-attr]
    for stage in said:
        run = runs[f"{stage} {shown}"]
        assert whole.start_time <= run.start_time < run.end_time <= whole.end_time  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["/artifacts", "/concurrency_limits"])
def test_a_server_that_gives_no_slots_and_takes_no_artifacts_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    met: list[str] = []

    def failing(real: Any) -> Any:
        def send(client: Any, request: httpx.Request, *more: Any, **options: Any) -> Any:
            if refused not in request.url.path:
                return real(client, request, *more, **options)
            met.append(request.url.path)
            answer = httpx.Response(500, request=request)  # Prefect would ask for others again, for a minute
            if not inspect.iscoroutinefunction(real):
                return answer

            async def later() -> httpx.Response:
                return answer

            return later()

        return send

    for client in (httpx.Client, httpx.AsyncClient):
        monkeypatch.setattr(client, "send", failing(client.send))
    state = extraction.extract_features(parameters(tmp_path, shard_rows=5), return_state=True)
    assert state.message == "9 of 9 images stored, 0 unreadable"
    assert bool(met) == (refused == "/artifacts")
    (session,) = (tmp_path / "run" / "provenance" / "runs").iterdir()
    assert json.loads(session.read_text())["state"] == "completed"


@pytest.mark.slow
def test_a_report_that_fails_comes_after_the_provenance_and_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        (session,) = (tmp_path / "run" / "provenance" / "runs").iterdir()
        assert json.loads(session.read_text())["state"] == "completed"
        raise RuntimeError("no report")

    monkeypatch.setattr(reporting, "shard_table", fail)
    state = extraction.extract_features(parameters(tmp_path, shard_rows=5), return_state=True)
    assert state.message == "9 of 9 images stored, 0 unreadable"


@pytest.mark.slow
def test_tiles_through_the_flow_are_the_bytes_of_the_core(tmp_path: Path) -> None:
    tiles = {"canvas": "64x96", "tile_overlap": 16, "tile_trim": 8, "maps": True, "batch_size": 7, "shard_rows": 5}
    state = extraction.extract_features(parameters(tmp_path, **tiles), return_state=True)
    driver.extract(parameters(tmp_path, **tiles, out=str(tmp_path / "plain")))
    assert state.message == "9 of 9 images stored, 0 unreadable"
    assert objects(tmp_path / "run") == objects(tmp_path / "plain")


@pytest.mark.slow
def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    extraction.extract_features(parameters(tmp_path, shard_rows=5))
    before = objects(tmp_path / "run")
    state = extraction.extract_features(parameters(tmp_path, shard_rows=5), return_state=True)
    assert state.message == "nothing to do: 2 of 2 shards are committed"
    assert objects(tmp_path / "run") == before


@pytest.mark.slow
def test_a_failed_shard_does_not_stop_the_others_and_rerun_does_only_it(tmp_path: Path) -> None:
    given = parameters(tmp_path, max_failures="0")
    broken = tmp_path / "photos" / "img_004.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:-40])
    state = extraction.extract_features(given, return_state=True)
    assert state.is_failed()
    assert state.message == "1 of 5 shards not done: 2"
    result = state.result(raise_on_failure=False).result
    assert (result.status.committed, result.status.failed) == (4, (2,))
    assert "img_004.png" in result.failures[0].reason
    again = extraction.rerun_shards(str(tmp_path / "run"), "failed", max_failures="1", return_state=True)
    assert again.is_completed()
    found = again.result()
    assert (found.asked, found.status.committed, found.status.unreadable) == (1, 5, 1)


@pytest.mark.slow
def test_a_mended_file_is_read_and_the_change_recorded(tmp_path: Path) -> None:
    given = parameters(tmp_path, max_failures="0", shard_rows=3)
    broken = tmp_path / "photos" / "img_004.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:-40])
    extraction.extract_features(given, return_state=True)
    broken.write_bytes(good)
    refused = extraction.rerun_shards(str(tmp_path / "run"), "failed", return_state=True)
    assert "changed since planned" in str(refused.result(raise_on_failure=False).result.failures[0].reason)
    again = extraction.rerun_shards(str(tmp_path / "run"), "failed", accept_changed=True, return_state=True)
    record = json.loads((tmp_path / "run" / "_txn" / "commits" / "s0000001.json").read_text())
    assert again.is_completed()
    assert again.result().status.unreadable == 0
    (change,) = record["details"]["changed_since_planned"]
    assert (change["row"], f"is {len(good)} bytes" in change["change"]) == (4, True)


@pytest.mark.slow
def test_wrong_input_ends_the_flow_with_the_cores_words(tmp_path: Path) -> None:
    state = extraction.extract_features(parameters(tmp_path, model="resnet81"), return_state=True)
    assert state.is_failed()
    with pytest.raises(Exception, match="resnet18"):
        state.result()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stop_ends_the_flow_cancelled_with_whole_shards(tmp_path: Path) -> None:
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch):
        state = extraction.extract_features(parameters(tmp_path), return_state=True)
    assert state.is_cancelled()
    shown = task_runs.of(state.state_details.flow_run_id, lambda runs: "CANCELLED" in states(runs))
    assert states(shown) == {"COMPLETED", "CANCELLED"}
    again = extraction.rerun_shards(str(tmp_path / "run"), "pending", return_state=True)
    assert again.is_completed()
    driver.extract(parameters(tmp_path, out=str(tmp_path / "plain")))
    assert objects(tmp_path / "run") == objects(tmp_path / "plain")


@pytest.mark.slow
def test_export_flow_writes_artifact_spec_and_shows_the_spec(tmp_path: Path) -> None:
    given = model_export.ExportParameters(
        model="tiny_models:conv", weights="random:0", image_size="32", out=str(tmp_path / "model")
    )
    state = model.export_model(given, return_state=True)
    (done,) = state.result()
    assert done.artifact_path.exists()
    assert done.spec_path.exists()
    with get_client(sync_client=True) as client:
        assert "model-spec" in task_runs.artifacts(client, state.state_details.flow_run_id)


@pytest.mark.slow
def test_variants_exported_by_a_flow_are_run_by_a_flow(tmp_path: Path) -> None:
    given = model_export.ExportParameters(
        model="tiny_models:conv",
        weights="random:0",
        image_size="32",
        out=str(tmp_path / "model"),
        formats=("torchscript", "onnx"),
        variants=(1, 2),
    )
    found = model.export_model(given)
    assert [len(done.artifact_paths) for done in found] == [2, 2]
    own = {"model": str(found[1].spec_path), "weights": None, "image_size": None}
    assert extraction.extract_features(parameters(tmp_path, shard_rows=5, **own)).status.complete
    assert sorted(path.name for path in (tmp_path / "run" / "model").iterdir()) == [
        "tiny_models_conv_onnx_b1.onnx",
        "tiny_models_conv_onnx_b2.onnx",
    ]


@pytest.mark.parametrize("flow", [extraction.extract_features, extraction.rerun_shards, model.export_model])
def test_parameter_forms_have_descriptions(flow: Any) -> None:
    """Every field of the Prefect form says what it is."""
    schema = flow.parameters.model_dump()
    fields = dict(schema["properties"])
    for definition in (schema.get("definitions") or {}).values():
        fields.update(definition.get("properties", {}))
    # The form shows the fields of `given`, not its own line.
    assert [name for name in fields if name != "given" and not fields[name].get("description")] == []


@pytest.mark.slow
def test_every_failed_shard_of_a_group_is_named_and_the_progress_is_true(tmp_path: Path) -> None:
    given = parameters(tmp_path, max_failures="0")
    for index in (2, 6):
        (tmp_path / "photos" / f"img_{index:03d}.png").write_bytes(b"")
    state = extraction.extract_features(given, shards_per_task=3, return_state=True)
    assert state.message == "2 of 5 shards not done: 1, 3"
    with get_client(sync_client=True) as client:
        assert task_runs.artifacts(client, flow_run(client, state).id)["progress"]["data"] == 60


@pytest.mark.slow
def test_a_shard_that_another_process_holds_is_waited_for_and_done(tmp_path: Path) -> None:
    """It is given up after the others are done, so this flow does it in a second round."""
    given = parameters(tmp_path)
    other = leases.Leases(planning.create_run(given).objects)
    assert other.take(1)
    rounds: list[list[int]] = []
    wait_for = worker.Worker.wait_for

    def give_up(mine: worker.Worker, held: list[int]) -> list[int]:
        rounds.append(list(held))
        other.release(1)
        return wait_for(mine, held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Worker, "wait_for", give_up)
        result = extraction.extract_features(given)
    assert rounds == [[1]]
    assert result.status.complete
    assert not result.failures
    other.close()


FILLED = """
import shutil
from pathlib import Path
from prefect.testing import utilities

def made():
    folder = Path({folder!r})
    folder.mkdir()
    for file in Path({home!r}).glob("prefect.db*"):
        shutil.copy(file, folder / file.name.replace("prefect.db", "prefect-test.db"))
    return str(folder)

utilities.mkdtemp = made
"""


@pytest.mark.slow
def test_the_guides_test_of_ones_own_flow_passes(tmp_path: Path, filled_prefect_home: Path) -> None:
    """As written, in a process of its own; only the database of its server is there already."""
    guide = (Path(__file__).parents[2] / "flows" / "TESTING.md").read_text()
    (tmp_path / "conftest.py").write_text(FILLED.format(home=str(filled_prefect_home), folder=str(tmp_path / "server")))
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", guide, flags=re.S):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nightly.py"]
    done = forked.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_the_guides_flow_of_tasks_stores_the_bytes_of_the_core_and_its_provenance(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "flows" / "README.md").read_text()
    (code,) = re.findall(r"<!-- file: own_flow.py -->\n```python\n(.*?)```", guide, flags=re.S)
    (tmp_path / "own_flow.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert importlib.import_module("own_flow").own(parameters(tmp_path, shard_rows=5)) == 9
    driver.extract(parameters(tmp_path, shard_rows=5, out=str(tmp_path / "plain")))
    assert objects(tmp_path / "run") == objects(tmp_path / "plain")
    (session,) = (tmp_path / "run" / "provenance" / "runs").iterdir()
    found = json.loads(session.read_text())
    assert (found["state"], found["command"]) == ("completed", "own")
