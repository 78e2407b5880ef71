"""State dicts from files: read safely, taken out of a checkpoint, and their names without what a wrapper put before."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from genenc_core import errors
from genenc_core.models import wording

Renaming = Callable[[Sequence[str]], Mapping[str, str]]
"""From the names in a file to those of the model, for the entries that are taken; the others are not looked at."""

State = OrderedDict[str, torch.Tensor]

EMA, PLAIN = "ema", "plain"
_EMA_KEYS = ("state_dict_ema", "model_ema")
_PLAIN_KEYS = ("state_dict", "model")
_COMPILED = "_orig_mod"
_SHOWN = 8
# Official DenseNet files of torchvision carry names from before 0.3: "norm.1.weight" is "norm1.weight" today.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_REMEDY = "Give a file written by torch.save(model.state_dict(), FILE) or by safetensors."


class WeightsWarning(UserWarning):
    """How a weights file was read, where a user might expect something else."""


def read(path: Path) -> Any:
    """Return what a file holds; Python objects in it are never made.

    Raises:
        InputError: unreadable, or another kind of file.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise errors.InputError(
            f"cannot read weights {str(path)!r} as a state dict: the file is damaged or holds Python objects, which "
            "are never run. Save it again with torch.save(model.state_dict(), FILE) or as .safetensors."
        ) from error
    except Exception as error:  # a foreign file makes the unpickler raise anything
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> errors.InputError:
    """Return the error of a file that is no state dict."""
    said = str(error)
    if "TorchScript archive" in said:
        why = (
            "it is a TorchScript file, a whole model. Run it with --model general_encoder --weights FILE --trust, or "
            "give a state dict"
        )
        return errors.InputError(f"cannot read weights {str(path)!r} as a state dict: {why}.")
    if "legacy .tar format" in said:
        said = "neither a zip archive nor a pickle of a state dict"
    reason = f"{type(error).__name__}: {wording.reason(type(error)(said)) if said else 'no reason given'}"
    return errors.InputError(
        f"cannot read weights {str(path)!r}: it is neither a .safetensors file nor a state dict that torch.load reads "
        f"({reason[:200]}). {_REMEDY}"
    )


def renamed_safetensors(path: Path, renaming: Renaming) -> State:
    """Read only what is taken: the encoder may be a small part of a file of gigabytes.

    Raises:
        InputError: unreadable.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return renamed(renaming(list(file.keys())), file.get_tensor, path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise unreadable(path, error) from error


def renamed(names: Mapping[str, str], tensor: Callable[[str], torch.Tensor], path: Path) -> State:
    """Return the tensors of a file's names under the names that these become.

    Raises:
        InputError: two names become the same, and their tensors differ.
    """
    made: State = OrderedDict()
    origin: dict[str, str] = {}
    for found, name in names.items():
        value = tensor(found)
        if name in made and not _equal(made[name], value):
            raise errors.InputError(
                f"weights {str(path)!r} hold both {origin[name]!r} and {found!r}, two names of the model's {name!r}, "
                "with different values: save the file again with only one of them"
            )
        made[name], origin[name] = value, found
    return made


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def unwrapped(value: Any, path: Path, *, key: str | None, notes: list[str]) -> tuple[State, str | None]:
    """Return the state dict of a checkpoint, and the entry that it is (None: the file itself).

    It is the entry `key` (dotted), else the one that timm takes, the EMA first.
    `key` may be `ema` or `plain` for the first of their entries that the file has, or a prefix of names.
    What was chosen among several is added to `notes`.

    Raises:
        InputError: it holds none, or not that entry; those it has are listed.
    """
    entries = dict(_state_dicts(value)) if isinstance(value, Mapping) else {}
    chosen = _chosen(value, entries, path, key)
    state = entries.get(chosen) if chosen else value
    if state is None:
        state = _under_prefix(value, chosen or "")
    if not _is_state(state):
        known = f" (it has {_listed(entries)}: choose with --weights-key)" if entries else ""
        raise errors.InputError(
            f"weights {str(path)!r} hold no state dict (names to tensors), but a {type(value).__name__}{known}. Save "
            "them with torch.save(model.state_dict(), FILE) or as .safetensors."
        )
    if chosen:
        others = [name for name in entries if name != chosen and not name.startswith(f"{chosen}.")]
        notes.append(f"entry {chosen!r} is taken" + (f", not {_listed(others)}" if others else ""))
        if others and key is None:
            say(path, f"{notes[-1]}; choose another with --weights-key")
    made = renamed({name: _OLD_DENSENET.sub(r"\1\2", name) for name in state}, state.__getitem__, path)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        made._metadata = metadata  # type: ignore[attr-defined]
    return made, chosen


def _state_dicts(value: Mapping[Any, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of the entries of a checkpoint that are state dicts, and the entries."""
    for name, inner in value.items():
        if not isinstance(name, str) or not isinstance(inner, Mapping):
            continue
        if _is_state(inner):
            yield before + name, inner
        elif depth < 2:  # as deep as {"model": {"state_dict": ...}}, and one more
            yield from _state_dicts(inner, f"{before}{name}.", depth + 1)


def _chosen(value: Any, entries: Mapping[str, Any], path: Path, key: str | None) -> str | None:
    """Return the entry to take; None: the file is the state dict itself.

    Raises:
        InputError: there is no such entry.
    """
    if key in entries:
        return key
    plain = next((name for name in _by_rank(entries, _PLAIN_KEYS)), None)
    ema = next((name for name in _by_rank(entries, _EMA_KEYS)), None)
    if key in (None, EMA) and ema is not None:
        return ema
    if key in (None, PLAIN):
        return plain or (next(iter(entries)) if len(entries) == 1 and not _is_state(value) else None)
    assert key is not None
    inside = list(_by_rank(entries, (key,)))
    if len(inside) == 1:  # {"ema": {"module": ...}}
        return inside[0]
    if _under_prefix(value, key):
        return key
    known = f"it has {_listed(entries)}" if entries else "it is one state dict without such a prefix"
    raise errors.InputError(f"--weights-key {key!r} is not in the weights {str(path)!r}: {known}. Choose another.")


def _by_rank(entries: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """Yield the entries whose names are of `keys`, the earliest key first; `{"state_dict": {"model": ...}}` counts."""
    for key in keys:
        yield from (name for name in entries if name == key or name.startswith(f"{key}."))


def _under_prefix(value: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with `prefix` and a dot, without it."""
    if not prefix or not _is_state(value):
        return {}
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in value.items() if name.startswith(start)}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and torch.is_tensor(entry) for name, entry in value.items())
    )


def without_wrappers(state: State, wanted: Collection[str], path: Path, notes: list[str]) -> State:
    """Return a state dict with the names that a model has: `_orig_mod.`, `module.`, `model.` and the like taken off.

    A prefix is taken off where the model's tensors stand under it and not without it; what stands elsewhere is left.

    Raises:
        InputError: the model's tensors stand under several prefixes, or twice under one.
    """
    metadata = getattr(state, "_metadata", None)
    if any(_COMPILED in name.split(".") for name in state) and not any(_COMPILED in name.split(".") for name in wanted):
        # torch.compile wraps the whole model, or some of its modules.
        names = {name: ".".join(part for part in name.split(".") if part != _COMPILED) for name in state}
        state = renamed(names, state.__getitem__, path)
        notes.append(f"{_COMPILED!r} is taken off the names")
    if any(name in state for name in wanted):
        return state
    found = _prefixes(state, wanted)
    if len(found) > 1:
        raise errors.InputError(
            f"weights {str(path)!r} hold the model several times, under {_listed(found)}: choose one with "
            f"--weights-key, such as --weights-key {found[0].removesuffix('.')}"
        )
    if not found:
        return state
    (prefix,) = found
    made: State = OrderedDict(
        # Names elsewhere keep what they have, so that they are known for what they are; none is another's.
        (name if name.removeprefix(prefix) in state else name.removeprefix(prefix), value)
        for name, value in state.items()
    )
    notes.append(f"{prefix!r} is taken off the names")
    if metadata is not None:
        made._metadata = OrderedDict(  # type: ignore[attr-defined]
            (f"{name}.".removeprefix(prefix).removesuffix("."), entry) for name, entry in metadata.items()
        )
    return made


def _prefixes(state: Mapping[str, Any], wanted: Collection[str]) -> list[str]:
    """Return the prefixes under which most of the model's names stand; none where less than half do."""
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    counts: dict[str, int] = {}
    ends = {name: f".{name}" for name in sorted(needed, key=len)[-_SHOWN:]}
    candidates = {
        file_name[: -len(name)] for name, end in ends.items() for file_name in state if file_name.endswith(end)
    }
    for prefix in candidates:
        counts[prefix] = sum(prefix + name in state for name in needed)
    most = max(counts.values(), default=0)
    if 2 * most <= len(needed):
        return []
    return sorted(prefix for prefix, count in counts.items() if count == most)


def left_out(names: Sequence[str], total: int) -> str | None:
    """Return a note of the entries of a file that are not taken; None: all are."""
    if not names:
        return None
    return f"{len(names)} of {total} entries are not part of the encoder and were left out: {_listed(names)}"


def say(path: Path, text: str) -> None:
    """Warn of how a file was read."""
    warnings.warn(f"weights {path.name}: {text}", WeightsWarning, stacklevel=3)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
