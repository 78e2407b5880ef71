"""Channels of a model from a library: as asked for, as a weights file has them, or three."""

from collections.abc import Collection, Mapping

import torch

from genenc_core import errors, spec
from genenc_core.models import channels as adapting
from genenc_core.models.weights import WeightsChoice, read_state


def state_and_channels(
    name: str, choice: WeightsChoice, wanted: int | None, *, tensors: Collection[str], convolution: str | None
) -> tuple[Mapping[str, torch.Tensor], int]:
    """Return a weights file's state dict, with a first convolution for the model's channels, and their number.

    The state dict is empty without a file. What is done to weights of three channels is noted in `choice.reading`.

    Args:
        name: of the model, for errors.
        choice: of weights.
        wanted: its channels; None: those of the file, else three.
        tensors: names of the encoder's.
        convolution: name of its first convolution; None: it has none.

    Raises:
        InputError: the file cannot be read, or has other channels than are wanted.
    """
    state: Mapping[str, torch.Tensor] = {}
    found = None
    if choice.path is not None:
        state = read_state(choice, wanted=tensors)
        found = adapting.in_state(state, convolution)
    count = wanted or found or adapting.RGB
    if found not in (None, adapting.RGB, count):
        raise errors.InputError(
            f"weights {str(choice.path)!r} of {name!r} are for {found} channels, not {count}: choose {found} with "
            "--channels"
        )
    if count != adapting.RGB and found in (None, adapting.RGB) and choice.kind != "random":
        if found is not None and convolution is not None:
            state = adapting.adapted_state(state, convolution, count)
        choice.reading.notes.append(adapting.note_of(count))
    return state, count


def for_channels(preprocessing: spec.Preprocessing, count: int) -> spec.Preprocessing:
    """Return the preprocessing of a model of so many channels."""
    if count == adapting.RGB:
        return preprocessing
    return preprocessing.model_copy(update={"channels": spec.Channels(count=count)})


def refuse(name: str, channels: int | None) -> None:
    """Check that a model that takes RGB only is asked for nothing else.

    Raises:
        InputError: it is.
    """
    if channels not in (None, adapting.RGB):
        raise errors.InputError(
            f"{name!r} takes three channels, not {channels}: choose three with --channels, or a model of torchvision "
            "or timm, whose first convolution is adapted"
        )
