"""Model files: what they may hold, how they are read, and the encoder that comes of them."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from genenc_core import errors
from genenc_core.factory import build_model as builder
from genenc_core.factory import model_file, task_encoder
from genenc_core.models import encoder_module, resolve
from genenc_core.models.weights import WeightsChoice

RANDOM = WeightsChoice(kind="random", seed=0)
SEG: dict[str, Any] = {
    "task": "segmentation",
    "backbone": "test_resnet",
    "backbone_out_indices": [1, 2, 3],
    "decoder": "UNetDecoder",
    "decoder_channels": [16, 8, 8],
    "num_classes": 3,
    "image_size": [64, 96],
}


def written(tmp_path: Path, content: Any, name: str = "seg.yaml") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def built(
    content: dict[str, Any], *, weights: str = "random:0", size: Any = None, layers: tuple[str, ...] = ()
) -> resolve.BuiltEncoder:
    arguments = model_file.canonical(content)
    return resolve.build_encoder(
        resolve.ModelRequest(name="factory/seg", weights=weights, image_size=size, layers=layers, arguments=arguments)
    )


TOML = """
task = "segmentation"
backbone = "test_resnet"
backbone_out_indices = [1, 2, 3]
decoder = "terratorch_UNetDecoder"
decoder_channels = [16, 8, 8]
num_classes = 3
image_size = [64, 96]
"""


def test_model_file_forms_are_equivalent(tmp_path: Path) -> None:
    arguments = {key: value for key, value in SEG.items() if key not in ("task", "image_size")}
    nested = {"task": "segmentation", "image_size": [64, 96], "model_args": arguments}
    configuration = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 3},
        "data": {"class_path": "GenericNonGeoSegmentationDataModule"},
        "image_size": [64, 96],
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {"model_factory": "EncoderDecoderFactory", "loss": "dice", "model_args": arguments},
        },
    }
    texts = {
        model_file.read(written(tmp_path, TOML, "seg.toml")),
        model_file.read(written(tmp_path, SEG)),
        model_file.read(written(tmp_path, nested, "seg.yml")),
        model_file.read(written(tmp_path, configuration)),
    }
    assert len(texts) == 1
    found = json.loads(texts.pop())
    assert (found["backbone"], found["decoder"]) == ("timm_test_resnet", "genenc_UNetDecoder")
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is not a mapping"),
        ("- a\n- b", "it is not a mapping"),
        ("task: [", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ({**SEG, "colour": 3}, "unknown key 'colour'"),
        ({**SEG, "imagesize": 3}, "unknown key 'imagesize'.*image_size"),
        ({**SEG, "decoder_colour": 3}, "decoder_colour = 3 is not used"),
        ({**SEG, "backbone": "resnet_18"}, "no backbone 'resnet_18'.*resnet18"),
        ({**SEG, "task": "detection"}, "task 'detection' is not one of"),
        ({**SEG, "model_args": {"num_classes": 2}}, "'num_classes' is given at the top level and in model_args"),
        ({**SEG, "image_size": "64"}, "a number of pixels"),
        ({**SEG, "image_size": [64]}, "a number of pixels"),
        ({**SEG, "mean": [0.5, 0.5]}, "mean .* must be three numbers"),
        ({**SEG, "std": [0.5, 0.5, 0]}, "std above 0"),
        ({**SEG, "fit": "squash"}, "stretch, crop, pad"),
        ({**SEG, "outputs": "logits"}, "must be a list"),
        ({**SEG, "outputs": []}, "must be a list"),
        ({**SEG, "outputs": ["logits", "logits"]}, "distinct names"),
        ({**SEG, "outputs": ["heads"]}, "'heads' is not one of logits, decoder, necks, backbone"),
        ({**SEG, "backbone_use_temporal": True}, "one time step"),
        ({"model": {"class_path": "terratorch.tasks.ObjectDetectionTask", "init_args": {}}}, "class_path must end in"),
        (
            {
                "model": {
                    "class_path": "ClassificationTask",
                    "init_args": {"model_factory": "PrithviModelFactory", "model_args": {}},
                }
            },
            "'PrithviModelFactory' is not supported",
        ),
        ({key: value for key, value in SEG.items() if key != "backbone"}, "backbone must be a name"),
    ],
)
def test_invalid_model_file_is_refused_on_read(tmp_path: Path, content: Any, said: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(errors.InputError, match=said) as raised:
        resolve.resolved(resolve.ModelRequest(name=str(path)))
    assert str(path) in str(raised.value)


def configuration(arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a TerraTorch configuration of a segmentation task."""
    options = {"model_factory": "EncoderDecoderFactory", "model_args": arguments, **more}
    return {
        "image_size": 64,
        "model": {"class_path": "terratorch.tasks.SemanticSegmentationTask", "init_args": options},
    }


ARGUMENTS = {key: value for key, value in SEG.items() if key not in ("task", "image_size")}
AUX = [{"name": "aux", "decoder": "FCNDecoder", "decoder_args": {"decoder_channels": 8, "head_dropout": 0.1}}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"init_args": {"means": [1.0], "dataset_bands": ["BLUE"], "batch_size": 8}}, "dataset_bands, means"),
        ({"class_path": "terratorch.datamodules.FireScarsDataModule", "init_args": {"batch_size": 8}}, "FireScarsDat"),
        ({"init_args": {"bands": ["BLUE"], "test_transform": [{"init_args": {"mean": [0.5]}}]}}, "bands, mean"),
        ({"init_args": {"test_transform": [{"class_path": "albumentations.Normalize"}]}}, "Normalize"),
    ],
)
def test_configurations_data_about_images_is_named(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    plain, both = configuration(ARGUMENTS), {**configuration(ARGUMENTS), "data": data}
    with pytest.warns(model_file.DataIgnoredWarning, match=rf"under 'data' .*\({said}.*\), which is ignored"):
        given = model_file.read(written(tmp_path, both))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model_file.read(written(tmp_path, plain)) == given
        assert model_file.read(written(tmp_path, {**plain, "data": {"init_args": {"batch_size": 8}}})) == given
        model_file.read(written(tmp_path, {**both, "mean": [0.5] * 3, "std": [0.2] * 3}))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("output", "outputs"),
        ("Fit", "fit"),
        ("imagesize", "image_size"),
        ("means", "mean"),
        ("image-size", "image_size"),
    ],
)
def test_slips_of_own_keys_in_a_configuration_are_refused(tmp_path: Path, key: str, meant: str) -> None:
    path = written(tmp_path, {**configuration(ARGUMENTS), key: ["backbone"]})
    with pytest.raises(errors.InputError, match=f"unknown key '{key}' at the top level; did you mean '{meant}'"):
        model_file.read(path)


def test_keys_of_the_trainer_are_no_slips(tmp_path: Path) -> None:
    trainer = {
        "seed_everything": 0,
        "trainer": {},
        "optimizer": {},
        "lr_scheduler": {},
        "ckpt_path": None,
        "verbose": 1,
    }
    assert model_file.read(written(tmp_path, {**configuration(ARGUMENTS), **trainer})) == model_file.read(
        written(tmp_path, configuration(ARGUMENTS))
    )


@pytest.mark.parametrize("key", ["mean", "outputs"])
def test_own_keys_elsewhere_in_a_configuration_are_refused(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, configuration(ARGUMENTS, **{key: [0.5, 0.5, 0.5]}))
    with pytest.raises(errors.InputError, match=f"'{key}' stands under 'model'; genenc reads it at the top level"):
        model_file.read(path)


@pytest.mark.parametrize("text", ["backbone: a\nbackbone: b\n", "model_args:\n  decoder: a\n  decoder: b\n"])
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(errors.InputError, match=r"the key '\w+' is given twice in the mapping that begins in line \d"):
        model_file.read(tmp_path / "model.yaml")


@pytest.mark.parametrize("bands", [["BLUE", "GREEN", "RED"], ["HLSBands.BLUE", "HLSBands.RED", "HLSBands.GREEN"]])
def test_bands_in_another_order_are_always_warned_of(tmp_path: Path, bands: list[str]) -> None:
    content = {**configuration(ARGUMENTS), "mean": [0.5] * 3, "std": [0.2] * 3}
    with pytest.warns(model_file.DataIgnoredWarning, match="images are given as RGB"):
        model_file.read(written(tmp_path, {**content, "data": {"init_args": {"output_bands": bands}}}))
    right = {"init_args": {"output_bands": ["RED", "GREEN", "BLUE"], "dataset_bands": ["BLUE", "GREEN", "RED", "NIR"]}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_file.read(written(tmp_path, {**content, "data": right}))


def test_aux_heads_of_the_task_become_aux_decoders(tmp_path: Path) -> None:
    given = model_file.read(written(tmp_path, configuration(ARGUMENTS, aux_heads=AUX)))
    assert given == model_file.read(written(tmp_path, configuration({**ARGUMENTS, "aux_decoders": AUX})))
    assert json.loads(given)["aux_decoders"] == AUX
    model = builder.build_model("segmentation", **{**ARGUMENTS, "aux_decoders": AUX})
    torch.save(
        {"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "w.ckpt"
    )
    request = resolve.ModelRequest(name="factory/seg", weights=str(tmp_path / "w.ckpt"), arguments=given)
    assert [slot.shape for slot in resolve.build_encoder(request).outputs] == [(3, 64, 64)]
    both = written(tmp_path, configuration({**ARGUMENTS, "aux_decoders": AUX}, aux_heads=AUX))
    with pytest.raises(errors.InputError, match="are the same; give one"):
        model_file.read(both)
    assert model_file.read(both, task_aux_heads=False) == given


@pytest.mark.parametrize("backbone", ["prithvi_eo_v2_300", "terratorch_prithvi_vit_100", "terramind_v1_base"])
def test_terratorch_backbone_error_gives_a_remedy(tmp_path: Path, backbone: str) -> None:
    path = written(tmp_path, configuration({**ARGUMENTS, "backbone": backbone}))
    with pytest.raises(errors.InputError, match=r"TerraTorch's own backbones.*package\.module:factory"):
        model_file.read(path)


@pytest.mark.parametrize("stated", [False, True])
def test_an_own_backbone_without_a_size_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    (tmp_path / "my_backbones.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    out_channels = [4]\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 8, 8)\n"
        "    def forward(self, images): return [self.conv(images)]\n"
        "def net(**_options): return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_backbones", raising=False)
    content = {**SEG, "backbone": "my_backbones:net", "backbone_out_indices": [0], "decoder": "FCNDecoder"}
    del content["decoder_channels"]
    if not stated:
        del content["image_size"]
    found = model_file.read(written(tmp_path, content), trusted=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built(json.loads(found))
    words = [str(each.message) for each in caught if each.category is encoder_module.SizeNotStated]
    assert len(words) == (not stated)
    assert stated or "my_backbones:net' does not state its image size: images are brought to 224 x 224" in words[0]


def test_a_pyramid_by_pooling_at_64_pixels(tmp_path: Path) -> None:
    necks = [{"name": "ReshapeTokensToImage"}, {"name": "MaxpoolToPyramidal"}]
    arguments = {
        "backbone": "test_vit",
        "backbone_output": "tokens",
        "backbone_out_indices": [1, 3, 5],
        "necks": necks,
        "decoder": "FCNDecoder",
        "num_classes": 2,
    }
    content = {**configuration(arguments), "outputs": ["logits", "necks"]}
    found = built(json.loads(model_file.read(written(tmp_path, content))))
    assert [slot.shape[1:] for slot in found.outputs] == [(64, 64), (4, 4), (2, 2), (1, 1)]


def test_missing_model_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="cannot be read"):
        model_file.read(tmp_path / "absent.toml")


def test_logits_equal_the_model_on_normalised_images() -> None:
    encoder = built(SEG)
    assert [(slot.name, slot.shape) for slot in encoder.outputs] == [("logits", (3, 64, 96))]
    arguments = {key: value for key, value in SEG.items() if key != "image_size"}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = builder.build_model(**arguments).eval()
        images = torch.rand(2, 3, 64, 96)
        normal = (images - torch.tensor(encoder.mean).view(3, 1, 1)) / torch.tensor(encoder.std).view(3, 1, 1)
        assert torch.equal(encoder.module(images)[0], model(normal).output)


def test_stages_are_slots_on_request() -> None:
    necks = [{"name": "AddBottleneckLayer"}]
    arguments = {**SEG, "necks": necks, "decoder_channels": [16, 8, 8, 4]}
    encoder = built({**arguments, "outputs": ["backbone", "necks", "decoder", "logits"]})
    slots = {slot.name: slot.shape for slot in encoder.outputs}
    assert list(slots) == [
        "logits",
        "decoder",
        *(f"neck_{index}" for index in range(4)),
        *(f"backbone_{index}" for index in range(3)),
    ]
    assert slots["decoder"] == (4, *slots["backbone_0"][1:])
    assert slots["neck_3"][0] == slots["neck_2"][0] // 2
    images = torch.rand(1, 3, 64, 96)
    named = dict(zip(slots, encoder.module(images), strict=True))
    assert torch.equal(named["neck_1"], named["backbone_1"])


def test_classifier_uses_the_backbones_crop() -> None:
    arguments = {
        "task": "classification",
        "backbone": "timm_test_resnet",
        "decoder": "IdentityDecoder",
        "num_classes": 5,
    }
    parts = model_file.build(json.dumps(arguments), RANDOM, (64, 64))
    assert parts.preprocessing.describe() == "crop to 64 x 64 (shorter side to 67 first), bilinear"
    assert {name: tuple(item.shape) for name, item in parts.trunk(torch.rand(2, 3, 64, 64)).items()} == {
        "logits": (2, 5)
    }


@pytest.mark.slow
def test_classifier_crop_equals_timm() -> None:
    """timm takes floor(224 / 0.9) = 248, not 249."""
    name = "vit_tiny_patch16_224"
    arguments = {"task": "classification", "backbone": f"timm_{name}", "decoder": "IdentityDecoder", "num_classes": 2}
    shown = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    )
    assert built(arguments).preprocessing.resize_short == shown.transforms[0].size == 248


@pytest.mark.slow
def test_channels_last_maps_become_channels_first_slots() -> None:
    """timm's Swin gives [B, h, w, C] and says C; PermuteDims turns it for the decoder."""
    arguments = {
        **SEG,
        "backbone": "timm_swin_tiny_patch4_window7_224",
        "backbone_out_indices": [0, 3],
        "necks": [{"name": "PermuteDims", "new_order": [0, 3, 1, 2]}],
        "decoder": "IdentityDecoder",
        "image_size": 224,
        "outputs": ["backbone", "necks"],
    }
    del arguments["decoder_channels"]
    encoder = built(arguments)
    found = dict(zip([slot.name for slot in encoder.outputs], encoder.module(torch.rand(1, 3, 224, 224)), strict=True))
    assert found["backbone_0"].shape == (1, 96, 56, 56)
    assert found["backbone_1"].shape == (1, 768, 7, 7)
    assert torch.equal(found["backbone_0"], found["neck_0"])
    assert torch.equal(found["backbone_1"], found["neck_1"])


@pytest.mark.slow
def test_tokens_become_map_class_and_register_slots() -> None:
    arguments = {
        "task": "segmentation",
        "backbone": "timm_vit_small_patch14_reg4_dinov2",
        "backbone_output": "tokens",
        "backbone_out_indices": [0],
        "necks": [{"name": "ReshapeTokensToImage"}],
        "decoder": "IdentityDecoder",
        "num_classes": 2,
        "image_size": [56, 84],
        "outputs": ["backbone", "necks"],
    }
    trunk: Any = model_file.build(json.dumps(arguments), RANDOM, None).trunk
    images = torch.rand(1, 3, 56, 84)
    slots = trunk(images)
    (tokens,) = trunk.model.encoder(images)
    assert {name: tuple(item.shape[1:]) for name, item in slots.items()} == {
        "neck_0": (384, 4, 6),
        "backbone_0": (384, 4, 6),
        "backbone_0.cls": (384,),
        "backbone_0.register": (4, 384),
    }
    assert torch.equal(slots["backbone_0"], slots["neck_0"])
    assert torch.equal(slots["backbone_0.cls"], tokens[:, 0])
    assert torch.equal(slots["backbone_0.register"], tokens[:, 1:5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "slots"),
    [
        ("vit_medium_patch16_rope_reg1_gap_256", {"backbone_0", "backbone_0.register"}),
        ("vit_small_patch16_dinov3", {"backbone_0", "backbone_0.cls", "backbone_0.register"}),
    ],
)
def test_register_is_not_a_class_token(backbone: str, slots: set[str]) -> None:
    """timm's Eva has registers, but no attribute that says how many."""
    arguments = {
        "task": "segmentation",
        "backbone": f"timm_{backbone}",
        "backbone_output": "tokens",
        "backbone_out_indices": [0],
        "necks": [{"name": "ReshapeTokensToImage"}],
        "decoder": "IdentityDecoder",
        "num_classes": 2,
        "image_size": 64,
        "outputs": ["backbone"],
    }
    trunk: Any = model_file.build(json.dumps(arguments), RANDOM, None).trunk
    images = torch.rand(1, 3, 64, 64)
    found = trunk(images)
    assert found.keys() == slots
    (tokens,) = trunk.model.encoder(images)
    first = len(slots) - 2
    assert torch.equal(found["backbone_0.register"], tokens[:, first:-16])


def test_unused_parts_are_dropped() -> None:
    aux = [{"name": "a", "decoder": "FCNDecoder", "decoder_args": {"decoder_channels": 8}}]
    assert built({**SEG, "aux_decoders": aux}).parameters == built(SEG).parameters
    bare = built({**SEG, "outputs": ["backbone"]})
    assert 0 < bare.parameters < built(SEG).parameters
    assert bare.parameters == built({**SEG, "outputs": ["backbone"], "num_classes": 7}).parameters


@pytest.mark.slow
def test_keys_of_the_file_override_backbone_preprocessing() -> None:
    plain = built({key: value for key, value in SEG.items() if key != "image_size"})
    size = plain.preprocessing
    assert (size.height, size.width, size.fit, size.interpolation) == (160, 160, "stretch", "bilinear")
    assert (plain.mean, plain.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    keys = {"mean": [0.1, 0.2, 0.3], "std": [1, 1.5, 2], "fit": "pad", "interpolation": "bicubic"}
    other = built({**SEG, **keys})
    assert (other.mean, other.std) == ((0.1, 0.2, 0.3), (1.0, 1.5, 2.0))
    assert other.preprocessing.describe().startswith("pad to 64 x 96")
    assert other.preprocessing.interpolation == "bicubic"
    assert built(SEG, size=(32, 64)).preprocessing.height == 32
    with pytest.raises(errors.InputError, match="pixels from 0 to 255"):
        built({**SEG, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]})


@pytest.mark.slow
def test_a_transformer_is_built_for_the_padded_size() -> None:
    """60 x 84 pixels are padded to 64 x 96, multiples of twice 16, and the positions are made for that."""
    arguments = {
        **SEG,
        "backbone": "timm_test_vit",
        "backbone_output": "tokens",
        "backbone_out_indices": [1, 3],
        "necks": [{"name": "ReshapeTokensToImage"}],
        "decoder": "FCNDecoder",
        "decoder_channels": 8,
        "decoder_num_convs": 1,
        "image_size": [60, 84],
    }
    encoder = built(arguments)
    assert encoder.outputs[0].shape == (3, 60, 84)
    for word in ("decoder", "necks", "backbone"):
        with pytest.raises(errors.InputError, match="--image-size 64x96"):
            built({**arguments, "outputs": ["logits", word]})
    with pytest.raises(errors.InputError, match="rescale true"):
        built({**arguments, "rescale": False})
    assert built({**arguments, "outputs": ["necks"]}, size=(64, 96)).outputs[0].shape == (64, 4, 6)


@pytest.mark.slow
def test_layers_of_a_padding_model_are_refused() -> None:
    """Of 48 x 48 pixels padded to 64 x 64 a map is square too, but its cells are no sixteenth of 48."""
    arguments = {
        **SEG,
        "backbone": "timm_test_vit",
        "backbone_out_indices": [1],
        "decoder": "FCNDecoder",
        "decoder_channels": 12,
        "decoder_num_convs": 1,
        "image_size": 48,
    }
    with pytest.raises(errors.InputError, match="pads images of 48 x 48 pixels to 64x64"):
        built(arguments, layers=("decoder",))
    assert built(arguments, layers=("decoder",), size=(64, 64)).outputs[0].shape == (12, 8, 8)


def test_weights_are_random_by_seed() -> None:
    one, same, other = (built(SEG, weights=f"random:{seed}").weights_sha256 for seed in (5, 5, 6))
    assert one == same != other


@pytest.mark.parametrize("style", ["own", "terratorch", "terratorch_timm_module"])
def test_a_checkpoint_of_the_whole_model(tmp_path: Path, style: str) -> None:
    """Our own state dict, or Lightning's: `state_dict`, prefix `model.`, the backbone directly under `encoder.`."""
    expected = built(SEG, weights="random:7")
    trunk: Any = expected.module.trunk  # type: ignore[attr-defined]
    state = trunk.model.state_dict()
    if style != "own":
        inner = "encoder._timm_module." if style.endswith("module") else "encoder."
        named = {f"model.{name.replace('encoder.body.', inner)}": value for name, value in state.items()}
        state = {"epoch": 3, "state_dict": {**named, "criterion.weight": torch.ones(3)}}
    torch.save(state, tmp_path / "best.ckpt")
    assert built(SEG, weights=str(tmp_path / "best.ckpt")).weights_sha256 == expected.weights_sha256


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trunk: Any = built(SEG).module.trunk  # type: ignore[attr-defined]
    state = trunk.model.state_dict()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(errors.InputError, match=r"other sizes: head\.head\.2\.weight is \[3, 8, 1, 1\]"):
        built({**SEG, "num_classes": 5}, weights=str(tmp_path / "w.pt"))
    first = next(iter(state))
    torch.save(
        {**{name: value for name, value in state.items() if name != first}, "extra": torch.ones(1)}, tmp_path / "x.pt"
    )
    with pytest.raises(errors.InputError, match=f"missing: {first}; not in the model: extra"):
        built(SEG, weights=str(tmp_path / "x.pt"))


def test_pretrained_applies_to_the_backbone_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm is asked for, without a network: the flag, the tag, and the warning about the rest."""
    import timm

    asked: list[tuple[str, bool]] = []
    create = timm.create_model

    def noted(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", noted)
    with pytest.warns(task_encoder.UntrainedPartsWarning, match="necks, decoder and head are random"):
        built({**SEG, "backbone_pretrained": True}, weights="pretrained")
    built({**SEG, "backbone_pretrained": True}, weights="random:0")
    built({**SEG, "outputs": ["backbone"]}, weights="pretrained:r160_in1k")
    assert asked == [("test_resnet", True), ("test_resnet", False), ("test_resnet.r160_in1k", True)]
    with pytest.raises(errors.InputError, match="sets backbone_pretrained to false"):
        built({**SEG, "backbone_pretrained": False}, weights="pretrained")


BANDS = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]


@pytest.mark.parametrize(
    "arguments", [{"backbone_in_chans": 6}, {"backbone_in_channels": 6}, {"backbone_bands": BANDS}]
)
@pytest.mark.parametrize("backbone", ["test_resnet", "torchvision_resnet18", "timm_test_vit"])
def test_backbones_take_the_bands_that_their_arguments_name(backbone: str, arguments: dict[str, Any]) -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.5] * 6
    content = {**SEG, "backbone": backbone, "backbone_out_indices": [0, 1, 2], "outputs": ["backbone"]}
    encoder = built({**content, **arguments, "image_size": 160, "mean": mean, "std": std})
    assert encoder.preprocessing.channels is not None
    assert encoder.preprocessing.channels.count == 6
    images = torch.rand(2, 6, 160, 160)
    own = encoder.module.trunk.model.encoder((images - torch.tensor(mean).reshape(1, 6, 1, 1)) / 0.5)
    with torch.inference_mode():
        for found, expected in zip(encoder.module(images), own, strict=True):
            assert torch.allclose(found, expected, atol=1e-6)


def test_statistics_of_another_number_of_bands_are_refused(tmp_path: Path) -> None:
    content = {**SEG, "backbone_bands": BANDS, "mean": [0.1] * 3, "std": [1.0] * 3}
    with pytest.raises(errors.InputError, match=r"mean .* must be 6 numbers, one per channel"):
        model_file.read(written(tmp_path, content))
    with pytest.raises(errors.InputError, match=r"mean .* must be 6 numbers, one per channel"):
        built(content)


def test_channels_that_are_chosen_must_be_those_of_the_backbone() -> None:
    request = resolve.ModelRequest(
        name="factory/seg", weights="random:0", arguments=model_file.canonical(SEG), channels=6
    )
    with pytest.raises(errors.InputError, match=r"takes 3 channels, not 6: .* or set backbone_in_chans: 6"):
        resolve.build_encoder(request)


def test_a_backbone_in_your_code_may_say_its_channels_by_in_chans() -> None:
    encoder = built(
        {
            "task": "regression",
            "backbone": "tiny_backbones:six_bands",
            "decoder": "IdentityDecoder",
            "decoder_out_index": 0,
        },
        size=(32, 48),
    )
    assert encoder.preprocessing.channel_count == 6
    assert encoder.outputs[0].shape == (1, 32, 48)


def test_user_backbone_gets_unnormalised_images() -> None:
    arguments = {
        "task": "regression",
        "backbone": "tiny_backbones:pyramid",
        "decoder": "IdentityDecoder",
        "decoder_out_index": 0,
    }
    encoder = built(arguments, size=(32, 48))
    assert encoder.outputs[0].shape == (1, 32, 48)
    assert (encoder.mean, encoder.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        SEG,
        {
            "task": "segmentation",
            "backbone": "timm_test_vit",
            "backbone_output": "tokens",
            "necks": [{"name": "ReshapeTokensToImage"}, {"name": "InterpolateToPyramidal"}],
            "decoder": "UperNetDecoder",
            "decoder_channels": 4,
            "num_classes": 2,
            "image_size": [60, 84],
        },
        {
            "task": "regression",
            "backbone": "timm_test_vit",
            "backbone_output": "tokens",
            "decoder": "SatMAEHead",
            "decoder_output_embed_dim": 16,
            "decoder_depth": 1,
            "decoder_num_heads": 2,
            "image_size": 64,
        },
    ],
    ids=["unet", "transformer, padded", "satmae"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_traced_and_exported_models_take_any_batch(arguments: dict[str, Any]) -> None:
    module = built(arguments).module
    size = model_file.build(json.dumps(arguments), RANDOM, None).preprocessing
    example = torch.rand(2, 3, size.height, size.width)
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)
        exported = torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).module()
        for count in (1, 5):
            images = torch.rand(count, 3, size.height, size.width)
            for ours, one, two in zip(module(images), traced(images), exported(images), strict=True):
                torch.testing.assert_close(one, ours)
                torch.testing.assert_close(two, ours)
