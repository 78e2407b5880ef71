"""SAM's image encoders: sizes, numbers against a plain reference, checkpoints, preprocessing and points."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import sam_reference
import tiny_sam
from genenc_core import errors
from genenc_core.images.decode import geometry
from genenc_core.models import resolve, weights
from genenc_core.models.zoo import sam


def built(size: tuple[int, int], given: str = "random:0", name: str = "samvit_base") -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights=given, image_size=size))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Make every SAM a small one; return random tensors for it under Segment Anything's names."""
    monkeypatch.setattr(sam, "construct", tiny_sam.construct)
    return tiny_sam.random_state(tiny_sam.construct("", None, name=""), seed=3)


def saved(state: dict[str, torch.Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "count", "width", "depth"),
    [
        ("samvit_base", 89_670_912, 768, 12),
        ("samvit_large", 308_278_272, 1024, 24),
        ("samvit_huge", 637_026_048, 1280, 32),
    ],
)
def test_structure_matches_segment_anything(name: str, count: int, width: int, depth: int) -> None:
    with torch.device("meta"):
        model = sam.construct(sam.ARCHITECTURES[name], weights.parse_weights("random:0"), name=name)
        maps = sam.SamTrunk(model)(torch.empty(1, 3, 1024, 1024))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert maps.shape == (1, 256, 64, 64)
    state = model.state_dict()
    assert state["pos_embed"].shape == (1, 64, 64, width)
    lengths = [state[f"blocks.{index}.attn.rel_pos_h"].shape[0] for index in range(depth)]
    every = depth // 4
    assert [index for index, length in enumerate(lengths) if length == 127] == [
        every - 1 + every * step for step in range(4)
    ]
    assert set(lengths) == {27, 127}
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * depth + 2
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 256), (224, 320), (528, 96), (16, 16)])
def test_numbers_equal_plain_reference(tiny: dict[str, torch.Tensor], size: tuple[int, int], tmp_path: Path) -> None:
    encoder = built(size, saved(tiny, tmp_path / "sam.pth"))
    assert encoder.outputs[0].shape == (256, size[0] // 16, size[1] // 16)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    normalised = (images - torch.tensor(sam.MEAN)[:, None, None]) / torch.tensor(sam.STD)[:, None, None]
    expected = sam_reference.encode(tiny, normalised, heads=tiny_sam.HEADS, global_blocks=tiny_sam.GLOBAL_BLOCKS)
    with torch.inference_mode():
        (found,) = encoder.module(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 5e-5


@pytest.mark.slow
def test_vit_b_equals_the_reference() -> None:
    model = sam.construct(sam.ARCHITECTURES["samvit_base"], weights.parse_weights("random:0"), name="samvit_base")
    state = tiny_sam.random_state(model, seed=5)
    model.load_state_dict({name.replace("mlp.lin", "mlp.fc"): tensor for name, tensor in state.items()})
    images = torch.randn(1, 3, 224, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = sam.SamTrunk(model.eval())(images)
        expected = sam_reference.encode(state, images, heads=12, global_blocks=(2, 5, 8, 11))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_segment_anything_checkpoint_loads(tiny: dict[str, torch.Tensor], suffix: str, tmp_path: Path) -> None:
    checkpoint = {f"image_encoder.{name}": tensor for name, tensor in tiny.items()}
    checkpoint["prompt_encoder.not_a_point_embed.weight"] = torch.zeros(1, 256)
    checkpoint["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    whole = built((32, 32), saved(checkpoint, tmp_path / f"sam_vit{suffix}"))
    timms = {name.replace("mlp.lin", "mlp.fc"): tensor for name, tensor in tiny.items()}
    bare = built((32, 32), saved(timms, tmp_path / f"timm{suffix}"))
    assert whole.weights_sha256 == bare.weights_sha256 == weights.state_sha256(timms)


@pytest.mark.parametrize(("name", "told"), [("sam_vit_b_01ec64.pth", False), ("medsam_vit_b.pth", True)])
def test_a_file_of_another_name_may_want_other_images(
    tiny: dict[str, torch.Tensor], name: str, told: bool, tmp_path: Path
) -> None:
    file = saved({f"image_encoder.{key}": tensor for key, tensor in tiny.items()}, tmp_path / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built((32, 32), file)
    assert [name in str(one.message) for one in caught if "MedSAM" in str(one.message)] == [True] * told


def test_incomplete_checkpoint_is_refused_by_name(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole = {f"image_encoder.{name}": tensor for name, tensor in tiny.items()}
    lacking = {name: tensor for name, tensor in whole.items() if name != "image_encoder.blocks.0.attn.rel_pos_h"}
    with pytest.raises(errors.InputError, match=r"missing: blocks\.0\.attn\.rel_pos_h\."):
        built((32, 32), saved(lacking, tmp_path / "lacking.pth"))
    other = {**whole, "image_encoder.neck.2.weight": torch.zeros(256, 128, 3, 3)}
    with pytest.raises(errors.InputError, match=r"neck\.2\.weight is \[256, 128, 3, 3\], the model's is \[256, 256"):
        built((32, 32), saved(other, tmp_path / "other.pth"))
    more = {**whole, "image_encoder.blocks.4.norm1.weight": torch.zeros(32)}
    with pytest.raises(errors.InputError, match=r"not in the model: blocks\.4\.norm1\.weight"):
        built((32, 32), saved(more, tmp_path / "more.pth"))
    twice = {**whole, **{f"teacher.{name}": tensor for name, tensor in tiny.items()}}
    with pytest.raises(errors.InputError, match=r"several SAM encoders, under 'image_encoder\.', 'teacher\.'"):
        built((32, 32), saved(twice, tmp_path / "twice.pth"))


@pytest.mark.parametrize(("size", "near"), [((1000, 1024), "992x1024"), ((224, 7), "224x16")])
def test_sides_must_be_multiples_of_16(size: tuple[int, int], near: str) -> None:
    with pytest.raises(errors.InputError, match=f"multiple of 16.*--image-size {near}"):
        built(size)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (500, 333), (1024, 1024), (3000, 7)])
def test_geometry_is_segment_anythings(tiny: dict[str, torch.Tensor], width: int, height: int) -> None:
    encoder = resolve.build_encoder(resolve.ModelRequest(name="samvit_base", weights="random:0", image_size=None))
    preprocessing = encoder.preprocessing
    assert (preprocessing.height, preprocessing.width) == (1024, 1024)
    scale = 1024 / max(width, height)
    plan = geometry.plan_fit(height, width, preprocessing)
    assert plan.resized == (int(height * scale + 0.5), int(width * scale + 0.5))
    fitted = geometry.apply_fit(torch.full((3, height, width), 200, dtype=torch.uint8), plan, preprocessing)
    assert (fitted[:, : plan.resized[0], : plan.resized[1]] == 200).all()
    points = np.array([[0.0, 0.0], [0.7 * width, 0.4 * height], [width, height]])
    affines, sizes = np.array([plan.affine.row]), np.array([[height, width]])
    mapped, status = geometry.map_points(points[None], affines, sizes, preprocessing)
    assert (status == geometry.POINT_OK).all()
    # A side of few pixels is rounded to whole ones: at most half a model pixel at the far edge.
    np.testing.assert_allclose(mapped[0] / 16, points * scale / 16, atol=0.5 / 16 + 1e-9)


def test_stages_are_the_blocks(tiny: dict[str, torch.Tensor]) -> None:
    _, parts = resolve.build_parts(resolve.ModelRequest(name="samvit_base", weights="random:0", image_size=(32, 32)))
    assert parts.stages == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")


def test_an_unknown_tag_of_pretrained_weights_is_refused() -> None:
    with pytest.raises(errors.InputError, match=r"no weights 'best' for 'samvit_base'\. Available: sa1b"):
        built((32, 32), "pretrained:best")
