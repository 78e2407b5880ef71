"""What two runs or versions are, side by side: the entries of their identities, and what they were made with."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from genenc_core import errors
from genenc_core.features import execution
from genenc_core.run import records, session_log
from genenc_core.run.folder import RunFolder
from genenc_core.system import digests


class Entry(NamedTuple):
    """One entry, by its dotted name; None where it is missing."""

    name: str
    one: Any
    other: Any


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of two documents that differ, by name."""
    first, second = dict(_entries(one)), dict(_entries(other))
    names = dict.fromkeys([*first, *second])
    return [Entry(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)]


def _entries(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _entries(value, f"{above}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield f"{above}{name}", digests.canonical_json(value)
        else:
            yield f"{above}{name}", list(value) if isinstance(value, tuple) else value


def made_with(run: RunFolder) -> dict[str, Any]:
    """Return what the first shard of a run was encoded with, as far as it is recorded."""
    device, size = execution.usual(run)
    found: dict[str, Any] = {"device": device or None, "batch_size": size}
    environment = environment_of(run)
    if not environment:
        return found
    code, torch, machine = (environment.get(name) or {} for name in ("code", "torch", "machine"))
    packages = environment.get("packages") or {}
    kept = ("numpy", "pillow", "torchvision", "timm", "onnxruntime")
    return {
        **found,
        "genenc": environment.get("genenc"),
        "commit": code.get("git_commit"),
        "modified": code.get("git_dirty"),
        "python": environment.get("python"),
        "platform": environment.get("platform"),
        **{f"machine.{name}": value for name, value in machine.items()},
        **{f"torch.{name}": value for name, value in torch.items()},
        **{name: packages[name] for name in kept if name in packages},
    }


def environment_of(run: RunFolder) -> dict[str, Any]:
    """Return the record of the environment of a run's first shard; {} where there is none."""
    first = next(iter(sorted(run.store.committed())), None)
    record = None if first is None else run.store.record(first)
    session = "" if record is None else session_log.session_of(record)
    if not session:
        return {}
    try:
        digest = str(records.read_json(run.objects, session_log.record_key(session)).get("environment_sha256", ""))
        found = records.read_json(run.objects, session_log.environment_key(digest))
    except errors.StoreError:  # informative
        return {}
    return {} if session_log.LOST in found else found
