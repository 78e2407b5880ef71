"""Weights of a model: parsing of the choice, loading from a file, and digests."""

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import state_files
from genenc_core.system import digests

Convert = Callable[[Mapping[str, torch.Tensor], list[str]], Mapping[str, torch.Tensor] | None]
"""Converts a state dict that does not fit; returns None if it cannot, and adds what it did to the list."""

EMPTY_SHA256 = digests.WEIGHTS.hex()
"""`state_sha256` of a model without tensors"""
_SHOWN = 4


@dataclass(slots=True)
class Reading:
    """How a weights file was read: the entry that was loaded (None: the file itself), and further notes."""

    entry: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsChoice:
    """The parsed form of `random:SEED`, `pretrained[:TAG]` or a file name."""

    kind: Literal["random", "pretrained", "file"]
    seed: int = 0
    tag: str | None = None
    path: Path | None = None
    key: str | None = None
    """entry of the file: its dotted name, `ema` or `plain`; None: timm's rule, EMA first"""
    reading: Reading = field(default_factory=Reading, compare=False)
    """how the file was read, set by `load_file`"""


def parse_weights(text: str, key: str | None = None) -> WeightsChoice:
    """Parse the `weights` of a request and the entry `key` of a weights file.

    Raises:
        InputError: not `random:SEED`, `pretrained`, `pretrained:TAG` or an existing file; or a key without a file.
    """
    choice = _parsed(text)
    if key is None:
        return choice
    if choice.path is None and key != state_files.PLAIN:
        raise errors.InputError(f"--weights-key {key!r} needs a weights file, but the weights are {text!r}: omit it.")
    return dataclasses.replace(choice, key=key)


def _parsed(text: str) -> WeightsChoice:
    word, _, rest = text.partition(":")
    if word == "random" and rest.isascii() and rest.isdigit() and len(rest) < 20 and int(rest) < 2**63:
        return WeightsChoice(kind="random", seed=int(rest))
    if text == "pretrained" or (word == "pretrained" and rest):
        return WeightsChoice(kind="pretrained", tag=rest or None)
    if word == "random":
        raise errors.InputError(
            f"cannot use weights {text!r}: the seed of random:SEED must be an integer from 0 to 2**63 - 1, for example "
            "random:0."
        )
    path = Path(text)
    if text and path.is_file():
        return WeightsChoice(kind="file", path=path)
    if text and path.exists():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise errors.InputError(
            f"cannot use weights {text!r}: it is {what}. Give the .safetensors or state-dict file itself."
        )
    raise errors.InputError(
        f"cannot use weights {text!r}: it is neither a keyword nor an existing file. Give random:SEED (for example "
        "random:0), pretrained, pretrained:TAG, or an existing .safetensors or state-dict file."
    )


@contextlib.contextmanager
def construction_rng(choice: WeightsChoice) -> Iterator[None]:
    """Seed torch's CPU generator for a constructor, as `torch.manual_seed` would, and restore its state afterwards.

    Choices without a seed use 0, so that random initialisation is reproducible.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(choice.seed if choice.kind == "random" else 0)
        yield


def encoder_state(model: nn.Module, trunk: nn.Module) -> dict[str, torch.Tensor]:
    """Return the entries of `model`'s state dict that belong to `trunk`, under the model's names."""
    held = {id(tensor) for tensor in trunk.state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in held}


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of a state dict over sorted names, dtypes, shapes and bytes.

    Raises:
        InputError: an entry is not a tensor.
    """
    digest = digests.WEIGHTS.new()
    for name in sorted(state):
        if not isinstance(state[name], torch.Tensor):
            raise errors.InputError(
                f"the model's state dict holds a {type(state[name]).__name__} as {name!r}, as after quantize_dynamic, "
                "so its weights have no digest: save the model with torch.jit.save and give that file"
            )
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def load_file(choice: WeightsChoice, *, model: nn.Module, trunk: nn.Module, convert: Convert | None = None) -> None:
    """Load the state dict in `choice.path` into `model`; it must hold exactly the tensors of the encoder.

    Entries of top-level children outside the encoder (the classifier) may be missing, surplus or of another size; they
    are listed. Wrappers are removed by `state_files`. `convert` is applied to a state dict that does not fit.

    Raises:
        InputError: unreadable, not a state dict, or of another model; the first mismatches are named.
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
    """Load a state dict read from `choice.path` into `model`, by the rules of `load_file`.

    Raises:
        InputError: of another model; the first mismatches are named.
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
            raise errors.InputError(f"cannot load weights {str(choice.path)!r}: {errors.reason(error)}.") from error
    if problems:
        raise errors.InputError(
            f"weights {str(choice.path)!r} do not fit the model: {'; '.join(problems)}. Give a file of this exact "
            "model (for a transformer, also its --image-size)."
        )
    note(state_files.unused_note([name for name in state if name not in kept], len(state)), choice)


def interpolated_note(name: str, before: torch.Tensor, after: torch.Tensor) -> str:
    """Return a note on a tensor that was interpolated to the model's size."""
    return f"{name} {list(before.shape)} is interpolated to {list(after.shape)}"


def note(text: str | None, choice: WeightsChoice) -> None:
    """Record a note on how a file was read, and warn about it."""
    if text is not None and choice.path is not None:
        choice.reading.notes.append(text)
        state_files.warn_of(choice.path, text)


def _fitting(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> tuple[OrderedDict[str, torch.Tensor], list[str]]:
    """Return the entries of the encoder, and the problems with them."""
    tops = {name.partition(".")[0] for name in wanted}
    kept = OrderedDict((name, value) for name, value in state.items() if _belongs(name, tops, own, wanted))
    # BatchNorm counters are missing in files older than PyTorch 0.4.1, and unused in evaluation mode.
    missing = [name for name in wanted if name not in kept and not name.endswith("num_batches_tracked")]
    surplus = [name for name in kept if name not in own]
    problems = _name_problems("missing", missing) + _name_problems("not in the model", surplus)
    return kept, _shape_problems(kept, own) + _type_problems(kept, own) + problems


def _belongs(name: str, tops: set[str], own: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether an entry belongs to the encoder (or is unknown beside it) rather than to the classifier."""
    return name in wanted or (name not in own and name.partition(".")[0] in tops)


def _shape_problems(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    wrong = [
        f"{name} is {list(value.shape)}, the model's is {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    return _name_problems("other sizes", wrong)


def _type_problems(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Report entries that are not floating-point weights, such as quantised ones without their scales."""
    wrong = [
        f"{name} is {str(value.dtype).removeprefix('torch.')}"
        for name, value in state.items()
        if name in own and own[name].is_floating_point() and not _is_weight(value.dtype)
    ]
    return _name_problems("quantised, or not floating-point", wrong)


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
    """Read a state dict from `choice.path` and remove wrapper prefixes to match the names `wanted`.

    With `renaming`, read and rename only its entries instead.

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
