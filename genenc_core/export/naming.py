"""Outputs of a file that have names: put in one order, whatever the order in which the file gives them."""

from collections.abc import Mapping, Sequence

import torch

from genenc_core import errors, spec


def ordered(found: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    """Return the outputs in the order of `names`.

    Raises:
        EncoderError: they are not those of `names`.
    """
    if found.keys() != set(names):
        raise errors.EncoderError(
            f"the model gave the outputs {', '.join(sorted(found))}, and {', '.join(sorted(names))} when it was "
            "looked at: it must give the same ones for all images"
        )
    return [found[name] for name in names]


def with_names(
    model_spec: spec.RuntimeModelSpec, found: Sequence[object] | Mapping[str, object]
) -> spec.RuntimeModelSpec:
    """Return a spec that finds the outputs of its file by the names that the file has for them, where it has any.

    `found` is what the file gives. Slots that have the names of outputs are these outputs; else they are the outputs
    in the order of `found`.

    Raises:
        InputError: some slots have names of outputs that stand in other places.
    """
    block = model_spec.genenc or spec.GenencBlock()
    if not isinstance(found, Mapping) or block.output_names is not None:
        return model_spec
    slots = [slot.name for slot in model_spec.outputs]
    names, positions = list(found), block.output_positions
    if positions is None and set(slots) <= set(names):
        names = slots + [name for name in names if name not in slots]
        positions = tuple(range(len(slots))) if len(names) > len(slots) else None
    else:
        by_place = [names[at] for at in positions or range(len(names)) if at < len(names)]
        for slot, name in zip(slots, by_place, strict=False):
            if slot in names and slot != name:
                raise errors.InputError(
                    f"model spec {model_spec.model_id!r} declares the outputs {', '.join(slots)}, and its file gives "
                    f"{', '.join(names)}: slot {slot!r} would hold {name!r}. Give the slots the names of the outputs"
                )
    update = {"output_names": tuple(names), "output_positions": positions}
    return model_spec.model_copy(update={"genenc": block.model_copy(update=update)})
