"""Encoders from torchvision's classification models: the layers before pooling."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torchvision.models as zoo
from torch import nn
from torchvision.models import vision_transformer

from genenc_core import errors, spec
from genenc_core.models import channels as adapting
from genenc_core.models import heads, tokens
from genenc_core.models.encoder_module import Parts
from genenc_core.models.sources import channel_loading as loading
from genenc_core.models.weights import (
    Convert,
    WeightsChoice,
    construction_rng,
    encoder_state,
    interpolated_note,
    load_state,
    note,
)


def names() -> list[str]:
    """Return the names of all classification models."""
    return sorted(zoo.list_models(module=zoo))


def build(
    name: str,
    choice: WeightsChoice,
    image_size: tuple[int, int] | None,
    channels: int | None = None,
    head: heads.Head | None = None,
) -> Parts:
    """Build the model `name` with the requested weights and the preprocessing of its evaluation transform.

    Of other `channels` than three the first convolution is adapted; None: as a weights file has them, else three.
    With `head` the trunk is the model's own forward pass.

    Raises:
        InputError: unknown tag, failed download, weights that do not fit, an unsupported size, or no classifier.
    """
    entry = _weights_entry(name, choice)
    preset = entry.transforms()
    preprocessing = _preprocessing(preset, image_size)
    with construction_rng(choice):
        model = _construct(name, choice, entry, preprocessing)
    model.eval()
    mean, std = (tuple(float(value) for value in values) for values in (preset.mean, preset.std))
    classifiers = _removed_classifier(name, model) if head == heads.PRE_LOGITS else ()
    layout, trunk = _layout(model), _trunk(model, head, classifiers)
    state, count = loading.state_and_channels(
        name,
        choice,
        channels,
        tensors=encoder_state(model, trunk),
        convolution=adapting.first_convolution(model),
    )
    if count != adapting.RGB:
        if getattr(model, "transform_input", False):
            # The conversion of three colours for weights from TensorFlow is a normalisation to [-1, 1].
            model.transform_input = False  # type: ignore[assignment]
            mean = std = (0.5,) * adapting.RGB
        adapting.widen(model, count, who=f"torchvision's {name!r}")
        trunk = _trunk(model, head, classifiers)
    if choice.path is not None:
        state = heads.without_classifier(state, classifiers)
        load_state(state, choice, model=model, trunk=trunk, convert=_resampling(model))
        note(_assumptions(name, choice.path, entry, model), choice)
    return Parts(
        model=model,
        trunk=trunk,
        preprocessing=loading.for_channels(preprocessing, count),
        mean=adapting.adapted_statistics(mean, count),
        std=adapting.adapted_statistics(std, count),
        statistics_adapted=count != adapting.RGB,
        stages=_stages(model),
        token_layout=layout,
        channels_last=isinstance(model, zoo.SwinTransformer),
    )


def _weights_entry(name: str, choice: WeightsChoice) -> Any:
    entries, tag = zoo.get_model_weights(name), choice.tag
    if tag is None:
        named = [entry for entry in entries if choice.path is not None and _is_named_as(choice.path, entry)]
        return named[0] if named else entries.DEFAULT
    if tag not in entries.__members__:
        known = ", ".join(entry.name for entry in entries)
        raise errors.InputError(f"torchvision has no weights {tag!r} for {name!r}. Give one of: {known}.")
    return entries[tag]


def _is_named_as(path: Path, entry: Any) -> bool:
    """Return whether a file is named as torchvision's file of these weights, with part of their digest."""
    digest = PurePosixPath(entry.url).stem.rpartition("-")[2]
    return digest in re.split(r"[-_. ]", path.name)


def _assumptions(name: str, path: Path, entry: Any, model: nn.Module) -> str | None:
    """Return what is assumed about weights in a file that is not named as torchvision's; None: nothing."""
    if _is_named_as(path, entry):
        return None
    assumed = []
    presets = {each.name: each.transforms() for each in zoo.get_model_weights(name)}
    sizes = {tag: f"{preset.resize_size[0]}, cut to {preset.crop_size[0]}" for tag, preset in presets.items()}
    if len({*sizes.values()}) > 1:
        others = ", ".join(f"{tag} {size}" for tag, size in sizes.items() if tag != entry.name)
        assumed.append(f"images are resized as for {entry.name} ({sizes[entry.name]}; {others})")
    if getattr(model, "transform_input", False):
        assumed.append("colours are converted as for weights trained in TensorFlow (transform_input)")
    if not assumed:
        return None
    return f"its name does not identify which of torchvision's weights it holds, so {' and '.join(assumed)}"


def _preprocessing(preset: Any, image_size: tuple[int, int] | None) -> spec.Preprocessing:
    native, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    height, width = image_size or (native, native)
    return spec.Preprocessing(
        height=height,
        width=width,
        fit="crop",
        interpolation=preset.interpolation.value,
        antialias=True,
        resize_short=max(round(resize * min(height, width) / native), 1),
    )


def _construct(name: str, choice: WeightsChoice, entry: Any, preprocessing: spec.Preprocessing) -> nn.Module:
    pretrained = choice.kind == "pretrained"
    size = (preprocessing.height, preprocessing.width)
    options = {} if pretrained else _options(name, choice, size)
    try:
        model: nn.Module = zoo.get_model(name, weights=entry if pretrained else None, progress=False, **options)
    except (ValueError, AssertionError) as error:
        raise errors.InputError(
            f"torchvision cannot build {name!r} at {size[0]} x {size[1]}: {errors.reason(error)}."
        ) from error
    except (OSError, RuntimeError) as error:
        raise errors.InputError(
            f"cannot get the pretrained weights of {name!r} ({entry}) from {entry.url}: {errors.reason(error)}. "
            "Connect to the network, give a downloaded file with --weights FILE, or try the rest with "
            "--weights random:0, whose features mean nothing."
        ) from error
    if isinstance(model, zoo.VisionTransformer) and (model.image_size, model.image_size) != size:
        return _resized(name, model, size)
    return model


def _options(name: str, choice: WeightsChoice, size: tuple[int, int]) -> dict[str, Any]:
    """Return constructor arguments that make a model without downloaded weights match the pretrained one."""
    if name.startswith("vit_"):
        return {"image_size": _square(name, size)}
    if name.startswith("maxvit_"):
        return {"input_size": size}
    if name in ("googlenet", "inception_v3"):
        # Weights trained in TensorFlow expect [-1, 1]: torchvision sets this for pretrained weights.
        return {"init_weights": True, "transform_input": choice.kind == "file"}
    return {}


def _square(name: str, size: tuple[int, int]) -> int:
    if size[0] != size[1]:
        raise errors.InputError(
            f"torchvision's {name!r} accepts only square images, not {size[0]} x {size[1]} pixels. Give a square "
            "--image-size, or use a timm model such as vit_base_patch16_224."
        )
    return size[0]


def _resized(name: str, model: zoo.VisionTransformer, size: tuple[int, int]) -> nn.Module:
    """Return the transformer for another square size, with position embeddings interpolated by torchvision."""
    side = _square(name, size)
    if side % model.patch_size:
        raise errors.InputError(f"{name!r} needs an --image-size that is a multiple of {model.patch_size}, not {side}.")
    state = vision_transformer.interpolate_embeddings(side, model.patch_size, model.state_dict())
    resized: nn.Module = zoo.get_model(name, weights=None, image_size=side, num_classes=model.num_classes)
    resized.load_state_dict(state)
    return resized


def _resampling(model: nn.Module) -> Convert | None:
    """Return a function that interpolates a file's position embeddings to the model's size, as torchvision does."""
    if not isinstance(model, zoo.VisionTransformer):
        return None

    def resampled(state: Mapping[str, torch.Tensor], notes: list[str]) -> Mapping[str, torch.Tensor] | None:
        name = "encoder.pos_embedding"
        own, loaded = model.state_dict()[name], state.get(name)
        if loaded is None or loaded.ndim != own.ndim or loaded.shape == own.shape or loaded.shape[2] != own.shape[2]:
            return None
        try:
            result: Mapping[str, torch.Tensor] = vision_transformer.interpolate_embeddings(
                model.image_size, model.patch_size, OrderedDict(state)
            )
        except ValueError:  # the grid of patches is not square
            return None
        notes.append(interpolated_note(name, loaded, result[name]))
        return result

    return resampled


class _DenseNetTrunk(nn.Module):
    """DenseNet's features with the ReLU that its `forward` applies before pooling."""

    def __init__(self, model: zoo.DenseNet) -> None:
        super().__init__()
        self.features = model.features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.features(images))


class _InceptionTrunk(nn.Module):
    """GoogLeNet or Inception v3 before pooling, with its input conversion and without auxiliary heads."""

    def __init__(self, model: zoo.GoogLeNet | zoo.Inception3) -> None:
        super().__init__()
        self.layers = _before(model, "avgpool", without=("aux1", "aux2", "AuxLogits"))
        self.converts_input = model.transform_input

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.converts_input:
            # (x * std_imagenet + mean_imagenet - 0.5) / 0.5, as in `_transform_input` of both models
            channels = (
                images[:, 0:1] * (0.229 / 0.5) + (0.485 - 0.5) / 0.5,
                images[:, 1:2] * (0.224 / 0.5) + (0.456 - 0.5) / 0.5,
                images[:, 2:3] * (0.225 / 0.5) + (0.406 - 0.5) / 0.5,
            )
            images = torch.cat(channels, 1)
        maps: torch.Tensor = self.layers(images)
        return maps


class _MaxVitTrunk(nn.Module):
    """MaxViT's stem and blocks."""

    def __init__(self, model: zoo.MaxVit) -> None:
        super().__init__()
        self.stem, self.blocks = model.stem, model.blocks

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.stem(images)
        for block in self.blocks:
            maps = block(maps)
        return maps


class _ViTTrunk(nn.Module):
    """A vision transformer: patch tokens as a map [B, C, h, w], and the class token [B, C]."""

    def __init__(self, model: zoo.VisionTransformer) -> None:
        super().__init__()
        self.conv_proj, self.encoder, self.class_token = model.conv_proj, model.encoder, model.class_token
        self.layout = _vit_layout(model)

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        listed = torch.cat((self.class_token.expand(patches.shape[0], -1, -1), patches), 1)
        return tokens.split(self.encoder(listed), self.layout)


def _before(model: nn.Module, stop: str, *, without: tuple[str, ...] = ()) -> nn.Sequential:
    """Return the model's children before the one named `stop`, in order."""
    children = takewhile(lambda item: item[0] != stop, model.named_children())
    return nn.Sequential(*(child for name, child in children if name not in without))


def _features(model: Any) -> nn.Module:
    return model.features  # type: ignore[no-any-return]


_TRUNKS: tuple[tuple[type[nn.Module], Callable[[Any], nn.Module]], ...] = (
    (zoo.AlexNet, _features),
    (zoo.ConvNeXt, _features),
    (zoo.EfficientNet, _features),
    (zoo.MobileNetV2, _features),
    (zoo.MobileNetV3, _features),
    (zoo.SqueezeNet, _features),
    (zoo.VGG, _features),
    (zoo.DenseNet, _DenseNetTrunk),
    (zoo.GoogLeNet, _InceptionTrunk),
    (zoo.Inception3, _InceptionTrunk),
    (zoo.MNASNet, lambda model: model.layers),
    (zoo.MaxVit, _MaxVitTrunk),
    (zoo.RegNet, lambda model: _before(model, "avgpool")),
    (zoo.ResNet, lambda model: _before(model, "avgpool")),
    (zoo.ShuffleNetV2, lambda model: _before(model, "fc")),
    (zoo.SwinTransformer, lambda model: nn.Sequential(model.features, model.norm, model.permute)),
    (zoo.VisionTransformer, _ViTTrunk),
)


def _vit_layout(model: zoo.VisionTransformer) -> tokens.TokenLayout:
    side = model.image_size // model.patch_size
    return tokens.TokenLayout(grid=(side, side), prefix=tokens.prefix_of(1))


def _layout(model: nn.Module) -> tokens.TokenLayout | None:
    return _vit_layout(model) if isinstance(model, zoo.VisionTransformer) else None


def _removed_classifier(name: str, model: nn.Module) -> tuple[str, ...]:
    """Replace a model's classifier, its last linear layer, by `Identity`; return its name.

    Raises:
        InputError: it has none.
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise errors.InputError(
            f"torchvision's {name!r} has no layer {heads.PRE_LOGITS!r}: its classifier is a convolution. Name another "
            "layer, or take its map (without --layers)."
        )
    model.set_submodule(linear[-1], nn.Identity())
    return (linear[-1],)


def _trunk(model: nn.Module, head: heads.Head | None = None, classifiers: tuple[str, ...] = ()) -> nn.Module:
    if head is not None:
        return heads.WholeModel(model, head, classifiers=classifiers)
    for kind, make in _TRUNKS:
        if isinstance(model, kind):
            return make(model)
    raise errors.InputError(
        f"torchvision's {type(model).__name__} is newer than genenc, which does not know its encoder layers. Wrap it "
        "yourself and give package.module:factory."
    )


# Name patterns of the modules that end a stage; in other models the stages are children of `features`.
_STAGES: tuple[tuple[type[nn.Module], str], ...] = (
    (zoo.ConvNeXt, r"features\.[1357]"),
    (zoo.DenseNet, r"features\.denseblock\d"),
    (zoo.GoogLeNet, r"maxpool[12]|inception\d[a-e]"),
    (zoo.Inception3, r"maxpool[12]|Mixed_\d[a-e]"),
    (zoo.MNASNet, r"layers\.\d+"),
    (zoo.MaxVit, r"blocks\.\d"),
    (zoo.RegNet, r"trunk_output\.block\d"),
    (zoo.ResNet, r"layer\d"),
    (zoo.ShuffleNetV2, r"stage\d|conv5"),
    (zoo.SwinTransformer, r"features\.[1357]"),
    (zoo.VisionTransformer, r"encoder\.layers\.encoder_layer_\d+"),
)


def _stages(model: nn.Module) -> tuple[str, ...]:
    pattern = next((pattern for kind, pattern in _STAGES if isinstance(model, kind)), r"features\.\d+")
    return tuple(name for name, _ in model.named_modules() if re.fullmatch(pattern, name))
