"""Maps and lists of exported files whose channels stand elsewhere than in [B, C, h, w] and [B, N, C]."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from torch import nn

from genenc_core import errors, spec
from genenc_core.runtime import backends, general_encoder, output_axes


class Net(nn.Module):
    """A map of `channels` with a stride of 8, in the order that is asked for."""

    def __init__(self, channels: int, form: str, *, attention: bool = False) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.conv, self.form, self.attention = nn.Conv2d(3, channels, 8, 8), form, attention

    def forward(self, images: torch.Tensor) -> Any:
        maps = self.conv(images)
        if self.attention:
            flat = maps.flatten(2)
            mixed = (flat.transpose(1, 2) @ flat).softmax(-1) @ flat.transpose(1, 2)
            maps = maps + mixed.transpose(1, 2).reshape(maps.shape)
        forms = {
            "NCHW": lambda: maps,
            "NHWC": lambda: maps.permute(0, 2, 3, 1).contiguous(),
            "tokens": lambda: maps.flatten(2).transpose(1, 2).contiguous(),
            "turned tokens": lambda: maps.flatten(2),
            "NCWH": lambda: maps.transpose(2, 3).contiguous(),
            "NWHC": lambda: maps.permute(0, 3, 2, 1).contiguous(),
        }
        return forms[self.form]()


def stored(run: Path) -> Any:
    return zarr.open_group(run / "features.zarr", mode="r")


def traced(module: nn.Module, size: tuple[int, int], path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), torch.rand(2, 3, *size)).save(path)
    return path


def encoded(path: Path, size: tuple[int, int], images: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = general_encoder.spec_of(path, image_size=size, trust=True)
    encoder = backends.load_encoder(spec.RuntimeModelSpec.from_json(found.to_json()), trust=True)
    (value,) = encoder(images).values()
    return value


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (32, 48), (64, 40)])
@pytest.mark.parametrize("channels", [2, 4, 5, 8, 16, 96])
@pytest.mark.parametrize("attention", [False, True])
def test_maps_are_stored_channels_first(size: tuple[int, int], channels: int, attention: bool, tmp_path: Path) -> None:
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(5))
    expected = Net(channels, "NCHW", attention=attention)(images).detach()
    for form in ("NCHW", "NHWC"):
        given = encoded(traced(Net(channels, form, attention=attention), size, tmp_path / "m.pt"), size, images)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (64, 40)])
@pytest.mark.parametrize("channels", [2, 16, 40, 96])
def test_lists_are_stored_with_their_tokens_first(size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(5))
    expected = Net(channels, "tokens")(images).detach()
    for form in ("tokens", "turned tokens"):
        given = encoded(traced(Net(channels, form), size, tmp_path / "m.pt"), size, images)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


class Everywhere(nn.Module):
    """A cube that every pixel changes alike."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)).reshape(-1, 1, 1, 1).expand(-1, 4, 4, 4).contiguous()


def test_a_map_that_may_be_either_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = traced(Everywhere(), (32, 32), tmp_path / "m.pt")
    with pytest.raises(errors.InputError, match=r"may be a map \[C, h, w\] or \[h, w, C\].*channels_last_outputs"):
        general_encoder.spec_of(path, image_size=(32, 32), trust=True)


def test_maps_with_rows_and_columns_exchanged_are_refused_where_they_may_be_others() -> None:
    """By the values where the sides say nothing, and where the sides say another layout."""
    cases: list[tuple[int, tuple[int, int], str, bool | None]] = [
        (8, (64, 64), "NCWH", None),
        (8, (64, 64), "NWHC", None),
        (8, (64, 64), "NCHW", False),
        (8, (64, 64), "NHWC", True),
        (2, (64, 64), "NCWH", False),  # [2, 8, 8] can be nothing else; its mean is that of [C, h, w]
        (8, (64, 48), "NCWH", None),  # [8, 6, 8], as [h, w, C]
        (8, (64, 48), "NHWC", True),
        (6, (64, 48), "NWHC", None),  # [6, 8, 6], as [C, h, w]
        (6, (64, 48), "NCHW", False),
    ]
    for channels, size, form, last in cases:
        for attention in (False, True):
            net = Net(channels, form, attention=attention).eval()
            net.conv.weight.data[: channels // 2] *= 20  # channels of different size

            def run(images: torch.Tensor, net: Net = net) -> list[torch.Tensor]:
                return [net(images)]

            with torch.inference_mode():
                assert output_axes.channels_last(run, [0], size=size, batch=1) == {0: last}, (channels, size, form)


def test_axes_of_lists_that_are_no_tokens_stay_as_they_are() -> None:
    def anchors(images: torch.Tensor) -> list[torch.Tensor]:
        return [images.mean((1, 2, 3)).reshape(-1, 1, 1).expand(-1, 50, 4)]

    assert output_axes.channels_last(anchors, [0], size=(32, 32), batch=1) == {0: None}


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 8, 8)
        FMT
    def forward(self, images):
        return self.conv(images).permute(0, 2, 3, 1)

make = Net
"""


@pytest.mark.parametrize(("stated", "shape"), [("", None), ("NHWC", (24,)), ("NCHW", (4,))])
def test_an_own_models_maps_are_refused_or_read_as_it_says(
    extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, shape: tuple[int] | None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"axes_nets_{stated or 'none'}"
    (tmp_path / f"{name}.py").write_text(
        CODE.replace("FMT", f"self.genenc = {{'output_fmt': {stated!r}}}" if stated else "pass")
    )
    if shape is None:
        with pytest.raises(errors.InputError, match=r"\[4, 4, 24\], which .* is a map \[h, w, C\].*output_fmt"):
            extract(model=f"{name}:make", weights=None)
        return
    extract(model=f"{name}:make", weights=None)
    assert stored(tmp_path / "run")["features"].shape[1:] == shape


@pytest.mark.slow
def test_foreign_channels_last_spec_is_refused_or_right(extract: Callable[..., Any], tmp_path: Path) -> None:
    path = traced(Net(24, "NHWC"), (32, 32), tmp_path / "m.pt")
    theirs = spec.RuntimeModelSpec(
        model_id="theirs",
        display_name="Theirs",
        weights_path=str(path),
        inputs=(spec.SlotSpec(name="image", shape=(3, 32, 32)),),
        outputs=(spec.SlotSpec(name="y", shape=(4, 4, 24)),),
    )
    file = tmp_path / "m.json"
    given = {"model": str(file), "weights": None, "image_size": None, "trust": True}
    file.write_text(theirs.to_json())
    with pytest.raises(errors.InputError, match=r"\[4, 4, 24\].*channels_last_outputs"):
        extract(**given)
    for positions, shape in (((), (4, 4, 24)), ((0,), (24, 4, 4))):
        outputs = (spec.SlotSpec(name="y", shape=shape),)
        block = spec.GenencBlock(channels_last_outputs=positions)
        file.write_text(theirs.model_copy(update={"outputs": outputs, "genenc": block}).to_json())
        extract(**given, out=str(tmp_path / f"run{len(positions)}"))
        assert stored(tmp_path / f"run{len(positions)}")["features"].shape[1:] == shape[:1]
