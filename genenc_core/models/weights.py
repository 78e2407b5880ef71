"""Weights of a model: which ones are asked for, reading them from a file, and their digest."""

import contextlib
import hashlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import wording

Renaming = Callable[[Sequence[str]], Mapping[str, str]]
"""From the names in a file to those of the model, for the entries that are taken; the others are not looked at."""

_SHOWN = 4
_WRAPPERS = ("state_dict", "model")
# Official DenseNet files of torchvision carry names from before 0.3: "norm.1.weight" is "norm1.weight" today.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsChoice:
    """What `random:SEED`, `pretrained[:TAG]` or a file name asks for."""

    kind: Literal["random", "pretrained", "file"]
    seed: int = 0
    tag: str | None = None
    path: Path | None = None


def parse_weights(text: str) -> WeightsChoice:
    """Read the `weights` text of a request.

    Raises:
        InputError: neither `random:SEED`, `pretrained`, `pretrained:TAG` nor an existing file.
    """
    word, _, rest = text.partition(":")
    if word == "random" and rest.isascii() and rest.isdigit() and len(rest) < 20 and int(rest) < 2**63:
        return WeightsChoice(kind="random", seed=int(rest))
    if text == "pretrained" or (word == "pretrained" and rest):
        return WeightsChoice(kind="pretrained", tag=rest or None)
    if word == "random":
        raise errors.InputError(
            f"cannot use weights {text!r}: in random:SEED the seed is a whole number from 0 to 2**63 - 1, for example "
            "random:0."
        )
    path = Path(text)
    if text and path.is_file():
        return WeightsChoice(kind="file", path=path)
    raise errors.InputError(
        f"cannot use weights {text!r}: there is no such file, and it is not one of the words. Give random:SEED "
        "(for example random:0), pretrained, pretrained:TAG, or a .safetensors or state-dict file that exists."
    )


@contextlib.contextmanager
def construction_rng(choice: WeightsChoice) -> Iterator[None]:
    """Seed torch's CPU generator for one constructor, as `torch.manual_seed` would; the caller's state comes back.

    Without a seed of its own it is 0, so that what a constructor leaves to chance is the same every time.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(choice.seed if choice.kind == "random" else 0)
        yield


def encoder_state(model: nn.Module, trunk: nn.Module) -> dict[str, torch.Tensor]:
    """Return the entries of `model`'s state dict that `trunk` holds, under the model's own names."""
    held = {id(tensor) for tensor in trunk.state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in held}


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return one digest of a state dict: sorted names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_file(path: Path, *, model: nn.Module, trunk: nn.Module) -> None:
    """Copy the state dict in `path` into `model`; every tensor of the encoder must be there and nothing else.

    Entries of a top-level child in which the encoder holds no tensor (the classifier) may be missing, surplus or of
    another size. Wrappers `{"state_dict": ...}` and `{"model": ...}` and the prefix `module.` are taken off.

    Raises:
        InputError: unreadable, not a state dict, or not this model's; the first mismatches are named.
    """
    load_state(read_state(path), path=path, model=model, trunk=trunk)


def load_state(state: Mapping[str, torch.Tensor], *, path: Path, model: nn.Module, trunk: nn.Module) -> None:
    """Copy a state dict read from `path` into `model`, by the rules of `load_file`.

    Raises:
        InputError: not this model's; the first mismatches are named.
    """
    wanted = encoder_state(model, trunk)
    tops = {name.partition(".")[0] for name in wanted}
    own = model.state_dict()
    kept = OrderedDict((name, value) for name, value in state.items() if _belongs(name, tops, own, wanted))
    kept._metadata = getattr(state, "_metadata", None) or own._metadata  # type: ignore[attr-defined]
    problems = _shape_problems(kept, own)
    if not problems:
        try:
            result = model.load_state_dict(kept, strict=False)
        except RuntimeError as error:
            raise errors.InputError(f"cannot load weights {str(path)!r}: {wording.reason(error)}.") from error
        # BatchNorm counters are absent from files older than PyTorch 0.4.1; evaluation never reads them.
        missing = [n for n in result.missing_keys if n in wanted and not n.endswith("num_batches_tracked")]
        problems = _name_problems("missing", missing) + _name_problems("not in the model", result.unexpected_keys)
    if problems:
        raise errors.InputError(
            f"weights {str(path)!r} do not fit the model: {'; '.join(problems)}. Give the file of this very model "
            "(and, for a transformer, its --image-size)."
        )


def _belongs(name: str, tops: set[str], own: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell the encoder's entries (and unknown ones beside them) from those of the classifier."""
    return name in wanted or (name not in own and name.partition(".")[0] in tops)


def _shape_problems(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    wrong = [
        f"{name} is {list(value.shape)}, the model's is {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    return _name_problems("other sizes", wrong)


def _name_problems(label: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{label}: {', '.join(names[:_SHOWN])}{more}"]


def read_state(path: Path, renaming: Renaming | None = None) -> OrderedDict[str, torch.Tensor]:
    """Read a state dict; with `renaming` only the entries that it names, under the names that it gives.

    Raises:
        InputError: unreadable, or not a state dict.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return _from_safetensors(path, renaming)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise errors.InputError(
            f"cannot read weights {str(path)!r} as a state dict: the file is damaged or holds Python objects, which "
            "are never run. Save it again with torch.save(model.state_dict(), FILE) or as .safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise errors.InputError(
            f"cannot read weights {str(path)!r}: it is no .safetensors file and no state dict that torch.load reads "
            f"({type(error).__name__}: {wording.reason(error)}). Give a file written by torch.save(model.state_dict(), "
            "FILE) or by safetensors."
        ) from error
    state = _unwrapped(value, path)
    return state if renaming is None else _renamed(state, renaming)


def _from_safetensors(path: Path, renaming: Renaming | None) -> OrderedDict[str, torch.Tensor]:
    """Read only what is taken: the encoder may be a small part of a file of gigabytes."""
    if renaming is None:
        return _unwrapped(safetensors.torch.load_file(path), path)
    with safetensors.safe_open(path, framework="pt") as file:
        return OrderedDict((name, file.get_tensor(found)) for found, name in renaming(list(file.keys())).items())


def _renamed(state: Mapping[str, torch.Tensor], renaming: Renaming) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((name, state[found]) for found, name in renaming(list(state)).items())


def _unwrapped(value: Any, path: Path) -> OrderedDict[str, torch.Tensor]:
    for key in _WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(torch.is_tensor(entry) for entry in value.values()):
        raise errors.InputError(
            f"weights {str(path)!r} hold no state dict (names to tensors), but a {type(value).__name__}. Save them "
            "with torch.save(model.state_dict(), FILE) or as .safetensors."
        )
    state: OrderedDict[str, torch.Tensor] = OrderedDict(value)
    metadata = getattr(value, "_metadata", None)
    if metadata is not None:
        state._metadata = metadata  # type: ignore[attr-defined]
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    for name in [name for name in state if _OLD_DENSENET.match(name)]:
        state[_OLD_DENSENET.sub(r"\1\2", name)] = state.pop(name)
    return state
