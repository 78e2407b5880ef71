"""Images for which a shard failed are listed with the shard, until it is stored."""

import json
from collections.abc import Callable
from pathlib import Path

from genenc_core import errors
from genenc_core.cli import state
from genenc_core.run import driver, status
from genenc_core.run.folder import RunFolder

Extract = Callable[..., driver.Result]


def test_all_images_that_broke_a_shard_are_listed(
    extract: Extract, photos: Path, capsys: object, tmp_path: Path
) -> None:
    broken = sorted(photos.iterdir())[:3]
    before = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(b"no image")
    result = extract(max_failures="2")
    assert len(result.failures) == 1
    found = status.survey(result.run)
    assert [item["image_id"] for item in found.failed_images] == [path.name for path in broken]
    assert all("not a known image format" in item["reason"] for item in found.failed_images), found.failed_images
    assert found.unreadable == ()
    assert state.status(result.run.root, as_json=False) == 1
    said = capsys.readouterr().out  # type: ignore[attr-defined]
    assert all(f"row {row}: {path.name}: " in said for row, path in enumerate(broken))
    state.status(result.run.root, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["failed_images"]) == 3  # type: ignore[attr-defined]
    for path, data in before.items():
        path.write_bytes(data)
    done = driver.resume(RunFolder(result.run.root), "failed", driver.parameters.Changes(accept_changed=True))
    assert done.failures == ()
    assert status.survey(done.run).failed_images == ()


def test_a_shard_error_travels_with_its_images() -> None:
    import pickle

    error = errors.ShardError(3, "too many", [{"row": 1, "image_id": "a.png", "reason": "empty"}])
    again = pickle.loads(pickle.dumps(error))
    assert (again.shard, again.reason, again.images) == (3, "too many", error.images)
