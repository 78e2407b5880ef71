"""Inner layers as slots: the same tensors that a plain forward hook sees, whoever runs the model and however."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models as zoo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genenc_core import errors
from genenc_core.models import layers, resolve

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.twice = nn.ReLU()
        self.idle = nn.Linear(2, 2)
        self.pair = Pair()
        self.windows = Windows()
        self.wide = Wide()
        self.listed = Listed()
        self.negative = nn.BatchNorm2d(16)
        self.act = nn.ReLU(inplace=True)
        self.side = Same()

    def forward(self, images):
        maps = self.twice(self.twice(self.stem(images)))
        self.pair(maps), self.windows(maps), self.wide(maps), self.listed(maps), self.side(maps)
        return self.act(self.negative(-maps))

class Pair(nn.Module):
    def forward(self, maps): return maps, maps

class Windows(nn.Module):
    def forward(self, maps): return maps.reshape(-1, 8, *maps.shape[2:])

class Wide(nn.Module):
    def forward(self, maps): return maps[..., None]

class Listed(nn.Module):
    def forward(self, maps): return maps.flatten(2).transpose(1, 2)

class Same(nn.Module):
    def forward(self, maps): return maps[:, :8]

def make(): return Net()

def staged():
    net = Net()
    net.genenc = {"stages": ("stem", "negative")}
    return net
"""


def build(name: str, *layers: str, size: tuple[int, int] = (64, 64)) -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:3", image_size=size, layers=layers))


def slots(built: resolve.BuiltEncoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        found = built.module(images)
    assert all(tensor.is_contiguous() for tensor in found)
    assert [slot.shape for slot in built.outputs] == [tuple(tensor.shape[1:]) for tensor in found]
    return dict(zip((slot.name for slot in built.outputs), found, strict=True))


def normal(built: resolve.BuiltEncoder, images: torch.Tensor) -> torch.Tensor:
    return (images - built.module.mean) / built.module.std if built.module.normalizes else images


def hooked(model: nn.Module, names: list[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what plain forward hooks of a model see."""
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.clone())
        )
    with torch.inference_mode():
        model(images)
    return seen


def test_layers_of_a_resnet_in_requested_order() -> None:
    """`layer1.0.bn1` is followed by an in-place ReLU: its own values have negative ones."""
    names = ["layer4", "layer2", "layer1.0.bn1"]
    built = build("resnet18", "layer4", "-3", "layer1.0.bn1")
    images = torch.rand(3, 3, 64, 64)
    torch.manual_seed(3)
    seen = hooked(zoo.resnet18(weights=None).eval(), names, normal(built, images))
    found = slots(built, images)
    assert list(found) == names
    for name in names:
        assert torch.equal(found[name], seen[name])
    assert found["layer1.0.bn1"].min() < 0


def test_layers_after_the_maps() -> None:
    """The classifier's own values, what it is given under a name of its own, and maps beside them."""
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(3)
    model = zoo.resnet18(weights=None).eval()
    built = build("resnet18", "fc", "avgpool", "layer2")
    seen = hooked(model, ["fc", "avgpool", "layer2"], normal(built, images))
    found = slots(built, images)
    assert all(torch.equal(found[name], seen[name]) for name in seen)
    given = slots(build("resnet18", "layer2", "pre_logits"), images)
    assert torch.equal(given["pre_logits"], seen["avgpool"].flatten(1))
    assert torch.equal(given["layer2"], seen["layer2"])


def test_a_classifier_that_is_a_convolution_has_no_layer_before_it() -> None:
    with pytest.raises(errors.InputError, match="'squeezenet1_1' has no layer 'pre_logits'"):
        build("squeezenet1_1", "pre_logits")


STAGES = [  # model, how many stages, the name of one of them, and its map for 64 x 64 pixels
    ("resnet18", 4, 1, "layer2", (128, 8, 8)),
    ("convnext_tiny", 4, 0, "features.1", (96, 16, 16)),
    ("swin_t", 4, 2, "features.5", (384, 4, 4)),
    ("efficientnet_b0", 9, 2, "features.2", (24, 16, 16)),
    ("regnet_y_400mf", 4, 3, "trunk_output.block4", (440, 2, 2)),
    ("shufflenet_v2_x0_5", 4, 0, "stage2", (48, 8, 8)),
    ("squeezenet1_1", 13, 12, "features.12", (512, 3, 3)),
    ("vit_b_32", 3, 2, "encoder.layers.encoder_layer_2", (768, 2, 2)),
    ("timm/resnet18", 5, 1, "layer1", (64, 16, 16)),
    ("timm/vit_tiny_patch16_224", 3, 1, "blocks.1", (192, 4, 4)),
    ("timm/swin_tiny_patch4_window7_224", 4, 0, "layers.0", (96, 16, 16)),
]


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "count", "index", "stage", "shape"), STAGES, ids=[item[0] for item in STAGES])
def test_index_is_a_stage_from_an_end(name: str, count: int, index: int, stage: str, shape: tuple[int, ...]) -> None:
    built = build(name, str(index))
    assert (built.outputs[0].name, built.outputs[0].shape) == (stage, shape)
    with pytest.raises(errors.InputError, match=rf"no layer {count}: the model's stages are -{count} to {count - 1}"):
        build(name, str(count))


def test_a_negative_index_counts_from_the_end() -> None:
    assert [slot.name for slot in build("resnet18", "-1", "-4").outputs] == ["layer4", "layer1"]
    with pytest.raises(errors.InputError, match="no layer -5: the model's stages are -4 to 3"):
        build("resnet18", "-5")


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_nhwc_maps_of_swin_become_channels_first() -> None:
    """`features.0.0` is a convolution inside a channels-last model, and stays as it is."""
    names = ["features.3", "features.3.1", "features.3.1.mlp", "features.0.0"]
    built = build("swin_t", *names, size=(64, 96))
    images = torch.rand(2, 3, 64, 96)
    torch.manual_seed(3)
    seen = hooked(zoo.swin_t(weights=None).eval(), names, normal(built, images))
    found = slots(built, images)
    for name in names:
        expected = seen[name] if name == "features.0.0" else seen[name].permute(0, 3, 1, 2)
        assert torch.equal(found[name], expected), name
        assert expected.shape[3] * 64 == expected.shape[2] * 96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet18", "layer1", (64, 64, 64)),
        ("resnet18", "layer1.0.conv1", (64, 64, 64)),
        ("resnet18", "relu", (64, 128, 128)),
    ],
)
def test_map_as_deep_as_wide_is_read_by_its_modules(name: str, layer: str, shape: tuple[int, ...]) -> None:
    """64 channels of 64 x 64 cells: the sides do not tell which axis holds the channels."""
    built = build(name, layer, size=(256, 256))
    images = torch.rand(1, 3, 256, 256)
    torch.manual_seed(3)
    seen = hooked(zoo.resnet18(weights=None).eval(), [layer], normal(built, images))[layer]
    assert built.outputs[0].shape == shape
    assert torch.equal(slots(built, images)[layer], seen)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_vit_blocks_give_a_map_and_a_class_token() -> None:
    built = build("timm/vit_small_patch14_reg4_dinov2", "-1", "blocks.3.mlp", "3", size=(28, 42))
    images = torch.rand(2, 3, 28, 42)
    torch.manual_seed(3)
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=(28, 42)).eval()
    names = ["blocks.4", "blocks.3.mlp", "blocks.3"]
    seen = hooked(model, names, normal(built, images))
    found = slots(built, images)
    assert list(found) == [name + part for name in names for part in ("", ".cls", ".register")]
    for name in names:
        assert seen[name].shape == (2, 5 + 2 * 3, 384)
        assert torch.equal(found[name], seen[name][:, 5:].transpose(1, 2).reshape(2, 384, 2, 3))
        assert torch.equal(found[f"{name}.cls"], seen[name][:, 0])
        assert torch.equal(found[f"{name}.register"], seen[name][:, 1:5])


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_blocks_before_class_attention_have_no_class_token() -> None:
    built = build("timm/cait_xxs24_224", "0", size=(32, 48))
    assert [(slot.name, slot.shape) for slot in built.outputs] == [("blocks.0", (192, 2, 3))]


EXPORTED = [
    ("resnet18", ("layer1.0.bn1", "layer3")),
    ("timm/vit_tiny_patch16_224", ("-1", "-3")),
    ("swin_t", ("0", "features.0.0")),
]


@pytest.mark.usefixtures("shallow")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), EXPORTED, ids=[item[0] for item in EXPORTED])
def test_traced_exported_and_copied_encoders_are_identical(name: str, layers: tuple[str, ...]) -> None:
    module = build(name, *layers, size=(32, 32)).module
    images = torch.rand(3, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=8)
    traced = torch.jit.trace(module, images[:2], check_trace=False)
    program = torch.export.export(module, (images[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.inference_mode():
        expected = module(images)
        for other in (traced, program, copy.deepcopy(module)):
            for found, wanted in zip(other(images), expected, strict=True):
                assert torch.equal(found, wanted)


@pytest.mark.slow
def test_layers_after_the_last_tap_are_not_run() -> None:
    def operations(*layers: str) -> int:
        module = build("resnet18", *layers).module
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.rand(1, 3, 64, 64))
        return int(counter.get_total_flops())

    whole, first = operations(), operations("layer1")
    assert operations("layer4") == operations("layer1", "layer4") == whole
    # Of 64 x 64 pixels: the stem's 7x7 convolution to 32 x 32, then four 3x3 convolutions of 64 channels at 16 x 16.
    assert first == 2 * (32 * 32 * 64 * 3 * 49 + 4 * 16 * 16 * 64 * 64 * 9)
    assert first < whole / 2


@pytest.mark.slow
def test_threads_sharing_an_encoder_do_not_mix_outputs() -> None:
    built = build("resnet18", "layer1", "layer2", size=(32, 32))
    batches = [torch.full((1, 3, 32, 32), shade / 8) for shade in range(8)]
    with torch.inference_mode():
        expected = [built.module(batch) for batch in batches]
    start = threading.Barrier(4)

    def work(offset: int) -> list[int]:
        start.wait()
        wrong = []
        for turn in range(40):
            index = (offset + turn) % len(batches)
            with torch.inference_mode():
                found = built.module(batches[index])
            if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected[index], strict=True)):
                wrong.append(index)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        # Also a thread that fails outright is seen here.
        assert [index for wrong in pool.map(work, (0, 2, 4, 6)) for index in wrong] == []
    assert not torch.allclose(expected[0][0], expected[1][0], atol=1e-3)


@pytest.mark.slow
def test_weights_digest_covers_the_whole_encoder() -> None:
    assert build("resnet18", "layer2").weights_sha256 == build("resnet18").weights_sha256


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            ("layer22",),
            r"no layer 'layer22'. The closest names are: layer2.* stages are layer1, layer2, layer3, layer4",
        ),
        (("fc", "pre_logits"), r"'fc' comes after 'pre_logits': ask for one of the two"),
        (("layer2", "-3"), r"name 'layer2' twice"),
        (("layer1.0.relu",), r"is called 2 times"),
    ],
)
def test_invalid_layers_are_refused(layers: tuple[str, ...], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build("resnet18", *layers)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    (tmp_path / "my_layered_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_layered_models", raising=False)
    return "my_layered_models"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("idle", "is not called"),
        ("twice", "is called 2 times"),
        ("pair", "returns a tuple, not a tensor"),
        ("windows", "its first dimension is not the batch"),
        ("wide", r"returns \[2, 16, 16, 16, 1\] .* not a map"),
        ("listed", "does not declare the grid of these tokens"),
        # 16 channels of 16 x 16 cells, from a module that nothing is known of
        ("act", "its channel axis is ambiguous"),
    ],
)
def test_unsupported_layer_outputs_are_refused(own: str, layer: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build(f"{own}:make", layer)


@pytest.mark.slow
def test_stages_are_declared_or_the_children(own: str) -> None:
    assert build(f"{own}:make", "0", size=(64, 32)).outputs[0].name == "stem"
    assert build(f"{own}:staged", "-1", size=(64, 32)).outputs[0].name == "negative"
    with pytest.raises(errors.InputError, match="stages are -2 to 1, stem, negative"):
        build(f"{own}:staged", "2")


def test_later_in_place_operations_do_not_change_outputs(own: str) -> None:
    built = build(f"{own}:make", "negative", "act", size=(64, 32))
    images = torch.rand(2, 3, 64, 32)
    found = slots(built, images)
    assert found["negative"].max() <= 0
    assert found["negative"].min() < 0
    assert torch.equal(found["act"], torch.zeros_like(found["act"]))


class Varying(nn.Module):
    """Its layer is called as often as the images say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.last = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        for _ in range(int(images.mean().round())):
            maps = self.again(maps)
        return self.last(maps)


def test_layer_with_varying_call_count_is_refused() -> None:
    taps = (
        layers.Tap(name="again", path="again", form="as it is"),
        layers.Tap(name="last", path="last", form="as it is"),
    )
    tapped = layers._Tapped(Varying().eval(), taps, None)
    assert set(tapped(torch.ones(2, 3, 16, 16))) == {"again", "last"}
    for value, what in ((0, "is not called"), (2, "is called several times")):
        with pytest.raises(errors.EncoderError, match=f"layer 'again' {what} for some images"):
            tapped(torch.full((2, 3, 16, 16), float(value)))
