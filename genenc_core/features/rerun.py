"""A run made again from its record alone: its manifest, model files, identity, shards and batch sizes.

Everything that can differ is compared before anything is encoded: each image's file by its recorded sha256, the model
by its digests. The new run has the identity of the old one; on the same kind of machine it has the same bytes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genenc_core import errors, statuses, text
from genenc_core.encoding import cancellation
from genenc_core.features import execution, identities, like
from genenc_core.features.identities import Entry
from genenc_core.features.parameters import RerunParameters
from genenc_core.images.sources import manifest
from genenc_core.images.sources import regions as region_rows
from genenc_core.run import driver, integrity, model_cache, out_folder, planning, records, status
from genenc_core.run.folder import MANIFEST, REGIONS, RunFolder
from genenc_core.run.records import Result
from genenc_core.store import run_store
from genenc_core.store.backends.objects import is_remote, to_root
from genenc_core.store.commit_record import CommitRecord
from genenc_core.stored import rows as stored_rows
from genenc_core.system import digests, environment, files
from genenc_core.text import argument

COMMAND = "rerun-from"
SOURCE = "provenance/rerun.json"
"""Which run a run was made again from."""
_NAMED = 5
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A run that was made again, and how far it is from the first one."""

    run: RunFolder = dataclasses.field(repr=False, compare=False)
    source: str
    result: Result = dataclasses.field(repr=False, compare=False)
    shards: int
    differing: dict[str, tuple[int, ...]]
    """Shards whose values differ from those of the first run, by array."""
    environment: tuple[Entry, ...]
    """Versions and machine that differ between the two."""

    @property
    def identical(self) -> bool:
        """Whether all shards are there, with the values of the first run."""
        return self.result.status.complete and not self.differing

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {
            **status.describe(self.result.status),
            "source": self.source,
            "identical": self.identical,
            "differing": {name: list(shards) for name, shards in self.differing.items()},
            "environment": [entry._asdict() for entry in self.environment],
        }

    def lines(self) -> list[str]:
        """Return all of it as text."""
        if not self.result.status.complete:
            return [f"{self.run.root}: {status.progress_summary(self.run.root)}"]
        found = []
        if self.identical:
            found.append(f"identical: all values of {text.plural(self.shards, 'shard')} are those of {self.source}")
        for name, shards in self.differing.items():
            found.append(f"differs: {name} in {len(shards)} of {text.plural(self.shards, 'shard')}")
        if self.differing:
            found.append(f"how far: genenc compare {argument(self.source)} {argument(self.run.root)}")
        return found + [f"  {entry.name}: {entry.one} -> {entry.other}" for entry in self.environment]


def rerun(given: RerunParameters) -> Rerun:
    """Make a run again from its record, or continue to; compare its values with the first one's.

    Raises:
        InputError: not a run, one that is not complete, or made from another run's maps; or the place is in use.
        StoreError: images, model, weights or code are not those of the run; the message names them.
        Incomplete: some shards were not done; the same call continues.
    """
    with cancellation.ensure():
        source = opened(given)
        run = create(source, given)
        result = Again(source, run, given).work()
        return outcome(source, run, result)


def opened(given: RerunParameters) -> RunFolder:
    """Return the run to make again.

    Raises:
        InputError: not a run, one that is not complete, or made from another run's maps.
        StoreError: it is damaged.
    """
    source = RunFolder(to_root(given.source))
    _refuse_inside(given.out, source)
    if source.is_probe_set:
        raise errors.InputError(
            f"{source.root!r} is a probe set: genenc probe with its source makes it again, without a model"
        )
    found = status.run_status(source)
    if not found.complete:
        raise errors.InputError(
            f"{source.root!r} is not complete ({found.committed} of {found.shards} shards): genenc resume "
            f"{argument(source.root)} first"
        )
    integrity.require_inputs(source)
    return source


def _refuse_inside(out: str, source: RunFolder) -> None:
    if is_remote(out) != is_remote(source.root):
        return
    if is_remote(out):
        inside = out.rstrip("/").startswith(source.root.rstrip("/") + "/")
    else:
        inside = Path(source.root).resolve() in Path(out).resolve().parents
    if inside:
        raise errors.InputError(f"--out {out!r} is inside the run {source.root!r}: give another folder")


def create(source: RunFolder, given: RerunParameters) -> RunFolder:
    """Create the new run's folder, or open the one that an earlier call made; raises as `rerun`."""
    root = to_root(given.out)
    out_folder.check(given.out)
    if run_store.RunStore.exists(root):
        run = RunFolder(root)
        _refuse_other(run, source)
        return run
    cancellation.current().on_phase("comparing the images")
    refuse_other_images(source)
    like_device = given.device or like.device_like(source)
    asked = source.given.model_copy(
        update={"out": given.out, "shard_rows": source.store.plan.shard_rows, "device": like_device}
    )
    design = like.design_of(source, asked)
    cancellation.current().on_phase("loading the model")
    # Raises where the weights or the code are not those of the run.
    trust = given.trust
    model_cache.CACHE.load(design.model, device=model_cache.device_of(design.model, like_device), trust=trust)
    with out_folder.planning_folder(given.out) as scratch:
        listed = _copied(source, scratch / MANIFEST)
        record = {"source": source.root, "store": source.store.document}
        regions = None if source.regions is None else region_rows.write_copy(scratch / REGIONS, source.regions)
        planning.publish(
            *(root, asked, design, listed),
            scratch=scratch,
            like=source,
            more={SOURCE: record},
            regions=regions,
        )
    return RunFolder(root)


def _copied(source: RunFolder, path: Path) -> manifest.Manifest:
    """Copy the manifest, byte for byte."""
    with run_store.read_errors(source.root):
        files.write_new(path, source.objects.read(MANIFEST, most=None))
    return manifest.Manifest.open(path)


def _refuse_other(run: RunFolder, source: RunFolder) -> None:
    if run.store.plan.fingerprint == source.store.plan.fingerprint and run.store.plan.shard_rows == (
        source.store.plan.shard_rows
    ):
        if run.root != source.root:
            return
        raise errors.InputError(f"--out {run.root!r} is the run itself: give a new folder")
    raise errors.OtherRunError(
        f"{run.root!r} holds another run than {source.root!r} "
        f"({planning.describe_meanings(source.identity, run.identity) or 'of other images or shards'}): give another "
        "--out"
    )


def refuse_other_images(source: RunFolder) -> None:
    """Compare every image file with its recorded sha256.

    Images inside other files, or on servers, are compared once they are encoded.

    Raises:
        StoreError: files are missing or others than the run was made from; the message names the first.
    """
    wrong: list[str] = []
    count = 0
    for shard in sorted(source.store.committed()):
        record = source.store.record(shard)
        assert record is not None
        cancellation.current().raise_if_cancelled()
        for words in _other_files(source, record):
            count += 1
            if len(wrong) < _NAMED:
                wrong.append(words)
    if count:
        more = ", ..." if count > len(wrong) else ""
        raise errors.StoreError(
            f"{text.plural(count, 'image')} of {source.root!r} {'is' if count == 1 else 'are'} not what it was made "
            f"from: {'; '.join(wrong)}{more}. Put the files back; nothing was written"
        )


def _other_files(source: RunFolder, record: CommitRecord) -> Iterator[str]:
    """Yield what is wrong with the files of a shard."""
    listed = source.manifest.read(*record.rows)
    unreadable = {item.get("row") for item in record.details.get("unreadable", ())}
    rows = zip(listed.paths, listed.members, stored_rows.digests_of(record), strict=True)
    for row, (path, member, recorded) in enumerate(rows, record.rows[0]):
        if member or "://" in path or not recorded:
            continue
        try:
            found = files.digest(Path(path), digests.IMAGE_FILE.algorithm)[1]
        except OSError as error:
            if row not in unreadable:
                yield f"{path!r} cannot be read ({error.strerror or error})"
            continue
        if found != recorded:
            yield f"{path!r} has another sha256 ({found[:12]}..., recorded {recorded[:12]}...)"


class Again:
    """The sessions that encode the new run: one for each batch size that shards of the first were encoded with."""

    def __init__(self, source: RunFolder, run: RunFolder, given: RerunParameters) -> None:
        self.source = source
        self.run = run
        self.given = given

    def work(self) -> Result:
        """Encode what is pending; raises as `rerun`."""
        for options, shards in self.sessions():
            result = driver.complete(driver.Session(self.run, options, command=COMMAND).work(shards))
        refuse_others(self.source, self.run)
        return result

    def sessions(self) -> list[tuple[records.Options, str]]:
        """Return the options and shards of each session; where nothing is pending, one that does nothing."""
        return [*self._by_batch_size()] or [(self._options(None), "pending")]

    def _by_batch_size(self) -> Iterator[tuple[records.Options, str]]:
        """Yield options and pending shards, by batch size."""
        by_size: dict[int | None, list[int]] = {}
        usual = execution.usual(self.source)[1]
        for shard in self.run.store.pending():
            record = self.source.store.record(shard)
            size = None if record is None else execution.batch_size(record)
            by_size.setdefault(size or usual, []).append(shard)
        for size, shards in by_size.items():
            yield self._options(size), ",".join(map(str, shards))

    def _options(self, size: int | None) -> records.Options:
        options = records.Options.of(self.run.given)
        return dataclasses.replace(
            options,
            batch_size=size or options.batch_size,
            device=self.given.device or options.device,
            decode_workers=self.given.decode_workers,
            trust=self.given.trust,
            # Times of copied files differ; their content was compared, and is compared again with what was read.
            accept_changed=True,
            max_failures="100%",
        )


def refuse_others(source: RunFolder, run: RunFolder) -> None:
    """Compare the files that were encoded with those of the first run, by their sha256, and which could be read.

    Raises:
        StoreError: some differ; the message names the first.
    """
    wrong: list[str] = []
    for shard in sorted(run.store.committed()):
        before, after = source.store.record(shard), run.store.record(shard)
        assert before is not None
        assert after is not None
        pairs = zip(stored_rows.digests_of(before), stored_rows.digests_of(after), strict=True)
        failed = [
            {item.get("row"): str(item.get("reason")) for item in record.details.get("unreadable", ())}
            for record in (before, after)
        ]
        for row, (one, other) in enumerate(pairs, before.rows[0]):
            if one and other and one != other:
                wrong.append(f"row {row} was read from another file (sha256 {other[:12]}..., recorded {one[:12]}...)")
            elif (row in failed[0]) != (row in failed[1]):
                why = failed[1].get(row) or f"readable now, recorded as {statuses.ROWS[2].name}: {failed[0].get(row)}"
                wrong.append(f"row {row}: {why}")
    if wrong:
        more = ", ..." if len(wrong) > _SHOWN else ""
        raise errors.StoreError(
            f"{run.root!r} was encoded from other images than {source.root!r}: {'; '.join(wrong[:_SHOWN])}{more}. "
            "Delete it, put the files back, and run the command again"
        )


def outcome(source: RunFolder, run: RunFolder, result: Result) -> Rerun:
    """Compare the values of both runs by the digests in their commit records."""
    differing: dict[str, list[int]] = {}
    for shard in sorted(run.store.committed()):
        records_of = source.store.record(shard), run.store.record(shard)
        values = [{item.key.partition("/")[0]: item for item in record.objects} for record in records_of if record]
        for name, item in values[0].items():
            if item.content_digest != values[-1][name].content_digest:
                differing.setdefault(name, []).append(shard)
    return Rerun(
        run=run,
        source=source.root,
        result=result,
        shards=run.store.shard_count,
        differing={name: tuple(shards) for name, shards in differing.items()},
        environment=tuple(_environment(source)),
    )


def _environment(source: RunFolder) -> Iterator[Entry]:
    """Yield versions and machine that differ here from those of a run."""
    known = identities.environment_of(source)
    if not known:
        yield Entry("environment", "not recorded", "this machine")
        return
    here: Mapping[str, Any] = environment.describe_environment()
    yield from identities.differences(known, here)
