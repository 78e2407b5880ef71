"""Where a run or version comes from, in forms that other programs read: RO-Crate, OpenLineage.

A document is written beside the arrays, or with copies of the records in a folder of its own; what is committed is not
touched.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from genenc_core import errors, text
from genenc_core.dataset import folder as dataset_folder
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.features import export, history, openlineage, ro_crate
from genenc_core.features.parameters import ExportProvenanceParameters
from genenc_core.run.folder import DOCUMENTS, MODEL_FOLDER, RunFolder
from genenc_core.store import run_store
from genenc_core.store.backends import beneath
from genenc_core.store.backends.objects import Objects, is_remote, join, to_root
from genenc_core.system import files

FILES: Mapping[str, str] = {"ro-crate": ro_crate.FILE, "openlineage": openlineage.FILE}
assert frozenset(FILES.values()) == DOCUMENTS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written."""

    place: str
    """The file."""
    format: str
    sessions: int
    """Sessions that it describes."""
    complete: bool
    """Whether all shards are stored: otherwise it says so, and is to be written again later."""
    license: str | None

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Return all of it as text."""
        found = [f"{self.place}: {text.plural(self.sessions, 'session')}"]
        if not self.complete:
            found.append("not complete: it describes what is stored so far; run the command again after genenc resume")
        if self.format == "ro-crate" and self.license is None:
            found.append("no licence is stated: --license gives one, such as CC-BY-4.0")
        return found


def write(given: ExportProvenanceParameters) -> Written:
    """Write the document; an earlier one beside the arrays is replaced.

    Raises:
        InputError: an invalid argument, not a run or dataset, or a place that cannot be written.
        StoreError: a record is damaged.
    """
    check(given)
    source = _Source(given)
    document = source.document()
    place = source.beside(document) if given.out is None else source.copied(document, Path(given.out))
    return Written(
        place=place,
        format=given.format,
        sessions=sum(len(each.sessions) for each in source.histories),
        complete=all(each.complete for each in source.histories),
        license=given.license,
    )


def check(given: ExportProvenanceParameters) -> None:
    """Refuse a place that cannot be written, before anything is read.

    Raises:
        InputError: it is in use, remote or not writable.
    """
    if given.out is not None:
        export.check_place(given.out)
        if not is_remote(given.source) and Path(given.source).resolve() in Path(given.out).resolve().parents:
            raise errors.InputError(
                f"--out {given.out!r} is inside {given.source!r}: give another folder, or leave it out to write beside "
                "the arrays"
            )


class _Source:
    def __init__(self, given: ExportProvenanceParameters) -> None:
        self.given = given
        root = to_root(given.source)
        self.opened: DatasetFolder | RunFolder
        if dataset_folder.exists(root):
            self.opened = DatasetFolder(root)
            self.version = self.opened.version(given.version)
            self.runs = [self.opened.part(part.name) for part in self.version.parts]
        else:
            _refuse_version(given)
            self.opened = RunFolder(root)
            self.runs = [self.opened]
            if self.opened.dataset is not None:
                raise errors.InputError(
                    f"{given.source!r} is a part of the dataset {self.opened.dataset!r}: give the dataset"
                )
        self.objects: Objects = self.opened.objects
        self.histories = [history.of(run) for run in self.runs]

    def document(self) -> bytes:
        """Return the document."""
        if self.given.format == "openlineage":
            return b"".join(openlineage.lines(each) for each in self.histories)
        terms = ro_crate.Terms(license=self.given.license, agent=self.given.who)
        if isinstance(self.opened, DatasetFolder):
            return ro_crate.of_version(self.opened, self.version, self.histories, terms)
        return ro_crate.of_run(self.histories[0], terms)

    def beside(self, document: bytes) -> str:
        """Write it beside the arrays; return where."""
        key = FILES[self.given.format]
        place = join(self.objects.name, key)
        if self.objects.kind(key) not in (None, beneath.FILE):
            raise errors.InputError(f"{place!r} is not a file: move it away, or give --out")
        try:
            self.objects.replace(key, document)
        except OSError as error:
            raise errors.InputError(
                f"{place!r} cannot be written: {error.strerror or error}; give --out with a new folder elsewhere"
            ) from error
        return place

    def copied(self, document: bytes, target: Path) -> str:
        """Write it to a new folder, a crate with copies of the records that it names; return where."""
        with export.placed(Path(os.path.abspath(target))) as partial:  # noqa: PTH100 -- keeps links
            files.make_folder(partial)
            if self.given.format == "ro-crate":
                document = self._with_copies(document, partial)
            files.write_new(partial / FILES[self.given.format], document)
        return str(target / FILES[self.given.format])

    def _with_copies(self, document: bytes, folder: Path) -> bytes:
        """Copy the files of a crate but those of the model; name what stays by its address; return the crate."""
        found = json.loads(document)
        keys = {each["@id"]: unquote(each["@id"]) for each in found["@graph"] if _is_data(each)}
        moved = {}
        for name, key in keys.items():
            if key.endswith("/") or f"/{MODEL_FOLDER}/" in f"/{key}":
                moved[name] = self._address(key)
                continue
            files.make_folder((folder / key).parent)
            with run_store.read_errors(self.objects.name):
                files.write_new(folder / key, self.objects.read(key, most=None))
        return (json.dumps(_renamed(found, moved), indent=2, ensure_ascii=False) + "\n").encode(
            errors="backslashreplace"
        )

    def _address(self, key: str) -> str:
        root = self.objects.name
        base = quote(root, safe="/:") if is_remote(root) else Path(root).resolve().as_uri()
        return f"{base.rstrip('/')}/{quote(key)}"


def _refuse_version(given: ExportProvenanceParameters) -> None:
    if given.version is not None:
        raise errors.InputError(
            f"{given.source!r} is a single run, which has no version {given.version!r}: leave it out"
        )


def _is_data(entity: Mapping[str, Any]) -> bool:
    """Return whether an entity is a file or folder of the crate."""
    return entity["@type"] in ("File", "Dataset") and entity["@id"] != "./"


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return JSON data whose `@id` are renamed."""
    if isinstance(value, dict):
        return {
            key: names.get(item, item) if key == "@id" and isinstance(item, str) else _renamed(item, names)
            for key, item in value.items()
        }
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value
