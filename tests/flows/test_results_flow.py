"""The flow `report_results` writes the page and shows its main figures, or leaves that out if the server refuses."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

import pictures
from genenc_core import api
from genenc_core.report.parameters import ReportParameters
from genenc_flows import results
from genenc_tasks import results as tasks
from reported import MODEL

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def given(tmp_path: Path) -> ReportParameters:
    """Parameters of a report of a run."""
    photos = pictures.write_folder(tmp_path / "photos", 3)
    run = api.extract(str(photos), out=str(tmp_path / "run"), **MODEL)
    return ReportParameters(source=run.place, out=str(tmp_path / "page.html"))


def test_the_artifact_has_the_figures_and_images(given: ReportParameters) -> None:
    state = results.report_results(given, return_state=True)
    assert state.result()["ok"] == 3
    assert "genenc report" in Path(given.out).read_text()
    with get_client(sync_client=True) as client:
        wanted = {"artifacts": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}}
        (shown,) = client.request("POST", "/artifacts/filter", json=wanted).json()
    assert shown["key"].startswith("results-run-")
    assert "3 of 3 images stored" in shown["data"]
    assert "data:image/jpeg;base64," in shown["data"]


def test_a_server_that_refuses_the_artifact_fails_nothing(
    given: ReportParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(tasks, "create_markdown_artifact", refuse)
    assert results.report_results(given, return_state=True).is_completed()
    assert Path(given.out).exists()
