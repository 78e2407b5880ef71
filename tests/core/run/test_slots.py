"""Every output of a model is stored, or named as not stored: whatever kind of file or code the model is."""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from genenc_core import spec
from genenc_core.encoding import products
from genenc_core.export import artifact_trial
from genenc_core.run import driver, encoders, planning

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.conv, self.dense = form, nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 5)
        torch.manual_seed(0)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.uniform_(-1, 1)
    def forward(self, images):
        maps = self.conv(images)
        vector = self.dense(maps.mean((2, 3)))
        tokens = maps.flatten(2).transpose(1, 2)
        if self.form == "dict": return {"fine": maps, "global": vector, "list": tokens}
        return maps, vector

def as_tuple(): return Net("tuple")
def as_dict(): return Net("dict")
"""
DRAWN = Callable[..., driver.Result]


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], nn.Module]]:
    """Return a call that builds the net of a form; its module is `slots_nets`."""
    monkeypatch.setattr(artifact_trial, "answer", artifact_trial.here)
    (tmp_path / "slots_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def build(form: str) -> nn.Module:
        import slots_nets  # type: ignore[import-not-found]

        module: nn.Module = slots_nets.Net(form)
        return module.eval()

    yield build
    encoders.CACHE.clear()
    sys.modules.pop("slots_nets", None)


def _trace(module: nn.Module, path: Path) -> None:
    torch.jit.trace(module, torch.rand(2, 3, 32, 32), strict=False).save(path)


def _script(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(module), path)


def _program(module: nn.Module, path: Path) -> torch.export.ExportedProgram:
    return torch.export.export(
        module, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=32)},)
    )


def _exported(module: nn.Module, path: Path) -> None:
    torch.export.save(_program(module, path), path)


def _onnx(module: nn.Module, path: Path) -> None:
    names = ["fine", "global", "list"] if module.form == "dict" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(_program(module, path), dynamo=True, verbose=False, output_names=names).save(path)


FILES = {"trace.pt": _trace, "program.pt2": _exported, "graph.onnx": _onnx}


def stored(run: Path) -> dict[str, np.ndarray]:
    """The arrays of a run that hold features."""
    group = zarr.open_group(run / "features.zarr", mode="r")
    return {name: np.asarray(array) for name, array in group.arrays() if "genenc_product" in array.attrs}


@pytest.mark.parametrize("source", ["factory", "layers", *FILES])
def test_a_vector_beside_a_map_is_stored(
    extract: DRAWN, net: Callable[[str], nn.Module], tmp_path: Path, source: str
) -> None:
    if source in FILES:
        FILES[source](net("tuple"), tmp_path / source)
        extract(model="general_encoder", weights=str(tmp_path / source), trust=True)
    elif source == "layers":
        extract(model="slots_nets:as_tuple", weights="random:0", layers=("conv", "dense"))
    else:
        extract(model="slots_nets:as_tuple", weights=None)
    found = stored(tmp_path / "run")
    vector = "dense" if source == "layers" else "features_1"
    assert {name: array.shape for name, array in found.items()} == {"features": (11, 4), vector: (11, 5)}
    if source == "layers":
        return
    dense = net("tuple").dense
    expected = dense(torch.from_numpy(found["features"])).detach().numpy()
    np.testing.assert_allclose(found[vector], expected, atol=1e-5)


def test_what_is_not_stored_is_named_at_the_start_and_in_the_readme(extract: DRAWN, tmp_path: Path) -> None:
    with pytest.warns(planning.SlotsNotStored, match=r"not stored: output slots list \[16, 4\]"):
        extract(model="slots_nets:as_dict", weights=None)
    assert sorted(stored(tmp_path / "run")) == ["features", "global"]
    assert "Outputs that are not stored: list [16, 4]." in (tmp_path / "run/README.md").read_text().replace("\\", "")


def test_who_says_what_to_store_is_not_warned(extract: DRAWN, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", planning.SlotsNotStored)
        extract(model="slots_nets:as_dict", weights=None, products=("v=list:none",))
    words = (tmp_path / "run/README.md").read_text().replace("\\", "")
    assert "Outputs that are not stored: fine [4, 4, 4], global [5]." in words


def test_outputs_of_a_file_that_are_no_slots_stand_in_the_readme(extract: DRAWN, tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return nn.functional.avg_pool2d(images, 8), images.mean((1, 2, 3)) > 0

    _trace(Counting(), tmp_path / "two.pt")
    extract(model="general_encoder", weights=str(tmp_path / "two.pt"), trust=True)
    words = (tmp_path / "run/README.md").read_text().replace("\\", "")
    assert "Outputs that are not stored: output 1 (bool [1], no floating-point numbers)." in words


def test_a_run_keeps_the_products_that_were_the_default_when_it_was_made(
    extract: DRAWN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = products.default_products

    def maps_alone(outputs: tuple[spec.SlotSpec, ...], **options: object) -> tuple[products.ProductSpec, ...]:
        return before([slot for slot in outputs if len(slot.shape) == 3], **options)

    with monkeypatch.context() as earlier:
        earlier.setattr(products, "default_products", maps_alone)
        extract(model="slots_nets:as_tuple", weights=None)
    assert sorted(stored(tmp_path / "run")) == ["features"]
    extract(model="slots_nets:as_tuple", weights=None)
    assert sorted(stored(tmp_path / "run")) == ["features"]
    extract(model="slots_nets:as_tuple", weights=None, out=str(tmp_path / "other"))
    assert sorted(stored(tmp_path / "other")) == ["features", "features_1"]
