"""Model files on the command line: exported, extracted with maps and points, continued from the run folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from genenc_core.factory import model_file
from genenc_core.models.weights import WeightsChoice

Call = Callable[..., Any]

SEG = """
task: segmentation
image_size: [32, 64]
outputs: [logits, backbone]
model_args:
  backbone: timm_test_resnet
  backbone_out_indices: [1, 2]
  decoder: FCNDecoder
  decoder_channels: 4
  decoder_num_convs: 1
  num_classes: 3
"""


@pytest.fixture
def seg(tmp_path: Path) -> Path:
    """Return a model file of a tiny segmentation model."""
    path = tmp_path / "seg.yaml"
    path.write_text(SEG)
    return path


def arrays(run: Path) -> Any:
    return zarr.open_group(run / "features.zarr", mode="r")


@pytest.mark.slow
def test_maps_and_points_of_logits(genenc: Call, photos: Path, seg: Path, tmp_path: Path) -> None:
    """A point's logits are those of the map at the pixel where it lies: (40, 30) of 80 x 60 is (32, 16) of 64 x 32."""
    points = tmp_path / "points.csv"
    rows = [f"img_{index:03d}.png,nose,40,30" for index in range(6)]
    points.write_text("\n".join(["image,point,x,y", *rows]) + "\n")
    said = genenc(
        "extract", photos, "--model", seg, "--weights", "random:0", "--points", points, "--out", tmp_path / "run",
        "--product", "masks=logits:none", "--product", "nose=logits:spatial_point(nearest)",
        "--product", "deep=backbone_1:global_avg_pool",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = arrays(tmp_path / "run")
    assert found["masks"].shape == (6, 3, 32, 64)
    assert np.isfinite(found["masks"][:]).all()
    assert np.array_equal(found["nose"][:][:, 0], found["masks"][:][:, :, 16, 32])
    assert found["deep"].shape[0] == 6
    assert "factory/seg" in genenc("info", tmp_path / "run").out


@pytest.mark.slow
def test_a_run_continues_without_the_model_file(genenc: Call, photos: Path, seg: Path, tmp_path: Path) -> None:
    """The arguments are in the run's spec; the checkpoint is in its folder."""
    parts = model_file.build(model_file.read(seg), WeightsChoice(kind="random", seed=3), None)
    torch.save(parts.model.state_dict(), tmp_path / "best.pt")
    options = ["--model", seg, "--weights", tmp_path / "best.pt", "--product", "masks=logits:none", "--shard-rows", 2]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert genenc("extract", photos, *options, "--out", whole).code == 0
    hidden = (photos / "img_005.png").read_bytes()
    (photos / "img_005.png").write_bytes(b"")
    failed = genenc("extract", photos, *options, "--out", run, "--max-failures", 0)
    assert failed.code == 1
    (photos / "img_005.png").write_bytes(hidden)
    seg.unlink()
    (tmp_path / "best.pt").unlink()
    assert genenc("resume", run, "--accept-changed").code == 0
    assert np.array_equal(arrays(run)["masks"][:], arrays(whole)["masks"][:])


@pytest.mark.slow
def test_an_exported_model_file_gives_what_the_eager_model_gives(
    genenc: Call, photos: Path, seg: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    said = genenc("export", seg, "--weights", "random:0", "--formats", "torchscript", "--out", out)
    assert said.code == 0, said.err
    assert "logits [3, 32, 64]" in said.out
    options = ["--product", "masks=logits:none", "--batch-size", 2]
    artifact = genenc(
        "extract", photos, "--model", out / "seg_torchscript_spec.json", "--out", tmp_path / "a", *options
    )
    eager = genenc("extract", photos, "--model", seg, "--weights", "random:0", "--out", tmp_path / "b", *options)
    assert (artifact.code, eager.code) == (0, 0), eager.err
    np.testing.assert_allclose(arrays(tmp_path / "a")["masks"][:], arrays(tmp_path / "b")["masks"][:], atol=1e-5)


def test_a_wrong_model_file_is_one_paragraph_and_exit_code_2(
    genenc: Call, photos: Path, seg: Path, tmp_path: Path
) -> None:
    seg.write_text(SEG.replace("decoder_num_convs", "decoder_layers"))
    said = genenc("extract", photos, "--model", seg, "--weights", "random:0", "--out", tmp_path / "run")
    assert said.code == 2
    assert "decoder_layers = 1 is not used" in said.err.replace("\n", " ")
    assert not (tmp_path / "run").exists()
