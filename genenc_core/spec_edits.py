"""Edits of a spec that genenc wrote: those that change what its numbers mean are noticed."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genenc_core.spec_block import ArtifactInput, GenencBlock

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
)
_SOURCE = ("kind", "name", "layers", "arguments")
_OF_OTHERS = ("output_positions", "channels_last_outputs", "channels_first_lists")
_REMEDY = "export the model again, or remove the genenc block to describe the file yourself"


def sealed(spec: "RuntimeModelSpec") -> "RuntimeModelSpec":
    """Return the spec with the digests of what genenc wrote in it; one without a genenc block stays as it is."""
    return spec if spec.genenc is None else _with(spec, _digests(spec))


def unsealed(spec: "RuntimeModelSpec") -> "RuntimeModelSpec":
    """Return the spec without those digests: equal for equal models, whether written yet or not."""
    return spec if spec.genenc is None else _with(spec, None)


def problems(spec: "RuntimeModelSpec") -> list[str]:
    """Return which edits of a spec that genenc wrote are not taken: one message, or none.

    Names, descriptions, paths, batch sizes and preprocessing are free. Specs without digests are of earlier versions:
    of them only what cannot be true of a file of genenc's is known.
    """
    block = spec.genenc
    if block is None:
        return []
    if block.written_sha256 is None:
        return _contradictions(spec, block)
    before, now = block.written_sha256, _digests(spec)
    edited = sorted(part for part in before.keys() | now.keys() if before.get(part) != now.get(part))
    return [f"{', '.join(edited)} edited after genenc wrote the spec: {_REMEDY}"] if edited else []


def _with(spec: "RuntimeModelSpec", digests: dict[str, str] | None) -> "RuntimeModelSpec":
    block = (spec.genenc or GenencBlock()).model_copy(update={"written_sha256": digests})
    return spec.model_copy(update={"genenc": block})


def _contradictions(spec: "RuntimeModelSpec", block: GenencBlock) -> list[str]:
    if block.source is None:
        return []
    shapes = [slot.shape for slot in spec.inputs]
    wrong = [] if block.input in (None, ArtifactInput()) else ["genenc.input"]
    wrong += [] if block.normalization_inside else ["genenc.normalization_inside"]
    wrong += [] if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] == 3 else ["inputs"]
    # Runs of ONNX files whose slots were found by name say so.
    others = _OF_OTHERS if block.output_names is None else ()
    wrong += [f"genenc.{name}" for name in others if getattr(block, name) is not None]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)} edited after genenc wrote the spec, whose files take float32 RGB [B, 3, H, W] in [0, 1] "
        f"and give the outputs in the order of the slots: {_REMEDY}"
    ]


def _digests(spec: "RuntimeModelSpec") -> dict[str, str]:
    block = spec.genenc or GenencBlock()
    own = block.model_dump(mode="json", exclude_none=True)
    content = {name: own[name] for name in _BLOCK if name in own}
    content["source"] = {name: value for name, value in own.get("source", {}).items() if name in _SOURCE}
    # Variants may be listed in any order.
    infos = [block.artifact, *(block.variants or ())]
    content["artifacts"] = sorted({info.sha256 for info in infos if info is not None})
    inputs, outputs = _slots(spec.inputs), _slots(spec.outputs)
    return {"inputs": _digest(inputs), "outputs": _digest(outputs), "genenc": _digest(content)}


def _slots(slots: "Sequence[SlotSpec]") -> list[object]:
    return [[slot.name, list(slot.shape)] for slot in slots]


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
