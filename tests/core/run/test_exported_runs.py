"""Runs on artifacts: every format, variants and sizes; the run folder alone is enough, and it means what it says."""

import functools
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

import tiny_models
from genenc_core import errors, spec
from genenc_core.encoding import cancellation
from genenc_core.run import driver, model_cache, model_export
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes

Extract = Callable[..., driver.Result]

FORMATS = ("torchscript", "exported_program", "onnx")


def features(root: Path) -> np.ndarray:
    return zarr.open_group(root / "features.zarr", mode="r")["features"][:]


_EXPORTS = tempfile.TemporaryDirectory(prefix="genenc-test-exports-")


def export(out: Path, *, afresh: bool = False, **changes: object) -> list[Path]:
    """Export the tiny model that `extract` runs; return the specs of a copy, unless it is to be made afresh."""
    values = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32"}
    values |= {"batch_max": 4} if "variants" not in changes else {}
    if afresh:
        done = model_export.export(model_export.ExportParameters(**{**values, **changes}, out=str(out)))
        return [item.spec_path for item in done]
    made = exported(**{**values, **changes})
    shutil.copytree(made[0].parent, out)
    return [out / path.name for path in made]


@functools.cache
def exported(**values: object) -> list[Path]:
    """Export once for all tests; return the specs."""
    return export(Path(tempfile.mkdtemp(dir=_EXPORTS.name)) / "made", afresh=True, **values)


def from_spec(path: Path, **changes: object) -> dict[str, object]:
    return {"model": str(path), "weights": None, "image_size": None, **changes}


def stopped_at_once(extract: Extract, **changes: object) -> None:
    """Make a run, and stop it after its first rows."""
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(**changes)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_every_format_stores_the_eager_models_features(extract: Extract, tmp_path: Path) -> None:
    extract(out=str(tmp_path / "eager"))
    for path, kind in zip(export(tmp_path / "m", formats=FORMATS), FORMATS, strict=True):
        extract(**from_spec(path, out=str(tmp_path / kind)))
        assert RunFolder(tmp_path / kind).backend == kind
        close(features(tmp_path / kind), features(tmp_path / "eager"))


@pytest.mark.slow
def test_a_named_model_runs_in_every_format_without_a_spec(extract: Extract, tmp_path: Path) -> None:
    extract(out=str(tmp_path / "eager"))
    extract(out=str(tmp_path / "onnx"), backend="onnx")
    close(features(tmp_path / "onnx"), features(tmp_path / "eager"))
    assert [path.suffix for path in (tmp_path / "onnx" / "model").iterdir()] == [".onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_variants_store_the_same_features_for_any_batch(extract: Extract, tmp_path: Path, batch_size: object) -> None:
    extract(out=str(tmp_path / "eager"))
    (path,) = export(tmp_path / "m", variants=(2, 3))
    extract(**from_spec(path, batch_size=batch_size))
    close(features(tmp_path / "run"), features(tmp_path / "eager"))


@pytest.mark.slow
def test_a_run_with_variants_goes_on_from_its_folder_alone(extract: Extract, tmp_path: Path) -> None:
    (path,) = export(tmp_path / "m", variants=(1, 2))
    extract(**from_spec(path, out=str(tmp_path / "whole"), batch_size=2))
    stopped_at_once(extract, **from_spec(path, batch_size=2))
    shutil.rmtree(tmp_path / "m")
    model_cache.CACHE.clear()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert sorted(item.name for item in (moved / "model").iterdir()) == [
        "tiny_models_conv_torchscript_b1.pt",
        "tiny_models_conv_torchscript_b2.pt",
    ]
    assert driver.resume(RunFolder(moved), "pending", Changes(device="cpu")).status.complete
    assert np.array_equal(features(moved), features(tmp_path / "whole"))


def test_variants_of_the_same_name_in_other_folders_are_kept_apart(extract: Extract, tmp_path: Path) -> None:
    (path,) = export(tmp_path / "m", variants=(1, 2))
    given = spec.RuntimeModelSpec.from_json(path.read_text())
    moved = []
    for item in given.weights_variants:
        target = tmp_path / "m" / str(item.batch_size) / "model.pt"
        target.parent.mkdir()
        (tmp_path / "m" / item.path).rename(target)
        moved.append(item.model_copy(update={"path": f"{item.batch_size}/model.pt"}))
    path.write_text(given.model_copy(update={"weights_variants": tuple(moved)}).to_json())
    extract(**from_spec(path, batch_size=2))
    assert sorted(item.name for item in (tmp_path / "run" / "model").iterdir()) == ["b1_model.pt", "b2_model.pt"]


@pytest.mark.slow
def test_another_file_for_one_variant_is_another_run(extract: Extract, tmp_path: Path) -> None:
    """Foreign specs record no digest, so only the run's identity can tell."""
    (path,) = export(tmp_path / "m", variants=(1, 2))
    given = spec.RuntimeModelSpec.from_json(path.read_text())
    path.write_text(given.model_copy(update={"genenc": None}).to_json())
    extract(**from_spec(path, trust=True, batch_size=2))
    assert extract(**from_spec(path, trust=True, batch_size=2)).asked == 0
    (other,) = export(tmp_path / "other", variants=(1, 2), weights="random:1")
    shutil.copy(other.parent / "tiny_models_conv_torchscript_b2.pt", path.parent)
    with pytest.raises(errors.StoreError, match="holds another run"):
        extract(**from_spec(path, trust=True, batch_size=2))


@pytest.mark.slow
def test_a_changed_file_in_the_run_folder_encodes_nothing(extract: Extract, tmp_path: Path) -> None:
    """With --trust the spec records no digest, and rows of two models would lie in one array."""
    (path,) = export(tmp_path / "m", variants=(1, 2))
    (other,) = export(tmp_path / "other", variants=(1, 2), weights="random:1")
    given = spec.RuntimeModelSpec.from_json(path.read_text())
    path.write_text(given.model_copy(update={"genenc": None}).to_json())
    stopped_at_once(extract, **from_spec(path, trust=True, batch_size=2))
    name = "tiny_models_conv_torchscript_b2.pt"
    shutil.copy(other.parent / name, tmp_path / "run" / "model")
    run = tmp_path / "run"
    with pytest.raises(errors.StoreError, match="not those this run was made with"):
        driver.resume(RunFolder(run), "pending", Changes(device="cpu"))
    shutil.copy(path.parent / name, run / "model")
    assert driver.resume(RunFolder(run), "pending", Changes(device="cpu")).status.complete


@pytest.mark.slow
def test_a_file_written_anew_is_loaded_anew_in_the_same_process(extract: Extract, tmp_path: Path) -> None:
    (path,) = export(tmp_path / "m")
    (other,) = export(tmp_path / "other", weights="random:1")
    given = spec.RuntimeModelSpec.from_json(path.read_text())
    block = given.genenc.model_copy(update={"artifact": None, "written_sha256": None})
    path.write_text(given.model_copy(update={"genenc": block}).to_json())
    extract(**from_spec(path, trust=True))
    first = features(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    name = "tiny_models_conv_torchscript.pt"
    shutil.copy(other.parent / name, path.parent / name)
    extract(**from_spec(path, trust=True))
    extract(out=str(tmp_path / "eager"), weights="random:1")
    close(features(tmp_path / "run"), features(tmp_path / "eager"))
    assert not np.allclose(features(tmp_path / "run"), first)


@pytest.mark.slow
def test_an_aotinductor_package_equals_the_eager_model(extract: Extract, tmp_path: Path) -> None:
    """A named model, compiled for the run, once; short last batches included. Its spec cannot claim another size."""
    model = {"model": "tiny_models:pooled", "out": str(tmp_path / "compiled"), "backend": "aotinductor"}
    extract(model="tiny_models:pooled", out=str(tmp_path / "eager"))
    assert extract(**model).asked == 3
    close(features(tmp_path / "compiled"), features(tmp_path / "eager"))
    assert extract(**model).asked == 0
    refuses_another_size(extract, tmp_path / "compiled" / "model_spec.json", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exported_program", "onnx"])
def test_a_spec_of_another_size_than_its_file_is_refused(extract: Extract, tmp_path: Path, kind: str) -> None:
    (path,) = export(tmp_path / "m", model="tiny_models:pooled", formats=(kind,), batch_max=2)
    refuses_another_size(extract, path, tmp_path)


def refuses_another_size(extract: Extract, path: Path, tmp_path: Path) -> None:
    """Its one output is a vector, whose shape gives nothing away; the file and its digest are untouched."""
    given = spec.RuntimeModelSpec.from_json(path.read_text())
    image = given.inputs[0].model_copy(update={"shape": (3, 64, 64)})
    size = given.genenc.preprocessing.model_copy(update={"height": 64, "width": 64})
    block = given.genenc.model_copy(update={"preprocessing": size, "written_sha256": None})
    path.write_text(given.model_copy(update={"inputs": (image,), "genenc": block}).to_json())
    with pytest.raises(errors.InputError, match="fails at a batch of 1 of 64 x 64 pixels"):
        extract(**from_spec(path))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    """A TorchScript file of somebody else's, which gives a map and a mask of whole numbers."""

    class Masked(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = nn.functional.avg_pool2d(images, 8)
            return maps, maps.argmax(1)

    path = tmp_path / "theirs.pt"
    torch.jit.trace(Masked(), torch.rand(2, 3, 32, 32)).save(path)
    return path


@pytest.mark.slow
def test_mean_and_std_of_an_artifact_are_part_of_the_run(extract: Extract, tmp_path: Path, scripted: Path) -> None:
    given = {"model": "general_encoder", "weights": str(scripted), "trust": True}
    extract(**given)
    extract(**given, out=str(tmp_path / "other"), mean="0.5,0.25,0", std="0.5,1,2")
    changed = (features(tmp_path / "run") - (0.5, 0.25, 0)) / (0.5, 1, 2)
    np.testing.assert_allclose(features(tmp_path / "other"), changed, rtol=1e-5, atol=1e-6)
    identity = RunFolder(tmp_path / "other").identity
    assert identity["normalization"] == {"mean": [0.5, 0.25, 0.0], "std": [0.5, 1.0, 2.0]}
    assert identity["output_positions"] == [0]
    assert not {"normalization", "input"} & set(RunFolder(tmp_path / "run").identity)
    kept = spec.load_spec(tmp_path / "other" / "model_spec.json").genenc
    assert (kept.mean, kept.normalization_inside) == ((0.5, 0.25, 0.0), False)
    assert extract(**given, out=str(tmp_path / "other"), mean="0.5,0.25,0", std="0.5,1,2").asked == 0
    with pytest.raises(errors.StoreError, match=r"another run.*normalization"):
        extract(**given, out=str(tmp_path / "other"), mean="imagenet")


@pytest.mark.parametrize("antialias", [None, True])
def test_foreign_file_antialiases(extract: Extract, tmp_path: Path, scripted: Path, antialias: bool | None) -> None:
    stripes = np.repeat(np.arange(80)[None] % 5 // 3, 60, axis=0).astype(np.uint8) * 255
    Image.fromarray(np.dstack([stripes] * 3)).save(tmp_path / "photos" / "img_000.png")
    given = {"model": "general_encoder", "weights": str(scripted), "trust": True, "products": ("maps=none",)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extract(**given, antialias=antialias)
    assert sum("add --antialias" in str(each.message) for each in caught) == (antialias is None)
    maps = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")["maps"][0]
    pixels = torch.from_numpy(stripes).expand(1, 3, -1, -1).float() / 255
    sized = nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=bool(antialias))
    np.testing.assert_allclose(maps, nn.functional.avg_pool2d(sized, 8)[0], atol=0.003)
    if antialias:
        with pytest.raises(errors.StoreError, match=r"another run.*antialias"):
            extract(**given)


def test_mean_and_std_are_for_artifacts_without_their_own(extract: Extract, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="is normalised as it declares"):
        extract(mean="imagenet")
    (path,) = export(tmp_path / "m")
    with pytest.raises(errors.InputError, match="declares its normalisation"):
        extract(**from_spec(path, mean="imagenet"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exported_program", "onnx"])
def test_a_range_that_the_file_does_not_have_is_refused(extract: Extract, tmp_path: Path, kind: str) -> None:
    (path,) = export(tmp_path / "m", formats=(kind,), batch_max=2)
    given = spec.RuntimeModelSpec.from_json(path.read_text())
    sizes = spec.SizeRange(min=(32, 32), max=(64, 64), multiple=32)
    block = given.genenc.model_copy(update={"dynamic_size": sizes, "written_sha256": None})
    path.write_text(given.model_copy(update={"genenc": block}).to_json())
    with pytest.raises(errors.InputError, match="fails for images of 64 x 64 pixels, which its spec allows"):
        extract(**from_spec(path, image_size="64"))


@pytest.mark.parametrize("key", ["mean", "std"])
def test_other_normalisation_is_another_run(extract: Extract, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Its name and weights stay as they are when its code changes."""
    make = tiny_models.conv
    extract()
    # Names are not built twice in a process.
    monkeypatch.setattr(model_cache, "CACHE", model_cache.EncoderCache())

    def changed() -> nn.Module:
        module = make()
        module.genenc = {key: (0.5, 0.5, 0.5)}
        return module

    monkeypatch.setattr(tiny_models, "conv", changed)
    with pytest.raises(errors.StoreError, match=f"holds another run.*{key}"):
        extract()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_another_size_of_the_range_is_the_eager_model_at_that_size(extract: Extract, tmp_path: Path, kind: str) -> None:
    (path,) = export(tmp_path / "m", formats=(kind,), dynamic_size=True)
    assert spec.load_spec(path).genenc.dynamic_size == spec.SizeRange(min=(16, 16), max=(64, 64), multiple=8)
    extract(out=str(tmp_path / "eager"), image_size="24x48", maps=True)
    extract(**from_spec(path, image_size="24x48", maps=True))
    close(features(tmp_path / "run"), features(tmp_path / "eager"))
    assert zarr.open_group(tmp_path / "run" / "features.zarr")["maps"].shape == (11, 6, 3, 6)
    kept = spec.load_spec(tmp_path / "run" / "model_spec.json")
    assert (kept.inputs[0].shape, kept.outputs[0].shape) == ((3, 24, 48), (6, 3, 6))
    assert extract(**from_spec(path, image_size="24x48", maps=True)).asked == 0
    with pytest.raises(errors.StoreError, match="another run"):
        extract(**from_spec(path, image_size="48x24", maps=True))


def test_a_size_outside_the_range_leaves_nothing(extract: Extract, tmp_path: Path) -> None:
    (path,) = export(tmp_path / "m", dynamic_size=True, size_min="24", size_max="40")
    with pytest.raises(errors.InputError, match="24 x 24 to 40 x 40 in steps of 8"):
        extract(**from_spec(path, image_size="48"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": (1, 2), "batch_max": 8}, "--variants writes one file per batch size"),
        ({"size_min": "16"}, "need --dynamic-size"),
        ({"dynamic_size": True, "size_min": "20"}, "multiples of 8"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        export(tmp_path / "m", afresh=True, **changes)
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_entry_of_a_weights_file_is_part_of_the_run(extract: Extract, tmp_path: Path) -> None:
    """A run from before it could be chosen goes on with the plain weights."""
    torch.manual_seed(3)
    plain = tiny_models.conv().state_dict()
    halved = {name: value / 2 for name, value in plain.items()}
    torch.save({"state_dict": plain, "state_dict_ema": halved}, tmp_path / "w.pth")
    extract(weights=str(tmp_path / "w.pth"))
    source = spec.load_spec(tmp_path / "run" / "model_spec.json").genenc.source
    assert source.weights_key == "state_dict_ema"
    assert extract(weights=str(tmp_path / "w.pth")).asked == 0
    with pytest.raises(errors.StoreError, match="another run"):
        extract(weights=str(tmp_path / "w.pth"), weights_key="plain")
    old = str(tmp_path / "old")
    extract(weights=str(tmp_path / "w.pth"), weights_key="plain", out=old)
    assert extract(weights=str(tmp_path / "w.pth"), out=old).asked == 0
    assert not np.allclose(features(tmp_path / "run"), features(tmp_path / "old"))


@pytest.mark.slow
def test_the_kept_spec_says_the_runs_own_fit_and_size(extract: Extract, tmp_path: Path) -> None:
    extract(fit="pad", image_size="48x32")
    kept = spec.load_spec(tmp_path / "run" / "model_spec.json")
    assert kept.genenc.preprocessing == RunFolder(tmp_path / "run").preprocessing
    assert (kept.genenc.preprocessing.fit, kept.inputs[0].shape) == ("pad", (3, 48, 32))
    (path,) = export(tmp_path / "m")
    extract(**from_spec(path, fit="pad", out=str(tmp_path / "artifact")))
    kept = spec.load_spec(tmp_path / "artifact" / "model_spec.json")
    assert kept.genenc.preprocessing == RunFolder(tmp_path / "artifact").preprocessing
    extract(canvas="64", image_size="32", out=str(tmp_path / "tiles"))
    tiled = spec.load_spec(tmp_path / "tiles" / "model_spec.json").genenc.preprocessing
    assert (tiled.height, tiled.width) == (32, 32)


EQUAL = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(3, 4, 8, 8)
    def forward(self, images):
        return {"zeta": self.one(images), "alpha": self.two(images)}
def net():
    return Net()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "exported_program", "onnx"])
def test_a_spec_of_ours_with_its_outputs_in_another_order_is_refused(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "equal_nets.py").write_text(EQUAL)
    monkeypatch.syspath_prepend(tmp_path)
    (path,) = export(tmp_path / "model", afresh=True, model="equal_nets:net", formats=(kind,), batch_max=3, trust=True)
    extract(**from_spec(path, limit=2))
    kept = tmp_path / "run/model_spec.json"
    assert extract(**from_spec(kept, limit=2, out=str(tmp_path / "again"))).status.complete
    for place in (path, kept):
        content = json.loads(place.read_text())
        content["outputs"].reverse()
        place.write_text(json.dumps(content))
        with pytest.raises(errors.SpecError, match="outputs edited after genenc wrote the spec"):
            extract(**from_spec(place, limit=2, out=str(tmp_path / "edited")))
    assert not (tmp_path / "edited").exists()


@pytest.mark.slow
def test_edited_onnx_spec_keeps_its_slots(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "equal_nets.py").write_text(EQUAL)
    monkeypatch.syspath_prepend(tmp_path)
    (path,) = export(tmp_path / "model", afresh=True, model="equal_nets:net", formats=("onnx",), trust=True)
    content = json.loads(path.read_text())
    extract(model=str(path), out=str(tmp_path / "right"), weights=None, image_size=None)
    content["outputs"].reverse()
    del content["genenc"]["written_sha256"]
    path.write_text(json.dumps(content))
    extract(model=str(path), out=str(tmp_path / "edited"), weights=None, image_size=None)
    right, edited = (zarr.open_group(tmp_path / name / "features.zarr", mode="r") for name in ("right", "edited"))
    for name in ("features_zeta", "features_alpha"):
        np.testing.assert_array_equal(edited[name][:], right[name][:])
    assert not np.allclose(right["features_zeta"][:], right["features_alpha"][:])
