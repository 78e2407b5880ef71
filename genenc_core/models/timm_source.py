"""Encoders from timm: `forward_features` without the classifier, its tokens or NHWC maps brought to slots."""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import probing, timm_weights, tokens, wording
from genenc_core.models.encoder import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_file

# What an uncalled child that is needed all the same makes a forward pass fail with.
_BREAKS = (AttributeError, TypeError, RuntimeError, AssertionError, ValueError, IndexError)


def names() -> list[str]:
    """Return the names of all architectures, without tags; none when timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return sorted(timm.list_models())


def knows(name: str) -> bool:
    """Tell whether timm is installed and has `name`, which may carry a tag (`resnet50.a1_in1k`)."""
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name))


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build the model `name` with `num_classes=0`; preprocessing is that of its pretrained configuration.

    Raises:
        InputError: unknown tag, failed download, unfit weights file, a size or an architecture that gives no map.
    """
    with construction_rng(choice):
        model = _construct(name, choice, image_size)
    model.eval().requires_grad_(False)
    preprocessing, mean, std = _preprocessing(name, model, image_size)
    size = (preprocessing.height, preprocessing.width)
    trunk = _trunk(name, model, _slimmed(name, model, size), size)
    if choice.path is not None:
        load_file(choice, model=model, trunk=trunk, convert=timm_weights.converting(model))
    return Parts(
        model=model,
        trunk=trunk,
        preprocessing=preprocessing,
        mean=mean,
        std=std,
        stages=_stages(model),
        token_layout=trunk.layout,
        channels_last=_channels_last(model),
    )


def _construct(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> nn.Module:
    import timm

    full_name = f"{name.partition('.')[0]}.{choice.tag}" if choice.tag else name
    if choice.tag and not timm.models.is_model_pretrained(full_name):
        known = ", ".join(tag.partition(".")[2] for tag in timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise errors.InputError(f"timm has no weights {choice.tag!r} for {name!r}. Known: {known or 'none'}.")
    config = timm.models.get_pretrained_cfg(full_name)
    options: dict[str, Any] = {}
    if image_size and config is not None and config.fixed_input_size and image_size != tuple(config.input_size[1:]):
        options["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(
            full_name, pretrained=choice.kind == "pretrained", num_classes=0, **options
        )
    except (TypeError, AssertionError) as error:
        raise errors.InputError(
            f"timm cannot build {full_name!r} at the image size {image_size}: {wording.reason(error)}. Leave "
            "--image-size out, or choose a model that takes other sizes."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.InputError(_construction_failure(full_name, choice, error)) from error
    return model


def _construction_failure(name: str, choice: WeightsChoice, error: Exception) -> str:
    reason = wording.reason(error)
    if choice.kind != "pretrained":
        return f"timm cannot build {name!r}: {reason}."
    return (
        f"cannot get the pretrained weights of timm's {name!r}: {reason}. Connect to the network, or give the "
        "downloaded file with --weights FILE, or use random weights with --weights random:0."
    )


def _preprocessing(
    name: str, model: nn.Module, image_size: tuple[int, int] | None
) -> tuple[spec.Preprocessing, tuple[float, float, float], tuple[float, float, float]]:
    """Translate timm's evaluation transform (`transforms_imagenet_eval`) into ours."""
    from timm.data import config as timm_config

    config = timm_config.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    native = (int(config["input_size"][1]), int(config["input_size"][2]))
    height, width = image_size or native
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    mode, share = config["crop_mode"], float(config["crop_pct"])
    fit: spec.Fit = {"squash": "stretch", "border": "pad"}.get(mode, "crop")  # type: ignore[assignment]
    if fit != "crop" and share != 1.0:
        warnings.warn(
            f"timm trained {name!r} with crop mode {mode!r} at {share}; genenc shows it the whole image (fit {fit!r}), "
            "without that crop of the margins",
            UserWarning,
            stacklevel=4,
        )
    resize = math.floor(min(native) / share)
    preprocessing = spec.Preprocessing(
        height=height,
        width=width,
        fit=fit,
        interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
        resize_short=max(round(resize * min(height, width) / min(native)), 1) if fit == "crop" else None,
        pad_value=tuple(round(255 * value) for value in mean) if fit == "pad" else (0, 0, 0),  # type: ignore[arg-type]
    )
    return preprocessing, mean, std  # type: ignore[return-value]


def _features(name: str, model: Any, images: torch.Tensor) -> torch.Tensor:
    try:
        features = model.forward_features(images)
    except _BREAKS as error:
        size = f"{images.shape[2]} x {images.shape[3]}"
        raise errors.InputError(
            f"timm's {name!r} cannot encode images of {size} pixels: {wording.reason(error)}. Give another "
            "--image-size."
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
        found = list(features.shape) if isinstance(features, torch.Tensor) else f"a {type(features).__name__}"
        raise errors.InputError(
            f"timm's {name!r} gives {found} instead of one feature map. Choose another model, or wrap it yourself and "
            "give package.module:factory."
        )
    return features


def _slimmed(name: str, model: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """Replace children that `forward_features` never calls (heads) by nothing, if it then does the same.

    Returns the shape of the features of one image.
    """

    def look(module: Any, images: torch.Tensor) -> tuple[set[str], Sequence[Hashable], tuple[int, ...]]:
        called: set[str] = set()
        operations = probing.Operations(module)
        with probing.hooked(dict(module.named_modules()), lambda path, _: called.add(path)), operations:
            features = _features(name, module, images)
        return called, operations.record, tuple(features.shape)

    called, before, shape = probing.observe(model, look, batch=1, size=size)
    dropped = {
        child: module
        for child, module in model.named_children()
        if not any(path == child or path.startswith(f"{child}.") for path in called)
        and any(True for _ in module.parameters())
    }
    for child in dropped:
        setattr(model, child, nn.Identity())
    try:
        same = not dropped or probing.observe(model, look, batch=1, size=size)[1] == before
    except (*_BREAKS, errors.InputError):
        same = False
    if not same:
        for child, module in dropped.items():
            setattr(model, child, module)
    return shape


class _Trunk(nn.Module):
    """timm's `forward_features`, its result brought to slots in a way that was settled when it was built."""

    def __init__(self, model: Any, *, channels_last: bool, layout: tokens.TokenLayout | None) -> None:
        super().__init__()
        self.model = model
        self.channels_last = channels_last
        self.layout = layout

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        features = self.model.forward_features(images)
        return tokens.arranged(features, self.layout, channels_last=self.channels_last)


def _trunk(name: str, model: Any, shape: tuple[int, ...], size: tuple[int, int]) -> _Trunk:
    if len(shape) == 3:
        return _Trunk(model, channels_last=False, layout=_layout(name, model, shape, size))
    channels_last = _channels_last(model)
    if shape[3 if channels_last else 1] != model.num_features:
        raise errors.InputError(
            f"timm's {name!r} gives features {list(shape)} but says it has {model.num_features} channels, so it is "
            "not known which axis they are. Wrap it yourself and give package.module:factory."
        )
    return _Trunk(model, channels_last=channels_last, layout=None)


def _channels_last(model: Any) -> bool:
    """Tell what timm's own convention says: NCHW, unless a model declares something else."""
    return str(getattr(model, "output_fmt", "NCHW")) == "NHWC"


def _stages(model: Any) -> tuple[str, ...]:
    """Return the modules that timm itself takes features from."""
    info = getattr(model, "feature_info", None) or ()
    named = dict(model.named_modules())
    found = [item.get("module", "") for item in info] if isinstance(info, list) else []
    return tuple(dict.fromkeys(name for name in found if name in named))


def _layout(name: str, model: Any, shape: tuple[int, ...], size: tuple[int, int]) -> tokens.TokenLayout:
    """Find how the tokens [B, N, C] lie: declared by the model, or seen in the map that it makes of them itself."""
    embedded = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    count = getattr(model, "num_prefix_tokens", None)
    if count is None:
        grid = _grid_by_comparison(model, size)
    elif embedded and count + embedded[0] * embedded[1] == shape[1]:
        grid = (int(embedded[0]), int(embedded[1]))
    else:
        grid = _grid_of_own_map(model, size)
    if grid is None or (count is not None and count + grid[0] * grid[1] != shape[1]):
        raise errors.InputError(
            f"timm's {name!r} gives tokens {list(shape)} and does not state their grid. Choose another "
            "model, or wrap it yourself and give package.module:factory."
        )
    height, width = grid
    return tokens.TokenLayout(grid=(height, width), prefix=_prefix(model, shape[1] - height * width))


def register_count(model: Any) -> int:
    """Return how many of a transformer's prefix tokens are registers; not every model of timm has the number."""
    registers = getattr(model, "reg_token", None)
    number = getattr(model, "num_reg_tokens", None)
    if number is None:
        number = 0 if registers is None else registers.shape[1]
    return int(number)


def _prefix(model: Any, count: int) -> tokens.Prefix:
    return tokens.prefix_of(
        count,
        registers=register_count(model),
        distilled=getattr(model, "dist_token", None) is not None,
        class_token=getattr(model, "cls_token", None) is not None,
    )


def _own_map(model: Any, images: torch.Tensor, *, norm: bool) -> torch.Tensor:
    """Return the last map [B, C, h, w] that the model makes of its tokens itself."""
    maps: torch.Tensor = model.forward_intermediates(
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
    )[-1]
    return maps


def _grid_of_own_map(model: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the height and width of the model's own map, which costs no computing."""
    try:
        maps = probing.observe(model, lambda own, images: _own_map(own, images, norm=False), batch=1, size=size)
    except _BREAKS:
        return None
    return int(maps.shape[2]), int(maps.shape[3])


@torch.inference_mode()
def _grid_by_comparison(model: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid of the model's own map if its cells are the last tokens, row by row; needs their numbers."""
    images = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))
    found = model.forward_features(images)
    for norm in (True, False):
        try:
            maps = _own_map(model, images, norm=norm)
        except _BREAKS:
            continue
        listed = maps.flatten(2).transpose(1, 2)
        if listed.shape[1] <= found.shape[1] and torch.equal(found[:, -listed.shape[1] :], listed):
            return int(maps.shape[2]), int(maps.shape[3])
    return None
