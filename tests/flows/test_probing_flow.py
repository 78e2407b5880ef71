"""The flow `probe_features`: the bytes of the core alone, one task per step, states that say what happened."""

from pathlib import Path

import pytest

import pictures
import task_runs
from genenc_core import api, testing
from genenc_core.probing.parameters import ProbeParameters
from genenc_core.run import records
from genenc_flows import probing

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def given(tmp_path: Path) -> ProbeParameters:
    """Parameters of a probe set; its source, and the same made without Prefect, are there."""
    photos = pictures.write_folder(tmp_path / "photos", 5)
    labels = tmp_path / "labels.csv"
    labels.write_text("image,point,x,y\n" + "".join(f"img_{at:03d}.png,nose,{9 * at},20\n" for at in range(5)))
    model = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "shard_rows": 2}
    api.extract(str(photos), out=str(tmp_path / "source"), maps=True, trust=True, batch_size=2, **model)
    api.probe(tmp_path / "source", str(tmp_path / "plain"), points=str(labels))
    return ProbeParameters(source=str(tmp_path / "source"), out=str(tmp_path / "probes"), points=str(labels))


@pytest.mark.slow
def test_the_rows_of_the_core(given: ProbeParameters, tmp_path: Path) -> None:
    state = probing.probe_features(given, return_state=True)
    assert isinstance(state.result(), records.Result)
    assert state.message == "5 of 5 images stored, 0 unreadable"
    testing.assert_runs_equal(tmp_path / "plain", tmp_path / "probes")
    expected = ["create probes", "plan pending shards of probes", "shard 00000, rows 0-1", "verify probes"]
    expected += ["load shard 00000, rows 0-1", "encode shard 00000, rows 0-1", "store shard 00000, rows 0-1"]
    shown = task_runs.of(state.state_details.flow_run_id, task_runs.with_names(*expected))
    assert {run.name for run in shown} >= set(expected)
    again = probing.probe_features(given, return_state=True)
    assert again.message == "nothing to do: 3 of 3 shards are committed"


@pytest.mark.slow
def test_a_shard_that_fails_ends_failed(given: ProbeParameters, tmp_path: Path) -> None:
    with testing.failing_shards([1]):
        state = probing.probe_features(given, return_state=True)
    assert state.is_failed()
    assert state.message == "1 of 3 shards not done: 1"
    assert probing.probe_features(given, return_state=True).is_completed()
    testing.assert_runs_equal(tmp_path / "plain", tmp_path / "probes")
