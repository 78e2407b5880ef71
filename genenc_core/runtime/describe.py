"""Specs of built models, and the interpretation of a spec as an image encoder."""

import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING

from genenc_core import errors, spec
from genenc_core.models import encoder_module, resolve

if TYPE_CHECKING:
    from genenc_core.models.shapes import ModelShapes

INPUT_SLOT = "image"


def file_stem(built: resolve.BuiltEncoder) -> str:
    """Return a file name for the model: `timm/resnet18` -> `timm_resnet18`, `models/seg.toml` -> `seg`."""
    name = Path(built.request.name).stem if built.kind == "factory" else built.request.name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"


def spec_for(built: resolve.BuiltEncoder, *, model_id: str) -> spec.RuntimeModelSpec:
    """Return the spec of an eager model: no weights_path, any batch size, genenc's data under `genenc`."""
    block = spec.GenencBlock(
        source=_source(built),
        weights_sha256=built.weights_sha256,
        code=dict(built.own.code) or None,
        files=dict(built.own.files) or None,
        weights_notes=built.weights_notes or None,
    )
    name = built.request.name
    return _eager_spec(built, block, model_id=model_id, name=name, shown=f"{name} ({built.request.weights})")


def spec_of_name(measured: "ModelShapes", *, model_id: str) -> spec.RuntimeModelSpec:
    """Return the spec of a model that was not built, with pretrained weights."""
    source = spec.SourceInfo(kind=measured.kind, name=measured.name, weights="pretrained")
    block = spec.GenencBlock(source=source)
    shown = f"{measured.kind}/{measured.name}"
    return _eager_spec(measured, block, model_id=model_id, name=measured.name, shown=shown)


def _eager_spec(
    model: "resolve.BuiltEncoder | ModelShapes", block: spec.GenencBlock, *, model_id: str, name: str, shown: str
) -> spec.RuntimeModelSpec:
    size = model.preprocessing
    image = spec.SlotSpec(
        name=INPUT_SLOT,
        shape=(size.channel_count, size.height, size.width),
        description=f"{_what(size)} in [0, 1]; the model normalises by itself",
        recommended_encoder="ImageEncoder",
    )
    known: dict[str, object] = {
        "parameters": model.parameters,
        "preprocessing": size,
        "mean": model.mean,
        "std": model.std,
        "genenc_version": importlib.metadata.version("genenc"),
    }
    return spec.RuntimeModelSpec(
        model_id=model_id,
        display_name=shown,
        description=f"Feature maps of {model.kind} {name}, {model.parameters} parameters, by genenc.",
        batch_mode=spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=1, max=0)),
        inputs=(image,),
        outputs=model.outputs,
        recommended_post_encoder="global_avg_pool",
        genenc=block.model_copy(update=known),
    )


def _what(size: spec.Preprocessing) -> str:
    return "RGB" if size.channels is None else f"{size.channel_count} channels"


def _source(built: resolve.BuiltEncoder) -> spec.SourceInfo:
    _, name = resolve.resolve_name(built.request.name)
    weights = built.request.weights
    # A file's path is absolute, so that the spec works from any folder; the file may no longer exist.
    is_keyword = weights.partition(":")[0] in ("random", "pretrained")
    return spec.SourceInfo(
        kind=built.kind,
        name=name,
        weights=weights if is_keyword else _absolute(Path(weights)),
        weights_key=None if is_keyword else built.weights_entry,
        layers=built.request.layers or None,
        arguments=built.request.arguments,
    )


def _absolute(file: Path) -> str:
    """Return a file's path under its own name: a link's, such as in a download cache, may have a suffix to go by."""
    return str(file.parent.resolve() / file.name)


def preprocessing_of(model_spec: spec.RuntimeModelSpec) -> spec.Preprocessing:
    """Return the spec's preprocessing, by default that of WhiskerToolbox: stretched, bilinear, not antialiased."""
    block = model_spec.genenc
    if block is not None and block.preprocessing is not None:
        return _with_channels(block.preprocessing, model_spec)
    _, height, width = model_spec.inputs[0].shape
    stated = spec.Preprocessing(height=height, width=width, fit="stretch", interpolation="bilinear", antialias=False)
    return _with_channels(stated, model_spec)


def _with_channels(stated: spec.Preprocessing, model_spec: spec.RuntimeModelSpec) -> spec.Preprocessing:
    """Return the preprocessing with the channels of an input that is not RGB."""
    count = model_spec.inputs[0].shape[0]
    if stated.channels is not None or count == 3:
        return stated
    return stated.model_copy(update={"channels": spec.Channels(count=count)})


def at_size(model_spec: spec.RuntimeModelSpec, size: tuple[int, int]) -> spec.RuntimeModelSpec:
    """Return the spec with input and preprocessing of another size (height, width); outputs are not changed."""
    image = model_spec.inputs[0].model_copy(update={"shape": (model_spec.inputs[0].shape[0], *size)})
    own = preprocessing_of(model_spec)
    # The fraction of the image inside the crop is kept.
    short = own.resize_short and max(round(own.resize_short * min(size) / min(own.height, own.width)), min(size))
    changed = own.model_copy(update={"height": size[0], "width": size[1], "resize_short": short})
    block = (model_spec.genenc or spec.GenencBlock()).model_copy(update={"preprocessing": changed})
    return model_spec.model_copy(update={"inputs": (image,), "genenc": block})


def canonical(model_spec: spec.RuntimeModelSpec, *, grey_of_rgb: bool = True) -> spec.RuntimeModelSpec:
    """Convert a spec with an input [H, W, C] to one of [C, H, W] with `genenc.input`.

    One of a single channel becomes one of three with `grey_of_rgb`, unless its preprocessing states channels.
    """
    block = model_spec.genenc or spec.GenencBlock()
    shape = model_spec.inputs[0].shape if len(model_spec.inputs) == 1 else ()
    if block.input is not None or len(shape) != 3 or shape[0] == 3:
        return model_spec
    stated = block.preprocessing is not None and block.preprocessing.channels is not None
    grey = grey_of_rgb and not stated
    if shape[0] == 1:
        if not grey:
            return model_spec
        form, size, count = spec.ArtifactInput(channels=1), shape[1:], 3
    elif shape[2] in (1, 3) or shape[0] > shape[2] < shape[1]:
        form, size = spec.ArtifactInput(layout="NHWC", channels=shape[2]), shape[:2]
        count = 3 if grey and shape[2] == 1 else shape[2]
    else:
        return model_spec
    image = model_spec.inputs[0].model_copy(update={"shape": (count, *size)})
    return model_spec.model_copy(
        update={"inputs": (image,), "genenc": block.model_copy(update={"input": form})},
    )


def check_image_spec(model_spec: spec.RuntimeModelSpec) -> None:
    """Check the spec's rules, and that its only input is an image of the size and channels of its preprocessing.

    Raises:
        SpecError: lists all problems.
    """
    model_spec.check()
    problems: list[str] = []
    shapes = [list(slot.shape) for slot in model_spec.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        problems.append(
            f"an image encoder has one input slot [channels, height, width] or [height, width, channels], but this one "
            f"has {shapes}: wrap a model of other inputs as package.module:factory"
        )
    else:
        problems += _size_problems(model_spec) + _channel_problems(model_spec)
    if not model_spec.outputs:
        problems.append("an image encoder has at least one output slot")
    problems += _normalisation_problems(model_spec.genenc)
    if problems:
        raise errors.SpecError(f"model spec {model_spec.model_id!r}", problems)


def _channel_problems(model_spec: spec.RuntimeModelSpec) -> list[str]:
    """Return problems with the channels of a spec."""
    count, block = model_spec.inputs[0].shape[0], model_spec.genenc or spec.GenencBlock()
    if count > spec.MOST_CHANNELS:
        return [f"inputs[0] has {count} channels; genenc takes {spec.MOST_CHANNELS} at most"]
    problems = [
        f"genenc.{name} has {len(values)} numbers, but inputs[0] {count} channels"
        for name, values in (("mean", block.mean), ("std", block.std))
        if values is not None and len(values) != count
    ]
    stated = block.preprocessing.channels if block.preprocessing else None
    if stated is None:
        return problems
    if stated.count != count:
        problems.append(f"genenc.preprocessing.channels.count is {stated.count}, but inputs[0] has {count} channels")
    if stated.chosen is not None and (len(stated.chosen) != stated.count or min(stated.chosen) < 0):
        problems.append(f"genenc.preprocessing.channels.chosen {list(stated.chosen)} is not one number per channel")
    if stated.names is not None and (len(stated.names) != stated.count or stated.chosen is not None):
        problems.append(f"genenc.preprocessing.channels.names {list(stated.names)} is not one name per channel alone")
    if stated.value_range is not None and (
        len(stated.value_range) not in (1, count) or not all(low < high for low, high in stated.value_range)
    ):
        problems.append("genenc.preprocessing.channels.value_range is not one pair, or one per channel, LOW below HIGH")
    return problems


def _normalisation_problems(block: spec.GenencBlock | None) -> list[str]:
    """Return problems with the normalisation of images before an artifact."""
    if block is None or block.normalization_inside:
        return []
    if block.mean is None or block.std is None:
        return ["genenc.normalization_inside is false, so genenc.mean and genenc.std are needed (or --mean and --std)"]
    if min(block.std) <= 0:
        return [f"genenc.std is {list(block.std)}; each number must be above 0"]
    stated = block.preprocessing.channels if block.preprocessing else None
    if (stated is None or stated.value_range is None) and encoder_module.is_for_bytes(block.mean, block.std):
        return [
            f"genenc.mean {list(block.mean)} and genenc.std {list(block.std)} are for pixels from 0 to 255, but images "
            "are in [0, 1]; divide both by 255, or state values to use as they are by a value range of 0 to 1"
        ]
    form = block.input or spec.ArtifactInput()
    if form.dtype == "uint8":
        return ["genenc.normalization_inside is false, but genenc.input.dtype is uint8, which holds 0 to 255"]
    if form.channels == 1 and (len(set(block.mean)) > 1 or len(set(block.std)) > 1):
        return ["genenc.input.channels is 1, so the three numbers of genenc.mean, and of genenc.std, must be equal"]
    return []


def _size_problems(model_spec: spec.RuntimeModelSpec) -> list[str]:
    """Return problems with the image sizes of a spec: inconsistent, or too large."""
    limit, (_, height, width) = spec.LARGEST_SIDE, model_spec.inputs[0].shape
    if max(height, width) > limit:
        return [f"inputs[0] are images of {height} x {width} pixels; each side is at most {limit}"]
    problems, batch = [], model_spec.resolved_batch_mode().min
    if batch * model_spec.inputs[0].shape[0] * height * width > spec.LARGEST_VALUES:
        problems.append(f"its smallest batch, {batch} images of {height} x {width} pixels, is too large for memory")
    size = model_spec.genenc.preprocessing if model_spec.genenc else None
    if size is None:
        return problems
    if (height, width) != (size.height, size.width):
        problems.append(f"genenc.preprocessing has {size.height} x {size.width} pixels, inputs[0] {height} x {width}")
    if (size.resize_short or 0) > 4 * limit:
        problems.append(f"genenc.preprocessing.resize_short is {size.resize_short}; it is at most {4 * limit} pixels")
    if not all(0 <= value <= 255 for value in size.pad_value):
        problems.append(f"genenc.preprocessing.pad_value {list(size.pad_value)} is not three numbers from 0 to 255")
    return problems
