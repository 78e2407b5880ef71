"""Files that do not show their strides: cells that divide the image by accident are noticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genenc_core import errors
from genenc_core.export import artifact_trial

NETS: dict[str, Callable[[], nn.Module]] = {
    "valid, stride 2": lambda: nn.Conv2d(3, 5, 34, 2),  # 16 cells of 64 pixels, every 2 pixels
    "valid, stride 3": lambda: nn.Conv2d(3, 5, 19, 3),
    "valid, three layers": lambda: nn.Sequential(nn.Conv2d(3, 5, 18, 1), nn.ReLU(), nn.Conv2d(5, 5, 17, 2)),
    "patches": lambda: nn.Conv2d(3, 5, 4, 4),
    "padded": lambda: nn.Sequential(nn.Conv2d(3, 5, 7, 2, 3), nn.ReLU(), nn.Conv2d(5, 5, 3, 2, 1)),
    "padded, coarse": lambda: nn.Sequential(nn.Conv2d(3, 5, 7, 4, 3), nn.ReLU(), nn.Conv2d(5, 5, 3, 4, 1)),
}


@pytest.mark.parametrize("name", NETS)
def test_cells_closer_than_they_seem_are_refused_with_points(
    extract: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(artifact_trial, "answer", artifact_trial.here)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    program = torch.export.export(
        NETS[name]().eval(), (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=32)},)
    )
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "m.onnx")
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    given = {"model": "general_encoder", "weights": str(tmp_path / "m.onnx"), "image_size": "64", "trust": True}
    if name.startswith("valid"):
        extract(**given, out=str(tmp_path / "without"))
        with pytest.raises(errors.InputError, match="lie closer than every 4 x 4 pixels"):
            extract(**given, points=str(tmp_path / "points.csv"))
        return
    extract(**given, points=str(tmp_path / "points.csv"))
