"""Digests of what is stored, with the name of their algorithm: `blake3:6437b3ac...`."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Final

import blake3

Buffer = bytes | memoryview
"""What is written and hashed; a memoryview is flat and of bytes."""

SHA256: Final = "sha256"
BLAKE3: Final = "blake3"
"""What new records use: 2 to 5 times as fast as sha256, which many processors have no instruction for."""
_ALGORITHMS: Final[Mapping[str, Callable[[], Any]]] = {SHA256: hashlib.sha256, BLAKE3: blake3.blake3}


def new(algorithm: str) -> Any:
    """Return a hash object of an algorithm: `update`, `hexdigest`.

    Raises:
        ValueError: an algorithm that this version does not know.
    """
    if algorithm not in _ALGORITHMS:
        raise ValueError(
            f"{algorithm[:80]!r} is not a digest that this version of genenc knows ({', '.join(_ALGORITHMS)})"
        )
    return _ALGORITHMS[algorithm]()


def of(parts: Iterable[Buffer], algorithm: str = BLAKE3) -> str:
    """Return the named digest of buffers, one after the other."""
    made = new(algorithm)
    for part in parts:
        made.update(part)
    return f"{algorithm}:{made.hexdigest()}"


def of_file(file: BinaryIO, algorithm: str) -> tuple[int, str]:
    """Return a file's size in bytes and its digest in hexadecimal, in constant memory."""
    made = new(algorithm)
    while part := file.read(2**18):
        made.update(part)
    return file.tell(), made.hexdigest()


def algorithm(digest: str) -> str:
    """Return the algorithm of a named digest."""
    return digest.partition(":")[0]
