"""The flow `inspect_images` shows what it found, with the contact sheet."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

import pictures
from genenc_core.inspection.inspect import Inspection
from genenc_core.inspection.parameters import InspectParameters
from genenc_flows import inspection

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_the_artifact_has_the_text_and_the_sheet(tmp_path: Path) -> None:
    given = InspectParameters(images=str(pictures.write_folder(tmp_path / "photos", 3)), out=str(tmp_path / "look"))
    state = inspection.inspect_images(given, return_state=True)
    assert isinstance(state.result(), Inspection)
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["contact_sheet.png", "inspection.json"]
    with get_client(sync_client=True) as client:
        wanted = {"artifacts": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}}
        (shown,) = client.request("POST", "/artifacts/filter", json=wanted).json()
    assert shown["key"] == "inspection"
    assert "3 images" in shown["data"]
    assert "data:image/jpeg;base64," in shown["data"]
