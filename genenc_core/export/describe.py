"""The spec of a built model, and what a spec means for us as an image encoder."""

import importlib.metadata
import re
from pathlib import Path

from genenc_core import errors, spec, spec_rules
from genenc_core.export import normalisation
from genenc_core.models import sources

INPUT_SLOT = "image"


def file_stem(built: sources.BuiltEncoder) -> str:
    """Return the model's name as a file name: `timm/resnet18` -> `timm_resnet18`, `models/seg.toml` -> `seg`."""
    name = Path(built.request.name).stem if built.kind == "factory" else built.request.name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"


def spec_for(built: sources.BuiltEncoder, *, model_id: str) -> spec.RuntimeModelSpec:
    """Return the spec of an eager model: no weights_path, any batch size, our own data under `genenc`."""
    size = built.preprocessing
    image = spec.SlotSpec(
        name=INPUT_SLOT,
        shape=(3, size.height, size.width),
        description="RGB in [0, 1]; the model normalises by itself",
        recommended_encoder="ImageEncoder",
    )
    return spec.RuntimeModelSpec(
        model_id=model_id,
        display_name=f"{built.request.name} ({built.request.weights})",
        description=f"Feature maps of {built.kind} {built.request.name}, {built.parameters} parameters, by genenc.",
        batch_mode=spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=1, max=0)),
        inputs=(image,),
        outputs=built.outputs,
        recommended_post_encoder="global_avg_pool",
        genenc=spec.GenencBlock(
            source=_source(built),
            weights_sha256=built.weights_sha256,
            code=dict(built.own.code) or None,
            files=dict(built.own.files) or None,
            parameters=built.parameters,
            weights_notes=built.weights_notes or None,
            preprocessing=built.preprocessing,
            mean=built.mean,
            std=built.std,
            genenc_version=importlib.metadata.version("genenc"),
        ),
    )


def _source(built: sources.BuiltEncoder) -> spec.SourceInfo:
    _, name = sources.resolve_name(built.request.name)
    given = built.request.weights
    # A file is named from the root, so that the spec works from any folder; it need not be there any more.
    word = given.partition(":")[0] in ("random", "pretrained")
    return spec.SourceInfo(
        kind=built.kind,
        name=name,
        weights=given if word else str(Path(given).resolve()),
        weights_key=None if word else built.weights_entry,
        layers=built.request.layers or None,
        arguments=built.request.arguments,
    )


def preprocessing_of(model_spec: spec.RuntimeModelSpec) -> spec.Preprocessing:
    """Return the spec's own preprocessing; without one, WhiskerToolbox's: stretched, bilinear, not antialiased."""
    block = model_spec.genenc
    if block is not None and block.preprocessing is not None:
        return block.preprocessing
    _, height, width = model_spec.inputs[0].shape
    return spec.Preprocessing(height=height, width=width, fit="stretch", interpolation="bilinear", antialias=False)


def at_size(model_spec: spec.RuntimeModelSpec, size: tuple[int, int]) -> spec.RuntimeModelSpec:
    """Return the spec with input and preprocessing of another size (height, width); its outputs are left alone."""
    image = model_spec.inputs[0].model_copy(update={"shape": (3, *size)})
    own = preprocessing_of(model_spec)
    # A crop keeps the share of the image that it shows.
    short = own.resize_short and max(round(own.resize_short * min(size) / min(own.height, own.width)), min(size))
    changed = own.model_copy(update={"height": size[0], "width": size[1], "resize_short": short})
    block = (model_spec.genenc or spec.GenencBlock()).model_copy(update={"preprocessing": changed})
    return model_spec.model_copy(update={"inputs": (image,), "genenc": block})


def canonical(model_spec: spec.RuntimeModelSpec) -> spec.RuntimeModelSpec:
    """Return a spec whose input is [H, W, 3], [1, H, W] or [H, W, 1] as one of [3, H, W] with `genenc.input`."""
    block = model_spec.genenc or spec.GenencBlock()
    shape = model_spec.inputs[0].shape if len(model_spec.inputs) == 1 else ()
    if block.input is not None or len(shape) != 3 or shape[0] == 3:
        return model_spec
    if shape[0] == 1:
        form, size = spec.ArtifactInput(channels=1), shape[1:]
    elif shape[2] in (1, 3):
        form, size = spec.ArtifactInput(layout="NHWC", channels=1 if shape[2] == 1 else 3), shape[:2]
    else:
        return model_spec
    image = model_spec.inputs[0].model_copy(update={"shape": (3, *size)})
    return model_spec.model_copy(
        update={"inputs": (image,), "genenc": block.model_copy(update={"input": form})},
    )


def check_image_spec(model_spec: spec.RuntimeModelSpec) -> None:
    """Check the spec's rules, and that its one input is an RGB image of the size of its preprocessing.

    Raises:
        SpecError: it is not; lists every problem.
    """
    model_spec.check()
    found: list[str] = []
    shapes = [list(slot.shape) for slot in model_spec.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 3:
        found.append(
            f"an image encoder has one input slot [3, height, width], [height, width, 3] or [1, height, width], this "
            f"one has {shapes}; images are given as RGB, so wrap a model of other inputs as package.module:factory"
        )
    else:
        found += _size_problems(model_spec)
    if not model_spec.outputs:
        found.append("an image encoder has at least one output slot")
    found += _normalisation_problems(model_spec.genenc)
    if found:
        raise errors.SpecError(f"model spec {model_spec.model_id!r}", found)


def _normalisation_problems(block: spec.GenencBlock | None) -> list[str]:
    """Return why images cannot be normalised for an artifact that does not do so itself."""
    if block is None or block.normalization_inside:
        return []
    if block.mean is None or block.std is None:
        return ["genenc.normalization_inside is false, so genenc.mean and genenc.std are needed (or --mean and --std)"]
    if min(block.std) <= 0:
        return [f"genenc.std is {list(block.std)}; each number is above 0"]
    if normalisation.is_for_bytes(block.mean, block.std):
        return [
            f"genenc.mean {list(block.mean)} and genenc.std {list(block.std)} are for pixels from 0 to 255, and images "
            "are given in [0, 1]; divide both by 255"
        ]
    form = block.input or spec.ArtifactInput()
    if form.dtype == "uint8":
        return ["genenc.normalization_inside is false, but genenc.input.dtype is uint8, which holds 0 to 255"]
    if form.channels == 1 and (len(set(block.mean)) > 1 or len(set(block.std)) > 1):
        return ["genenc.input.channels is 1, so the three numbers of genenc.mean, and of genenc.std, are the same"]
    return []


def _size_problems(model_spec: spec.RuntimeModelSpec) -> list[str]:
    """Return what is wrong with the images of a spec: sizes against each other, and what no memory holds."""
    most, (_, height, width) = spec_rules.LARGEST_SIDE, model_spec.inputs[0].shape
    if max(height, width) > most:
        return [f"inputs[0] are images of {height} x {width} pixels; each side is at most {most}"]
    found, least = [], model_spec.resolved_batch_mode().min
    if least * 3 * height * width > spec_rules.LARGEST_VALUES:
        found.append(f"its smallest batch is {least} images of {height} x {width} pixels, which no memory is meant for")
    size = model_spec.genenc.preprocessing if model_spec.genenc else None
    if size is None:
        return found
    if (height, width) != (size.height, size.width):
        found.append(f"genenc.preprocessing gives {size.height} x {size.width} pixels, inputs[0] {height} x {width}")
    if (size.resize_short or 0) > 4 * most:
        found.append(f"genenc.preprocessing.resize_short is {size.resize_short}; it is at most {4 * most} pixels")
    if not all(0 <= value <= 255 for value in size.pad_value):
        found.append(f"genenc.preprocessing.pad_value {list(size.pad_value)} is not three numbers from 0 to 255")
    return found
