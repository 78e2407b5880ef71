"""Weights of a whole task model from a file: its own state dict, or a checkpoint that TerraTorch wrote."""

from collections.abc import Mapping

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import state_files, weights

_LIGHTNING, _PARALLEL = "model.", "module."
_SHOWN = 4


def load(choice: weights.WeightsChoice, model: nn.Module) -> None:
    """Copy the state dict in `choice.path` into `model`: every tensor must be there, and nothing else.

    Of a Lightning checkpoint the entries under `model.` are taken (others, such as a criterion's, are no part of the
    model). A backbone's tensors may stand directly under `encoder.`, as TerraTorch has them.

    Raises:
        InputError: unreadable, or another model's; the first mismatches are named.
    """
    own = model.state_dict()
    read = weights.read_state(choice)
    kept = _of_the_model(read, own)
    state = {_renamed(name, own): tensor for name, tensor in kept.items()}
    # BatchNorm counters are never read in evaluation, and old files lack them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    sizes = [
        f"{name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    problems = [
        f"{label}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for label, names in (("missing", missing), ("not in the model", surplus), ("other sizes", sizes))
        if names
    ]
    if problems:
        raise errors.InputError(
            f"weights {str(choice.path)!r} do not fit the model file's model: {'; '.join(problems)}. Give a "
            "checkpoint of this very model: same backbone, necks, decoder, classes and auxiliary decoders."
        )
    model.load_state_dict(state, strict=False)
    taken = {id(value) for value in kept.values()}
    weights.note(
        state_files.left_out([name for name, value in read.items() if id(value) not in taken], len(read)), choice
    )


def _of_the_model(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's entries; keys are the file's names without the wrappers' prefixes, `module.` and `model.`."""
    kept = dict(state)
    for prefix in (_PARALLEL, _LIGHTNING, _PARALLEL):
        inside = {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
        if inside and not any(name in own for name in kept):
            kept = inside
    return kept


def _renamed(name: str, own: Mapping[str, torch.Tensor]) -> str:
    """Return our name of a backbone's tensor: `encoder.body.X` for TerraTorch's `encoder.X`."""
    if name in own:
        return name
    for prefix in ("encoder.base_model.model.", "encoder.encoder.", "encoder."):
        rest = name.removeprefix(prefix).removeprefix("_timm_module.")
        if name.startswith(prefix) and f"{prefix}body.{rest}" in own:
            return f"{prefix}body.{rest}"
    return name
