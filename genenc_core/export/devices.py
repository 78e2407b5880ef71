"""Devices by name."""

import torch

from genenc_core import errors


def resolve_device(name: str) -> torch.device:
    """Return the device `name`, with an index for CUDA; `auto` prefers CUDA.

    Raises:
        InputError: no such device here; nothing else is used in its place.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise errors.InputError(f"there is no device {name!r}. Give auto, cpu, cuda or cuda:0.") from error
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    if device.type != "cuda" or index >= torch.cuda.device_count():
        raise errors.InputError(
            f"device {name!r} cannot be used: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices "
            "here. Give auto, cpu, or an existing one."
        )
    return torch.device("cuda", index)
