"""Encoders from timm: Hugging Face Hub names, weight files, and conversion of `forward_features` to slots."""

import logging
import math
import re
import sys
import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import channels as adapting
from genenc_core.models import fake_run, heads, tokens
from genenc_core.models.encoder_module import Parts, PerChannel
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

_PREFIXES = ("hf-hub:", "hf_hub:", "hf://", "https://huggingface.co/", "huggingface.co/")
_SOURCES = frozenset({"timm", "torchvision", "genenc", "factory"})
"""genenc's source prefixes, which are not owners of repositories"""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_PREPROCESSING = ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation")
"""fields of a pretrained configuration that determine the preprocessing"""
# Exceptions of a forward pass when a child that it needs was removed.
_FORWARD_ERRORS = (AttributeError, TypeError, RuntimeError, AssertionError, ValueError, IndexError)


def is_hub_name(name: str) -> bool:
    """Return whether a name refers to the Hugging Face Hub: with its prefix or URL, or `owner/model`."""
    if name.lower().startswith(_PREFIXES):
        return True
    owner = name.partition("/")[0]
    is_file = name.lower().endswith((".toml", ".yaml", ".yml", ".json"))
    return bool(_REPOSITORY.match(name)) and owner not in _SOURCES and not is_file


def split(name: str) -> tuple[str, str, str]:
    """Split a hub name into owner, model and revision; owner and revision may be empty."""
    for prefix in _PREFIXES:
        if name.lower().startswith(prefix):
            name = name[len(prefix) :]
    owner, _, bare = name.strip("/").rpartition("/")
    bare, _, revision = bare.partition("@")
    return owner, bare, revision


def names_with_words(name: str, known: Sequence[str], *, limit: int = 5) -> list[str]:
    """Return the shortest known names that contain all words of `name`, e.g. `dinov2-small` -> `..._dinov2`.

    Words are separated by hyphens, underscores and dots. If no name contains all, only the longest word is searched.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    matches = [item for item in known if words and all(word in item.lower() for word in words)]
    longest = max(words, key=len, default="")
    if not matches and len(longest) > 2:
        matches = [item for item in known if longest in item.lower()]
    return sorted(matches, key=lambda item: (len(item), item))[:limit]


def tag_of(name: str, path: Path) -> str | None:
    """Return the tag of timm's weights that a file is named after, by its URL, digest or hub folder; None if none."""
    names = {path.name, path.stem, *(part.rpartition("--")[2] for part in path.absolute().parent.parts)}
    digests = set(re.split(r"[-_. ]", path.name))
    for tag, config in _configurations(name).items():
        url = PurePosixPath(config.url or "")
        digest = re.search(r"-([0-9a-f]{8})$", url.stem)
        own = {url.name, PurePosixPath(config.hf_hub_id or "").name} - {""}
        if own & names or (digest is not None and digest[1] in digests):
            return tag
    return None


def assumptions(name: str, size: tuple[int, int] | None = None) -> str | None:
    """Return what is assumed about a file that may hold any of timm's weights of this architecture; None: nothing.

    `size`: height and width of the images in pixels; None: the architecture's default.
    """
    assumed, remedies = [], []
    if size is not None and same_shaped_tables(name, size):
        assumed.append(f"its position embedding is assumed to be for images of {size[0]} x {size[1]} pixels")
        remedies.append(f"--model {name}.TAG")
    configurations = _configurations(name)
    first = next(iter(configurations.values()), None)
    others = [
        f"{tag} in {' and '.join(differing)}"
        for tag, config in configurations.items()
        if (differing := [field for field in _PREPROCESSING if getattr(config, field) != getattr(first, field)])
    ]
    if first is not None and others:
        more = f", and {len(others) - 3} more" if len(others) > 3 else ""
        assumed.append(
            f"images are preprocessed as for {name}.{first.tag} (others differ: {', '.join(others[:3])}{more})"
        )
        remedies.append(f"--model {name}.TAG")
    if twin := _quick_gelu(name):
        assumed.append("activations are GELU, not QuickGELU as in OpenAI's CLIP")
        remedies.append(f"--model {twin}")
    if not assumed:
        return None
    return (
        f"its name does not identify which of timm's weights it holds, so {' and '.join(assumed)}; choose others with "
        f"{' or '.join(remedies)}"
    )


def _warn_of_activation(name: str) -> None:
    """Warn of weights that were trained with QuickGELU, of a model that timm builds with GELU."""
    import timm

    config, twin = timm.models.get_pretrained_cfg(name), _quick_gelu(name)
    if twin and "QuickGELU" in " ".join((config and config.notes) or ()):
        warnings.warn(
            f"the weights {name!r} were trained with QuickGELU, but timm's model of this name has GELU: for CLIP's own "
            f"features give --model {twin}",
            UserWarning,
            stacklevel=4,
        )


def _quick_gelu(name: str) -> str | None:
    """Return the same architecture with CLIP's QuickGELU, which has weights of the same names and shapes."""
    import timm

    twin = name.replace("_clip_", "_clip_quickgelu_")
    return twin if twin != name and timm.is_model(twin) else None


def _configurations(name: str) -> Mapping[str, Any]:
    """Return the pretrained configurations of an architecture by tag, the default first."""
    import timm

    default = timm.models.get_pretrained_cfg(name)
    full = timm.list_pretrained(f"{name}.*")
    by_tag = {each.partition(".")[2]: timm.models.get_pretrained_cfg(each) for each in full}
    return {default.tag: default, **by_tag} if default is not None and default.tag in by_tag else by_tag


def same_shaped_tables(name: str, size: tuple[int, int] | None) -> list[str]:
    """Return the position-dependent entries whose shapes match at `size` although the positions differ.

    A grid of 18 x 32 patches has as many patches as one of 24 x 24, so the shapes do not show the difference.
    """
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if size is None or config is None or not config.fixed_input_size:
        return []
    native = input_size(name)
    if size == native or not 0.5 < math.prod(size) / math.prod(native) < 2:  # numbers of patches differ
        return []
    own = _shapes(name, native)
    if own != _shapes(name, size):
        return []
    larger = _shapes(name, (2 * native[0], 2 * native[1]))
    return [entry for entry, shape in own.items() if larger and larger.get(entry) != shape]


def rearrange_positions(
    model: nn.Module, name: str, size: tuple[int, int] | None, *, loaded_by_timm: bool
) -> str | None:
    """Resample the position embedding of weights trained on another aspect ratio; return a note on it.

    The shapes in a state dict only show the number of patches. Call this after loading the weights.

    Args:
        model: a timm model, created for images of `size`.
        name: its architecture with the tag of its weights.
        size: height and width in pixels.
        loaded_by_timm: whether timm loaded the weights, and may have resampled the embedding.

    Raises:
        InputError: the model encodes positions in a way that cannot be resampled.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    tables = same_shaped_tables(name, size)
    if not tables or size is None:
        return None
    native = input_size(name)
    table, patches = getattr(model, "pos_embed", None), getattr(model, "patch_embed", None)
    grid, patch = getattr(patches, "grid_size", None), getattr(patches, "patch_size", None)
    if tables != ["pos_embed"] or table is None or table.ndim != 3 or not grid or not patch:
        raise errors.InputError(
            f"timm's {name!r} holds positions for images of {native[0]} x {native[1]} pixels in {tables[0]!r}, which "
            f"fits {size[0]} x {size[1]} in shape but not in position: give another --image-size"
        )
    if loaded_by_timm and _timm_resamples(model):
        return None
    before = (native[0] // patch[0], native[1] // patch[1])
    with torch.no_grad():
        table.copy_(resample_abs_pos_embed(table, list(grid), list(before), table.shape[1] - math.prod(grid)))
    return f"pos_embed is interpolated from {before[0]} x {before[1]} patches to {grid[0]} x {grid[1]}"


def input_size(name: str) -> tuple[int, int]:
    """Return the image height and width in pixels that pretrained weights of timm were trained on."""
    import timm

    config = timm.models.get_pretrained_cfg(name)
    assert config is not None
    return int(config.input_size[1]), int(config.input_size[2])


def _timm_resamples(model: nn.Module) -> bool:
    """Return whether this version of timm resamples such a position embedding when it loads pretrained weights."""
    own = model.state_dict()
    random = torch.rand(own["pos_embed"].shape, generator=torch.Generator().manual_seed(0))
    converted = checkpoint_converter(model)({**own, "pos_embed": random}, [])
    return converted is not None and not torch.equal(converted.get("pos_embed", random), random)


def _shapes(name: str, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the state dict's shapes of a model for images of `size`; empty if it does not accept the size."""
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    except Exception:  # may raise anything for an unsupported size
        return {}
    return {entry: tuple(value.shape) for entry, value in model.state_dict().items()}


def checkpoint_converter(model: nn.Module) -> Convert:
    """Return a function that converts names and position embeddings of a state dict as timm does.

    An embedding of another grid is interpolated with `timm.layers.resample_abs_pos_embed` (bicubic, antialiased) or
    as the model's own `checkpoint_filter_fn` does.
    """

    def converted(state: Mapping[str, torch.Tensor], notes: list[str]) -> Mapping[str, torch.Tensor] | None:
        convert: Any = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
        if convert is None:
            return None
        logger = logging.getLogger("timm")
        before = logger.level
        logger.setLevel(logging.WARNING)  # interpolation is reported in `notes`
        try:
            result = convert(dict(state), model)
        except Exception:  # may raise anything for another model's file
            return None
        finally:
            logger.setLevel(before)
        if not isinstance(result, Mapping) or not all(isinstance(value, torch.Tensor) for value in result.values()):
            return None
        changed = [name for name, value in result.items() if name in state and state[name].shape != value.shape]
        notes += [interpolated_note(name, state[name], result[name]) for name in changed]
        if [name for name in result if name not in state]:
            notes.append("names are converted as timm does")
        return result

    return converted


def names() -> list[str]:
    """Return the names of all architectures, without tags; empty if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return sorted(timm.list_models())


def knows(name: str) -> bool:
    """Return whether timm is installed and has `name`, which may include a tag (`resnet50.a1_in1k`)."""
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name))


def build(
    name: str,
    choice: WeightsChoice,
    image_size: tuple[int, int] | None,
    channels: int | None = None,
    head: heads.Head | None = None,
) -> Parts:
    """Build the model `name` with `num_classes=0` and the preprocessing of its pretrained configuration.

    Of other `channels` than three timm adapts it (`in_chans`); None: as a weights file has them, else three.
    With `head` the trunk is the model's own forward pass, `whole` with its classifier.

    Raises:
        InputError: unknown tag, failed download, weights that do not fit, an unsupported size, or no feature map.
    """
    architecture, _, tag = name.partition(".")
    known = choice.tag or tag or (tag_of(architecture, choice.path) if choice.path is not None else None)
    full = f"{architecture}.{known}" if known else name
    model, trunk, (preprocessing, mean, std) = _built(name, full, choice, image_size, channels or adapting.RGB, head)
    state, count = loading.state_and_channels(
        name, choice, channels, tensors=encoder_state(model, trunk), convolution=_first_convolution(model)
    )
    if count != (channels or adapting.RGB):
        model, trunk, _ = _built(name, full, choice, image_size, count, head)
    if choice.path is not None:
        state = heads.without_classifier(state, _classifiers(model) if head == heads.PRE_LOGITS else ())
        load_state(state, choice, model=model, trunk=trunk, convert=checkpoint_converter(model))
        # LeViT's attention keeps biases from the passes above; before timm 1.0.31 only this clears them.
        model.train()
        model.eval()
    if choice.kind == "pretrained" or (choice.path is not None and known):
        by_timm = choice.path is None
        note(rearrange_positions(model, full, image_size, loaded_by_timm=by_timm), choice)
        _warn_of_activation(full)
    elif choice.path is not None:
        note(assumptions(architecture, image_size), choice)
    return Parts(
        model=model,
        trunk=trunk,
        preprocessing=loading.for_channels(preprocessing, count),
        mean=adapting.adapted_statistics(mean, count),
        std=adapting.adapted_statistics(std, count),
        statistics_adapted=count != adapting.RGB,
        stages=_stages(model),
        token_layout=trunk.layout,
        channels_last=_channels_last(model),
    )


def _built(
    name: str,
    full: str,
    choice: WeightsChoice,
    image_size: tuple[int, int] | None,
    channels: int,
    head: heads.Head | None,
) -> tuple[nn.Module, "_Trunk | _WholeModel", tuple[spec.Preprocessing, PerChannel, PerChannel]]:
    """Return the model, its trunk, and preprocessing, mean and std of its configuration, as of three channels."""
    with construction_rng(choice):
        model = _construct(full, choice, image_size, channels, classes=head == "whole")
    model.eval().requires_grad_(False)
    used = _preprocessing(name, model, image_size)
    size = (used[0].height, used[0].width)
    if head is not None:
        shape = fake_run.observe(model, partial(_shape, name), batch=1, size=size, channels=channels)
        layout = _layout(name, model, shape, size, channels) if len(shape) == 3 else None
        return model, _WholeModel(model, head, layout), used
    trunk = _trunk(name, model, _drop_unused_children(name, model, size, channels), size, channels)
    return model, trunk, used


class _WholeModel(heads.WholeModel):
    """timm's whole model, with the layout of the tokens inside."""

    def __init__(self, model: nn.Module, head: heads.Head, layout: tokens.TokenLayout | None) -> None:
        super().__init__(model, head, classifiers=_classifiers(model))
        self.layout = layout


def _shape(name: str, model: Any, images: torch.Tensor) -> tuple[int, ...]:
    return tuple(_features(name, model, images).shape)


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a model's classifiers, two with a distillation token."""
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (stated,) if isinstance(stated, str) else tuple(stated)


def _first_convolution(model: nn.Module) -> str | None:
    """Return the name of the first convolution, as timm's configuration says it."""
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    first: Any = stated[0] if isinstance(stated, list | tuple) and stated else stated
    convolutions = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    return first if first in convolutions else next(iter(convolutions), None)


def _construct(
    name: str,
    choice: WeightsChoice,
    image_size: tuple[int, int] | None,
    channels: int = adapting.RGB,
    *,
    classes: bool = False,
) -> nn.Module:
    import timm

    if choice.tag and not timm.models.is_model_pretrained(name):
        known = ", ".join(tag.partition(".")[2] for tag in timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise errors.InputError(f"timm has no weights {name!r}. Available: {known or 'none'}.")
    config = timm.models.get_pretrained_cfg(name)
    options: dict[str, Any] = {} if classes else {"num_classes": 0}
    if image_size and config is not None and config.fixed_input_size and image_size != tuple(config.input_size[1:]):
        options["img_size"] = image_size
    if channels != adapting.RGB:
        options["in_chans"] = channels
    try:
        model: nn.Module = timm.create_model(name, pretrained=choice.kind == "pretrained", **options)
    except (TypeError, AssertionError) as error:
        raise errors.InputError(
            f"timm cannot build {name!r} at the image size {image_size}"
            f"{f' for {channels} channels' if channels != adapting.RGB else ''}: {errors.reason(error)}. Omit "
            "--image-size, or choose a model that accepts other sizes."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.InputError(_construction_failure(name, choice, error)) from error
    return model


def _construction_failure(name: str, choice: WeightsChoice, error: Exception) -> str:
    reason = errors.reason(error)
    if choice.kind != "pretrained":
        return f"timm cannot build {name!r}: {reason}."
    return (
        f"cannot get the pretrained weights of timm's {name!r}: {reason}. Connect to the network, give a "
        "downloaded file with --weights FILE, or try the rest with --weights random:0, whose features mean nothing."
    )


def _preprocessing(
    name: str, model: nn.Module, image_size: tuple[int, int] | None
) -> tuple[spec.Preprocessing, PerChannel, PerChannel]:
    """Translate timm's evaluation transform (`transforms_imagenet_eval`) to a `Preprocessing`, mean and std."""
    from timm.data import config as timm_config

    config = timm_config.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    native = (int(config["input_size"][1]), int(config["input_size"][2]))
    height, width = image_size or native
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    mode, share = config["crop_mode"], float(config["crop_pct"])
    fit: spec.Fit = {"squash": "stretch", "border": "pad"}.get(mode, "crop")  # type: ignore[assignment]
    if fit != "crop" and share != 1.0:
        warnings.warn(
            f"timm trained {name!r} with crop mode {mode!r} at {share}; genenc uses the whole image (fit {fit!r}), "
            "without cropping the margins",
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
    return preprocessing, mean, std


def _features(name: str, model: Any, images: torch.Tensor) -> torch.Tensor:
    try:
        features = model.forward_features(images)
    except _FORWARD_ERRORS as error:
        size = f"{images.shape[2]} x {images.shape[3]}"
        raise errors.InputError(
            f"timm's {name!r} cannot encode images of {size} pixels: {errors.reason(error)}. Give another --image-size."
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
        actual = list(features.shape) if isinstance(features, torch.Tensor) else f"a {type(features).__name__}"
        raise errors.InputError(
            f"timm's {name!r} returns {actual} instead of one feature map. Choose another model, or wrap it yourself "
            "and give package.module:factory."
        )
    return features


def _drop_unused_children(
    name: str, model: Any, size: tuple[int, int], channels: int = adapting.RGB
) -> tuple[int, ...]:
    """Replace children that `forward_features` never calls (heads) by `Identity`, if this changes no operation.

    Returns the shape of the features of one image.
    """

    def look(module: Any, images: torch.Tensor) -> tuple[set[str], Sequence[Hashable], tuple[int, ...]]:
        called: set[str] = set()
        operations = fake_run.Operations(module)
        with fake_run.hooked(dict(module.named_modules()), lambda path, _: called.add(path)), operations:
            features = _features(name, module, images)
        return called, operations.record, tuple(features.shape)

    called, before, shape = fake_run.observe(model, look, batch=1, size=size, channels=channels)
    dropped = {
        child: module
        for child, module in model.named_children()
        if not any(path == child or path.startswith(f"{child}.") for path in called)
        and any(True for _ in module.parameters())
    }
    for child in dropped:
        setattr(model, child, nn.Identity())
    try:
        same = not dropped or fake_run.observe(model, look, batch=1, size=size, channels=channels)[1] == before
    except (*_FORWARD_ERRORS, errors.InputError):
        same = False
    if not same:
        for child, module in dropped.items():
            setattr(model, child, module)
    return shape


class _Trunk(nn.Module):
    """timm's `forward_features` with its result converted to slots."""

    def __init__(self, model: Any, *, channels_last: bool, layout: tokens.TokenLayout | None) -> None:
        super().__init__()
        self.model = model
        self.channels_last = channels_last
        self.layout = layout

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        features = self.model.forward_features(images)
        return tokens.arranged(features, self.layout, channels_last=self.channels_last)


def _trunk(name: str, model: Any, shape: tuple[int, ...], size: tuple[int, int], channels: int) -> _Trunk:
    if len(shape) == 3:
        return _Trunk(model, channels_last=False, layout=_layout(name, model, shape, size, channels))
    channels_last = _channels_last(model)
    if shape[3 if channels_last else 1] != model.num_features:
        raise errors.InputError(
            f"timm's {name!r} returns features {list(shape)} but declares {model.num_features} channels, so the "
            "channel axis is unknown. Wrap it yourself and give package.module:factory."
        )
    return _Trunk(model, channels_last=channels_last, layout=None)


def _channels_last(model: Any) -> bool:
    """Return whether maps are NHWC by timm's convention: NCHW unless the model declares otherwise."""
    return str(getattr(model, "output_fmt", "NCHW")) == "NHWC"


def _stages(model: Any) -> tuple[str, ...]:
    """Return the modules that timm extracts features from."""
    info = getattr(model, "feature_info", None) or ()
    named = dict(model.named_modules())
    declared = [item.get("module", "") for item in info] if isinstance(info, list) else []
    return tuple(dict.fromkeys(name for name in declared if name in named))


def _layout(name: str, model: Any, shape: tuple[int, ...], size: tuple[int, int], channels: int) -> tokens.TokenLayout:
    """Determine the layout of the tokens [B, N, C]: as declared by the model, or from the map that it makes of them."""
    embedded = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    count = getattr(model, "num_prefix_tokens", None)
    if count is None:
        grid = _grid_by_comparison(model, size, channels)
    elif embedded and count + embedded[0] * embedded[1] == shape[1]:
        grid = (int(embedded[0]), int(embedded[1]))
    else:
        grid = _grid_of_own_map(model, size, channels)
    if grid is None or (count is not None and count + grid[0] * grid[1] != shape[1]):
        raise errors.InputError(
            f"timm's {name!r} returns tokens {list(shape)} without declaring their grid. Choose another "
            "model, or wrap it yourself and give package.module:factory."
        )
    height, width = grid
    return tokens.TokenLayout(grid=(height, width), prefix=_prefix(model, shape[1] - height * width))


def register_count(model: Any) -> int:
    """Return the number of a transformer's register tokens, which not every timm model declares."""
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
    """Return the last map [B, C, h, w] that the model itself makes of its tokens."""
    maps: torch.Tensor = model.forward_intermediates(
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
    )[-1]
    return maps


def _grid_of_own_map(model: Any, size: tuple[int, int], channels: int) -> tuple[int, int] | None:
    """Return the height and width of the model's own map, from a fake run."""
    try:
        maps = fake_run.observe(
            model, lambda own, images: _own_map(own, images, norm=False), batch=1, size=size, channels=channels
        )
    except _FORWARD_ERRORS:
        return None
    return int(maps.shape[2]), int(maps.shape[3])


@torch.inference_mode()
def _grid_by_comparison(model: Any, size: tuple[int, int], channels: int) -> tuple[int, int] | None:
    """Return the grid of the model's own map if its cells equal the last tokens in row-major order; a real run."""
    images = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0))
    features = model.forward_features(images)
    for norm in (True, False):
        try:
            maps = _own_map(model, images, norm=norm)
        except _FORWARD_ERRORS:
            continue
        listed = maps.flatten(2).transpose(1, 2)
        if listed.shape[1] <= features.shape[1] and torch.equal(features[:, -listed.shape[1] :], listed):
            return int(maps.shape[2]), int(maps.shape[3])
    return None
