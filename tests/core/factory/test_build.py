"""`build_model`: shapes of every task, how arguments find their part, what is refused before anything is built."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tiny_backbones
from genenc_core import errors
from genenc_core.factory import build_model, heads, plan, registries, task_models

CHAIN = [
    {"name": "SelectIndices", "indices": [0, 1, 2, 3]},
    {"name": "ReshapeTokensToImage"},
    {"name": "LearnedInterpolateToPyramidal"},
]


def built(task: str = "segmentation", backbone: Any = None, decoder: Any = "FCNDecoder", **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"num_classes": None if task == "regression" else 2, **options}
    if decoder == "FCNDecoder":
        options = {"decoder_channels": 8, "decoder_num_convs": 1, **options}
    return build_model.build_model(
        task, tiny_backbones.Pyramid() if backbone is None else backbone, decoder, **options
    ).eval()


class NeverBuilt:
    """A constructor that a test forbids to be called."""

    def __init__(self) -> None:
        raise AssertionError("it was built although the arguments are wrong")


@pytest.fixture
def costly() -> Any:
    """Return the name of a backbone that must not be built."""
    registries.BACKBONE_REGISTRY.register(NeverBuilt)
    yield "genenc_NeverBuilt"
    registries.BACKBONE_REGISTRY.unregister("NeverBuilt")


@pytest.mark.parametrize("backbone", ["timm_resnet18", tiny_backbones.Pyramid(6)])
@pytest.mark.parametrize(
    ("task", "shape"), [("segmentation", (1, 2, 224, 224)), ("regression", (1, 224, 224)), ("classification", (1, 2))]
)
def test_shapes_match_terratorch_for_six_channels(task: str, shape: tuple[int, ...], backbone: Any) -> None:
    """(1, 6, 224, 224) -> (1, 2, 224, 224), (1, 224, 224), (1, 2)."""
    options = {"backbone_in_chans": 6, "backbone_pretrained": False} if isinstance(backbone, str) else {}
    decoder = {"decoder": "IdentityDecoder"} if task == "classification" else {}
    model = built(task, backbone, **decoder, **options)
    with torch.no_grad():
        out = model(torch.rand(1, 6, 224, 224))
    assert isinstance(out, task_models.ModelOutput)
    assert tuple(out.output.shape) == shape
    assert out.auxiliary_heads == {}


def test_canonical_transformer_chain() -> None:
    model = built(backbone=tiny_backbones.Patches(), decoder="UperNetDecoder", decoder_channels=8, necks=CHAIN)
    found = model.encode(torch.rand(2, 3, 64, 96))
    assert [tuple(item.shape) for item in found.backbone] == [(2, 1 + 8 * 12, 32)] * 4
    assert [tuple(item.shape[1:]) for item in found.necks] == [(8, 32, 48), (16, 16, 24), (32, 8, 12), (32, 4, 6)]
    assert tuple(model(torch.rand(2, 3, 64, 96)).output.shape) == (2, 2, 64, 96)


def test_model_equals_its_parts_in_sequence() -> None:
    model = built(decoder_in_index=1)
    images = torch.rand(2, 3, 32, 48)
    decoded = model.decoder(model.encoder(images))
    expected = nn.functional.interpolate(model.head(decoded), size=(32, 48), mode="bilinear")
    assert torch.equal(model(images).output, expected)


@pytest.mark.parametrize("together", [True, False])
def test_prefixed_arguments_and_dicts_reach_the_same_parts(together: bool) -> None:
    if together:
        options: dict[str, Any] = {"decoder_kwargs": {"channels": 6, "num_convs": 1}, "head_kwargs": {"dropout": 0.5}}
    else:
        options = {"decoder_channels": 6, "decoder_num_convs": 1, "head_dropout": 0.5}
    torch.manual_seed(0)
    model = build_model.build_model("segmentation", tiny_backbones.Pyramid(), "FCNDecoder", num_classes=3, **options)
    assert model.decoder.out_channels == 6
    assert [item.p for item in model.head.modules() if isinstance(item, nn.Dropout)] == [0.5]


def test_backbone_arguments_reach_a_backbone_by_name() -> None:
    name = "tiny_backbones:pyramid"
    assert built(backbone=name, backbone_in_chans=5).encoder.stages[0].in_channels == 5
    assert built(backbone=name, backbone_kwargs={"in_chans": 5}).encoder.stages[0].in_channels == 5
    with pytest.raises(errors.InputError, match=r"backbone_bands.*It accepts: backbone_in_chans"):
        built(backbone=name, backbone_bands=["RED"])


@pytest.mark.slow
def test_parts_as_modules() -> None:
    class Mean(nn.Module):
        includes_head = True

        def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
            return features[-1].mean((2, 3))

    decoder = Mean()
    model = built("classification", decoder=decoder)
    assert model.decoder is decoder
    assert isinstance(model.head, nn.Identity)
    assert tuple(model(torch.rand(3, 3, 32, 32)).output.shape) == (3, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "detection"}, "task 'detection' is not one of segmentation, regression, classification"),
        ({"unknown_thing": 1}, "'unknown_thing' = 1 is not used"),
        ({"resale": False}, "closest names are: rescale"),
        ({"decoder_colour": 3}, "decoder_colour = 3 is not used.*decoder_channels"),
        ({"head_colour": 3}, "head_colour = 3 is not used.*head_dropout"),
        ({"decoder": "FCNDecodr"}, "no decoder 'FCNDecodr'.*FCNDecoder"),
        ({"necks": [{"name": "SelectIndexes"}]}, "no neck 'SelectIndexes'.*SelectIndices"),
        ({"necks": [{"name": "SelectIndices", "index": [0]}]}, "argument index = .*indices"),
        ({"necks": [{"name": "SelectIndices"}]}, "needs indices"),
        ({"necks": [{"indices": [0]}]}, "a dict with 'name'"),
        ({"num_classes": None}, "num_classes must be an integer of at least 1 for segmentation"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"rescale": "yes"}, "rescale 'yes' must be true or false"),
        ({"decoder_channels": 4, "decoder_kwargs": {"channels": 4}}, "decoder_channels is given twice"),
        ({"decoder": "LinearDecoder"}, "needs decoder_upsampling_size"),
        ({"decoder": "LinearDecoder", "decoder_upsampling_size": 2, "head_dropout": 0.1}, "includes its head"),
        ({"backbone_temporal_pooling": "max"}, "backbone_temporal_pooling is not used without"),
        ({"backbone_temporal_pool": "max"}, "no backbone_temporal_pool"),
        ({"backbone_padding": "mirror"}, "reflect, replicate, constant, circular"),
        ({"backbone_patch_size": [1, 2, 3, 4]}, "a list of 1 to 3"),
        ({"peft_config": {"replace_qkv": "qkv"}}, "needs the key 'method'"),
        ({"peft_config": {"method": "LORA", "r": 2}}, "peft_config has no 'r'"),
        ({"aux_decoders": [{"name": "a"}]}, "name, decoder and decoder_args"),
        (
            {"aux_decoders": [{"name": "a", "decoder": "FCNDecoder", "decoder_args": {"channels": 3}}]},
            "argument 'channels' of 'a' is not used",
        ),
        (
            {"aux_decoders": [{"name": "a", "decoder": "FCNDecoder", "decoder_args": {"decoder_x": 3}}]},
            "decoder_x = 3 is not used",
        ),
    ],
)
def test_wrong_arguments_are_named_before_building(costly: str, options: dict[str, Any], said: str) -> None:
    """Theirs checks leftovers after backbone and decoder were built."""
    given = {"task": "segmentation", "backbone": costly, "decoder": "FCNDecoder", "num_classes": 2, **options}
    with pytest.raises(errors.InputError, match=said):
        build_model.build_model(**given)


def test_backbone_without_channels_is_refused() -> None:
    with pytest.raises(errors.InputError, match="must have an attribute out_channels"):
        built(backbone=nn.ReLU())
    with pytest.raises(errors.InputError, match="one number per feature, not 4"):
        built(backbone=nn.Conv2d(3, 4, 1))


def test_incompatible_parts_are_refused() -> None:
    with pytest.raises(errors.InputError, match="exactly 4 features, not 3"):
        built(backbone=tiny_backbones.Patches(depth=3), necks=CHAIN[1:])
    with pytest.raises(errors.EncoderError, match="ReshapeTokensToImage"):
        built(backbone=tiny_backbones.Patches(), decoder="IdentityDecoder")(torch.rand(1, 3, 32, 32))
    with pytest.raises(errors.EncoderError, match="IdentityDecoder"):
        built("classification", decoder="LinearDecoder", decoder_upsampling_size=2)(torch.rand(1, 3, 32, 32))


@pytest.mark.slow
def test_wrongly_declared_features_fail_in_forward() -> None:
    """For example maps [B, h, w, C] of a Swin transformer; the remedy is named, and works."""
    name = "timm_swin_tiny_patch4_window7_224"
    options = {"backbone_img_size": 64, "backbone_out_indices": [0, 1]}
    with pytest.raises(errors.EncoderError, match="PermuteDims"):
        built(backbone=name, **options)(torch.rand(1, 3, 64, 64))
    mended = built(backbone=name, **options, necks=[{"name": "PermuteDims", "new_order": [0, 3, 1, 2]}])
    assert tuple(mended(torch.rand(1, 3, 64, 64)).output.shape) == (1, 2, 64, 64)


def test_auxiliary_decoders() -> None:
    aux = [
        plan.AuxiliaryHead(
            name="deep", decoder="FCNDecoder", decoder_args={"decoder_channels": 4, "decoder_num_convs": 2}
        ),
        {"name": "linear", "decoder": "LinearDecoder", "decoder_args": {"decoder_upsampling_size": 2}},
    ]
    out = built(aux_decoders=aux)(torch.rand(2, 3, 32, 48))
    assert {name: tuple(item.shape) for name, item in out.auxiliary_heads.items()} == {
        "deep": (2, 2, 32, 48),
        "linear": (2, 2, 32, 48),
    }


def test_regression_with_a_decoder_that_includes_its_head() -> None:
    for decoder, options in (
        ("ASPPRegressionHead", {"decoder_channels": 4}),
        ("LinearDecoder", {"decoder_upsampling_size": 2}),
    ):
        assert tuple(built("regression", decoder=decoder, **options)(torch.rand(2, 3, 32, 32)).output.shape) == (
            2,
            32,
            32,
        )


# What follows: one test per row of the list of TerraTorch's defects. Theirs / ours.


def test_decoders_including_a_head_get_no_second() -> None:
    """Theirs: a decoder module always gets a head. Ours: `includes_head` counts."""
    named = built(decoder="LinearDecoder", decoder_upsampling_size=2)
    module = registries.DECODER_REGISTRY.build("LinearDecoder", [4, 8, 16, 32], num_classes=2, upsampling_size=2)
    for model in (named, built(decoder=module)):
        assert isinstance(model.head, nn.Identity)
        assert tuple(model(torch.rand(1, 3, 32, 32)).output.shape) == (1, 2, 32, 32)


def test_decoder_module_without_head_takes_head_arguments() -> None:
    """Theirs: refused with "Decoder already includes a head" although it does not. Ours: the head gets them."""
    module = registries.DECODER_REGISTRY.build("IdentityDecoder", [4, 8, 16, 32])
    model = built("regression", decoder=module, head_final_act="torch.nn.ReLU")
    assert isinstance(model.head, heads.RegressionHead)
    assert isinstance(model.head.final_act, nn.ReLU)


def test_a_decoder_module_with_a_head_refuses_head_arguments() -> None:
    """Theirs and ours: refused; ours names the argument, for the tasks with and without classes."""
    for task, name, options in (
        ("segmentation", "ASPPSegmentationHead", {"num_classes": 2}),
        ("regression", "ASPPRegressionHead", {}),
    ):
        module = registries.DECODER_REGISTRY.build(name, [4, 8, 16, 32], channels=4, **options)
        with pytest.raises(errors.InputError, match="head_dropout: the decoder includes its head"):
            built(task, decoder=module, head_dropout=0.1)


def test_backbone_kwargs_and_prefixed_arguments_go_together() -> None:
    """Theirs: with backbone_kwargs the prefixed ones are "passed but not used". Ours: both, unless they contradict."""
    name = "tiny_backbones:pyramid"
    with pytest.raises(errors.InputError, match="backbone_in_chans is given twice"):
        built(backbone=name, backbone_kwargs={"in_chans": 4}, backbone_in_chans=4)
    model = built(backbone=name, backbone_kwargs={"in_chans": 4}, backbone_padding="constant", backbone_patch_size=8)
    assert (model.encoder.stages[0].in_channels, model.padding, model.patch) == (4, "constant", (8, 8))


def test_unused_prefixed_arguments_are_refused() -> None:
    """Theirs: only the callee's signature finds them, after everything before it was built. Ours: named at once."""
    with pytest.raises(errors.InputError, match="backbone_depth: the backbone is already a module"):
        built(backbone_depth=3)
    module = registries.DECODER_REGISTRY.build("IdentityDecoder", [4, 8, 16, 32])
    with pytest.raises(errors.InputError, match="decoder_out_index: the decoder is already a module"):
        built(decoder=module, decoder_out_index=0)


def test_auxiliary_heads_have_their_own_arguments() -> None:
    """Theirs: built with the main head's arguments, their own head_* ignored. Ours: their own."""
    aux = [{"name": "a", "decoder": "IdentityDecoder", "decoder_args": {"head_dropout": 0.25}}]
    model = built(head_dropout=0.5, head_channel_list=[6], aux_decoders=aux)
    main, other = (
        [item.p for item in part.modules() if isinstance(item, nn.Dropout)]
        for part in (model.head, model.aux_heads["a"])
    )
    assert (main, other) == ([0.5], [0.25])
    assert not any(isinstance(item, nn.Conv2d) and item.out_channels == 6 for item in model.aux_heads["a"].modules())


def test_auxiliary_decoder_including_a_head() -> None:
    """Theirs: its includes_head is discarded. Ours: it counts."""
    aux = [{"name": "a", "decoder": "LinearDecoder", "decoder_args": {"decoder_upsampling_size": 2}}]
    assert isinstance(built(aux_decoders=aux).aux_heads["a"][1], nn.Identity)


def test_callers_dicts_are_not_modified() -> None:
    """Theirs: num_classes is put into the caller's head_kwargs and decoder_kwargs. Ours: nothing is."""
    given: dict[str, Any] = {
        "backbone_kwargs": {"in_chans": 3, "padding": "constant"},
        "decoder_kwargs": {"upsampling_size": 2},
        "head_kwargs": {},
        "necks": [{"name": "SelectIndices", "indices": [0, 1]}],
        "aux_decoders": [{"name": "a", "decoder": "IdentityDecoder", "decoder_args": {"head_dropout": 0.1}}],
    }
    before = copy.deepcopy(given)
    build_model.build_model("segmentation", "tiny_backbones:pyramid", "LinearDecoder", num_classes=2, **given)
    given["decoder_kwargs"], given["head_kwargs"] = {"channels": 4, "num_convs": 1}, {"dropout": 0.1}
    build_model.build_model("segmentation", "tiny_backbones:pyramid", "FCNDecoder", num_classes=2, **given)
    assert given["head_kwargs"] == {"dropout": 0.1}
    assert {**given, "decoder_kwargs": before["decoder_kwargs"], "head_kwargs": {}} == before


def test_token_aggregation_by_index_in_a_model() -> None:
    """Theirs: NameError. Ours: the token, and a channel list of one entry, so that a head can follow."""
    necks = [{"name": "AggregateTokens", "pooling": 0, "index": 2}]
    model = built("classification", tiny_backbones.Patches(), "IdentityDecoder", necks=necks)
    images = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(model(images).output, model.head(model.encoder(images)[2][:, 0]))


def test_non_square_images_keep_their_grid() -> None:
    """Theirs: NameError with image_size. Ours: the grid is the image's, known from the backbone's patches."""
    model = built(
        backbone=tiny_backbones.Patches(), necks=[{"name": "ReshapeTokensToImage"}], decoder="IdentityDecoder"
    )
    images = torch.rand(1, 3, 32, 80)
    tokens = model.encoder(images)[-1]
    assert torch.equal(model.encode(images).necks[-1][0, :, 1, 3], tokens[0, 1 + 1 * 10 + 3])


def test_odd_patch_count_without_class_token_is_kept() -> None:
    """Theirs: 15 x 15 = 225 looks like 224 and a class token. Ours: the backbone says that it has none."""
    backbone = tiny_backbones.Patches(prefix=0)
    model = built(
        backbone=backbone, necks=[{"name": "ReshapeTokensToImage"}], decoder="IdentityDecoder", backbone_patch_size=4
    )
    assert tuple(model.encode(torch.rand(1, 3, 120, 120)).necks[0].shape) == (1, 32, 15, 15)
