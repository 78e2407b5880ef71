"""Weights of a model: which ones are asked for, reading them from a file, and their digest."""

import contextlib
import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import state_files, wording

Convert = Callable[[Mapping[str, torch.Tensor], list[str]], Mapping[str, torch.Tensor] | None]
"""From a state dict that does not fit to one that may; what was done is added to the list."""

OF_NOTHING = hashlib.sha256().hexdigest()
"""What `state_sha256` gives for a model without tensors."""
_SHOWN = 4


@dataclass(slots=True)
class Reading:
    """How a weights file was read: the entry that was taken (None: the file itself), and what else there is to say."""

    entry: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsChoice:
    """What `random:SEED`, `pretrained[:TAG]` or a file name asks for."""

    kind: Literal["random", "pretrained", "file"]
    seed: int = 0
    tag: str | None = None
    path: Path | None = None
    key: str | None = None
    """which entry of the file: its dotted name, `ema` or `plain`; None: as timm has it, the EMA first"""
    reading: Reading = field(default_factory=Reading, compare=False)
    """how the file was read, filled in by `load_file`"""


def parse_weights(text: str, key: str | None = None) -> WeightsChoice:
    """Read the `weights` text of a request, and which entry of a file is meant.

    Raises:
        InputError: neither `random:SEED`, `pretrained`, `pretrained:TAG` nor an existing file; a key without a file.
    """
    found = _parsed(text)
    if key is None:
        return found
    if found.path is None and key != state_files.PLAIN:
        raise errors.InputError(f"--weights-key {key!r} chooses in a file, and the weights are {text!r}: leave it out.")
    return dataclasses.replace(found, key=key)


def _parsed(text: str) -> WeightsChoice:
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
    if text and path.exists():
        what = "a folder" if path.is_dir() else "no regular file"
        raise errors.InputError(
            f"cannot use weights {text!r}: it is {what}. Give the .safetensors or state-dict file itself."
        )
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


def load_file(choice: WeightsChoice, *, model: nn.Module, trunk: nn.Module, convert: Convert | None = None) -> None:
    """Copy the state dict in `choice.path` into `model`; every tensor of the encoder must be there and nothing else.

    Entries of a top-level child in which the encoder holds no tensor (the classifier) may be missing, surplus or of
    another size; they are listed. What wraps a state dict is taken off, as `state_files` has it. `convert` brings a
    state dict that does not fit to the model's own names and sizes; None from it: it cannot.

    Raises:
        InputError: unreadable, not a state dict, or not this model's; the first mismatches are named.
    """
    load_state(
        read_state(choice, wanted=encoder_state(model, trunk)), choice, model=model, trunk=trunk, convert=convert
    )


def load_state(
    state: Mapping[str, torch.Tensor],
    choice: WeightsChoice,
    *,
    model: nn.Module,
    trunk: nn.Module,
    convert: Convert | None = None,
) -> None:
    """Copy a state dict read from `choice.path` into `model`, by the rules of `load_file`.

    Raises:
        InputError: not this model's; the first mismatches are named.
    """
    wanted = encoder_state(model, trunk)
    own = model.state_dict()
    kept, problems = _fitting(state, own, wanted)
    if problems and convert is not None:
        notes: list[str] = []
        changed = convert(state, notes)
        if changed is not None:
            state = changed
            kept, problems = _fitting(state, own, wanted)
        for text in () if problems else notes:
            note(text, choice)
    if not problems:
        kept._metadata = getattr(state, "_metadata", None) or own._metadata  # type: ignore[attr-defined]
        try:
            model.load_state_dict(kept, strict=False)
        except RuntimeError as error:
            raise errors.InputError(f"cannot load weights {str(choice.path)!r}: {wording.reason(error)}.") from error
    if problems:
        raise errors.InputError(
            f"weights {str(choice.path)!r} do not fit the model: {'; '.join(problems)}. Give the file of this very "
            "model (and, for a transformer, its --image-size)."
        )
    note(state_files.left_out([name for name in state if name not in kept], len(state)), choice)


def interpolated_note(name: str, before: torch.Tensor, after: torch.Tensor) -> str:
    """Return the note of a tensor that was brought to the model's size."""
    return f"{name} {list(before.shape)} is interpolated to {list(after.shape)}"


def note(text: str | None, choice: WeightsChoice) -> None:
    """Record how a file was read, and warn of it."""
    if text is not None and choice.path is not None:
        choice.reading.notes.append(text)
        state_files.say(choice.path, text)


def _fitting(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> tuple[OrderedDict[str, torch.Tensor], list[str]]:
    """Return the entries that the encoder takes, and what is wrong with them."""
    tops = {name.partition(".")[0] for name in wanted}
    kept = OrderedDict((name, value) for name, value in state.items() if _belongs(name, tops, own, wanted))
    # BatchNorm counters are absent from files older than PyTorch 0.4.1; evaluation never reads them.
    missing = [name for name in wanted if name not in kept and not name.endswith("num_batches_tracked")]
    surplus = [name for name in kept if name not in own]
    problems = _name_problems("missing", missing) + _name_problems("not in the model", surplus)
    return kept, _shape_problems(kept, own) + _type_problems(kept, own) + problems


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


def _type_problems(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Return entries whose numbers are no weights by themselves: quantised, their scales lie elsewhere."""
    wrong = [
        f"{name} is {str(value.dtype).removeprefix('torch.')}"
        for name, value in state.items()
        if name in own and own[name].is_floating_point() and not _is_weight(value.dtype)
    ]
    return _name_problems("quantised, or no floating-point numbers", wrong)


def _is_weight(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def _name_problems(label: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{label}: {', '.join(names[:_SHOWN])}{more}"]


def read_state(
    choice: WeightsChoice, renaming: state_files.Renaming | None = None, *, wanted: Collection[str] = ()
) -> state_files.State:
    """Read a state dict from `choice.path`, with `wanted` under the names that a model has.

    With `renaming` only the entries that it names, under the names that it gives.

    Raises:
        InputError: unreadable, or not a state dict.
    """
    path = choice.path
    assert path is not None
    if renaming is not None and path.suffix.lower() == ".safetensors" and choice.key in (None, state_files.PLAIN):
        return state_files.renamed_safetensors(path, renaming)
    notes = choice.reading.notes
    state, choice.reading.entry = state_files.unwrapped(state_files.read(path), path, key=choice.key, notes=notes)
    if renaming is not None:
        return state_files.renamed(renaming(list(state)), state.__getitem__, path)
    return state_files.without_wrappers(state, wanted, path, notes)
