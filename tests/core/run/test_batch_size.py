"""The batch size of a run: found once, kept in its folder, lowered there when memory runs out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genenc_core.run import driver, engine_setup, records
from genenc_core.run.folder import RunFolder
from genenc_core.runtime import backends

Extract = Callable[..., driver.Result]
RECORD = "provenance/batch_size-cpu.json"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of all batches from now on; more than 2 images are out of memory."""
    found: list[int] = []
    call = backends.Encoder.__call__

    def limited(self: backends.Encoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("full")
        return call(self, images)

    monkeypatch.setattr(backends.Encoder, "__call__", limited)
    return found


def test_batch_that_did_not_fit_is_remembered(extract: Extract, tmp_path: Path, sizes: list[int]) -> None:
    extract(batch_size=4, limit=4)
    # Before come a few fixed images at planning, and one batch of them of the size of the run.
    assert sizes[sizes.index(4) :][:3] == [4, 4, 2]
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["size"] == record["memory_ran_out_above"] == 2
    sizes.clear()
    # A session that asks for no size starts with what is known.
    folder = RunFolder(tmp_path / "run")
    made = engine_setup.make_engine(folder, records.Options(session="next"))
    assert made.sizer.size == 2
    assert max(sizes) == 1  # two fixed images, one by one, are compared with what the run's model gave
    made.sizer.on_shrink(4)  # type: ignore[misc]
    assert json.loads((tmp_path / "run" / RECORD).read_text())["size"] == 2
    made.close()


def test_a_size_found_is_used_by_every_session(extract: Extract, tmp_path: Path) -> None:
    extract(batch_size="auto")
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["size"] == 4
