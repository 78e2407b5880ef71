"""LoRA through peft: how many parameters are trained, and that it starts as the model it is put on."""

from typing import Any

import pytest
import torch
from torch import nn

import tiny_backbones
from genenc_core import errors
from genenc_core.factory import adapters, build_model

LORA: dict[str, Any] = {
    "method": "LORA",
    "replace_qkv": "qkv",
    "peft_config_kwargs": {"target_modules": ["q_linear", "v_linear", "fc1", "fc2"], "r": 3},
}
NECKS = [{"name": "ReshapeTokensToImage"}]


def built(backbone: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_model.build_model("segmentation", backbone, "IdentityDecoder", num_classes=2, necks=NECKS, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:peft_config on a backbone")
@pytest.mark.parametrize(
    ("backbone", "layers", "width", "hidden", "options"),
    [(tiny_backbones.Patches(depth=4), 4, 32, 64, {}), ("timm_test_vit", 6, 64, 192, {"backbone_output": "tokens"})],
)
def test_trained_parameter_counts(backbone: Any, layers: int, width: int, hidden: int, options: dict[str, Any]) -> None:
    """L * (4 d r + 2 ff r + 2 d r): queries and values, and both layers of the MLP."""
    rank = LORA["peft_config_kwargs"]["r"]
    model = built(backbone, peft_config=LORA, **options)
    trained = sum(item.numel() for item in model.encoder.parameters() if item.requires_grad)
    assert trained == layers * (4 * width * rank + 2 * hidden * rank + 2 * width * rank)
    assert all(item.requires_grad for item in model.head.parameters())


def test_untrained_adapter_is_the_identity() -> None:
    plain = built(tiny_backbones.Patches()).eval()
    torch.manual_seed(0)
    adapted = built(tiny_backbones.Patches(), peft_config=LORA).eval()
    images = torch.rand(1, 3, 32, 48)
    names = {name.replace("base_model.model.", "").replace(".base_layer", "") for name in adapted.encoder.state_dict()}
    assert {"first", "embed.weight", "blocks.0.qkv.q_linear.weight"} <= names
    adapted.head.load_state_dict(plain.head.state_dict())
    base = adapted.encoder.get_base_model()
    with torch.no_grad():
        base.embed.load_state_dict(plain.encoder.embed.state_dict())
        base.first.copy_(plain.encoder.first)
        for ours, theirs in zip(base.blocks, plain.encoder.blocks, strict=True):
            for index, name in enumerate(("q_linear", "k_linear", "v_linear")):
                part = getattr(ours.qkv, name)
                part = getattr(part, "base_layer", part)
                part.weight.copy_(theirs.qkv.weight.chunk(3)[index])
                part.bias.copy_(theirs.qkv.bias.chunk(3)[index])
            ours.fc1.base_layer.load_state_dict(theirs.fc1.state_dict())
            ours.fc2.base_layer.load_state_dict(theirs.fc2.state_dict())
        torch.testing.assert_close(adapted(images).output, plain(images).output)


@pytest.mark.parametrize("bias", [True, False])
def test_split_projections_compute_the_same(bias: bool) -> None:
    fused = nn.Linear(8, 24, bias=bias)
    tokens = torch.rand(2, 5, 8)
    torch.testing.assert_close(adapters.QkvParts(fused)(tokens), fused(tokens))


def test_invalid_adapters_are_refused() -> None:
    with pytest.raises(errors.InputError, match="no module name of the backbone"):
        adapters.split_qkv(tiny_backbones.Patches(), "query")
    with pytest.raises(errors.InputError, match="not a linear layer from d to 3 d"):
        adapters.split_qkv(tiny_backbones.Patches(), "fc1")
    with pytest.raises(errors.InputError, match="not a linear layer from d to 3 d"):
        adapters.split_qkv(tiny_backbones.Patches(), "embed")
    for config, said in (
        ({"method": "LORAX"}, "no method 'LORAX'.*LORA"),
        ({"method": "LORA", "peft_config_kwargs": {"rank": 3}}, "peft rejects"),
        ({"method": "LORA", "peft_config_kwargs": {"target_modules": ["nowhere"]}}, "peft rejects"),
        ({"method": "LORA", "peft_config_kwargs": 3}, "must be a mapping"),
    ):
        with pytest.raises(errors.InputError, match=said):
            built(tiny_backbones.Patches(), peft_config=config)


def test_adapter_warnings() -> None:
    with pytest.warns(UserWarning, match="without pretrained weights"):
        built("timm_test_vit", backbone_output="tokens", peft_config=LORA)
    other = {"method": "LOHA", "peft_config_kwargs": {"target_modules": ["fc1"], "r": 2}}
    with pytest.warns(UserWarning, match="LOHA is passed on to peft"):
        built(tiny_backbones.Patches(), peft_config=other)
