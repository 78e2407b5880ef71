"""A model that pools to one cell has no vector of a point's own, and its vectors include the bars: both are said."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from genenc_core.run import driver, planning


@pytest.mark.slow
@pytest.mark.parametrize(("model", "told"), [("pooled_nets:one_cell", True), ("tiny_models:conv", False)])
def test_one_cell_is_told(
    extract: Callable[..., driver.Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    model: str,
    told: bool,
) -> None:
    (tmp_path / "pooled_nets.py").write_text(
        "from torch import nn\n"
        "def one_cell():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.AdaptiveAvgPool2d(1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,nose,20,30\nimg_000.png,tail,60,10\n")
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        extract(model=model, points=str(tmp_path / "points.csv"))
    said = [str(each.message) for each in caught if issubclass(each.category, planning.OneCell)]
    assert [text.partition(":")[0] for text in said] == ["probes"] * told
    assert ("the bars around padded images affect features" in caplog.text) == told
