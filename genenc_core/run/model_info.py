"""Model descriptions as text and JSON: slots, and their shapes after the post-encoder."""

from dataclasses import dataclass
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.encoding import post_encoder, products
from genenc_core.encoding.cells import Cells
from genenc_core.run import named_models
from genenc_core.runtime import describe, model_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveSlot:
    """An output slot after the spec's post-encoder: axis names and sizes, without the batch."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]


def find(target: str, folders: tuple[str, ...], *, trust: bool = False) -> model_registry.ModelInfo:
    """Describe a spec file, a spec id in one of `folders`, or a model name, without loading weights.

    `trust` allows importing the code that a model file names.

    Raises:
        SpecError: an invalid spec file.
        InputError: an unknown name, or shapes that cannot be determined without running the model.
    """
    path = named_models.spec_file(target, folders)
    if path is None:
        _refuse_other_files(target)
        try:
            return model_registry.ModelRegistry().info(target, trust=trust)
        except errors.InputError as error:
            raise errors.InputError(f"{target!r} is neither a run folder nor a spec file, and {error}") from error
    found = spec.load_spec(path)
    return model_registry.ModelInfo(model_id=found.model_id, source="json", spec=found, path=path)


def _refuse_other_files(target: str) -> None:
    path = Path(target)
    if not path.is_file() or path.suffix.lower() in (".toml", ".yaml", ".yml"):
        return
    hint = ""
    if path.suffix.lower() in (".pt", ".pt2", ".onnx", ".pth", ".safetensors"):
        hint = (
            "; give the spec next to an exported model, or run a file without a spec with genenc extract --model "
            "general_encoder --weights FILE --trust"
        )
    raise errors.InputError(
        f"{target!r} is a file that is neither a spec (.json) nor a model file (.toml, .yaml){hint}"
    )


def post_encoder_steps(found: spec.RuntimeModelSpec) -> tuple[post_encoder.Step, ...]:
    """Return the modules of `post_encoder`, else of `recommended_post_encoder`, else none."""
    if found.post_encoder is not None:
        return tuple(
            post_encoder.Step(step.module, (("interpolation", step.interpolation),) if step.interpolation else ())
            for step in found.post_encoder
        )
    named = found.recommended_post_encoder
    return () if named in (None, "", "none") else (post_encoder.Step(str(named)),)


def effective_outputs(found: spec.RuntimeModelSpec) -> tuple[EffectiveSlot, ...]:
    """Return the output slots as in a WhiskerToolbox session: the post-encoder is applied to the first one only.

    `spatial_point` is computed for one point.

    Raises:
        InputError: a module is unknown or does not support its input.
    """
    steps = post_encoder_steps(found)
    described = []
    for index, slot in enumerate(found.outputs):
        chain = steps if index == 0 and steps else (post_encoder.Step("none"),)
        # Products name their axes PRODUCT_AXIS; the prefix `slot_` is removed again.
        wanted = products.ProductSpec(name="slot", slot=slot.name, steps=chain)
        (built,) = products.build_products([wanted], found.outputs, point_count=1)
        dims = tuple(dim.removeprefix("slot_") for dim in built.signature.dims)
        described.append(EffectiveSlot(name=slot.name, dims=dims, shape=built.signature.shape))
    return tuple(described)


def as_json(found: model_registry.ModelInfo) -> dict[str, object]:
    """Return a model as JSON data: its spec's fields and those derived from them."""
    more: dict[str, object] = {"source": found.source, "batch": found.spec.resolved_batch_mode().describe()}
    if found.path is not None:
        more["file"] = str(found.path)
    try:
        slots = effective_outputs(found.spec)
        more["effective_outputs"] = [
            {"name": slot.name, "dims": list(slot.dims), "shape": list(slot.shape)} for slot in slots
        ]
    except errors.InputError as error:
        more["post_encoder_problem"] = str(error)
    return {**found.spec.model_dump(mode="json", exclude_none=True), **more}


def summary(found: model_registry.ModelInfo) -> list[str]:
    """Return a summary of a model, one fact per line."""
    model = found.spec
    outputs = [f"output   {slot.name} {list(slot.shape)}{_stride(model, slot)}" for slot in model.outputs]
    lines = [
        f"model    {model.model_id}: {model.display_name}",
        f"source   {_source(found)}",
        f"backend  {'eager' if found.source != 'json' else model.resolved_backend()}",
        f"weights  {model.weights_path or 'none (built from its source)'}",
        f"batch    {model.resolved_batch_mode().describe()}",
        *(f"input    {slot.name} {list(slot.shape)}{_static(slot)}" for slot in model.inputs),
        *outputs[:1],
        *_effective(model),
        *outputs[1:],
        *_preprocessing(model),
        *(
            f"variant  batch {variant.batch_size}: {variant.path}{_label(variant)}"
            for variant in model.weights_variants or ()
        ),
    ]
    ranged = model.genenc.dynamic_size if model.genenc else None
    lines += [] if ranged is None else [f"sizes    {ranged.describe()}"]
    lines += [f"         {note}" for note in (model.genenc.weights_notes if model.genenc else None) or ()]
    artifact = model.genenc.artifact if model.genenc else None
    if artifact is not None:
        lines.append(f"artifact {Path(artifact.file).name}, sha256 {artifact.sha256}")
        lines.append(f"         compared with eager at batches {list(artifact.batches_compared)}:")
        lines.append(f"         largest relative error {artifact.max_rel_error:.2e}, allowed {artifact.tolerance:.0e}")
    return lines


def _source(found: model_registry.ModelInfo) -> str:
    block = found.spec.genenc
    if block is None or block.source is None:
        return f"{found.path or found.source} (source model not recorded)"
    weights = f", weights {block.source.weights}" if found.source == "json" else ""
    weights += f", entry {block.source.weights_key}" if block.source.weights_key else ""
    count = f", {block.parameters:,} parameters" if block.parameters is not None else ""
    return f"{block.source.kind} {block.source.name}{weights}{count}"


def _effective(model: spec.RuntimeModelSpec) -> list[str]:
    steps = post_encoder_steps(model)
    if not steps or not model.outputs:
        return []
    label = f"after {'+'.join(map(str, steps))}"
    try:
        first = effective_outputs(model)[0]
    except errors.InputError as error:
        return [f"         {label}: cannot be applied: {error}"]
    point = " per point" if "point" in first.dims else ""
    shape = [size for dim, size in zip(first.dims, first.shape, strict=True) if dim != "point"]
    return [f"         {label}: {first.name} {shape}{point}"]


def _preprocessing(model: spec.RuntimeModelSpec) -> list[str]:
    model = describe.canonical(model)
    try:
        describe.check_image_spec(model)
    except errors.SpecError as error:
        return [f"images   genenc cannot run it: {'; '.join(error.problems)}"]
    lines = [f"images   {describe.preprocessing_of(model).describe()}"]
    block = model.genenc
    if block is not None and block.normalization is not None:
        lines.append(f"         {block.normalization}")
    if block is not None and block.input is not None:
        lines.append(f"         given as {block.input.describe()}")
    if block is not None and block.output_positions is not None:
        lines.append(f"         slots are its outputs {', '.join(map(str, block.output_positions))}")
    return lines


def pixels_per_cell(model: spec.RuntimeModelSpec, slot: spec.SlotSpec) -> tuple[str, str] | None:
    """Return the input pixels per cell, down and across, as text; None if the slot is not a map.

    If the spec does not state them and the map does not divide the input, they are means: `~37.3`.
    """
    image = model.inputs[0].shape if len(model.inputs) == 1 else ()
    if len(slot.shape) != 3 or len(image) != 3:
        return None
    size = (image[1], image[2])
    for stated in (model.genenc and model.genenc.cells) or ():
        if (stated.slot, stated.size) == (slot.name, size):
            return f"{stated.stride[0]:g}", f"{stated.stride[1]:g}"
    down, across = (
        f"{side:g}" if side.is_integer() else f"~{side:.1f}" for side in Cells.regular(slot.shape[1:], size).stride
    )
    return down, across


def _stride(model: spec.RuntimeModelSpec, slot: spec.SlotSpec) -> str:
    sides = pixels_per_cell(model, slot)
    return "" if sides is None else f", one cell is {sides[0]} x {sides[1]} pixels"


def _static(slot: spec.SlotSpec) -> str:
    return " (static)" if slot.is_static else ""


def _label(variant: spec.WeightsVariant) -> str:
    return f" ({variant.label})" if variant.label else ""
