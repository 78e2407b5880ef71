"""Addresses of images in a list: asked for when it is planned, and found again with their credentials when it is read.

What signs an address, and a user and a password in it, is never recorded: the run reads the list again.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from genenc_core import errors, text
from genenc_core.images.containers import kinds
from genenc_core.images.sources import tables
from genenc_core.system import web

_BEGINNINGS: Final = ("http://", "https://", "s3://", "gs://")
_PART: Final = 2**20
_MISSING: Final = (-1, -1, ":")
SIGNED: Final = "!"
"""First of the member of an address whose credentials are those of the list."""
_SIGNATURES: Final = ("x-amz-signature", "x-goog-signature", "signature", "sig")
TOGETHER: Final = 8
"""Addresses that one thread asks for, one after the other."""


def are_in(path: Path, column: str) -> bool:
    """Return whether a column of a list holds an address; cheap where none of its bytes look like one.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix.lower() not in tables.PARQUET_SUFFIXES and not _may_hold_addresses(path):
        return False
    for _, (cells,) in tables.iter_blocks(path, [column], block_rows=65536):
        if any(kinds.is_remote(cell.strip()) for cell in cells if isinstance(cell, str)):
            return True
    return False


def _may_hold_addresses(path: Path) -> bool:
    """Look for what begins every address; JSON may escape its slashes."""
    before = b""
    try:
        with path.open("rb") as file:
            while part := file.read(_PART):
                both = before + part
                if b"://" in both or b":\\/\\/" in both:
                    return True
                before = part[-4:]
    except OSError:
        return True  # reading it says what is wrong
    return False


def refuse_credentials(address: str) -> None:
    """Raise `InputError` if an address on the command line holds credentials, which a run would record."""
    if web.is_address(address) and web.without_credentials(address)[1]:
        raise errors.InputError(
            "the address of the images holds credentials, or is signed: write a user and a password to ~/.netrc; "
            "signed addresses may stand in a list (CSV, Parquet), which is read again and not recorded"
        )
    if not web.is_address(address) and text.holds_credentials(address):
        raise errors.InputError("the address of the images holds credentials: set AWS_ACCESS_KEY_ID and the like")


def ask(entries: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return size, time and member of what addresses name; -1 for what is not there, or on a server that is not.

    Raises:
        InputError: a bucket, or the network, does not answer.
    """
    from genenc_core.images.containers import remote, remote_objects

    found: list[tuple[int, int, str]] = []
    opened: dict[str, remote_objects.Objects] = {}
    for entry in entries:
        place, key = remote_objects.split(entry)
        objects = opened.setdefault(place, remote_objects.open_objects(place))
        signed = SIGNED if web.is_address(entry) and web.without_credentials(entry)[1] else ""
        try:
            mark, tag = objects.head(key)
        except FileNotFoundError:
            found.append((*_MISSING[:2], signed + _MISSING[2]))
        except OSError as error:
            if not web.is_address(entry):
                raise errors.InputError(f"cannot ask for {entry!r}: {error.strerror or error}") from error
            found.append((*_MISSING[:2], signed + _MISSING[2]))
        else:
            found.append((mark.size, mark.mtime_ns, signed + remote.member_of(tag)))
    return found


class Distinct:
    """Addresses of a list, of which those that are recorded alike must be of one image.

    They are if each is signed: then a signature, and what goes with it, is all in which they differ.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, bool]] = {}

    def add(self, entry: str) -> str:
        """Return an address as it is recorded.

        Raises:
            InputError: an earlier one is recorded alike, and differs from it.
        """
        clean, had = web.without_credentials(entry) if web.is_address(entry) else (entry, False)
        if not had:
            return clean
        names = web.secret_names(entry)
        own = hash(entry), any(name.lower() in _SIGNATURES for name in names)
        first = self._seen.setdefault(clean, own)
        if first[0] != own[0] and not (first[1] and own[1]):
            what = f"in {', '.join(map(repr, names))}" if names else "in the user"
            raise errors.InputError(
                f"two addresses differ from {clean!r} only {what}, which is taken for credentials and "
                "never recorded, so that their images cannot be distinguished: give them addresses that differ "
                "otherwise, or download them"
            )
        return clean


class Signed:
    """The credentials of a list's addresses, read when the first one is wanted."""

    def __init__(self, path: Path, column: str) -> None:
        self._path = path
        self._column = column
        self._whole: dict[str, str] | None = None
        self._lock = threading.Lock()

    def places(self, paths: list[str], members: list[str]) -> tuple[list[str], list[str]]:
        """Return paths and members of rows with the credentials that their addresses have in the list.

        Raises:
            InputError: the list is gone, or does not have one of them.
        """
        if not any(member.startswith(SIGNED) for member in members):
            return paths, members
        pairs = zip(paths, members, strict=True)
        whole = [self._with_credentials(path) if member.startswith(SIGNED) else path for path, member in pairs]
        return whole, [member.removeprefix(SIGNED) for member in members]

    def _with_credentials(self, address: str) -> str:
        with self._lock:
            if self._whole is None:
                self._whole = self._read()
        try:
            return self._whole[address]
        except KeyError:
            raise errors.InputError(
                f"{address!r} is signed, and the list {str(self._path)!r} no longer has it: a run does not record "
                "signatures. Write the list again, with new ones if they have expired"
            ) from None

    def _read(self) -> dict[str, str]:
        found: dict[str, str] = {}
        distinct = Distinct()
        for _, (cells,) in tables.iter_blocks(self._path, [self._column], block_rows=65536):
            for cell in cells:
                entry = str(cell).strip()
                clean = distinct.add(entry)
                if web.is_address(entry) and web.without_credentials(entry)[1]:
                    found[clean] = entry
        return found
