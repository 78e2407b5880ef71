"""The flows `rerun_from` and `export_features`, and the tasks on stored features: what the core does, as runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

import pictures
import task_runs
from genenc_core import api, errors
from genenc_core.features import export, rerun
from genenc_core.features.parameters import (
    CompareParameters,
    ExportFeaturesParameters,
    RerunParameters,
    SearchParameters,
    TraceParameters,
)
from genenc_flows import features
from genenc_tasks import features as tasks

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    photos = pictures.write_folder(tmp_path / "photos", 5)
    model = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "shard_rows": 2}
    api.extract(str(photos), out=str(tmp_path / "run"), trust=True, batch_size=2, **model)
    return tmp_path / "run"


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_is_made_again_by_tasks(run: Path, tmp_path: Path) -> None:
    given = RerunParameters(source=str(run), out=str(tmp_path / "again"), trust=True)
    state = features.rerun_from(given, return_state=True)
    done = state.result()
    assert isinstance(done, rerun.Rerun)
    assert done.identical
    assert state.message == f"identical: all values of 3 shards are those of {run}"
    assert files(tmp_path / "again" / "features.zarr") == files(run / "features.zarr")
    expected = ["create again", "encode shard 00000, rows 0-1", "verify again", "compare again with run"]
    shown = task_runs.of(state.state_details.flow_run_id, task_runs.with_names(*expected))
    assert {each.name for each in shown} >= set(expected)
    assert features.rerun_from(given, return_state=True).result().identical
    shutil.copy(tmp_path / "photos" / "img_000.png", tmp_path / "photos" / "img_001.png")
    refused = features.rerun_from(given.model_copy(update={"out": str(tmp_path / "new")}), return_state=True)
    assert refused.is_failed()
    with pytest.raises(errors.StoreError, match="has another sha256"):
        refused.result()


@pytest.mark.slow
def test_features_are_exported(run: Path, tmp_path: Path) -> None:
    given = ExportFeaturesParameters(source=str(run), out=str(tmp_path / "out"))
    state = features.export_features(given, return_state=True)
    assert isinstance(state.result(), export.Exported)
    assert (tmp_path / "out" / "images.parquet").is_file()
    assert features.export_features(given, return_state=True).is_failed()


@pytest.mark.slow
def test_the_tasks_in_a_flow_of_ones_own(run: Path) -> None:
    @flow
    def own() -> list[Any]:
        place = str(run)
        return [
            tasks.search(SearchParameters(source=place, row="#1", top=2)),
            tasks.compare(CompareParameters(source=place, other=place)),
            tasks.trace(TraceParameters(source=place, image="#1")),
        ]

    found, compared, traced = own()
    assert found.rows.tolist() == api.search(run, row="#1", top=2).rows.tolist()
    assert compared.same
    assert traced.image["image_id"] == "img_001.png"
