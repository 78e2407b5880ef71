"""The `models` command: a table of the encoders available by name, with shapes from dry runs without weights."""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import rich.progress

from genenc_core import errors
from genenc_core.cli import output
from genenc_core.models import resolve
from genenc_core.run import model_info
from genenc_core.runtime import general_encoder, model_registry

FEW = 50
_HEADINGS = ("name", "source", "input", "slots", "pixels per cell")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One encoder; `info` or `note` is set once its shapes were determined or failed to be."""

    name: str
    source: str
    input_size: tuple[int, int] | None
    info: model_registry.ModelInfo | None = None
    note: str | None = None


def run(search: str | None, source: str | None, folders: tuple[str, ...], *, every_shape: bool, as_json: bool) -> None:
    """Print the encoders whose names match.

    Raises:
        InputError: an unknown source, `json` without a folder, no such folder.
    """
    known, problems = model_registry.folders(folders)
    _check_source(source, folders)
    rows = [row for row in _rows(known) if _fits(row, search, source)]
    for path, problem in problems.items():
        output.tell(f"skipped: {path}: {problem}")
    shaped = every_shape or len(rows) <= FEW
    if shaped:
        rows = _with_shapes(rows, known)
    if as_json:
        output.say_json([_described(row) for row in rows])
        return
    count = len(_HEADINGS) if shaped else 3
    output.say_table(_HEADINGS[:count], [_cells(row)[:count] for row in rows])
    if not rows:
        output.tell("no model matches")
    elif not shaped:
        hint = f"{len(rows)} models; --search TEXT shows the slots of up to {FEW}, --shapes those of all"
        output.tell(hint)


def _check_source(source: str | None, folders: tuple[str, ...]) -> None:
    if source == "json" and not folders:
        raise errors.InputError("--source json lists specs in folders: name them with --models DIR")


def _rows(known: model_registry.ModelRegistry) -> Iterator[Row]:
    own = known.registered()
    for name in own:
        yield Row(name=name, source="json", input_size=None)
    for item in resolve.model_entries():
        # A registered id shadows a model name; the name stays reachable with its source prefix.
        shown = f"{item.source}/{item.name}" if item.name in own else item.name
        yield Row(name=shown, source=item.source, input_size=item.input_size)


def _fits(row: Row, search: str | None, source: str | None) -> bool:
    if source is not None and row.source != source:
        return False
    if search is None:
        return True
    text, name = search.lower(), row.name.lower()
    return fnmatch.fnmatchcase(name, text) if "*" in text else text in name


def _with_shapes(rows: Sequence[Row], known: model_registry.ModelRegistry) -> list[Row]:
    console = output.error_console()
    tracked = rich.progress.track(
        rows, description="reading shapes", console=console, transient=True, disable=not console.is_terminal
    )
    return [_with_shape(row, known) for row in tracked]


def _with_shape(row: Row, known: model_registry.ModelRegistry) -> Row:
    if row.name.removeprefix("genenc/") == general_encoder.MODEL_ID and row.source == "genenc":
        return Row(name=row.name, source=row.source, input_size=row.input_size, note="those of the exported file")
    try:
        info = known.info(row.name)
    except errors.InputError as error:
        return Row(name=row.name, source=row.source, input_size=row.input_size, note=str(error))
    except Exception as error:  # third-party models may raise anything; keep listing the others
        note = f"unknown shapes: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Row(name=row.name, source=row.source, input_size=row.input_size, note=note)
    shapes = [slot.shape for slot in info.spec.inputs]
    size = (shapes[0][1], shapes[0][2]) if len(shapes) == 1 and len(shapes[0]) == 3 else None
    return Row(name=row.name, source=row.source, input_size=size, info=info)


def _strides(row: Row) -> list[str]:
    """Return the input pixels per cell of each slot: `32`, `32 x ~31.5`, or `-` if the slot is not a map."""
    if row.info is None or row.input_size is None:
        return []
    sides = [model_info.pixels_per_cell(row.info.spec, slot) for slot in row.info.spec.outputs]
    return ["-" if each is None else each[0] if each[0] == each[1] else " x ".join(each) for each in sides]


def _cells(row: Row) -> tuple[str, ...]:
    size = "-" if row.input_size is None else f"{row.input_size[0]}x{row.input_size[1]}"
    slots = "" if row.info is None else ", ".join(f"{s.name} {list(s.shape)}" for s in row.info.spec.outputs)
    return row.name, row.source, size, slots or row.note or "", ", ".join(_strides(row))


def _described(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"name": row.name, "source": row.source, "input_size": row.input_size}
    if row.info is not None:
        slots = row.info.spec.outputs
        found["outputs"] = [
            {"name": slot.name, "shape": slot.shape, "pixels_per_cell": stride}
            for slot, stride in zip(slots, _strides(row) or ["-"] * len(slots), strict=True)
        ]
        found["parameters"] = row.info.spec.genenc.parameters if row.info.spec.genenc else None
    if row.note is not None:
        found["note"] = row.note
    return found
