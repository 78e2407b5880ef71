"""The flow takes models as the core does: an own encoder of several scales, and a spec by its id."""

from pathlib import Path

import pytest
import torch
import zarr
from torch import nn

import pictures
from genenc_core.run import model_export
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.runtime import model_registry
from genenc_flows import extraction

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_a_spec_of_several_scales_by_its_id(tmp_path: Path) -> None:
    given = model_export.ExportParameters(
        model="yolov3_tiny", weights="random:0", image_size="64", batch_max=2, out=str(tmp_path / "specs")
    )
    model_export.export(given)
    (name,) = model_registry.folders((given.out,))[0].registered()
    parameters = ExtractParameters(
        images=str(pictures.write_folder(tmp_path / "photos", 3)),
        model=name,
        models=(given.out,),
        products=("fine=p4:global_avg_pool", "coarse=p5:global_avg_pool", "head=head_p5:none@float16"),
        out=str(tmp_path / "run"),
        batch_size=1,
        shard_rows=2,
        device="cpu",
    )
    state = extraction.extract_features(parameters, shards_per_task=1, return_state=True)
    assert state.is_completed()
    store = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")
    assert {key: store[key].shape for key in ("fine", "coarse", "head")} == {
        "fine": (3, 256),
        "coarse": (3, 1024),
        "head": (3, 255, 2, 2),
    }


@pytest.mark.slow
def test_an_exported_file_with_mean_and_std(tmp_path: Path) -> None:
    torch.jit.trace(nn.AvgPool2d(8), torch.rand(2, 3, 32, 32)).save(tmp_path / "theirs.pt")
    parameters = ExtractParameters(
        images=str(pictures.write_folder(tmp_path / "photos", 3)),
        model="general_encoder",
        weights=str(tmp_path / "theirs.pt"),
        image_size="32",
        mean="imagenet",
        trust=True,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    state = extraction.extract_features(parameters, return_state=True)
    assert state.is_completed()
    identity = RunFolder(tmp_path / "run").identity
    assert identity["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
