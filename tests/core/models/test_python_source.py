"""What a user's own model may declare of itself, and how wrong declarations are answered."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from genenc_core import errors
from genenc_core.models import encoder_module, resolve
from genenc_core.models.sources import python_source

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
def of_bytes(): return declaring(Last(), {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)})
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


def build(name: str, *layers: str, size: tuple[int, int] | None = None) -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:1", image_size=size, layers=layers))


def test_declaration_sets_preprocessing_and_token_layout(own: str) -> None:
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


def test_requested_size_overrides_the_declared_one(own: str) -> None:
    assert build(f"{own}:whole", size=(8, 40)).outputs[0].shape == (8, 1, 5)
    with pytest.raises(errors.InputError, match="patches of 8 x 8 pixels; 20 x 24 is not a multiple"):
        build(f"{own}:whole", size=(20, 24))


def test_layers_use_the_declared_layout(own: str) -> None:
    built = build(f"{own}:whole", "0")
    assert [slot.name for slot in built.outputs] == ["block", "block.cls", "block.register"]


def test_tokens_under_custom_names(own: str) -> None:
    shapes = {slot.name: slot.shape for slot in build(f"{own}:grouped").outputs}
    assert shapes == {"last": (8, 2, 3), "last.cls": (8,), "last.register": (2, 8), "memory": (2, 8)}


def test_declared_nhwc_maps_become_channels_first(own: str) -> None:
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
        ("of_bytes", "are for pixels from 0 to 255.*divide both by 255"),
        ("half", "patch_size and num_prefix_tokens must be set together"),
        ("many", "num_reg_tokens is more than num_prefix_tokens"),
        ("wrong", "787 tokens, but a grid of 28 x 28 patches with 1"),
        ("stage", "declares the stage 'convolution', but has no such module"),
        ("text", "is a str, but must be a dict"),
        ("empty", "has 2 uninitialised tensors, such as 'conv.weight'"),
        ("lazy", "uninitialised tensors, such as '0.weight'"),
        ("nested", "a nested or sparse tensor; it must be dense"),
        ("sparse", "a nested or sparse tensor; it must be dense"),
        ("silent", "declare num_prefix_tokens and patch_size in the model"),
    ],
)
def test_wrong_declarations_are_refused(own: str, function: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build(f"{own}:{function}")


DRAWN = """
import torch
from torch import nn

def drawn(): return nn.Conv2d(3, 2, 4, 4)
def loaded():
    made = drawn()
    made.load_state_dict({name: value + 1 for name, value in made.state_dict().items()})
    return made
def partly():
    made = nn.Sequential(loaded(), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1))
    return made
def other_names():
    made = nn.Conv2d(3, 2, 4, 4)
    made.load_state_dict({f"module.{name}": value for name, value in made.state_dict().items()}, strict=False)
    return made
def of_parts():
    made = nn.Sequential(loaded(), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1))
    made[2].load_state_dict({name: value + 1 for name, value in made[2].state_dict().items()})
    return made
def fixed():
    made = nn.utils.skip_init(nn.Conv2d, 3, 2, 4, 4)
    nn.init.ones_(made.weight)
    nn.init.zeros_(made.bias)
    return made
"""


@pytest.mark.parametrize(
    ("factory", "weights", "told"),
    [
        ("drawn", "pretrained", True),
        ("drawn", "random:0", False),
        ("loaded", "pretrained", False),
        ("partly", "pretrained", "2 of 6 tensors, such as '2.weight', seem to be random"),
        ("other_names", "pretrained", "2 of 2 tensors, such as 'weight', seem to be random"),
        ("of_parts", "pretrained", False),
        ("fixed", "pretrained", False),
    ],
)
def test_factory_without_weights_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, weights: str, told: bool | str
) -> None:
    (tmp_path / "drawn_nets.py").write_text(DRAWN)
    monkeypatch.syspath_prepend(tmp_path)
    real = torch.nn.Module.load_state_dict, torch.load
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resolve.build_encoder(resolve.ModelRequest(name=f"drawn_nets:{factory}", weights=weights, image_size=(16, 16)))
    words = told if isinstance(told, str) else "seem to be random"
    assert any(words in str(each.message) for each in caught) == bool(told)
    assert (torch.nn.Module.load_state_dict, torch.load) == real


@pytest.mark.parametrize(
    ("function", "size", "words"),
    [
        (
            "last",
            None,
            "'my_declaring_models:last' does not state its image size: .* 224 x 224 pixels .stretch, unless --fit",
        ),
        ("last", (32, 48), None),
        ("whole", None, None),
    ],
)
def test_a_size_that_nobody_states_is_warned_of(
    own: str, function: str, size: tuple[int, int] | None, words: str | None
) -> None:
    request = resolve.ModelRequest(name=f"{own}:{function}", weights="random:0", image_size=size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resolve.build_encoder(request)
    found = [str(item.message) for item in caught if item.category is encoder_module.SizeNotStated]
    assert len(found) == (words is not None)
    assert words is None or re.search(words, found[0])


WRAPPED = """
from torch import nn
class Net(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 4, 4)
        self.genenc = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
def plain(): return Net()
def parallel(): return nn.DataParallel(Net())
def declared():
    made = nn.Sequential(Net(), nn.ReLU())
    made.genenc = made[0].genenc
    return made
"""


@pytest.mark.parametrize(("factory", "told"), [("plain", False), ("parallel", True), ("declared", False)])
def test_a_declaration_inside_what_is_returned_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, told: bool
) -> None:
    (tmp_path / "wrapped_nets.py").write_text(WRAPPED)
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = resolve.build_encoder(resolve.ModelRequest(name=f"wrapped_nets:{factory}", weights="random:0"))
    found = [str(item.message) for item in caught if item.category is python_source.InnerDeclaration]
    assert len(found) == told
    assert all("its module 'module' has one" in text for text in found)
    assert (built.preprocessing.height == 16) != told
