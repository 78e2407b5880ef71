"""Dataset folders, local or on S3: opening, versions, parts and tags."""

import functools
import re
import secrets
from typing import TYPE_CHECKING, Self

from genenc_core import errors
from genenc_core.dataset import documents, marks
from genenc_core.dataset.documents import Meaning, Version, Written
from genenc_core.run import identity
from genenc_core.run.folder import RunFolder
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends import beneath
from genenc_core.store.backends.objects import Objects, Root, join, open_objects, to_root
from genenc_core.text import argument

if TYPE_CHECKING:  # it reads them from opened datasets
    from genenc_core.dataset.origins import Compacted


class DatasetFolder:
    """An opened dataset folder; its documents are read when they are asked for, and never change.

    Raises:
        InputError: not a dataset.
        StoreError: it cannot be read.
    """

    def __init__(self, root: Root) -> None:
        self.objects: Objects = open_objects(root)
        self.root = self.objects.name
        self.origins: dict[int, Compacted] = {}
        """Records of compacted parts, by number, that were read."""
        if not exists(root):
            raise errors.InputError(f"{self.root!r} is not a dataset: {_hint(self.objects)}")

    def __str__(self) -> str:
        return self.root

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Reopen the dataset when unpickled."""
        return type(self), (self.root,)

    @functools.cached_property
    def meaning(self) -> Meaning:
        """What all parts have in common.

        Raises:
            StoreError: its document is damaged.
        """
        return documents.read_meaning(self.objects)

    def versions(self) -> list[int]:
        """Return the numbers of all versions, in order; lists one folder.

        Raises:
            StoreError: the folder cannot be read, or one is missing.
        """
        found = sorted(filter(None, map(documents.version_number, self.names(documents.VERSIONS))))
        missing = next((number for number, there in enumerate(found, 1) if number != there), None)
        if missing is not None:
            raise errors.StoreError(
                f"{join(self.root, documents.version_key(missing))!r} is missing, and later versions are there: the "
                "dataset is damaged; restore the file from a copy"
            )
        return found

    def head(self) -> Written | None:
        """Return the newest version; None if there is none yet."""
        numbers = self.versions()
        return documents.read_version(self.objects, numbers[-1]) if numbers else None

    def version(self, which: int | str | None = None) -> Version:
        """Return a version by its number or tag; None is the newest.

        Raises:
            InputError: there is none of this number or tag, or it was pruned.
            StoreError: its document is damaged.
        """
        numbers = self.versions()
        if not numbers:
            raise errors.InputError(
                f"{self.root!r} has no version yet: its first update was not finished; run `genenc update` again"
            )
        number = numbers[-1] if which is None else self.number_of(which)
        if number not in numbers:
            raise errors.InputError(
                f"{self.root!r} has no version {number}: it has 1 to {numbers[-1]}; tags: "
                f"{', '.join(self.tags()) or 'none'}"
            )
        if when := marks.pruned_on(self.objects, number):
            raise errors.InputError(
                f"version {number} of {self.root!r} was pruned on {when}: its rows are not stored any more; "
                "give another version"
            )
        return documents.read_version(self.objects, number).version

    def pruned(self) -> dict[int, str]:
        """Return when versions were pruned, by number, as ISO 8601; lists one folder.

        Raises:
            StoreError: the folder cannot be read, or a mark is damaged.
        """
        numbers = sorted(filter(None, map(documents.pruned_number, self.names(documents.VERSIONS))))
        found = {number: marks.pruned_on(self.objects, number) for number in numbers}
        return {number: when for number, when in found.items() if when}

    def number_of(self, which: int | str) -> int:
        """Return the number of a version given as `3`, `v3` or a tag.

        Raises:
            InputError: there is no such tag.
            StoreError: the tag is damaged.
        """
        if isinstance(which, int):
            return which
        if match := re.fullmatch(r"v?([0-9]{1,9})", which):
            return int(match[1])
        found = documents.read_tag(self.objects, which) if which in (tags := self.tags()) else None
        if found is None:
            raise errors.InputError(f"{self.root!r} has no tag {which!r}; tags: {', '.join(tags) or 'none'}")
        return found[0]

    def tags(self) -> list[str]:
        """Return the names of all tags, sorted."""
        return sorted(name[:-5] for name in self.names(documents.TAGS) if name.endswith(".json") and name[0] != ".")

    def parts(self) -> list[int]:
        """Return the numbers of all parts, in a version or not, in order."""
        return sorted(filter(None, map(documents.part_number, self.names(documents.PARTS))))

    def part_root(self, name: str) -> Root:
        """Return the place of a part.

        Raises:
            StoreError: a link or file is in its place.
        """
        for key in (documents.PARTS, f"{documents.PARTS}/{name}"):
            kind = self.objects.kind(key)
            if kind not in (None, beneath.FOLDER):
                raise errors.StoreError(f"{join(self.root, key)!r} is {kind}, not a folder: the dataset is damaged")
        place = join(self.root, f"{documents.PARTS}/{name}")
        return to_root(place)

    def part(self, name: str) -> RunFolder:
        """Open a part.

        Raises:
            StoreError: it is missing or damaged, or a run of another meaning than the dataset's.
        """
        place = self.part_root(name)
        try:
            run = RunFolder(place)
        except errors.InputError as error:
            raise errors.StoreError(
                f"the part {str(place)!r} of the dataset is missing: restore it from a copy; {error}"
            ) from error
        if (
            identity.without_images(run.identity) != self.meaning.identity
            or list(run.manifest.point_names) != self.meaning.points
            or ("regions" in run.identity["images"]) != (self.meaning.regions is not None)
        ):
            raise errors.StoreError(
                f"{run.root!r} is a run of another model or other options than the dataset {self.root!r}: it was not "
                "made by genenc update; move it away"
            )
        return run

    def part_exists(self, name: str) -> bool:
        """Return whether a part was created, by its finished store."""
        return run_store.RunStore.exists(self.part_root(name))

    def create_version(self, version: Version) -> bool:
        """Create a version's document; return False if another process made this version.

        Raises:
            StoreError: it cannot be written.
        """
        data = documents.version_to_bytes(version)
        via = f"{documents.VERSIONS}/.v-{secrets.token_hex(8)}.partial"
        with run_store.disk_errors(f"version {version.version} of {self.root!r}"):
            self.objects.make_folder(documents.VERSIONS)
            try:
                self.objects.create(version.key, data, via=via)
            except FileExistsError:
                # On S3 it may be our own, whose answer was lost.
                if self.objects.read(version.key) != data:
                    return False
            except OSError:
                if self.objects.size(version.key) is None or self.objects.read(version.key) != data:
                    raise
            self.objects.sync(documents.VERSIONS)
        return True

    def names(self, key: str) -> list[str]:
        """Return the names in a folder of the dataset; none if it does not exist.

        Raises:
            StoreError: it cannot be read.
        """
        with run_store.read_errors(self.root):
            try:
                return self.objects.names(key)
            except FileNotFoundError:
                return []


def exists(root: Root) -> bool:
    """Return whether there is a dataset.

    Raises:
        StoreError: the folder cannot be read.
    """
    objects = open_objects(root)
    with run_store.read_errors(objects.name):
        return objects.kind(documents.DATASET) == beneath.FILE


def _hint(objects: Objects) -> str:
    with run_store.read_errors(objects.name):
        if objects.size(store_keys.STORE_FILE) is not None:
            return f"it is a single run; genenc status {argument(objects.name)} shows it"
    return "give a folder that was made with `genenc update`"
