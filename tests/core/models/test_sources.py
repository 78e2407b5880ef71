"""Names to encoders, and a user's own factory."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import resolve

FACTORY = """
import torch
from torch import nn
from torch import nn

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.shape = shape
    def forward(self, images):
        maps = self.conv(images)
        if self.shape == "dict":
            return {"low": maps, "high": maps[:, :2]}
        if self.shape == "list":
            return [maps, maps[:, :2]]
        if self.shape == "one in a tuple":
            return (maps,)
        if self.shape == "vector":
            return maps.mean((2, 3))
        if self.shape == "five":
            return maps[..., None]
        if self.shape == "token list":
            return maps.flatten(2).transpose(1, 2)
        if self.shape == "one image":
            return maps[:1]
        if self.shape == "text":
            return {"low": "no tensor"}
        if self.shape == "nothing":
            return []
        return maps

def tensor(): return Net("tensor").double()
def named(): return Net("dict")
def listed(): return Net("list")
def single(): return Net("one in a tuple")
def vector(): return Net("vector")
def five(): return Net("five")
def token_list(): return Net("token list")
def one_image(): return Net("one image")
def text(): return Net("text")
def nothing(): return Net("nothing")
def fails(): raise KeyError("checkpoint")
def number(): return 3
"""


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    (tmp_path / "my_models_for_sources.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models_for_sources", raising=False)
    return "my_models_for_sources"


def build(name: str, weights: str = "random:0") -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights=weights, image_size=(32, 48)))


@pytest.mark.parametrize(
    ("function", "slots"),
    [
        ("tensor", [("features", (4, 4, 6))]),
        ("single", [("features", (4, 4, 6))]),
        ("vector", [("features", (4,))]),
        ("named", [("low", (4, 4, 6)), ("high", (2, 4, 6))]),
        ("listed", [("features_0", (4, 4, 6)), ("features_1", (2, 4, 6))]),
    ],
)
def test_a_factorys_outputs_become_slots(factory: str, function: str, slots: list[tuple[str, tuple[int, ...]]]) -> None:
    before = list(sys.path)
    built = build(f"{factory}:{function}")
    assert [(slot.name, slot.shape) for slot in built.outputs] == slots
    assert sys.path == before
    assert (built.kind, built.preprocessing.fit, built.mean, built.std) == ("python", "stretch", (0, 0, 0), (1, 1, 1))
    images = torch.rand(3, 3, 32, 48)
    maps = built.module(images)
    assert [tuple(tensor.shape) for tensor in maps] == [(3, *shape) for _, shape in slots]
    convolved = built.module.trunk.conv(images)
    assert torch.equal(maps[0], convolved.mean((2, 3)) if function == "vector" else convolved)
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in maps)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("five", r"must be float32: feature maps \[2, C, h, w\], vectors"),
        ("token_list", r"returns tokens \[2, 24, 4\].*num_prefix_tokens and patch_size"),
        ("one_image", r"float32 \[1, 4, 4, 6\]"),
        ("text", "output 'low' is a str"),
        ("nothing", "returns nothing"),
        ("fails", "KeyError"),
        ("number", "returned a int"),
        ("absent", "no attribute 'absent'"),
    ],
)
def test_factory_without_encoder_is_refused(factory: str, function: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build(f"{factory}:{function}")


def test_weights_of_a_factory_are_seeded_kept_or_loaded(factory: str, tmp_path: Path) -> None:
    seeded = build(f"{factory}:named", "random:4")
    assert seeded.weights_sha256 == build(f"{factory}:named", "random:4").weights_sha256
    torch.save(seeded.module.trunk.state_dict(), tmp_path / "w.pth")
    assert build(f"{factory}:named", str(tmp_path / "w.pth")).weights_sha256 == seeded.weights_sha256
    # What the factory leaves to chance is the same every time, whatever the caller's generator is at.
    for callers in (4, 5):
        torch.manual_seed(callers)
        left = build(f"{factory}:named", "pretrained")
        assert left.weights_sha256 == build(f"{factory}:named", "random:0").weights_sha256
    with pytest.raises(errors.InputError, match="no pretrained tags"):
        build(f"{factory}:named", "pretrained:V2")


@pytest.mark.slow
def test_an_encoder_is_frozen_in_evaluation_mode() -> None:
    built = build("resnet18")
    assert not built.module.training
    assert not any(parameter.requires_grad for parameter in built.module.parameters())
    assert {tensor.dtype for tensor in built.module.parameters()} == {torch.float32}
    assert built.parameters == 11_176_512  # ResNet-18 without its classifier


@pytest.mark.slow
def test_torchvision_precedes_timm_unless_prefixed() -> None:
    assert build("resnet18").kind == build("torchvision/resnet18").kind == "torchvision"
    assert build("timm/resnet18").kind == "timm"
    assert resolve.resolve_name("vit_tiny_patch16_224") == ("timm", "vit_tiny_patch16_224")
    listed = resolve.model_names()
    assert {"resnet18", "timm/resnet18", "vit_tiny_patch16_224"} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("name", "near"), [("resnet81", "resnet18"), ("ConvNext-Tiny", "convnext_tiny"), ("torchvision/swim_t", "swin_t")]
)
def test_misspelt_name_offers_closest_names(name: str, near: str) -> None:
    with pytest.raises(errors.InputError, match=f"closest names are: .*{near}"):
        build(name)


def test_timm_names_without_timm_tell_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("vit_tiny_patch16_224", "timm/resnet18"):
        with pytest.raises(errors.InputError, match=r"pip install 'genenc\[timm\]'"):
            build(name)


@pytest.mark.parametrize("name", ["", ":", "nowhere:make", "json:nothing"])
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InputError):
        build(name)


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(errors.InputError, match="at least 1 x 1"):
        resolve.build_encoder(resolve.ModelRequest(name="resnet18", weights="random:0", image_size=(0, 32)))


class Switching(nn.Module):
    """Two maps under names whose order, or which themselves, depend on the image."""

    def __init__(self, *, other: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.other = other

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `a` [B, 1, 4, 4] of the image and `b` of its negative; in another order for bright images."""
        found = {"a": images.mean(1, keepdim=True)[..., :4, :4] + self.bias}
        found["z" if self.other and images.mean() > 0.9 else "b"] = -found["a"]
        return dict(reversed(found.items())) if images.mean() > 0.9 else found


def switching(monkeypatch: pytest.MonkeyPatch, *, other: bool) -> resolve.BuiltEncoder:
    module = types.ModuleType("switching_models")
    module.make = lambda: Switching(other=other)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "switching_models", module)
    return resolve.build_encoder(resolve.ModelRequest(name="switching_models:make", image_size=(8, 8)))


def test_outputs_keep_their_slots_in_any_dict_order(monkeypatch: pytest.MonkeyPatch) -> None:
    built = switching(monkeypatch, other=False)
    assert [slot.name for slot in built.outputs] == ["a", "b"]
    for value in (0.25, 1.0):
        a, b = built.module(torch.full((1, 3, 8, 8), value))
        assert (float(a.mean()), float(b.mean())) == (value, -value)


def test_varying_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = switching(monkeypatch, other=True)
    with pytest.raises(errors.EncoderError, match="returned the outputs a, z, but a, b in the dry run"):
        built.module(torch.ones(1, 3, 8, 8))
