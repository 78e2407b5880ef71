"""Looking at a model without computing: the same shapes as a real run, no trace left in the model."""

import pytest
import torch
from torch import nn

from genenc_core.models import encoder_module, fake_run, resolve


class Careless(nn.Module):
    """Keeps a tensor of its last call, as models with caches do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.kept: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.kept = self.conv(images)
        return self.kept


class Looks(nn.Module):
    """Needs numbers to know what to return."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        self.calls += 1
        return maps[:, : 2 if maps.abs().max().item() > 0 else 1]


def finished(module: nn.Module) -> encoder_module.EncoderModule:
    return encoder_module.EncoderModule(module, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).eval().requires_grad_(False)


def test_fake_run_computes_nothing_and_leaves_no_trace() -> None:
    module = Careless()
    found = encoder_module.dry_run(finished(module), name="careless", height=33, width=17)
    assert [(slot.name, slot.shape) for slot in found] == [("features", (4, 16, 8))]
    assert module.kept is None
    assert not module.conv._forward_hooks
    images = torch.rand(1, 3, 9, 9)
    assert torch.equal(finished(module)(images)[0], module.conv((images - 0.5) / 0.5))


def test_model_that_needs_values_runs_for_real() -> None:
    module = Looks()
    (slot,) = encoder_module.dry_run(finished(module), name="looks", height=9, width=9)
    assert slot.shape == (2, 4, 4)
    assert module.calls == 1


def test_large_model_is_described_cheaply() -> None:
    """4096 channels at 4096 pixels: 64 GiB of activations per image, if they were computed."""
    wide = nn.Sequential(nn.Conv2d(3, 4096, 1), nn.ReLU(), nn.AvgPool2d(4096 // 8))
    (slot,) = encoder_module.dry_run(finished(wide), name="wide", height=4096, width=4096)
    assert slot.shape == (4096, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", (65, 97)),
        ("convnext_tiny", (64, 64)),
        ("swin_t", (70, 64)),
        ("shufflenet_v2_x0_5", (61, 64)),
        ("vit_b_32", (64, 64)),
        ("timm/mobilevit_xxs", (64, 64)),
        ("timm/edgenext_xx_small", (64, 64)),
        ("timm/test_efficientnet", (64, 96)),
    ],
)
def test_fake_slots_equal_those_of_a_real_run(name: str, size: tuple[int, int]) -> None:
    built = resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))
    with torch.inference_mode():
        found = built.module(torch.rand(2, 3, *size))
    assert [slot.shape for slot in built.outputs] == [tuple(tensor.shape[1:]) for tensor in found]
    assert not any(type(tensor) is not nn.Parameter for tensor in built.module.parameters())


class TwoWays(nn.Module):
    """Computes one thing or another with equal shapes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.way = way

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.way == "swapped":
            return self.first(self.second(values)) * 2
        return self.second(self.first(values)) * (3 if self.way == "thrice" else 2)


def recorded(way: str) -> list[object]:
    def look(module: nn.Module, images: torch.Tensor) -> list[object]:
        operations = fake_run.Operations(module)
        with operations:
            module(images)
        return list(operations.record)

    return fake_run.observe(TwoWays(way), look, batch=1, size=(4, 4))


def test_operations_record_parameters_order_and_constants() -> None:
    assert recorded("plain") == recorded("plain")
    assert recorded("plain") != recorded("swapped")
    assert recorded("plain") != recorded("thrice")
