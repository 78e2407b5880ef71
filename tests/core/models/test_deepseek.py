"""DeepSeek-OCR's SAM stage: its table of tensors, sizes, numbers against a plain reference, checkpoints, modes."""

import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sam_reference
import tiny_sam
from genenc_core import errors
from genenc_core.models import resolve, weights
from genenc_core.models.zoo import deepseek, sam

TABLE = {
    "pos_embed": (1, 64, 64, 768),
    "patch_embed.proj.weight": (768, 3, 16, 16),
    "patch_embed.proj.bias": (768,),
    "neck.0.weight": (256, 768, 1, 1),
    "neck.1.weight": (256,),
    "neck.1.bias": (256,),
    "neck.2.weight": (256, 256, 3, 3),
    "neck.3.weight": (256,),
    "neck.3.bias": (256,),
    "net_2.weight": (512, 256, 3, 3),
    "net_3.weight": (1024, 512, 3, 3),
} | {
    f"blocks.{index}.{name}": shape
    for index in range(12)
    for name, shape in {
        "norm1.weight": (768,),
        "norm1.bias": (768,),
        "norm2.weight": (768,),
        "norm2.bias": (768,),
        "attn.qkv.weight": (2304, 768),
        "attn.qkv.bias": (2304,),
        "attn.proj.weight": (768, 768),
        "attn.proj.bias": (768,),
        "attn.rel_pos_h": (127 if index in (2, 5, 8, 11) else 27, 64),
        "attn.rel_pos_w": (127 if index in (2, 5, 8, 11) else 27, 64),
        "mlp.lin1.weight": (3072, 768),
        "mlp.lin1.bias": (3072,),
        "mlp.lin2.weight": (768, 3072),
        "mlp.lin2.bias": (768,),
    }.items()
}


def built(size: tuple[int, int] | None, given: str = "random:0") -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name="deepseek_sam", weights=given, image_size=size))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Make the ViT a small one; return random bfloat16 tensors for the stage under its own names."""
    monkeypatch.setattr(sam, "construct", tiny_sam.construct)
    state = tiny_sam.random_state(tiny_sam.construct("", None, name=""), seed=3, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(4)
    state["net_2.weight"] = (torch.randn(512, 256, 3, 3, generator=generator) / 48).bfloat16()
    state["net_3.weight"] = (torch.randn(1024, 512, 3, 3, generator=generator) / 68).bfloat16()
    return state


def saved(state: dict[str, torch.Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def test_tensor_names_match_the_published_checkpoint() -> None:
    with torch.device("meta"):
        choice = weights.parse_weights("random:0")
        model = sam.construct(sam.ARCHITECTURES["samvit_base"], choice, name="deepseek_sam")
        deepseek.compress(model, deepseek.CHANNELS)
    found = {name.replace("mlp.fc", "mlp.lin"): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == TABLE
    assert len(found) == 179
    assert sum(parameter.numel() for parameter in model.parameters()) == 95_569_152


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((1024, 1024), (16, 16)),
        ((512, 512), (8, 8)),
        ((640, 640), (10, 10)),
        ((1280, 1280), (20, 20)),
        ((256, 256), (4, 4)),
        ((528, 528), (9, 9)),
        ((512, 1024), (8, 16)),
        ((1024, 768), (16, 12)),
    ],
)
def test_map_sizes(size: tuple[int, int], grid: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = tiny_sam.construct("", None, name="")
        deepseek.compress(model, deepseek.CHANNELS)
        maps = deepseek.DeepSeekTrunk(model)(torch.empty(1, 3, *size))
    assert maps.shape == (1, 1024, *grid)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (144, 320)])
def test_numbers_equal_plain_reference(tiny: dict[str, torch.Tensor], size: tuple[int, int], tmp_path: Path) -> None:
    prefixed = {f"model.sam_model.{name}": tensor for name, tensor in tiny.items()}
    prefixed["model.vision_model.embeddings.class_embedding"] = torch.zeros(1024)
    encoder = built(size, saved(prefixed, tmp_path / "model-00001-of-000001.safetensors"))
    state = {name: tensor.float() for name, tensor in tiny.items()}
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    neck = sam_reference.encode(state, images * 2 - 1, heads=tiny_sam.HEADS, global_blocks=tiny_sam.GLOBAL_BLOCKS)
    expected = sam_reference.compress(state, neck)
    with torch.inference_mode():
        (found,) = encoder.module(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 5e-5


@pytest.mark.parametrize("prefix", ["", "model.sam_model.", "model.vision_tower_high.model.", "vision_tower_high."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoint_prefixes_are_known(tiny: dict[str, torch.Tensor], prefix: str, suffix: str, tmp_path: Path) -> None:
    checkpoint = {f"{prefix}{name}": tensor for name, tensor in tiny.items()}
    if prefix:
        checkpoint["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(2, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = built((64, 64), saved(checkpoint, tmp_path / f"checkpoint{suffix}"))
    told = [each for each in caught if "GOT-OCR2" in str(each.message)]
    assert len(told) == ("vision_tower" in prefix)
    timms = {name.replace("mlp.lin", "mlp.fc"): tensor.float() for name, tensor in tiny.items()}
    assert encoder.weights_sha256 == weights.state_sha256(timms)


def test_last_convolution_has_the_width_of_the_file(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tiny["net_3.weight"] = tiny["net_3.weight"][:896].clone()
    encoder = built((128, 128), saved(tiny, tmp_path / "second.safetensors"))
    assert encoder.outputs[0].shape == (896, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "fit"), [(1024, "pad"), (896, "stretch")])
def test_the_second_model_is_stretched_up_to_768_pixels(
    tiny: dict[str, torch.Tensor], channels: int, fit: str, tmp_path: Path
) -> None:
    tiny["net_3.weight"] = tiny["net_3.weight"][:channels].clone()
    assert built((768, 768), saved(tiny, tmp_path / "file.safetensors")).preprocessing.fit == fit


def test_checkpoint_mismatches_are_named(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    plain_sam = {name: tensor for name, tensor in tiny.items() if not name.startswith("net_")}
    with pytest.raises(errors.InputError, match=r"missing: net_2\.weight, net_3\.weight"):
        built((64, 64), saved(plain_sam, tmp_path / "sam.pth"))
    narrow = {**tiny, "net_3.weight": torch.zeros(1024, 256, 3, 3)}
    with pytest.raises(errors.InputError, match=r"net_3\.weight is \[1024, 256, 3, 3\]"):
        built((64, 64), saved(narrow, tmp_path / "narrow.pth"))
    flat = {**tiny, "net_3.weight": torch.zeros(7)}
    with pytest.raises(errors.InputError, match=r"net_3\.weight is \[7\]"):
        built((64, 64), saved(flat, tmp_path / "flat.pth"))


def test_sides_must_be_multiples_of_16() -> None:
    with pytest.raises(errors.InputError, match="multiple of 16"):
        built((1000, 1000))


def test_pretrained_is_refused() -> None:
    with pytest.raises(errors.InputError, match="--weights FILE"):
        built((64, 64), "pretrained")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((512, 512), "stretch to 512 x 512, bicubic"),
        ((640, 640), "stretch to 640 x 640, bicubic"),
        (None, "pad to 1024 x 1024 (center, bars [127, 127, 127]), bicubic"),
        ((1280, 1280), "pad to 1280 x 1280 (center, bars [127, 127, 127]), bicubic"),
        ((512, 1024), "pad to 512 x 1024 (center, bars [127, 127, 127]), bicubic"),
    ],
)
def test_sizes_are_stretched_or_padded(tiny: dict[str, torch.Tensor], size: tuple[int, int] | None, words: str) -> None:
    _, parts = resolve.build_parts(resolve.ModelRequest(name="deepseek_sam", weights="random:0", image_size=size))
    assert parts.preprocessing.describe() == words
    assert (parts.mean, parts.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
