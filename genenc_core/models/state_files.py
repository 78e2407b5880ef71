"""Safe reading of state dicts from files: extraction from checkpoints and removal of wrapper prefixes."""

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

Renaming = Callable[[Sequence[str]], Mapping[str, str]]
"""Maps the names in a file to those of the model, for the entries to load; other entries are not read."""

State = OrderedDict[str, torch.Tensor]

EMA, PLAIN = "ema", "plain"
_EMA_KEYS = ("state_dict_ema", "model_ema")
_PLAIN_KEYS = ("state_dict", "model")
_COMPILED = "_orig_mod"
_SHOWN = 8
# Official DenseNet files of torchvision use names from before 0.3: "norm.1.weight" is now "norm1.weight".
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_REMEDY = "Give a file written by torch.save(model.state_dict(), FILE) or by safetensors."


class WeightsWarning(UserWarning):
    """A weights file was read in a way that the user may not expect."""


def read(path: Path) -> Any:
    """Read a weights file without unpickling arbitrary Python objects.

    Raises:
        InputError: unreadable, or of another file type.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise errors.InputError(
            f"cannot read weights {str(path)!r} as a state dict: the file is damaged or holds Python objects, which "
            "are never loaded. Save it again with torch.save(model.state_dict(), FILE) or as .safetensors."
        ) from error
    except Exception as error:  # the unpickler may raise anything for other file types
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> errors.InputError:
    """Return the error for a file that is not a state dict."""
    message = str(error)
    if "TorchScript archive" in message:
        why = (
            "it is a TorchScript file, a whole model. Run it with --model general_encoder --weights FILE --trust, or "
            "give a state dict"
        )
        return errors.InputError(f"cannot read weights {str(path)!r} as a state dict: {why}.")
    if "legacy .tar format" in message:
        message = "neither a zip archive nor a pickle of a state dict"
    reason = f"{type(error).__name__}: {errors.reason(type(error)(message)) if message else 'no reason given'}"
    return errors.InputError(
        f"cannot read weights {str(path)!r}: it is neither a .safetensors file nor a state dict that torch.load reads "
        f"({reason[:200]}). {_REMEDY}"
    )


def renamed_safetensors(path: Path, renaming: Renaming) -> State:
    """Read and rename only the entries in `renaming`; the encoder may be a small part of a file of gigabytes.

    Raises:
        InputError: unreadable.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return renamed(renaming(list(file.keys())), file.get_tensor, path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise unreadable(path, error) from error


def renamed(names: Mapping[str, str], tensor: Callable[[str], torch.Tensor], path: Path) -> State:
    """Return the tensors of a file under new names, given as `names` (old -> new).

    Raises:
        InputError: two entries with different values get the same name.
    """
    state: State = OrderedDict()
    origin: dict[str, str] = {}
    for old, name in names.items():
        value = tensor(old)
        if name in state and not _equal(state[name], value):
            raise errors.InputError(
                f"weights {str(path)!r} hold both {origin[name]!r} and {old!r}, two names of the model's {name!r}, "
                "with different values: save the file again with only one of them"
            )
        state[name], origin[name] = value, old
    return state


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def unwrapped(value: Any, path: Path, *, key: str | None, notes: list[str]) -> tuple[State, str | None]:
    """Return the state dict of a checkpoint and its entry's name (None: the file itself).

    That is the entry `key` (dotted), by default the one that timm uses, EMA first. `key` may also be `ema` or `plain`
    for the first such entry, or a prefix of names. A choice among several entries is added to `notes`.

    Raises:
        InputError: there is no state dict, or no entry `key`; the existing entries are listed.
    """
    entries = dict(_state_dicts(value)) if isinstance(value, Mapping) else {}
    chosen = _chosen(value, entries, path, key)
    state = entries.get(chosen) if chosen else value
    if state is None:
        state = _under_prefix(value, entries, chosen or "")
    if not _is_state(state):
        known = f" (it has {_listed(entries)}: choose with --weights-key)" if entries else ""
        raise errors.InputError(
            f"weights {str(path)!r} hold a {type(value).__name__}, not a state dict (names to tensors){known}. Save "
            "them with torch.save(model.state_dict(), FILE) or as .safetensors."
        )
    if chosen:
        others = [name for name in entries if name != chosen and not name.startswith(f"{chosen}.")]
        notes.append(f"entry {chosen!r} is used" + (f", not {_listed(others)}" if others else ""))
        if others and key is None:
            warn_of(path, f"{notes[-1]}; choose another with --weights-key")
    named = renamed({name: _OLD_DENSENET.sub(r"\1\2", name) for name in state}, state.__getitem__, path)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        named._metadata = metadata  # type: ignore[attr-defined]
    return named, chosen


def _state_dicts(value: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the state dicts in a checkpoint with their dotted names."""
    for name, inner in value.items():
        if not isinstance(name, str) or not isinstance(inner, Mapping):
            continue
        if _is_state(inner):
            yield prefix + name, inner
        elif depth < 2:  # one level deeper than {"model": {"state_dict": ...}}
            yield from _state_dicts(inner, f"{prefix}{name}.", depth + 1)


def _chosen(value: Any, entries: Mapping[str, Any], path: Path, key: str | None) -> str | None:
    """Return the entry to load; None: the file is the state dict itself.

    Raises:
        InputError: there is no such entry.
    """
    if key in entries:
        return key
    if key in (None, PLAIN):
        return _default_entry(value, entries, with_ema=key is None)
    assert key is not None
    for name in _by_rank(entries, _EMA_KEYS) if key == EMA else ():
        return name
    inside = list(_by_rank(entries, (key,)))
    if len(inside) == 1:  # {"ema": {"module": ...}}
        return inside[0]
    if _under_prefix(value, entries, key):
        return key
    known = f"it has {_listed(entries)}" if entries else "it is one state dict without such a prefix"
    raise errors.InputError(f"--weights-key {key!r} is not in the weights {str(path)!r}: {known}. Choose another.")


def _default_entry(value: Any, entries: Mapping[str, Any], *, with_ema: bool = True) -> str | None:
    """Return the entry that timm uses, else the only one; None if there is none or the file is the state dict."""
    for keys in (_EMA_KEYS if with_ema else (), _PLAIN_KEYS):
        for name in _by_rank(entries, keys):
            return name
    return next(iter(entries)) if len(entries) == 1 and not _is_state(value) else None


def _by_rank(entries: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """Yield the entries named after or nested under `keys`, in the order of `keys`."""
    for key in keys:
        yield from (name for name in entries if name == key or name.startswith(f"{key}."))


def _under_prefix(value: Any, entries: Mapping[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with `prefix` and a dot, with that prefix removed.

    They come from the file, else from the entry that the prefix starts with, else from the default entry.
    """
    state, start = value, f"{prefix}."
    if not _is_state(value):
        named = next((name for name in entries if start.startswith(f"{name}.")), None)
        start = start.removeprefix(f"{named}.") if named else start
        state = entries.get(named or _default_entry(value, entries) or "", {})
    within = [name for name in state if name.startswith(start)] if prefix else []
    return {name.removeprefix(start): state[name] for name in within}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and torch.is_tensor(entry) for name, entry in value.items())
    )


def without_wrappers(state: State, wanted: Collection[str], path: Path, notes: list[str]) -> State:
    """Remove wrapper prefixes such as `_orig_mod.`, `module.` and `model.` from the names of a state dict.

    A prefix is removed if the model's tensors exist only under it; names outside the prefix are kept.

    Raises:
        InputError: the model's tensors exist under several prefixes, or twice under one.
    """
    metadata = getattr(state, "_metadata", None)
    if any(_COMPILED in name.split(".") for name in state) and not any(_COMPILED in name.split(".") for name in wanted):
        # torch.compile wraps the whole model, or some of its modules.
        names = {name: ".".join(part for part in name.split(".") if part != _COMPILED) for name in state}
        state = renamed(names, state.__getitem__, path)
        notes.append(f"prefix {_COMPILED!r} is removed")
    if any(name in state for name in wanted):
        return state
    prefixes = _prefixes(state, wanted)
    if len(prefixes) > 1:
        raise errors.InputError(
            f"weights {str(path)!r} hold the model several times, under {_listed(prefixes)}: choose one with "
            f"--weights-key, such as --weights-key {prefixes[0].removesuffix('.')}"
        )
    if not prefixes:
        return state
    (prefix,) = prefixes
    bare: State = OrderedDict(
        # A name keeps its prefix if its bare form already exists, so that no two entries collide.
        (name if name.removeprefix(prefix) in state else name.removeprefix(prefix), value)
        for name, value in state.items()
    )
    notes.append(f"prefix {prefix!r} is removed")
    if metadata is not None:
        bare._metadata = OrderedDict(  # type: ignore[attr-defined]
            (f"{name}.".removeprefix(prefix).removesuffix("."), entry) for name, entry in metadata.items()
        )
    return bare


def _prefixes(state: Mapping[str, Any], wanted: Collection[str]) -> list[str]:
    """Return the prefixes that cover the most of the model's names; none if they cover no more than half."""
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    counts: dict[str, int] = {}
    ends = {name: f".{name}" for name in sorted(needed, key=len)[-_SHOWN:]}
    candidates = {
        file_name[: -len(name)] for name, end in ends.items() for file_name in state if file_name.endswith(end)
    }
    for prefix in candidates:
        counts[prefix] = sum(prefix + name in state for name in needed)
    highest = max(counts.values(), default=0)
    if 2 * highest <= len(needed):
        return []
    return sorted(prefix for prefix, count in counts.items() if count == highest)


def unused_note(names: Sequence[str], total: int) -> str | None:
    """Return a note on the entries of a file that are not used; None: all are."""
    if not names:
        return None
    return f"{len(names)} of {total} entries are not part of the encoder and were ignored: {_listed(names)}"


def warn_of(path: Path, text: str) -> None:
    """Emit a `WeightsWarning` on how a file was read."""
    warnings.warn(f"weights {path.name}: {text}", WeightsWarning, stacklevel=3)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
