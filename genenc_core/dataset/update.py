"""Update a dataset: encode what is new or changed as a new part, and make a version of it."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core import errors
from genenc_core.dataset import comparison, documents, origins, parts, publishing, rows
from genenc_core.dataset.comparison import Differences
from genenc_core.dataset.documents import Written
from genenc_core.dataset.folder import DatasetFolder, exists
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.encoding import cancellation
from genenc_core.images.labels.point_table import LabelsNotUsed, PointTable
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.sources import folders, image_source, manifest, text_order
from genenc_core.images.sources.regions import write_selection
from genenc_core.run import driver, model_cache, model_files, out_folder, planning, records
from genenc_core.run.folder import MANIFEST, REGIONS, RunFolder
from genenc_core.store.backends.objects import is_remote, join, to_root
from genenc_core.system import scratch

MOST_KILLED_PARTS = 20
"""Parts on S3, killed as they were created, that are passed over."""
MOST_CHANGED = 0.5
"""Share of the rows that may vanish, or be other files in another folder, at once without being asked for."""


class _Seen:
    """The newest version, its current rows, and how the listed images differ from them; read when asked for."""

    def __init__(self, work: "Update", head: Written | None, found: Differences | None = None) -> None:
        self.head = head
        self._work = work
        self._found = found

    @functools.cached_property
    def known(self) -> rows.CurrentRows:
        """The current rows."""
        return rows.current(self._work.folder, self.head.version if self.head else None)

    @functools.cached_property
    def found(self) -> Differences:
        """How the listed images differ."""
        return self._work.compare(self.head, self.known) if self._found is None else self._found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """Outcome of an update."""

    folder: DatasetFolder
    before: int
    """The newest version before, 0 for none."""
    version: documents.Version | None
    """The newest version now; None if there is none yet."""
    made: tuple[documents.Version, ...]
    """The versions that this update made, in order."""
    results: tuple[records.Result, ...]
    """Of the parts that were encoded, in order."""

    @property
    def asked(self) -> int:
        """Number of shards to encode."""
        return sum(result.asked for result in self.results)

    @property
    def failures(self) -> tuple[errors.ShardError, ...]:
        """Shards that were not done."""
        return tuple(failure for result in self.results for failure in result.failures)

    @property
    def exit_code(self) -> int:
        """0 all rows stored, or nothing new; 3 some images unreadable, 1 shards not done."""
        if self.failures:
            return 1
        return 3 if self.made and self.version and self.version.counts["unreadable"] else 0


def update(given: UpdateParameters) -> Updated:
    """Create or update a dataset: list its images, encode the new and changed ones, make a version.

    An unfinished part of a killed update is continued first. Nothing new: nothing is written.

    Raises:
        InputError: an invalid argument or input, or most images vanished.
        StoreError: another meaning (model, weights, preprocessing, products) than the dataset's, or damage.
        Stopped: a stop was requested; complete shards are kept.
    """
    return Update(given).run()


def complete(outcome: Updated) -> Updated:
    """Return the outcome if every shard was done.

    Raises:
        Incomplete: some shards were not committed.
    """
    if outcome.failures:
        raise records.Incomplete(outcome)
    return outcome


class FilesMayBeOthers(UserWarning):
    """Files have the size and time of others, and were renamed or otherwise touched."""


def _doubt(count: int, *, by_content: bool) -> str:
    what = "1 image has" if count == 1 else f"{count} images have"
    done = "their content differs" if by_content else "compare them by content with --by content"
    return (
        f"{what} the size and time of the file before, as other images do, and were renamed, replaced or otherwise "
        f"touched since: encoded again; {done}"
    )


class Update:
    """One update; subclasses may override how its steps are executed."""

    def __init__(self, given: UpdateParameters) -> None:
        self.given = given
        self.root = to_root(given.out)
        self.results: list[records.Result] = []
        """Of the parts encoded so far."""
        self.made: list[documents.Version] = []
        """Versions made so far."""
        self.warned = False
        """Whether it was said that files may be others."""
        self._attempted: set[str] = set()
        self._seen: _Seen | None = None
        self._left: tuple[int, Differences] | None = None
        """A version that this update made, and how the listed images differ from it, where that is known."""

    def __str__(self) -> str:
        return self.given.title

    def run(self) -> Updated:
        """Do all steps; raises as `update`."""
        with (
            cancellation.ensure(),
            _removed_if_unused(self.given.out),
            scratch.TemporaryFolder("update") as folder,
        ):
            self.scratch = Path(folder)
            self.prepare()
            while (run := self.next_part()) is not None:
                self.encode(run)
                self.make_version(run)
            self.make_version(None)
            return self.finish()

    def prepare(self) -> None:
        """Resolve the model, compare its meaning with the dataset's, and list the images."""
        model_cache.CACHE.begin()
        parts.refuse_other_folder(self.root)
        folder = DatasetFolder(self.root) if exists(self.root) else None
        head = folder.head() if folder else None
        self.before = head.version.version if head else 0
        like = parts.newest(folder, head) if folder else None
        self.trusted = self.given.is_trusted
        before = _remembered(folder, like)
        chosen = self.given.weights
        self.given = self.given.completed(before)
        self.extract = self.given.extraction(join(self.root, f"{documents.PARTS}/{documents.part_name(1)}"))
        if self.given.limit is not None and self.given.limit < 1:
            raise errors.InputError(f"--limit {self.given.limit} leaves no images: give at least 1")
        source = planning.check_parameters(self.extract)
        if like is not None:
            _refuse_other_kind(like, source)
        if like is not None and source.kind != "members":  # those say by their names what they are
            source = like.manifest.listed_alike(source)
        source = dataclasses.replace(source, columns=False)
        table, areas = planning.read_labels(self.extract), planning.read_regions(self.extract)
        table = None if table is None else dataclasses.replace(table, likelihood=None)  # as further columns
        if table is not None and folder is not None:
            read_without = "individuals" not in folder.meaning.model_fields_set
            if read_without and not {*table.names} <= {*folder.meaning.points}:
                table = _without_individuals(table)  # as tables were read when the dataset was made
            table = table.in_order_of(folder.meaning.points, individuals=folder.meaning.individuals)
        exported = None if like else self.scratch / "model"
        used = self.extract
        gone = used.weights == before.get("weights") and not Path(used.weights or "").exists()
        if like is not None and used.weights is not None and (chosen is None or gone):
            used = used.model_copy(update={"weights": model_files.weights(like, used.weights)})
        self.design = planning.make_design(used, table, areas, export_to=exported, run=like)
        meaning = planning.meaning(self.design, folder.meaning.identity if folder else None)
        labels = _Labels.of(table, areas)
        if folder is not None:
            _refuse_other(folder, meaning, labels)
        cancellation.current().raise_if_cancelled()
        # Later parts are of other processes, whose listings may be newer than this one.
        known = parts.of_updates(folder) if folder else []
        self.last_part = max([*known, head.version.last_part if head else 0])
        source = dataclasses.replace(source, channels=self.design.preprocessing.channels)
        self.listed = manifest.write_manifest(
            self.scratch / "listed.parquet",
            source,
            points=table,
            regions=areas,
            may_be_empty=head is not None,
            checkpoint=cancellation.current().raise_if_cancelled,
        )
        if self.listed.has_members and source.kind != "members":
            raise errors.InputError(
                f"{self.extract.images!r} names images by addresses, and datasets are made of image files on this "
                "machine: download them, or extract a run"
            )
        if self.listed.left_out:
            warnings.warn(self.listed.what_is_left_out, folders.FilesLeftOut, stacklevel=2)
        if head is None:  # later versions have an order of their own
            text_order.check(source, self.listed)
        cancellation.current().raise_if_cancelled()
        if folder is None:
            folder = parts.create_dataset(self.root, meaning, **dataclasses.asdict(labels))
            _refuse_other(folder, meaning, labels)  # another process may have created it
        self.folder = folder
        self.regions = planning.write_regions(
            self.scratch / "regions.parquet", areas, self.listed, channels=self.design.preprocessing.channels
        )
        self.images = rows.Images.of(self.listed, self.regions)
        self.tried = np.zeros(len(self.images), bool)
        self.planned = 0
        self.elsewhere = like is not None and like.manifest.root != self.listed.root
        self._refuse_most()
        _remember(folder, self.given)

    def next_part(self) -> RunFolder | None:
        """Return the part to encode: an unfinished one, or a new one of what is new or changed; None if all is done."""
        seen = self._look()
        # Chosen first: a part that another process makes from now on has this number, and is shared.
        number = parts.next_number(self.folder, seen.head)
        run = parts.unfinished(self.folder, seen.head, self.images, passed=self._attempted)
        left = seen.found.to_encode[~self.tried[seen.found.to_encode]]
        if self.given.limit is not None:
            left = left[: max(self.given.limit - self.planned, 0)]
            self.planned += len(left) if run is None else 0
        if run is None and len(left):
            run = self._plan_part(number, seen.head, left)
        if run is not None:
            self._attempted.add(parts.name_of(run))
            self.tried[parts.rows_in(run, self.images)] = True
        return run

    def encode(self, run: RunFolder) -> None:
        """Encode what is not committed of a part.

        Raises:
            Stopped: a stop was requested.
        """
        options = dataclasses.replace(records.Options.of(self.extract), trust=self.trusted)
        result = self.session(run, options).work("pending")
        self.results.append(result)
        if result.stopped:
            raise errors.Stopped(f"stopped with {result.status.pending} shards to do; the same command continues")

    def session(self, run: RunFolder, options: records.Options) -> driver.Session:
        """Return the session that encodes a part."""
        return driver.Session(run, options, command=driver.UPDATE)

    def make_version(self, run: RunFolder | None) -> None:
        """Make a version with the committed rows of a part, or of what vanished or was renamed.

        If another process makes one meanwhile, it is compared again.
        """
        while True:
            seen = self._look()
            if run is None and not seen.found.changes_rows:
                return
            if run is not None and seen.head is not None and parts.is_passed(run, seen.head):
                # Another update made a version with it, perhaps before all of it was committed.
                self.tried[parts.rows_in(run, self.images)] = False
                return
            version = publishing.next_version(
                self.folder,
                seen.head,
                run,
                known=seen.known,
                listed=self.images,
                found=seen.found,
                made=publishing.made_by(
                    "update", images=self.extract.images, compared_by=self.given.by, vanished=self.given.vanished
                ),
            )
            if version is None:
                return
            if self.folder.create_version(version):
                self.made.append(version)
                publishing.write_readme(self.folder, version)
                done = np.empty(0, np.int64) if run is None else self._done(run)
                self._left = None if done is None else (version.version, seen.found.without(done))
                return
            publishing.discard(self.folder, version)

    def finish(self) -> Updated:
        """Return the outcome."""
        head = self.folder.head()
        return Updated(
            folder=self.folder,
            before=self.before,
            version=head.version if head else None,
            made=tuple(self.made),
            results=tuple(self.results),
        )

    def _look(self) -> _Seen:
        """Return the newest version, its rows, and how the listed images differ."""
        head = self.folder.head()
        if self._seen is None or self._seen.head != head:
            number, found = self._left or (0, None)
            self._seen = _Seen(self, head, found if head and head.version.version == number else None)
        return self._seen

    def _done(self, run: RunFolder) -> np.ndarray | None:
        """Return the rows of the listing that a part has; None if it lacks some, or some changed since it was made."""
        done = parts.rows_in(run, self.images)
        return done if len(done) == run.manifest.rows and not run.store.pending() else None

    def compare(self, head: Written | None, known: rows.CurrentRows) -> Differences:
        """Return how the listed images differ from the current rows of a version."""
        unreadable = None
        if self.given.retry_unreadable and head and not self._attempted:
            unreadable = parts.unreadable_positions(self.folder, head.version, known)
        found = comparison.compare(
            known,
            self.images,
            self.listed.root,
            may_differ=origins.resolved(self.folder, known.part, known.row)[0] <= self.last_part,
            unreadable=unreadable,
            recorded_digests=parts.RecordedDigests(self.folder, known),
            by_content=self.given.by == "content",
            keep_vanished=self.given.vanished == "keep" or self.given.limit is not None,
            channels=self.design.preprocessing.channels,
        )
        if found.doubtful and not self.warned:
            self.warned = True
            warnings.warn(_doubt(found.doubtful, by_content=self.given.by == "content"), FilesMayBeOthers, stacklevel=2)
        return found

    def _plan_part(self, number: int, head: Written | None, wanted: np.ndarray) -> RunFolder:
        """Create a part of these rows of the listing, or return the one that another process created meanwhile."""
        like = parts.newest(self.folder, head)
        last = number + MOST_KILLED_PARTS
        while True:
            name = documents.part_name(number)
            place = self.folder.part_root(name)
            with out_folder.planning_folder(str(place)) as scratch:
                if self.folder.part_exists(name):
                    return self.folder.part(name)
                chosen = manifest.write_selection(scratch / MANIFEST, self.listed, wanted)
                regions = None if self.regions is None else write_selection(scratch / REGIONS, self.regions, wanted)
                planning.warn_of_images(
                    chosen,
                    self.extract,
                    table=self.design.points,
                    regions=regions,
                    channels=self.design.preprocessing.channels,
                )
                given = self.extract.model_copy(update={"out": str(place)})
                try:
                    planning.publish(place, given, self.design, chosen, scratch=scratch, like=like, regions=regions)
                except errors.StoreError:
                    # On S3 another process is creating this part, or was killed while it did.
                    if not is_remote(self.root) or number >= last:
                        raise
                    number += 1
                    continue
            return self.folder.part(name)

    def _refuse_most(self) -> None:
        """Raise `InputError` if most images vanished or are other files, and this was not asked for."""
        seen = self._look()
        known, gone, changed = seen.known, len(seen.found.vanished), len(seen.found.changed)
        if self.given.vanished == "withdraw":
            return
        if len(known) and not len(self.images):
            raise errors.InputError(
                f"no images found in {self.extract.images!r}, and the dataset has {len(known)}: an empty or unmounted "
                "folder changes nothing. If all of them were deleted, --vanished withdraw"
            )
        if gone > MOST_CHANGED * len(known):
            first = known.text("image_id", seen.found.vanished[:1])[0]
            raise errors.InputError(
                f"{gone} of the dataset's {len(known)} images are not in {self.extract.images!r}, such as {first!r}: "
                "if these are further images, add --vanished keep; if the others were deleted, --vanished withdraw"
            )
        if self.elsewhere and changed > (0 if self.given.vanished == "keep" else MOST_CHANGED * len(known)):
            first = self.images.text("image_id", seen.found.changed[:1])[0]
            raise errors.InputError(
                f"{changed} of the dataset's {len(known)} images are other files in {str(self.listed.root)!r} than "
                f"before, such as {first!r}: names count from that folder. If these are further images, give a folder "
                "above both, or a list with an image_id column; if they replace the others, --vanished withdraw"
            )


def _remembered(folder: DatasetFolder | None, like: RunFolder | None) -> dict[str, Any]:
    """Return the parameters of earlier updates."""
    if folder is not None and folder.objects.size(documents.SETTINGS) is not None:
        return records.read_json(folder.objects, documents.SETTINGS)
    return {} if like is None else like.given.model_dump(mode="json", exclude={"trust", "out"}, exclude_unset=True)


def _remember(folder: DatasetFolder, given: UpdateParameters) -> None:
    """Record the parameters for later updates, if they differ."""
    found, known = given.remembered(), folder.objects.size(documents.SETTINGS) is not None
    if not known or records.read_json(folder.objects, documents.SETTINGS) != found:
        records.write_json(folder.objects, documents.SETTINGS, found)


def _without_individuals(table: PointTable) -> PointTable:
    plain = table.without_individuals()
    if plain is not table:
        warnings.warn(
            f"the labels of {', '.join(sorted({*table.individuals} - {''}))} are taken as those of "
            f"{', '.join(plain.names)}, since this dataset was made without the column of individuals: give those of "
            "one individual alone",
            LabelsNotUsed,
            stacklevel=3,
        )
    return plain


def _refuse_other_kind(like: RunFolder, source: image_source.ImageSource) -> None:
    """Raise `InputError` if a dataset of image files is given images inside files, or the other way round."""
    kinds = {True: "images inside files, or on S3", False: "image files"}
    inside = source.kind == "members"
    if like.manifest.has_members != inside:
        raise errors.InputError(
            f"{source.location!r} holds {kinds[inside]}, and this dataset is of {kinds[not inside]}, whose names and "
            "changes are recognised in another way: give it a dataset of its own"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """What the labels of all parts of a dataset have in common, as in `documents.Meaning`."""

    points: list[str]
    individuals: list[str]
    regions: str | None

    @classmethod
    def of(cls, table: PointTable | None, areas: RegionTable | None) -> "_Labels":
        return cls(
            points=list(table.names) if table else [],
            individuals=list(table.individuals) if table else [],
            regions=None if areas is None else areas.scale.text or documents.PIXELS,
        )


def _refuse_other(folder: DatasetFolder, meaning: Mapping[str, Any], labels: _Labels) -> None:
    """Raise `OtherRunError` naming every difference if the dataset has another meaning."""
    own = folder.meaning
    lines = [planning.describe_meanings(own.identity, meaning)] if own.identity != meaning else []
    if own.points != labels.points:
        lines.append(f"points: {', '.join(own.points) or 'none'} -> {', '.join(labels.points) or 'none'}")
    if own.regions != labels.regions:
        lines.append(f"coordinates of regions: {own.regions or 'no regions'} -> {labels.regions or 'no regions'}")
    if lines:
        raise errors.OtherRunError(
            f"{folder.root!r} was made with another model or other options: {'; '.join(filter(None, lines))}. Give "
            "another dataset, or the options that it was made with (the default)"
        )


@contextlib.contextmanager
def _removed_if_unused(out: str) -> Iterator[None]:
    """Remove the folders that a failed first update made, unless they hold anything."""
    existed = is_remote(out) or Path(out).exists()
    try:
        yield
    except BaseException:
        if not existed:
            for folder in (Path(out, documents.PARTS), Path(out)):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise
