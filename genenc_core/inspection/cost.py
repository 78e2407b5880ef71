"""What a run would cost, from one over the sample: time, disk and memory."""

import dataclasses
from pathlib import Path

from genenc_core import errors
from genenc_core.images.sources.manifest import Manifest
from genenc_core.images.sources.regions import Regions
from genenc_core.run import driver, planning, records
from genenc_core.run.bound import Bound, Work
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store.store_keys import GROUP
from genenc_core.system import files, proc


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of a run over all images on this machine, as far as the sample shows it."""

    measured: int
    """Images that the rate is of."""
    images_per_second: float
    start_seconds: float
    """Until the first images are encoded: decode workers, the search for a batch."""
    seconds: float
    """For all images."""
    disk_bytes: int
    memory_bytes: int | None
    """Largest memory of this process, without decode workers; None where the system does not say."""
    limited_by: str
    """The busiest stage of the sample's run, as a run's status names it; "" if it was too short."""


def measure(
    given: ExtractParameters,
    design: planning.Design,
    chosen: Manifest,
    images: int,
    regions: Regions | None = None,
    *,
    scratch: Path,
) -> Cost | None:
    """Encode a sample in a temporary run; None if it has too few images to say.

    Args:
        given: the parameters of the run; its `out` is the temporary one.
        design: its model and products.
        chosen: the sample's manifest, which is moved into the run.
        images: how many the estimate is for.
        regions: those of the sample, whose file is moved likewise.
        scratch: a temporary folder.

    Raises:
        GenencError: as a run would.
    """
    # The first half warms up; the second is measured.
    half = -(-chosen.rows // 2)
    given = given.model_copy(update={"shard_rows": half, "max_failures": "100%"})
    planning.publish(Path(given.out), given, design, chosen, scratch=scratch, regions=regions)
    run = RunFolder(given.out)
    result = driver.Session(run, records.Options.of(given), command="inspect").work("pending")
    if result.failures:
        raise errors.ShardError(result.failures[0].shard, result.failures[0].reason)
    stored = [run.store.record(shard) for shard in sorted(run.store.committed())]
    works = [work for record in stored if record and (work := Work.of(record.details)) is not None]
    if len(works) < 2 or works[-1].wall <= 0:
        return None
    measured = chosen.rows - half
    rate = measured / works[-1].wall
    size = sum(size for _, size in files.walk(Path(given.out) / GROUP))
    return Cost(
        measured=measured,
        images_per_second=rate,
        start_seconds=works[0].start,
        seconds=works[0].start + images / rate,
        disk_bytes=round(size / chosen.rows * images),
        memory_bytes=proc.peak_bytes(),
        limited_by=_busiest(result.bound),
    )


def _busiest(bound: Bound | None) -> str:
    shares = {} if bound is None else {stage: share for stage, share in bound.shares.items() if stage != "start"}
    return max(shares, key=shares.__getitem__, default="")
