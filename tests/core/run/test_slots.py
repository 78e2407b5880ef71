"""Every output of a model is stored, or named as not stored: whatever kind of file or code the model is."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

from genenc_core import errors, spec
from genenc_core.encoding import products
from genenc_core.run import driver, model_cache, planning
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.runtime.formats import interface, onnx, table

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
    (tmp_path / "slots_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def build(form: str) -> nn.Module:
        import slots_nets  # type: ignore[import-not-found]

        module: nn.Module = slots_nets.Net(form)
        return module.eval()

    yield build
    model_cache.CACHE.clear()
    sys.modules.pop("slots_nets", None)


def _trace(module: nn.Module, path: Path) -> None:
    torch.jit.trace(module, torch.rand(2, 3, 32, 32), strict=False).save(path)


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


VARYING = """
class Varying(torch.nn.Module):
    def forward(self, images):
        bright = images.mean((2, 3))
        dark = 1 - bright
        found: Dict[str, torch.Tensor] = {}
        if HOW:
            found["bright"] = bright
            found["dark"] = dark
        else:
            found["dark"] = dark
            found["bright"] = bright
        if images.shape[0] == 1:
            MORE
        return found
"""
HOW = {"the batch's size": "images.shape[0] == 1", "content": "bool(images[0, 0, 0, 0] > 0.5)"}


def _varying(how: str, folder: Path, *, more: str = "pass") -> Path:
    """Write a script that gives its outputs in an order that varies; return its file."""
    code = VARYING.replace("HOW", how).replace("MORE", more)
    name = f"varying_{abs(hash(code))}"
    (folder / f"{name}.py").write_text(f"from typing import Dict\nimport torch\n{code}")
    torch.jit.script(__import__(name).Varying()).save(folder / "varying.pt")
    return folder / "varying.pt"


def _by_name(run: Path, bright: str = "features_bright", dark: str = "features_dark") -> None:
    """What the slots of `VARYING` hold is what their names say."""
    found = stored(run)
    assert sorted(found) == sorted((bright, dark))
    np.testing.assert_allclose(found[bright] + found[dark], 1, atol=1e-5)
    group = zarr.open_group(run / "features.zarr", mode="r")
    for row, path in enumerate(np.asarray(group["path"]).tolist()):
        mean = np.asarray(Image.open(run.parent / "photos" / path)).mean() / 255
        assert abs(found[bright][row].mean() - mean) < 0.05


@pytest.mark.parametrize("how", HOW)
def test_a_dict_in_any_order_is_stored_by_its_names(extract: DRAWN, tmp_path: Path, how: str) -> None:
    path = _varying(HOW[how], tmp_path)
    extract(model="general_encoder", weights=str(path), trust=True)
    _by_name(tmp_path / "run")


def _foreign(path: Path, *slots: str) -> str:
    """Write the spec that somebody else has for `VARYING`; return its file."""
    theirs = spec.RuntimeModelSpec(
        model_id="theirs",
        display_name="Theirs",
        weights_path=str(path),
        inputs=(spec.SlotSpec(name="image", shape=(3, 32, 32)),),
        outputs=tuple(spec.SlotSpec(name=name, shape=(3,)) for name in slots),
    )
    file = path.with_suffix(".json")
    file.write_text(theirs.to_json())
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "slots"), [("the batch's size", ("bright", "dark")), ("content", ("dark", "bright"))], ids=HOW
)
def test_spec_slots_are_outputs_by_name(extract: DRAWN, tmp_path: Path, how: str, slots: tuple[str, str]) -> None:
    file = _foreign(_varying(HOW[how], tmp_path), *slots)
    extract(model=file, weights=None, image_size=None, trust=True)
    _by_name(tmp_path / "run")
    # A session of its own, with another batch size, finds them again.
    model_cache.CACHE.clear()
    extract(model=file, weights=None, image_size=None, trust=True, out=str(tmp_path / "alone"), batch_size=1)
    model_cache.CACHE.clear()
    extract(model=file, weights=None, image_size=None, trust=True, out=str(tmp_path / "alone"), batch_size=4)
    _by_name(tmp_path / "alone")


def test_slots_of_other_names_keep_to_one_output(extract: DRAWN, tmp_path: Path) -> None:
    extract(
        model=_foreign(_varying(HOW["content"], tmp_path), "one", "other"), weights=None, image_size=None, trust=True
    )
    _by_name(tmp_path / "run", "features_other", "features_one")


def test_a_slot_with_the_name_of_another_output_is_refused(extract: DRAWN, tmp_path: Path) -> None:
    file = _foreign(_varying("True", tmp_path), "dark", "other")
    with pytest.raises(errors.InputError, match="slot 'dark' would hold 'bright'"):
        extract(model=file, weights=None, image_size=None, trust=True)


def test_keys_that_vary_are_refused(extract: DRAWN, tmp_path: Path) -> None:
    path = _varying("True", tmp_path, more='found["more"] = dark')
    with pytest.raises(errors.InputError, match=r"returned the outputs bright, dark.* in the dry run"):
        extract(model="general_encoder", weights=str(path), trust=True)
    assert not (tmp_path / "run").exists()


def _scriptable(code: str) -> str:
    """Return the code of the net that gives a dict, as torch.jit.script takes it."""
    code = code.replace("import torch\n", "import torch\nfrom typing import Dict\n", 1)
    code = code.replace("images):", "images) -> Dict[str, torch.Tensor]:")
    return code.replace('if self.form == "dict": ', "").replace("        return maps, vector\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["trace.pt", "script.pt", "program.pt2", "graph.onnx"])
def test_the_slots_of_a_file_have_its_own_names(
    extract: DRAWN, net: Callable[[str], nn.Module], tmp_path: Path, suffix: str
) -> None:
    if suffix == "script.pt":
        (tmp_path / "slots_script.py").write_text(_scriptable(CODE))
        torch.jit.script(__import__("slots_script").Net("dict").eval()).save(tmp_path / suffix)
    else:
        FILES[suffix](net("dict"), tmp_path / suffix)
    with pytest.warns(planning.SlotsNotStored, match=r"not stored: list \[16, 4\]"):
        extract(model="general_encoder", weights=str(tmp_path / suffix), trust=True)
    found = stored(tmp_path / "run")
    assert sorted(found) == ["features", "global"]
    expected = net("dict").dense(torch.from_numpy(found["features"])).detach().numpy()
    np.testing.assert_allclose(found["global"], expected, atol=1e-5)


@pytest.mark.slow
def test_a_run_keeps_the_names_of_slots_that_it_was_made_with(
    extract: DRAWN, net: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILES["graph.onnx"](net("dict"), tmp_path / "graph.onnx")
    again = {"model": "general_encoder", "weights": str(tmp_path / "graph.onnx"), "trust": True}
    with monkeypatch.context() as earlier:
        onnx_load = onnx.load
        table_format = dataclasses.replace(table.FORMATS["onnx"], load=lambda *given: _nameless(onnx_load(*given)))
        earlier.setattr(table, "FORMATS", {**table.FORMATS, "onnx": table_format})
        extract(**again)
    before = stored(tmp_path / "run")
    assert sorted(before) == ["features", "features_1"]
    model_cache.CACHE.clear()
    extract(**again)
    model_cache.CACHE.clear()
    assert not driver.resume(RunFolder(tmp_path / "run"), "pending", Changes(trust=True)).failures


def _nameless(loaded: interface.Loaded) -> interface.Loaded:
    """Return a file as genenc 0.1.0 saw it: outputs by place."""
    return dataclasses.replace(loaded, run=lambda images: list(cast(Any, loaded.run(images)).values()))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["factory", "layers", *FILES])
def test_vector_beside_a_map_too(extract: DRAWN, net: Callable[[str], nn.Module], tmp_path: Path, source: str) -> None:
    if source in FILES:
        FILES[source](net("tuple"), tmp_path / source)
        extract(model="general_encoder", weights=str(tmp_path / source), trust=True)
    elif source == "layers":
        extract(model="slots_nets:as_tuple", weights="random:0", layers=("conv", "dense"))
    else:
        extract(model="slots_nets:as_tuple", weights=None)
    found = stored(tmp_path / "run")
    (vector,) = found.keys() - {"features"}
    assert {name: array.shape for name, array in found.items()} == {"features": (11, 4), vector: (11, 5)}
    assert vector == "dense" if source == "layers" else vector == "features_1" or source == "graph.onnx"
    if source == "layers":
        return
    dense = net("tuple").dense
    expected = dense(torch.from_numpy(found["features"])).detach().numpy()
    np.testing.assert_allclose(found[vector], expected, atol=1e-5)


@pytest.mark.slow
def test_what_is_not_stored_is_named_at_the_start_and_in_the_readme(extract: DRAWN, tmp_path: Path) -> None:
    with pytest.warns(planning.SlotsNotStored, match=r"output slots not stored: list \[16, 4\]"):
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
    assert "Outputs that are not stored: output 1 (bool [1], not floating-point)." in words


@pytest.mark.slow
def test_run_keeps_its_default_products(extract: DRAWN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_file_of_one_image_that_normalises_by_the_batch_is_refused(extract: DRAWN, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4)).train()
    torch.jit.trace(module, torch.rand(1, 3, 32, 32), check_trace=False).save(tmp_path / "m.pt")
    theirs = spec.RuntimeModelSpec(
        model_id="theirs",
        display_name="Theirs",
        weights_path=str(tmp_path / "m.pt"),
        inputs=(spec.SlotSpec(name="image", shape=(3, 32, 32)),),
        outputs=(spec.SlotSpec(name="y", shape=(4, 4, 4)),),
        batch_mode=spec.BatchModeSpec(fixed=1),
    )
    (tmp_path / "m.json").write_text(theirs.to_json())
    with pytest.raises(errors.InputError, match=r"'theirs' normalises by the statistics of each batch.*eval"):
        extract(model=str(tmp_path / "m.json"), weights=None, image_size=None, trust=True, batch_size=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("product", "told"), [("v=global_avg_pool", True), ("v=coarse:global_avg_pool", False)])
def test_a_product_without_a_slot_is_of_the_first_and_says_so(
    extract: Callable[..., driver.Result], tmp_path: Path, product: str, told: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extract(model="tiny_models:two_maps", products=(product,))
    said = [str(each.message) for each in caught if issubclass(each.category, planning.FirstSlotTaken)]
    slots = [slot.name for slot in spec.load_spec(tmp_path / "run" / "model_spec.json").outputs]
    words = f"v: uses output slot {slots[0]!r}, the first of {', '.join(slots)}: select another with NAME=SLOT:MODULE"
    assert said == [words] * told


@pytest.mark.slow
def test_points_default_to_cells(extract: DRAWN, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`spatial_point` alone, as the default probes; a run that recorded the word alone goes on with what it meant."""
    rows = [f"{path.name},tip,{7 + 5 * at},{40 - 3 * at}" for at, path in enumerate(sorted(photos.iterdir()))]
    (tmp_path / "points.csv").write_text("\n".join(["image,point,x,y", *rows]))
    given = {"points": str(tmp_path / "points.csv"), "products": ("a=spatial_point", "b=spatial_point(cell)")}
    extract(**given)
    found = stored(tmp_path / "run")
    np.testing.assert_array_equal(found["a"], found["b"])
    with monkeypatch.context() as before:
        before.setattr(products, "_AS_RECORDED", {})
        assert not extract(**given, out=str(tmp_path / "before")).failures
    assert not np.array_equal(stored(tmp_path / "before")["a"], found["a"])
    assert extract(**given, out=str(tmp_path / "before")).asked == 0
