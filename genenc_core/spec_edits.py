"""Detection of edits to a spec written by genenc that would change the meaning of its numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from genenc_core.spec_block import ArtifactInput, GenencBlock
from genenc_core.system import digests

if TYPE_CHECKING:
    from genenc_core.spec import RuntimeModelSpec, SlotSpec

_BLOCK = (
    "weights_sha256",
    "code",
    "files",
    "mean",
    "std",
    "normalization_inside",
    "input",
    "output_positions",
    "channels_last_outputs",
    "channels_first_lists",
    "output_names",
    "precision",
    "dynamic_size",
    "cells",
)
_SOURCE = ("kind", "name", "layers", "arguments")
_FOREIGN = ("output_positions", "channels_last_outputs", "channels_first_lists")
_REMEDY = "export the model again, or remove the genenc block to describe the file yourself"


def with_digests(spec: "RuntimeModelSpec") -> "RuntimeModelSpec":
    """Return the spec with digests of its protected parts; unchanged if it has no genenc block."""
    return spec if spec.genenc is None else _replace_digests(spec, _digests(spec))


def without_digests(spec: "RuntimeModelSpec") -> "RuntimeModelSpec":
    """Return the spec without digests, which makes specs of the same model equal whether written or not."""
    return spec if spec.genenc is None else _replace_digests(spec, None)


def problems(spec: "RuntimeModelSpec") -> list[str]:
    """Return the edits to protected parts as one message, or an empty list.

    Names, descriptions, paths, batch sizes and preprocessing may be edited. Specs of earlier versions have no digests:
    only values that genenc never writes are detected there.
    """
    block = spec.genenc
    if block is None:
        return []
    if block.written_sha256 is None:
        return _contradictions(spec, block)
    before, now = block.written_sha256, _digests(spec)
    edited = sorted(part for part in before.keys() | now.keys() if before.get(part) != now.get(part))
    return [f"{', '.join(edited)} edited after genenc wrote the spec: {_REMEDY}"] if edited else []


def _replace_digests(spec: "RuntimeModelSpec", digests: dict[str, str] | None) -> "RuntimeModelSpec":
    block = (spec.genenc or GenencBlock()).model_copy(update={"written_sha256": digests})
    return spec.model_copy(update={"genenc": block})


def _contradictions(spec: "RuntimeModelSpec", block: GenencBlock) -> list[str]:
    if block.source is None:
        return []
    shapes = [slot.shape for slot in spec.inputs]
    wrong = [] if block.input in (None, ArtifactInput()) else ["genenc.input"]
    wrong += [] if block.normalization_inside else ["genenc.normalization_inside"]
    wrong += [] if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] == 3 else ["inputs"]
    # genenc itself writes these for ONNX files whose outputs it matched by name.
    foreign = _FOREIGN if block.output_names is None else ()
    wrong += [f"genenc.{name}" for name in foreign if getattr(block, name) is not None]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)} edited after genenc wrote the spec, whose files take float32 RGB [B, 3, H, W] in [0, 1] "
        f"and return the outputs in slot order: {_REMEDY}"
    ]


def _digests(spec: "RuntimeModelSpec") -> dict[str, str]:
    block = spec.genenc or GenencBlock()
    own = block.model_dump(mode="json", exclude_none=True)
    content = {name: own[name] for name in _BLOCK if name in own}
    content["source"] = {name: value for name, value in own.get("source", {}).items() if name in _SOURCE}
    # The order of variants does not matter.
    infos = [block.artifact, *(block.variants or ())]
    content["artifacts"] = sorted({info.sha256 for info in infos if info is not None})
    inputs, outputs = _slots(spec.inputs), _slots(spec.outputs)
    parts = {"inputs": inputs, "outputs": outputs, "genenc": content}
    return {name: digests.SPEC_PART.hex_of_json(part) for name, part in parts.items()}


def _slots(slots: "Sequence[SlotSpec]") -> list[object]:
    return [[slot.name, list(slot.shape)] for slot in slots]
