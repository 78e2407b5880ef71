"""What a user's own model may declare of itself, and how wrong declarations are answered."""

import sys
from pathlib import Path

import pytest
import torch

from genenc_core import errors
from genenc_core.models import sources

OWN = """
import torch
from torch import nn

class Vit(nn.Module):
    def __init__(self, grouped=False):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.cls = nn.Parameter(torch.randn(1, 3, 8))
        self.block = nn.Linear(8, 8)
        self.mean = torch.tensor(100.0)  # its own affair
        self.grouped = grouped
    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        found = self.block(torch.cat((self.cls.expand(len(images), -1, -1), patches), 1))
        return {"last": found, "memory": found[:, :2]} if self.grouped else found

class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
    def forward(self, images):
        return self.conv(images).permute(0, 2, 3, 1)

def declaring(module, told):
    module.genenc = told
    return module

WHOLE = {
    "image_size": (16, 24), "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2), "fit": "pad", "interpolation": "bicubic",
    "antialias": False, "pad_position": "corner", "pad_value": (1, 2, 3), "stages": ["block"], "patch_size": 8,
    "num_prefix_tokens": 3, "num_reg_tokens": 2,
}
def whole(): return declaring(Vit(), WHOLE)
def grouped(): return declaring(Vit(grouped=True), WHOLE)
def silent(): return Vit()
def last(): return declaring(Last(), {"output_fmt": "NHWC"})
def typo(): return declaring(Last(), {"imagesize": 32})
def size(): return declaring(Last(), {"image_size": 0})
def zero(): return declaring(Last(), {"std": (1, 0, 1)})
def half(): return declaring(Vit(), {"num_prefix_tokens": 3})
def many(): return declaring(Vit(), {"num_prefix_tokens": 1, "num_reg_tokens": 2, "patch_size": 8})
def wrong(): return declaring(Vit(), {"num_prefix_tokens": 1, "patch_size": 8})
def stage(): return declaring(Last(), {"stages": ("convolution",)})
def text(): return declaring(Last(), "NHWC")
def empty(): return Last().to("meta")
def lazy(): return nn.Sequential(nn.LazyConv2d(5, 4))
class Nested(Last):
    def forward(self, images): return torch.nested.nested_tensor(list(self.conv(images)))
def nested(): return Nested()
class Sparse(Last):
    def forward(self, images): return self.conv(images).to_sparse()
def sparse(): return Sparse()
"""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    (tmp_path / "my_declaring_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_declaring_models", raising=False)
    return "my_declaring_models"


def build(name: str, *layers: str, size: tuple[int, int] | None = None) -> sources.BuiltEncoder:
    return sources.build_encoder(sources.ModelRequest(name=name, weights="random:1", image_size=size, layers=layers))


def test_what_a_model_declares_is_its_preprocessing_and_the_reading_of_its_tokens(own: str) -> None:
    built = build(f"{own}:whole")
    found = built.preprocessing
    assert (found.height, found.width, found.fit, found.interpolation, found.antialias) == (
        16,
        24,
        "pad",
        "bicubic",
        False,
    )
    assert (found.pad_position, found.pad_value) == ("corner", (1, 2, 3))
    assert (built.mean, built.std) == ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    assert [(slot.name, slot.shape) for slot in built.outputs] == [
        ("features", (8, 2, 3)),
        ("cls", (8,)),
        ("register", (2, 8)),
    ]
    images = torch.rand(2, 3, 16, 24)
    mean, std = torch.tensor(built.mean).reshape(1, 3, 1, 1), torch.tensor(built.std).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        listed = built.module.trunk.model((images - mean) / std)
        maps, cls, registers = built.module(images)
    assert torch.equal(maps.flatten(2).transpose(1, 2), listed[:, 3:])
    assert torch.equal(cls, listed[:, 0])
    assert torch.equal(registers, listed[:, 1:3])


def test_a_size_asked_for_comes_before_the_declared_one(own: str) -> None:
    assert build(f"{own}:whole", size=(8, 40)).outputs[0].shape == (8, 1, 5)
    with pytest.raises(errors.InputError, match="patches of 8 x 8 pixels; 20 x 24 is not a multiple"):
        build(f"{own}:whole", size=(20, 24))


def test_its_layers_are_read_the_same_way(own: str) -> None:
    built = build(f"{own}:whole", "0")
    assert [slot.name for slot in built.outputs] == ["block", "block.cls", "block.register"]


def test_tokens_under_the_models_own_names(own: str) -> None:
    shapes = {slot.name: slot.shape for slot in build(f"{own}:grouped").outputs}
    assert shapes == {"last": (8, 2, 3), "last.cls": (8,), "last.register": (2, 8), "memory": (2, 8)}


def test_declared_nhwc_maps_come_with_their_channels_first(own: str) -> None:
    built = build(f"{own}:last", size=(8, 12))
    images = torch.rand(1, 3, 8, 12)
    assert built.outputs[0].shape == (5, 2, 3)
    with torch.inference_mode():
        assert torch.equal(built.module(images)[0], built.module.trunk.model.conv(images))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("typo", "imagesize: Extra inputs.* may hold image_size, mean"),
        ("size", "image_size"),
        ("zero", "std"),
        ("half", "patch_size and num_prefix_tokens must be set together"),
        ("many", "num_reg_tokens is more than num_prefix_tokens"),
        ("wrong", "787 tokens, but a grid of 28 x 28 patches and 1"),
        ("stage", "declares the stage 'convolution', but has no such module"),
        ("text", "is a str, not a dict"),
        ("empty", "has 2 tensors without numbers, such as 'conv.weight'"),
        ("lazy", "tensors without numbers, such as '0.weight'"),
        ("nested", "a nested or sparse tensor; it must be dense"),
        ("sparse", "a nested or sparse tensor; it must be dense"),
        ("silent", "let the model declare num_prefix_tokens and patch_size"),
    ],
)
def test_wrong_declarations_are_refused(own: str, function: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build(f"{own}:{function}")
