"""genenc's own encoders through the pipeline: exported, and extracted with points, one of each family."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import pictures
import sam_reference
import tiny_sam
from genenc_core.export import exporter
from genenc_core.images.decode import decode, geometry
from genenc_core.models import resolve
from genenc_core.models.zoo import sam
from genenc_core.run import driver
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.runtime import backends

SIZES = ((80, 60), (50, 70))
POINT = (0.6, 0.3)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every SAM a small one of the same structure."""
    monkeypatch.setattr(sam, "construct", tiny_sam.construct)


def extracted(tmp_path: Path, name: str, size: str, products: tuple[str, ...]) -> zarr.Group:
    """Extract three images with one point each, in batches of 2; return the store."""
    photos = pictures.write_folder(tmp_path / "photos", 3, sizes=SIZES)
    with (tmp_path / "points.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "point", "x", "y"))
        for index in range(3):
            width, height = SIZES[index % 2]
            rows.writerow((f"img_{index:03d}.png", "tip", POINT[0] * width, POINT[1] * height))
    given = ExtractParameters(
        images=str(photos),
        model=name,
        weights="random:0",
        image_size=size,
        fit="stretch",
        points=str(tmp_path / "points.csv"),
        products=products,
        out=str(tmp_path / "run"),
        batch_size=2,
        shard_rows=2,
        device="cpu",
    )
    assert driver.extract(given).status.complete
    return zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")


def expected(tmp_path: Path, name: str, size: tuple[int, int]) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return, per image and slot, the mean vector and the one at the point, straight from the model."""
    built = resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))
    found = []
    for index in range(3):
        width, height = SIZES[index % 2]
        pixels = decode.decode_image((tmp_path / "photos" / f"img_{index:03d}.png").read_bytes()).pixels
        stretched = built.preprocessing.model_copy(update={"fit": "stretch"})
        plan = geometry.plan_fit(height, width, stretched)
        image = geometry.apply_fit(pixels, plan, stretched)[None].float() / 255
        with torch.inference_mode():
            maps = built.module(image)
        at = {}
        for slot, values in zip(built.outputs, maps, strict=True):
            x = (POINT[0] * width * plan.affine.scale_x + plan.affine.offset_x) * values.shape[3] / size[1]
            y = (POINT[1] * height * plan.affine.scale_y + plan.affine.offset_y) * values.shape[2] / size[0]
            cell = values[0, :, min(int(y + 0.5), values.shape[2] - 1), min(int(x + 0.5), values.shape[3] - 1)]
            at[slot.name] = (values.mean((2, 3))[0].numpy(), cell.numpy())
        found.append(at)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "size", "slots"),
    [
        ("samvit_base", (64, 64), ("features",)),
        ("deepseek_sam", (192, 128), ("features",)),
        ("cspdarknet53_maps", (64, 96), ("p3", "p4", "p5")),
        ("darknet53_fpn", (64, 64), ("p3", "p4", "p5")),
        ("yolov3_tiny", (64, 96), ("p4", "p5", "head_p4", "head_p5")),
    ],
)
def test_every_slot_comes_from_a_pass(tmp_path: Path, name: str, size: tuple[int, int], slots: tuple[str, ...]) -> None:
    wanted = [f"{slot}_mean={slot}:global_avg_pool" for slot in slots]
    wanted += [f"{slot}_tip={slot}:spatial_point(nearest)" for slot in slots]
    store = extracted(tmp_path, name, f"{size[0]}x{size[1]}", tuple(wanted))
    for index, at in enumerate(expected(tmp_path, name, size)):
        assert tuple(at) == slots
        for slot, (mean, tip) in at.items():
            scale = abs(tip).max()
            assert scale > 0
            np.testing.assert_allclose(store[f"{slot}_mean"][index], mean, atol=1e-5 * scale, rtol=1e-4)
            np.testing.assert_allclose(store[f"{slot}_tip"][index, 0], tip, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("samvit_base", (240, 256)),
        ("deepseek_sam", (240, 256)),
        ("cspdarknet53_maps", (64, 96)),
        ("darknet53_fpn", (64, 64)),
        ("yolov3_tiny", (64, 96)),
    ],
)
def test_every_family_is_exported(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    built = resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))
    (done,) = exporter.export_encoder(built, out=tmp_path, formats=["torchscript"], batch_max=3)
    encoder = backends.load_encoder(done.spec, device="cpu")
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        eager = built.module(images)
    for (_, found), own in zip(encoder(images).items(), eager, strict=True):
        torch.testing.assert_close(found, own, rtol=0, atol=1e-5 * own.abs().max().item())
    assert done.spec.genenc is not None
    assert done.spec.genenc.source is not None
    assert (done.spec.genenc.source.kind, done.spec.genenc.source.name) == ("genenc", name)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_is_kept_in_the_run_and_the_run_goes_on_without_the_file(tmp_path: Path) -> None:
    """Shard tasks and resumptions read the copy in the run folder, under the names of the wild as well."""
    state = tiny_sam.random_state(tiny_sam.construct("", None, name=""), seed=3)
    file = tmp_path / "sam_vit_b.pth"
    torch.save({f"image_encoder.{name}": tensor for name, tensor in state.items()}, file)
    photos = pictures.write_folder(tmp_path / "photos", 4)
    given = ExtractParameters(
        images=str(photos),
        model="samvit_base",
        weights=str(file),
        image_size="64",
        out=str(tmp_path / "run"),
        batch_size=1,
        shard_rows=2,
        device="cpu",
    )
    driver.extract(given)
    file.unlink()
    (record,) = (tmp_path / "run" / "_txn" / "commits").glob("*1.json")
    record.unlink()
    from genenc_core.run import model_cache

    model_cache.CACHE.clear()
    assert driver.resume(RunFolder(tmp_path / "run"), "pending").status.complete


@pytest.mark.usefixtures("tiny")
def test_sam_sees_bars_of_zero_as_in_segment_anything() -> None:
    """The pixels of the pipeline, bytes with rounded bars, give what normalising and then padding with 0 gives."""
    encoder = resolve.build_encoder(resolve.ModelRequest(name="samvit_base", weights="random:0", image_size=(128, 128)))
    pixels = torch.from_numpy(pictures.texture(80, 50, 0).copy()).permute(2, 0, 1)
    plan = geometry.plan_fit(50, 80, encoder.preprocessing)
    fitted = geometry.apply_fit(pixels, plan, encoder.preprocessing)
    mean, std = (torch.tensor(values)[:, None, None] for values in (sam.MEAN, sam.STD))
    visible = fitted[:, : plan.resized[0], : plan.resized[1]].float() / 255
    padded = torch.zeros(1, 3, 128, 128)
    padded[0, :, : plan.resized[0], : plan.resized[1]] = (visible - mean) / std
    model = encoder.module.trunk.model
    state = {name.replace("mlp.fc", "mlp.lin"): tensor for name, tensor in model.state_dict().items()}
    exact = sam_reference.encode(state, padded, heads=tiny_sam.HEADS, global_blocks=tiny_sam.GLOBAL_BLOCKS)
    with torch.inference_mode():
        (found,) = encoder.module(fitted[None].float() / 255)
    assert plan.resized[0] < 128
    assert (found - exact).abs().max() <= 5e-5


@pytest.mark.slow
def test_an_image_larger_than_the_input_is_letterboxed_in_the_middle(tmp_path: Path) -> None:
    Image.fromarray(pictures.texture(400, 100, 0)).save(tmp_path / "wide.png")
    built = resolve.build_encoder(resolve.ModelRequest(name="yolov3_tiny", weights="random:0", image_size=(64, 64)))
    plan = geometry.plan_fit(100, 400, built.preprocessing)
    assert (plan.resized, plan.pad_top, plan.pad_left) == ((16, 64), 24, 0)
