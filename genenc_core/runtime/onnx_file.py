"""Metadata of an ONNX file, read from its protobuf fields without loading it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Field numbers of onnx.proto: ModelProto, OperatorSetIdProto, TensorProto.
_IR_VERSION, _GRAPH, _OPSET_IMPORT = 1, 7, 8
_MODEL_FIELDS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26))
_DOMAIN, _VERSION = 1, 2
_EXTERNAL_DATA = 13
_OP_TYPE, _ATTRIBUTE = 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_MAX_NAME_BYTES = 64
# Fields of each message that lead to tensors: nodes contain graphs (If, Loop), attributes contain tensors (Constant).
_TO_TENSORS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MAX_DEPTH = 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """Versions of the format and of the standard operators, and whether weights are in external files.

    `batch_statistics`: whether a normalisation uses the mean and variance of the batch instead of learned ones.
    """

    ir_version: int
    opset: int
    external: bool
    batch_statistics: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    number: int
    wire: int
    value: int
    """the number, or the length of the content"""
    start: int


def read(path: Path) -> OnnxFile | None:
    """Read the metadata of an ONNX file; None if it is damaged or of another type."""
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except (OSError, ValueError):
        return None


def _read(file: BinaryIO, size: int) -> OnnxFile | None:
    fields = list(_fields(file, 0, size))
    if any(field.number not in _MODEL_FIELDS for field in fields):
        return None
    ir = [field.value for field in fields if field.number == _IR_VERSION and field.wire == _VARINT]
    graphs = [field for field in fields if field.number == _GRAPH and field.wire == _LENGTH]
    if len(ir) != 1 or len(graphs) != 1:
        return None
    opsets = [_opset(file, field) for field in fields if field.number == _OPSET_IMPORT and field.wire == _LENGTH]
    return OnnxFile(
        ir_version=ir[0],
        opset=max(opsets, default=0),
        external=_external(file, "model", 0, size),
        batch_statistics=_any_in_training(file, "model", 0, size),
    )


def _opset(file: BinaryIO, field: _Field) -> int:
    """Return the version of the standard operators; 0 for another domain's."""
    parts = list(_fields(file, field.start, field.start + field.value))
    if any(part.number == _DOMAIN and part.value for part in parts):
        return 0
    return next((part.value for part in parts if part.number == _VERSION), 0)


def _external(file: BinaryIO, kind: str, start: int, stop: int, *, depth: int = 0) -> bool:
    """Return whether any tensor in a message, at any depth, stores its data in an external file."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages more than {_MAX_DEPTH} deep")
    if kind == "tensor":
        return any(part.number == _EXTERNAL_DATA for part in _fields(file, start, stop))
    inner = _TO_TENSORS[kind]
    return any(
        _external(file, inner[part.number], part.start, part.start + part.value, depth=depth + 1)
        for part in list(_fields(file, start, stop))
        if part.number in inner and part.wire == _LENGTH
    )


def _any_in_training(file: BinaryIO, kind: str, start: int, stop: int, *, depth: int = 0) -> bool:
    """Return whether any node in a message, at any depth, is a batch normalisation in training mode."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages more than {_MAX_DEPTH} deep")
    parts = list(_fields(file, start, stop))
    if kind == "node" and any(_text(file, part) == b"BatchNormalization" for part in parts if part.number == _OP_TYPE):
        attributes = [part for part in parts if part.number == _ATTRIBUTE]
        return any(_is_training(file, part) for part in attributes)
    inner = _TO_TENSORS.get(kind, {})
    return any(
        _any_in_training(file, inner[part.number], part.start, part.start + part.value, depth=depth + 1)
        for part in parts
        if part.wire == _LENGTH and inner.get(part.number) in ("graph", "function", "node", "attribute")
    )


def _is_training(file: BinaryIO, attribute: _Field) -> bool:
    parts = list(_fields(file, attribute.start, attribute.start + attribute.value))
    named = any(_text(file, part) == b"training_mode" for part in parts if part.number == _ATTRIBUTE_NAME)
    return named and any(part.value == 1 for part in parts if part.number == _ATTRIBUTE_INT)


def _text(file: BinaryIO, field: _Field) -> bytes:
    file.seek(field.start)
    return file.read(min(field.value, _MAX_NAME_BYTES)) if field.wire == _LENGTH else b""


def _fields(file: BinaryIO, start: int, stop: int) -> Iterator[_Field]:
    """Yield the fields of the message between two offsets.

    Raises:
        ValueError: the bytes are not a protobuf message.
    """
    at = start
    while at < stop:
        key, at = _varint(file, at)
        wire = key & 7
        if wire in (_VARINT, _LENGTH):
            value, at = _varint(file, at)
        else:
            value = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if value < 0 or not key >> 3:
            raise ValueError(f"no protobuf field at byte {at}")
        yield _Field(number=key >> 3, wire=wire, value=value, start=at)
        at += 0 if wire == _VARINT else value
    if at != stop:
        raise ValueError(f"a field ends at byte {at}, its message at {stop}")


def _varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """Return the number at an offset, and the offset after it."""
    file.seek(at)
    number = 0
    for index, byte in enumerate(file.read(10)):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise ValueError(f"no number at byte {at}")
