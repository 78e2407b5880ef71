"""YOLOv3-tiny: layer sizes, numbers layer by layer from Darknet's own file, and files that do not fit."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from genenc_core import errors
from genenc_core.models import resolve
from genenc_core.models.zoo import yolo_tiny

# Layer, kernel, channels in and out, in the order of the configuration; the two heads have no batch normalisation.
LAYERS = [
    (0, 3, 3, 16),
    (2, 3, 16, 32),
    (4, 3, 32, 64),
    (6, 3, 64, 128),
    (8, 3, 128, 256),
    (10, 3, 256, 512),
    (12, 3, 512, 1024),
    (13, 1, 1024, 256),
    (14, 3, 256, 512),
    (15, 1, 512, 255),
    (18, 1, 256, 128),
    (21, 3, 384, 256),
    (22, 1, 256, 255),
]
HEADS = (15, 22)


def built(size: tuple[int, int] | None = None, given: str = "random:0") -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name="yolov3_tiny", weights=given, image_size=size))


def darknet_file(path: Path, *, version: tuple[int, int] = (0, 2)) -> dict[int, dict[str, np.ndarray]]:
    """Write random weights as Darknet does; return them by layer."""
    generator = np.random.default_rng(2)
    drawn: dict[int, dict[str, np.ndarray]] = {}
    with path.open("wb") as file:
        file.write(struct.pack("<3i", *version, 0) + (b"\0" * 8 if version >= (0, 2) else b"\0" * 4))
        for layer, kernel, given, made in LAYERS:
            parts = {"bias": generator.normal(0, 0.1, made)}
            if layer not in HEADS:
                parts["scale"] = generator.uniform(0.5, 1.5, made)
                parts["mean"] = generator.normal(0, 0.1, made)
                parts["variance"] = generator.uniform(0.5, 1.5, made)
            parts["kernel"] = generator.normal(0, (2 / (given * kernel**2)) ** 0.5, (made, given, kernel, kernel))
            drawn[layer] = {name: values.astype("<f4") for name, values in parts.items()}
            for values in drawn[layer].values():
                file.write(values.tobytes())
    return drawn


def test_slots_at_yolos_size() -> None:
    encoder = built()
    assert {slot.name: slot.shape for slot in encoder.outputs} == {
        "p4": (256, 26, 26),
        "p5": (1024, 13, 13),
        "head_p4": (255, 26, 26),
        "head_p5": (255, 13, 13),
    }
    assert (
        encoder.preprocessing.describe() == "pad to 416 x 416 (center, bars [128, 128, 128]), bilinear, not antialiased"
    )
    assert (encoder.mean, encoder.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_layer_sizes_match_the_configuration() -> None:
    model = yolo_tiny.YoloTiny().eval()
    sizes: dict[str, tuple[int, ...]] = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _m, _i, out, name=name: sizes.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 416, 416))
    sides = {0: 416, 2: 208, 4: 104, 6: 52, 8: 26, 10: 13, 12: 13, 13: 13, 14: 13, 15: 13, 18: 13, 21: 26, 22: 26}
    assert sizes == {f"layer_{layer}": (made, sides[layer], sides[layer]) for layer, _, _, made in LAYERS}


@pytest.mark.slow
def test_darknet_file_gives_darknet_outputs(tmp_path: Path) -> None:
    drawn = darknet_file(tmp_path / "yolov3-tiny.weights")
    assert (tmp_path / "yolov3-tiny.weights").stat().st_size == 35_434_956  # the published file's size
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = dict(
            zip(
                ("p4", "p5", "head_p4", "head_p5"),
                built((96, 64), str(tmp_path / "yolov3-tiny.weights")).module(images),
                strict=True,
            )
        )
    expected = forward(drawn, images.numpy().astype(np.float64))
    for name, values in expected.items():
        assert values.std() > 0.1
        np.testing.assert_allclose(found[name].numpy(), values, atol=1e-4 * abs(values).max())


def forward(drawn: dict[int, dict[str, np.ndarray]], images: np.ndarray) -> dict[str, np.ndarray]:
    """Run the configuration, layer by layer, in float64."""

    def convolved(layer: int, maps: np.ndarray) -> np.ndarray:
        part = {
            name: values.astype(np.float64)[:, None, None] for name, values in drawn[layer].items() if name != "kernel"
        }
        kernel = torch.from_numpy(drawn[layer]["kernel"].astype(np.float64))
        made = functional.conv2d(torch.from_numpy(maps), kernel, padding=kernel.shape[-1] // 2).numpy()
        if layer in HEADS:
            return made + part["bias"]
        made = (made - part["mean"]) / np.sqrt(part["variance"] + 1e-5) * part["scale"] + part["bias"]
        return np.where(made > 0, made, 0.1 * made)

    def pooled(maps: np.ndarray) -> np.ndarray:
        batch, channels, height, width = maps.shape
        return maps.reshape(batch, channels, height // 2, 2, width // 2, 2).max((3, 5))

    maps = convolved(0, images)
    for layer in (2, 4, 6, 8):
        maps = convolved(layer, pooled(maps))
    fine = maps
    maps = convolved(10, pooled(fine))
    # Pool of 2 with stride 1: each cell, the next right, below, and both; the last row and column have fewer.
    wide = np.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    maps = np.max([wide[:, :, y : y + maps.shape[2], x : x + maps.shape[3]] for y in (0, 1) for x in (0, 1)], axis=0)
    coarse = convolved(12, maps)
    shared = convolved(13, coarse)
    raised = convolved(18, shared).repeat(2, 2).repeat(2, 3)
    return {
        "p4": fine,
        "p5": coarse,
        "head_p4": convolved(22, convolved(21, np.concatenate([raised, fine], 1))),
        "head_p5": convolved(15, convolved(14, shared)),
    }


@pytest.mark.slow
def test_old_darknet_header_is_read(tmp_path: Path) -> None:
    darknet_file(tmp_path / "new.weights")
    darknet_file(tmp_path / "old.weights", version=(0, 1))
    new, old = (built((32, 32), str(tmp_path / f"{name}.weights")) for name in ("new", "old"))
    assert new.weights_sha256 == old.weights_sha256


@pytest.mark.slow
def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    darknet_file(tmp_path / "tiny.weights")
    data = (tmp_path / "tiny.weights").read_bytes()
    for name, content in (("short", data[:-4]), ("long", data + b"\0" * 4), ("empty", b""), ("text", b"hello")):
        path = tmp_path / f"{name}.weights"
        path.write_bytes(content)
        with pytest.raises(errors.InputError, match=r"Darknet file"):
            built((32, 32), str(path))


def test_a_state_dict_loads_too(tmp_path: Path) -> None:
    torch.save(built((32, 32), "random:3").module.trunk.state_dict(), tmp_path / "tiny.pth")
    assert built((32, 32), str(tmp_path / "tiny.pth")).weights_sha256 == built((32, 32), "random:3").weights_sha256


def test_sides_must_be_multiples_of_32() -> None:
    with pytest.raises(errors.InputError, match="does not accept 416 x 400 pixels: each side must be a multiple of 32"):
        built((416, 400))


def test_pretrained_is_refused() -> None:
    with pytest.raises(errors.InputError, match=r"yolov3-tiny\.weights"):
        built(given="pretrained")
