"""Decoders and heads: sizes, values, and weights that fit those of other libraries."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import decoders, heads, registries
from genenc_core.factory import features as feats


def build(name: str, channels: list[int], /, **options: Any) -> Any:
    torch.manual_seed(1)
    return registries.DECODER_REGISTRY.build(name, channels, **options).eval()


def pyramid(channels: list[int], finest: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand((2, width, finest >> i, finest >> i), generator=generator) for i, width in enumerate(channels)]


def settled(module: nn.Module) -> nn.Module:
    """Give the batch normalisations statistics that are not the neutral ones."""
    for item in module.modules():
        if isinstance(item, nn.BatchNorm2d):
            nn.init.uniform_(item.running_mean, -0.5, 0.0)
            nn.init.uniform_(item.running_var, 0.5, 2.0)
    return module


def test_identity_returns_the_selected_feature() -> None:
    given = pyramid([4, 8], 8)
    for index, channels in ((-1, 8), (0, 4)):
        decoder = build("IdentityDecoder", [4, 8], out_index=index)
        assert decoder.out_channels == channels
        assert decoder(given) is given[index]


def test_linear_decoder_upsampling() -> None:
    """One patch of 28 x 28 cells, enlarged: upsampling * 28."""
    for times in (1, 4):
        out = build("LinearDecoder", [3, 6], num_classes=5, upsampling_size=times)(pyramid([3, 6], 56))
        assert tuple(out.shape) == (2, 5, times * 28, times * 28)


def test_mlp_concatenates_all_features() -> None:
    given = [torch.rand(2, 3, 4, 5), torch.rand(2, 6, 4, 5)]
    decoder = build("MLPDecoder", [3, 6], activation="Tanh")
    cell = torch.cat([item[0, :, 1, 2] for item in given])
    expected = torch.tanh(decoder.hidden_layer.weight @ cell + decoder.hidden_layer.bias)
    torch.testing.assert_close(decoder(given)[0, :, 1, 2], expected)
    with pytest.raises(errors.EncoderError, match="maps of one size"):
        decoder(pyramid([3, 6], 8))


def test_fcn_doubles_the_size_per_convolution() -> None:
    decoder = build("FCNDecoder", [4, 8], channels=6, num_convs=3)
    assert decoder.out_channels == 6
    assert tuple(decoder(pyramid([4, 8], 4)).shape) == (2, 6, 16, 16)


@pytest.mark.slow
def test_unet_ends_at_the_finest_map() -> None:
    """[64@224, 128@112, 256@56, 512@28] -> 32@224."""
    channels = [64, 128, 256, 512]
    decoder = build("UNetDecoder", channels, channels=[256, 128, 64, 32])
    with torch.no_grad():
        out = decoder([item[:1] for item in pyramid(channels, 224)])
    assert tuple(out.shape) == (1, 32, 224, 224)
    assert decoder.out_channels == 32


@pytest.mark.parametrize(("norm", "attention"), [(True, None), (True, "scse"), (False, None)])
def test_unet_equals_segmentation_models(norm: bool, attention: str | None) -> None:
    """With the finest feature twice, as TerraTorch uses it: same names of tensors, same numbers."""
    from segmentation_models_pytorch.decoders.unet import decoder as smp

    channels, made = [16, 32, 48], [32, 16, 16]
    theirs = settled(
        smp.UnetDecoder(
            [16, *channels], made, n_blocks=3, use_norm="batchnorm" if norm else False, attention_type=attention
        )
    ).eval()
    ours = build("UNetDecoder", channels, channels=made, use_batchnorm=norm, attention_type=attention)
    ours.decoder.load_state_dict(theirs.state_dict())
    given = pyramid(channels, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(given), theirs([given[0], *given]))


def test_upernet_fuses_at_the_finest_map() -> None:
    decoder = build("UperNetDecoder", [4, 8, 16], channels=6)
    assert tuple(decoder(pyramid([4, 8, 16], 16)).shape) == (2, 6, 16, 16)
    names = set(decoder.state_dict())
    assert {"psp_modules.3.1.conv.weight", "lateral_convs.1.norm.bias", "fpn_bottleneck.conv.weight"} <= names
    with pytest.raises(errors.InputError, match="LearnedInterpolateToPyramidal"):
        build("UperNetDecoder", [4], scale_modules=True)


def test_upernet_pools_the_whole_coarsest_map() -> None:
    """A change in one corner of the coarsest map reaches the opposite corner: that is what its pooling is for."""
    decoder = settled(build("UperNetDecoder", [4, 8], channels=6))
    given = pyramid([4, 8], 32)
    changed = [given[0], given[1].clone()]
    changed[1][:, :, 0, 0] += 10
    with torch.no_grad():
        assert (decoder(given)[:, :, -1, -1] != decoder(changed)[:, :, -1, -1]).any()


def test_aspp_heads_keep_the_feature_size() -> None:
    given = pyramid([4, 8], 16)
    classes = build("ASPPSegmentationHead", [4, 8], num_classes=3, channels=6)
    values = build("ASPPRegressionHead", [4, 8], channels=6, in_index=0)
    both = build("ASPPRegressionHead", [4, 8], channels=6, in_index=[0, 1], input_transform="resize_concat")
    assert tuple(classes(given).shape) == (2, 3, 8, 8)
    assert tuple(values(given).shape) == tuple(both(given).shape) == (2, 1, 16, 16)
    assert "conv_seg.weight" in classes.state_dict()
    assert "conv_reg.weight" in values.state_dict()
    assert len([name for name in classes.state_dict() if name.endswith("conv.weight")]) == 6


def test_satmae_places_tokens_at_their_patches() -> None:
    """Without blocks a token's pixels depend on that token and its place only."""
    decoder = build("SatMAEHead", [12], output_embed_dim=16, depth=0, num_heads=2, patch_size=4, in_chans=2)
    decoder.tokens = feats.PatchTokens(prefix=2, patch=(4, 4))
    given = torch.rand(2, 2 + 3 * 5, 12)
    changed = given.clone()
    changed[:, 2 + 1 * 5 + 3] += 1  # row 1, column 3
    with torch.no_grad():
        before, after = (decoder([tokens], image_size=(12, 20)) for tokens in (given, changed))
    assert tuple(before.shape) == (2, 2, 12, 20)
    differs = (before != after).any(1)
    assert differs[:, 4:8, 12:16].all()
    differs[:, 4:8, 12:16] = False
    assert not differs.any()


def test_satmae_blocks_equal_timm() -> None:
    torch.manual_seed(0)
    theirs = timm.models.vision_transformer.Block(16, 4, mlp_ratio=2.0, qkv_bias=True, norm_layer=nn.LayerNorm)
    ours = build("SatMAEHead", [8], output_embed_dim=16, depth=1, num_heads=4, mlp_ratio=2.0).decoder_blocks[0]
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.rand(2, 7, 16)
    torch.testing.assert_close(ours(tokens), theirs.eval()(tokens))


def test_sine_cosine_positions() -> None:
    """Column first, then row; of each the sines of x / 10000 ** (k / d), then the cosines."""
    positions = decoders.sine_cosine((2, 3), 8)
    assert tuple(positions.shape) == (6, 8)
    column, row = 2.0, 1.0
    expected = torch.tensor([column, column / 100, column, column / 100, row, row / 100, row, row / 100])
    expected = torch.stack([*expected[:2].sin(), *expected[2:4].cos(), *expected[4:6].sin(), *expected[6:].cos()])
    torch.testing.assert_close(positions[5], expected)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("IdentityDecoder", {"out_index": 2}, "out_index 2 is out of range for 2"),
        ("LinearDecoder", {"num_classes": 2, "upsampling_size": 0}, "at least 1"),
        ("FCNDecoder", {"num_convs": 0}, "at least 1"),
        ("UNetDecoder", {"channels": [3]}, "must be 2 numbers"),
        ("UNetDecoder", {"channels": [3, 3], "attention_type": "cbam"}, "scse"),
        ("MLPDecoder", {"activation": "Relu6000"}, "not an activation of torch.nn"),
        ("ASPPSegmentationHead", {"num_classes": 2, "in_channels": 5}, "in_channels 5"),
        ("ASPPSegmentationHead", {"num_classes": 2, "in_index": [0, 1]}, "resize_concat"),
        ("SatMAEHead", {"output_embed_dim": 18}, "multiple of 4"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        build(name, [4, 8], **options)


@pytest.mark.parametrize(
    ("name", "options", "channels", "side"),
    [
        ("Unet", {"decoder_channels": [16, 8, 8]}, 8, 32),
        ("UnetPlusPlus", {"decoder_channels": [16, 8, 8]}, 8, 32),
        ("MAnet", {"decoder_channels": [16, 8, 8]}, 8, 32),
        ("Linknet", {}, 32, 32),
        ("PSPNet", {"psp_out_channels": 6}, 6, 4),
        ("DeepLabV3", {"decoder_channels": 6}, 6, 4),
    ],
)
def test_decoders_of_segmentation_models(name: str, options: dict[str, Any], channels: int, side: int) -> None:
    """Four features, the first at the image's size; the arguments are those of smp's models."""
    widths = [3, 8, 16, 32]
    decoder = build(f"smp_{name}", widths, **options)
    with torch.no_grad():
        out = decoder(pyramid(widths, 32))
    assert decoder.out_channels == out.shape[1] == channels
    assert tuple(out.shape[2:]) == (side, side)


@pytest.mark.parametrize(
    ("name", "options", "channels", "side"),
    [
        ("FPN", {"decoder_segmentation_channels": 32}, 32, 32),
        ("FPN", {"decoder_segmentation_channels": 32, "decoder_merge_policy": "cat"}, 128, 32),
        ("DeepLabV3Plus", {"decoder_channels": 6}, 6, 32),
        ("PAN", {"decoder_channels": 6}, 6, 32),
        ("UPerNet", {"decoder_channels": 6}, 6, 32),
        ("Segformer", {"decoder_segmentation_channels": 6}, 6, 32),
    ],
)
def test_five_stage_decoders_of_segmentation_models(
    name: str, options: dict[str, Any], channels: int, side: int
) -> None:
    widths = [3, 4, 8, 12, 16, 32]
    decoder = build(f"smp_{name}", widths, **options)
    given = pyramid(widths, 128)
    if name in ("DeepLabV3Plus", "PAN"):  # their output stride is 16, so the last stage keeps its size
        given[5] = torch.rand(2, 32, 8, 8)
    with torch.no_grad():
        out = decoder(given)
    assert decoder.out_channels == out.shape[1] == channels
    assert tuple(out.shape[2:]) == (side, side)


def test_smp_decoder_errors() -> None:
    with pytest.raises(errors.InputError, match="smp_Unet cannot be built"):
        build("smp_Unet", [3, 8], decoder_channels=[4, 4, 4])
    decoder = build("smp_Linknet", [3, 8, 16, 32])
    with pytest.raises(errors.EncoderError, match="InterpolateToPyramidal"):
        decoder([torch.rand(1, width, 8, 8) for width in (3, 8, 16, 32)])


def test_segmentation_head() -> None:
    head = heads.SegmentationHead(8, 3, channel_list=[6, 4], dropout=0.5).eval()
    assert tuple(head(torch.rand(2, 8, 5, 6)).shape) == (2, 3, 5, 6)
    assert [tuple(item.weight.shape) for item in head.modules() if isinstance(item, nn.Conv2d)] == [
        (6, 8, 3, 3),
        (4, 6, 3, 3),
        (3, 4, 1, 1),
    ]


def test_regression_head() -> None:
    head = heads.RegressionHead(8, final_act="torch.nn.Sigmoid", learned_upscale_layers=2, channel_list=[4]).eval()
    out = head(torch.rand(2, 8, 5, 6)).detach()
    assert tuple(out.shape) == (2, 1, 20, 24)
    assert 0 < float(out.min()) < float(out.max()) < 1
    plain = heads.RegressionHead(8, learned_upscale_layers=1, channel_list=[4], batch_norm=False)
    assert not any(isinstance(item, nn.BatchNorm2d) for item in plain.modules())
    assert isinstance(heads.RegressionHead(8, final_act=nn.Softplus()).final_act, nn.Softplus)
    for named in ("os.system", "torch.nn.Conv2d"):
        with pytest.raises(errors.InputError, match=r"not an activation of torch\.nn"):
            heads.RegressionHead(8, final_act=named)


def test_classification_head_pools_before_or_after() -> None:
    """With linear layers alone the order does not matter; with a ReLU between it does."""
    cells = torch.randn(2, 8, 3, 4)
    for dims, same in ((None, True), ([5], False)):
        torch.manual_seed(0)
        after = heads.ClassificationHead(8, 3, dim_list=dims)
        torch.manual_seed(0)
        before = heads.ClassificationHead(8, 3, dim_list=dims, linear_after_pool=True)
        assert tuple(after(cells).shape) == (2, 3)
        assert torch.allclose(after(cells), before(cells), atol=1e-6) is same
    head = heads.ClassificationHead(8, 3)
    torch.testing.assert_close(head(cells[:, :, 0, 0]), head(cells[:, :, :1, :1]))
    with pytest.raises(errors.EncoderError, match="AggregateTokens"):
        head(torch.rand(2, 197, 8))
