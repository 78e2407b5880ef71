"""Names of files that want to be markup, through a real flow into Prefect's artifacts, run names and logs."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId

import pictures
import task_runs
from genenc_core.run.parameters import ExtractParameters
from genenc_flows import extraction

pytestmark = pytest.mark.usefixtures("prefect_server")
FOLDER = "p\x1b[31m\u202e\n<script>alert(1)<"
BAD = "<img src=x onerror=alert(1)>[x](javascript:y)`|\x1b[2J\u2066\r\n# h.png"


@pytest.mark.slow
def test_names_reach_prefect_as_text(tmp_path: Path) -> None:
    photos = pictures.write_folder(tmp_path / FOLDER, 3)
    (photos / BAD).write_bytes(b"no image")
    given = {"images": str(photos), "model": "tiny_models:conv", "weights": "random:0", "image_size": "32"}
    more = {"out": str(tmp_path / f"run{FOLDER}"), "device": "cpu", "batch_size": 2}
    state = extraction.extract_features(ExtractParameters.model_validate({**given, **more}), return_state=True)
    assert state.message == "3 of 4 images stored, 1 unreadable"
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
        shown = task_runs.artifacts(client, run.id)
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        names = [run.name, *(item.name for item in client.read_task_runs(flow_run_filter=mine))]
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    for name in names:
        assert name.isprintable(), name
        assert len(name) <= 250
    texts = [shown["report"]["data"], *(item["description"] or "" for item in shown.values())]
    for kind in ("failed-images", "lineage-images", "lineage-model", "lineage-features"):
        texts += [str(value) for row in json.loads(shown[kind]["data"]) for value in row.values()]
    for told in texts:
        assert told.replace("\n", "").isprintable(), told
        outside = told.partition("```")[0]
        assert "<" not in outside
        assert "](" not in outside
    (row,) = json.loads(shown["failed-images"]["data"])
    assert row["image_id"].startswith("&lt;img src=x onerror=alert\\(1\\)&gt;\\[x\\]\\(javascript:y\\)\\`\\|\\\\x1b")
    assert all(log.message.replace("\n", "").isprintable() for log in logs), [log.message for log in logs]
