"""Runs that genenc 0.1.0 began (commit d5bd188) are read, verified, continued and mean what they meant.

`earlier_runs.zip` holds five runs of ten images, two of three shards committed, with the images, the points, and what
that version stores when each run is completed (`NAME.npz`). The model file of the fifth has auxiliary heads of its
task, which that version left aside.
"""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray
from pyarrow import parquet

from genenc_core import errors
from genenc_core.run import driver, parameters, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.store import verify

RUNS = ("own-code", "cropped", "padded", "artifact", "model-file")


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the runs and their images, as the working directory."""
    with zipfile.ZipFile(Path(__file__).with_name("earlier_runs.zip")) as archive:
        archive.extractall(tmp_path)
    for index, photo in enumerate(sorted((tmp_path / "photos").iterdir())):
        os.utime(photo, ns=(1_700_000_000_000_000_000 + index,) * 2)
    for name in RUNS:
        _moved(tmp_path / name / "images.parquet", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _moved(manifest: Path, photos: Path) -> None:
    """Let a manifest name a folder of images that is elsewhere now; its digest does not cover that."""
    with parquet.ParquetFile(manifest) as file:
        table, metadata = file.read(), dict(file.metadata.metadata)
    metadata[b"genenc.root"] = str(photos).encode()
    kept = {key: value for key, value in metadata.items() if key.startswith(b"genenc.")}
    plain = table.replace_schema_metadata(None)
    with parquet.ParquetWriter(manifest, plain.schema, compression="zstd", use_dictionary=False) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata(kept)


def committed_bytes(run: Path) -> dict[str, bytes]:
    """What belongs to the shards that the earlier version committed."""
    files = [*run.glob("features.zarr/*/c.0*"), *run.glob("features.zarr/*/c.1*"), *run.glob("_txn/commits/*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def expect_as_before(run: Path) -> None:
    """The run is whole, and its values are those of the version that began it."""
    stored = xarray.open_zarr(run / "features.zarr", consolidated=False)
    with np.load(f"{run}.npz") as before:
        assert set(before) <= set(stored.variables)
        for name in before:
            np.testing.assert_allclose(stored[name].values, before[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert stored.status.values.tolist() == [1, 1, 2, 1, 1, 1, 1, 1, 1, 1]
    assert verify.verify_store(RunFolder(run).store, content=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_run_is_read_and_resumed(earlier: Path, name: str) -> None:
    run = earlier / name
    before = committed_bytes(run)
    assert RunFolder(run).store.committed() == {0, 1}
    assert (status.run_status(RunFolder(run)).unreadable, status.run_status(RunFolder(run)).bound) == (1, None)
    assert verify.verify_store(RunFolder(run).store, content=True).ok
    result = driver.resume(RunFolder(run), "pending", Changes(trust=True))
    assert not result.failures
    assert result.bound is not None
    assert status.run_status(RunFolder(run)).bound is not None
    expect_as_before(run)
    assert before.items() <= committed_bytes(run).items()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_same_command_continues_an_earlier_run(earlier: Path, name: str) -> None:
    """What the user did not choose is what the run was made with, also where a default has changed since."""
    run = earlier / name
    before = committed_bytes(run)
    recorded = json.loads((run / "provenance/parameters.json").read_text())
    given = parameters.ExtractParameters.model_validate({key: value for key, value in recorded.items() if value})
    driver.extract(given)
    expect_as_before(run)
    assert before.items() <= committed_bytes(run).items()


@pytest.mark.parametrize("part", ["features.zarr", "features.zarr/status", "images.parquet"])
def test_a_part_of_a_run_is_told_from_the_run(earlier: Path, part: str) -> None:
    with pytest.raises(errors.InputError, match=f"part of the run '{earlier / 'cropped'}'; give that folder"):
        RunFolder(earlier / "cropped" / part)
