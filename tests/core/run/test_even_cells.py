"""Files that do not show their strides: cells that divide the image by accident are noticed."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genenc_core import errors
from genenc_core.encoding.cells import Cells
from genenc_core.run import map_cells, model_export
from genenc_core.run.folder import RunFolder

NETS: dict[str, Callable[[], nn.Module]] = {
    "valid, stride 2": lambda: nn.Conv2d(3, 5, 34, 2),  # 16 cells of 64 pixels, every 2 pixels
    "valid, three layers": lambda: nn.Sequential(nn.Conv2d(3, 5, 18, 1), nn.ReLU(), nn.Conv2d(5, 5, 17, 2)),
    "patches": lambda: nn.Conv2d(3, 5, 4, 4),
    "padded, coarse": lambda: nn.Sequential(nn.Conv2d(3, 5, 7, 4, 3), nn.ReLU(), nn.Conv2d(5, 5, 3, 4, 1)),
}


TURNED = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, *_ = how.partition("_per_pixel")
        self.full = how != self.how
        self.conv = nn.Conv2d(3, 5, 3, 1, 1) if self.full else nn.Conv2d(3, 5, 8, 8)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
    def forward(self, images):
        maps = self.conv(images)
        if self.how == "mirrored": return self.conv(images.flip(3))
        if self.how == "upside_down": return maps.flip(2)
        if self.how == "transposed": return maps.transpose(2, 3)
        if self.how == "turned": return maps.rot90(1, (2, 3))
        if self.how == "shifted": return maps.roll(3, 3)
        if self.how == "shifted_by_one": return maps.roll(1, 3)
        if self.how == "shifted_back": return maps.roll(-2, 2)
        if self.how == "regrouped": return maps.flatten(2).transpose(1, 2).reshape(maps.shape)
        if self.how == "written_over":
            maps[..., 3:] = maps[..., :-3].clone()
            return maps
        if self.full: return torch.sort(maps, dim=1).values
        if self.how == "in_another_order": return maps[:, :, [7, 6, 5, 4, 3, 2, 1, 0]]
        if self.how == "of_tokens": return maps.flatten(2).transpose(1, 2).reshape(-1, 8, 8, 5).permute(0, 3, 2, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        if self.how == "right": return torch.sort(tokens.transpose(1, 2).reshape(-1, 5, 8, 8), dim=1).values
        return maps + maps.flip(3).mean((2, 3), keepdim=True)
def __getattr__(name):
    return lambda: Net(name)
"""


HOW = (
    *("mirrored", "upside_down", "transposed", "turned", "shifted", "shifted_by_one", "shifted_back"),
    *("regrouped", "written_over", "in_another_order", "of_tokens", "right", "mean"),
    *(f"{how}_per_pixel" for how in ("mirrored", "turned", "shifted", "shifted_by_one", "shifted_back", "right")),
)
HIDDEN = ("mirrored", "transposed", "shifted", "regrouped", "right", "mean", "shifted_by_one_per_pixel")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where"), [*((how, "code") for how in HOW), *((how, "onnx") for how in (*HIDDEN, "right_per_pixel"))]
)
def test_maps_that_do_not_lie_as_the_image_are_refused_with_points(
    extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, where: str
) -> None:
    (tmp_path / "turned_nets.py").write_text(TURNED)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    given = {"model": f"turned_nets:{how}", "image_size": "64", "points": str(tmp_path / "points.csv")}
    if where == "onnx":
        net = importlib.import_module("turned_nets").Net(how).eval()
        batch = {0: torch.export.Dim("batch", min=1, max=32)}
        program = torch.export.export(net, (torch.rand(2, 3, 64, 64),), dynamic_shapes=(batch,))
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "m.onnx")
        given |= {"model": "general_encoder", "weights": str(tmp_path / "m.onnx"), "trust": True}
    if how in ("right", "mean", "right_per_pixel"):
        extract(**given)
        return
    with pytest.raises(errors.InputError, match="is mirrored, rotated, shifted or reordered"):
        extract(**given)
    assert not (tmp_path / "run").exists()


PLACED: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "halved four times": (lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4))), (128, 96)),
    "first of each block": (lambda: nn.Sequential(*(nn.Conv2d(3, 3, 1, 2) for _ in range(3))), (64, 64)),
    "padded behind": (
        lambda: nn.Sequential(
            *(part for _ in range(2) for part in (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 3, 3, 2)))
        ),
        (64, 48),
    ),
    "large kernel, one channel": (lambda: nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.Conv2d(5, 1, 31, 1, 15)), (96, 96)),
    "large kernel per pixel": (lambda: nn.Conv2d(3, 1, 7, 1, 3), (45, 31)),
    "enlarged": (
        lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4)), nn.Upsample((64, 96), mode="bilinear")),
        (64, 96),
    ),
    "enlarged, odd": (
        lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(2)), nn.Upsample((63, 95), mode="nearest")),
        (63, 95),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 2, 1), nn.ConvTranspose2d(3, 1, 4, 4)),
        (64, 64),
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", PLACED)
def test_maps_of_strides_and_kernels_are_not_taken_for_shifted(name: str, seed: int) -> None:
    """Also where nothing is known but what the model computes."""
    torch.manual_seed(seed)
    made, size = PLACED[name]
    net = made().eval()

    def seen_elsewhere(turn: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        def compute(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return turn(net(images))[0].double()

        return map_cells._is_elsewhere(compute, map_cells._Changes(compute, size, 3), size)

    assert not seen_elsewhere(lambda maps: maps)
    if name == "large kernel, one channel":  # every cell sees all pixels alike
        return
    assert seen_elsewhere(lambda maps: maps.roll(maps.shape[3] // 3, 3))
    assert seen_elsewhere(lambda maps: maps.flip(2))
    if name in ("first of each block", "large kernel per pixel"):  # the others are known to about a cell only
        assert seen_elsewhere(lambda maps: maps.roll(1, 2))
        assert seen_elsewhere(lambda maps: maps.roll(-2, 3))


@pytest.mark.parametrize(
    ("side", "cells", "stride"),
    [
        *((32 * cells, cells, 32) for cells in (2, 3, 7, 12, 20)),
        *((16 * cells, cells, 16) for cells in (2, 14, 32)),
        *((8 * cells, cells, 8) for cells in (2, 28)),
        *((14 * cells, cells, 14) for cells in (8, 16, 37)),
        (64, 1, 64),
        # A map of an input that its stride does not divide, and that as many cells would divide.
        *((side, cells, 32) for side, cells in ((360, 12), (240, 8), (270, 9), (300, 10), (180, 6))),
    ],
)
def test_the_stride_of_a_map_rounded_up(side: int, cells: int, stride: int) -> None:
    assert side % cells == 0
    assert map_cells._ceiled_stride(side, cells) == stride


@pytest.mark.slow
def test_a_file_whose_last_cells_may_lie_beyond_the_edge_is_refused(
    extract: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(5))).eval()
    program = torch.onnx.export(net, (torch.zeros(1, 3, 240, 64),), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "m.onnx")
    given = {"model": "general_encoder", "weights": str(tmp_path / "m.onnx"), "image_size": "240x64", "trust": True}
    points = tmp_path / "points.csv"
    points.write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    with pytest.raises(errors.InputError, match=r"every 30 x 32 pixels, or every 32 x 32 .* 224x64 or 256x64"):
        extract(**given, batch_size=1, points=str(points))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_cells_closer_than_they_seem_are_refused_with_points(
    extract: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
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
        with pytest.raises(errors.InputError, match="the cells are closer than 4 x 4 pixels"):
            extract(**given, points=str(tmp_path / "points.csv"))
        return
    extract(**given, points=str(tmp_path / "points.csv"))


FOLLOWED = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, crop):
        super().__init__()
        torch.manual_seed(0)
        self.crop = crop
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 5, 4, 2), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(3, 1, 1), nn.GroupNorm(2, 6),
            nn.Conv2d(6, 6, 3, 2, 1, groups=3), nn.SiLU(), nn.ConvTranspose2d(6, 4, 2, 2), nn.AvgPool2d(2, 2),
        )
    def forward(self, images):
        return self.body(images[:, :, 16:80, 16:80] if self.crop else images)
def net(): return Net(False)
def cropping(): return Net(True)
"""


def write_file(net: nn.Module, form: str, size: tuple[int, int], path: Path) -> None:
    images = torch.rand(2, 3, *size)
    if form == "scripted":
        torch.jit.save(torch.jit.script(net), path)
    elif form == "traced":
        torch.jit.save(torch.jit.trace(net, images), path)
    else:
        program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=32)},))
        if form == "exported":
            torch.export.save(program, path)
        else:
            torch.onnx.export(program, dynamo=True, verbose=False).save(path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["scripted", "traced", "exported", "onnx"])
@pytest.mark.parametrize("name", ["net", "cropping"])
def test_cells_are_followed_through_model_files(
    extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, name: str
) -> None:
    """They are those of the code, or the file is refused where nothing shows them."""
    (tmp_path / "followed_nets.py").write_text(FOLLOWED)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    given = {"image_size": "96", "points": str(tmp_path / "points.csv")}
    extract(model=f"followed_nets:{name}", out=str(tmp_path / "code"), **given)
    suffix = {"exported": "pt2", "onnx": "onnx"}.get(form, "pt")
    net = getattr(importlib.import_module("followed_nets"), name)().eval()
    write_file(net, form, (96, 96), tmp_path / f"m.{suffix}")
    given |= {"model": "general_encoder", "weights": str(tmp_path / f"m.{suffix}"), "trust": True}
    if (form, name) == ("onnx", "cropping"):
        with pytest.raises(errors.InputError, match=r"crops the image itself.*--fit crop"):
            extract(**given)
        return
    extract(**given)
    ((of_code,), (of_file,)) = (RunFolder(tmp_path / out).cells.values() for out in ("code", "run"))
    if form != "onnx":
        assert of_file == of_code
    even = Cells.regular((12, 12) if name == "net" else (8, 8), (96, 96))
    assert of_code != even, "the code's are no even ones, which a file falls back to"


@pytest.mark.slow
def test_onnx_keeps_models_cells(extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "followed_nets.py").write_text(FOLLOWED)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    points = str(tmp_path / "points.csv")
    extract(model="followed_nets:net", image_size="96", points=points, out=str(tmp_path / "code"))
    given = {"model": "followed_nets:net", "weights": "random:0", "image_size": "96", "out": str(tmp_path / "model")}
    (done,) = model_export.export(
        model_export.ExportParameters(**given, formats=("onnx",), dynamic_size=True, size_min="64", size_max="128")
    )
    given = {"model": str(done.spec_path), "weights": None, "points": points}
    extract(**given, image_size="96")
    of_code, of_file = (RunFolder(tmp_path / out).cells for out in ("code", "run"))
    assert of_file == of_code
    with pytest.raises(errors.InputError, match=r"known only for images of 96 x 96 pixels.*--image-size 64x64"):
        extract(**given, image_size="64", out=str(tmp_path / "small"))


def test_recorded_cells_are_kept(extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions placed the cells of some maps a little differently."""
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    before = Cells(stride=(4.089, 4.0), first=(2.0, 2.0))
    with monkeypatch.context() as patch:
        patch.setattr(map_cells, "find", lambda *_: {"features": before})
        extract(points=str(tmp_path / "points.csv"))
    assert extract(points=str(tmp_path / "points.csv")).asked == 0
    assert RunFolder(tmp_path / "run").cells == {"features": before}


PER_PIXEL = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.skip = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1)
    def forward(self, images):
        deep = self.down(self.skip(images).repeat(1, 1, 1, 1)[:, :3])
        return nn.functional.interpolate(deep, size=images.shape[-2:], mode="bilinear")
def net():
    return Net()
"""


@pytest.mark.slow
def test_an_output_of_the_inputs_size_has_a_value_per_pixel(
    extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was made of a coarser map whose sides were rounded up."""
    (tmp_path / "per_pixel_nets.py").write_text(PER_PIXEL)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    extract(model="per_pixel_nets:net", image_size="33x47", points=str(tmp_path / "points.csv"))
    (cells,) = RunFolder(tmp_path / "run").cells.values()
    assert (cells.stride, cells.first) == ((1, 1), (0.5, 0.5))


@pytest.mark.slow
def test_a_stored_map_has_its_cells_recorded_and_shown(extract: Callable[..., Any], tmp_path: Path) -> None:
    """Its height is no multiple of the stride, so that its shape does not tell where its cells lie."""
    extract(model="resnet18", weights="random:0", image_size="100x64", maps=True)
    (cells,) = RunFolder(tmp_path / "run").cells.values()
    assert (cells.stride, cells.first) == ((32, 32), (16, 16))
    extract(model="resnet18", weights="random:0", image_size="100x64", out=str(tmp_path / "vectors"))
    assert RunFolder(tmp_path / "vectors").cells == {}
