"""Create a probe set: open the source, match the points with its images, and plan the arrays.

A probe set is a run folder: its manifest, arrays, shards, statuses and commit records are those of a run that had its
points and products from the start. `run.probe_worker` fills it.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import zarr

from genenc_core import errors, spec
from genenc_core.dataset import folder as dataset_folder
from genenc_core.dataset import rows as dataset_rows
from genenc_core.encoding import cancellation, post_encoder, products
from genenc_core.images.decode import geometry
from genenc_core.images.labels import reading, region_reading
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.labels.scale import PIXELS, PointsScale
from genenc_core.images.sources import label_check, manifest, manifest_rows, region_check
from genenc_core.images.sources import regions as region_rows
from genenc_core.images.sources.regions import Regions
from genenc_core.probing.parameters import ProbeParameters
from genenc_core.run import map_cells, out_folder, planning, probe_source, records, store_plan, tiles
from genenc_core.run.decisions import KEY as REPRODUCIBLE
from genenc_core.run.folder import CELLS, MANIFEST, MODEL_SPEC, PARAMETERS, POINTS_SCALE, PROBED, REGIONS, RunFolder
from genenc_core.run.identity import without_images
from genenc_core.run.probe_source import Part, SourceRecord
from genenc_core.store import creation, run_store, upload
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Root, is_remote, open_objects, to_root
from genenc_core.text import argument

LOGGER = logging.getLogger(__name__)
_REGION_LABELS = ("regions", "regions_columns", "regions_scale", "min_score")
ASKED = "provenance/probe.json"
"""What was asked for, as given."""
_LABELS = ("points", "points_columns", "points_scale", "min_likelihood", *_REGION_LABELS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A source: a run, or the current rows of a version of a dataset."""

    place: str
    run: RunFolder
    """The run, or the newest part."""
    version: int | None
    runs: Sequence[tuple[str, RunFolder]]
    """All runs with their names, as in `probe_source.Part`."""
    rows: Sequence[tuple[int, int, int]]
    """As in `SourceRecord`."""
    blocks: Callable[[bool], Iterable[pa.RecordBatch]]
    """Returns the rows of its manifest; the argument: with its own points."""
    root_of: Callable[[int], Path]
    """From a row to the folder that its path is relative to."""
    regions: Callable[[], Regions]
    """Returns the regions of its rows, if it has some."""

    def sizes(self, wanted: list[int]) -> dict[int, label_check.ImageSize]:
        """Return the sizes of some rows, ascending, that are stored."""
        starts = np.cumsum([0, *(count for _, _, count in self.rows)])
        found: dict[int, label_check.ImageSize] = {}
        for at, of in itertools.groupby(wanted, lambda row: int(np.searchsorted(starts, row, side="right")) - 1):
            own = list(of)
            part, first, _ = self.rows[at]
            group: Any = zarr.open_group(self.runs[part][1].store.zarr_store(), mode="r")
            where = np.array(own) - starts[at] + first
            names = ("image_width", "image_height", "image_orientation")
            width, height, orientation = (np.asarray(group[name].oindex[where]) for name in names)
            for row, *size, turned in zip(own, width.tolist(), height.tolist(), orientation >= 5, strict=True):
                if min(size) > 0:
                    shown = (size[0], size[1])
                    found[row] = label_check.ImageSize(shown, shown[::-1] if turned else shown)
        return found


def create(given: ProbeParameters) -> RunFolder:
    """Create the probe set that the parameters describe, or open it if it exists; reads no map.

    Raises:
        InputError: an invalid parameter or input; no files are left behind.
        StoreError: the folder holds another run, or the source is damaged.
    """
    check(given)
    table = _read_labels(given)
    areas = None if not given.regions else _read_regions(given)
    source = open_source(given)
    _refuse_inside(given.out, source)
    root = to_root(given.out)
    with out_folder.planning_folder(given.out) as scratch:
        wanted, with_own, with_own_regions = _products(given, source, table, areas)
        if run_store.RunStore.exists(root):
            table = RunFolder(root).manifest.labelled_alike(table)
        listed = _listed(scratch / MANIFEST, source, table, areas, with_own=with_own)
        regions = planning.write_regions(scratch / REGIONS, areas, listed, sizes=source.sizes)
        if with_own_regions:
            regions = region_rows.write_copy(scratch / REGIONS, source.regions())
        wanted = planning.with_region_count(wanted, regions, listed.rows)
        cancellation.current().raise_if_cancelled()
        slots = probe_source.stored_slots(source.run)
        record = SourceRecord(
            version=source.version,
            parts=[
                Part(name=name, store=run.store.document, fingerprint=run.store.plan.fingerprint)
                for name, run in source.runs
            ],
            rows=[(part, first, count) for part, first, count in source.rows],
            slots={name: slots[name] for name in slots if name in {product.slot for product in wanted}},
        )
        identity = _identity(source.run, record, wanted, listed, regions)
        if run_store.RunStore.exists(root):
            run = RunFolder(root)
            _refuse_other(run, identity, listed, source, regions)
        else:
            if table is not None:
                label_check.check(listed, scale_given=given.points_scale is not None, sizes=source.sizes)
            if areas is not None and regions is not None:
                stated = given.regions_scale is not None
                region_check.check(listed, regions, scale_given=stated, sizes=source.sizes)
            made = _Made(wanted, listed, regions, record, identity, with_own, with_own_regions)
            _publish(root, given, source, made, scratch=scratch)
            run = RunFolder(root)
        probe_source.note_place(run.objects, source.place)
    return run


def check(given: ProbeParameters) -> None:
    """Validate what can be validated without the source.

    Raises:
        InputError: an invalid parameter.
    """
    for name in ("points_columns", "points_scale", "min_likelihood"):
        if getattr(given, name) is not None and given.points is None:
            raise errors.InputError(f"--{name.replace('_', '-')} {getattr(given, name)!r} needs --points FILE")
    planning.check_regions(given.regions, given.regions_columns, given.regions_scale, given.min_score)
    PointsScale.parse(given.points_scale)
    for product in given.products:
        products.parse_product(product, dtype=given.dtype)
    if given.points is None and not given.regions and not given.products:
        raise errors.InputError(
            "nothing to probe: give --points FILE, --regions FILE, or --product such as 'peaks=global_max_pool', or "
            "several"
        )
    out_folder.check(given.out)


def open_source(given: ProbeParameters) -> Opened:
    """Open a run, or a version of a dataset; no map is read.

    Raises:
        InputError: neither is there, or the dataset has no such version.
        StoreError: it is damaged.
    """
    place = to_root(given.source)
    if not dataset_folder.exists(place):
        if given.version is not None:
            raise errors.InputError(
                f"--version {given.version!r} is for datasets, and {given.source!r} is none: leave it out"
            )
        return _of_run(RunFolder(place))
    return _of_dataset(dataset_folder.DatasetFolder(place), given.version)


def _of_run(run: RunFolder) -> Opened:
    if run.is_probe_set:
        raise errors.InputError(
            f"{run.root!r} is a probe set, which stores no maps: give the run that it was made from, "
            f"{probe_source.place(run.objects)!r}"
        )

    def blocks(with_points: bool) -> Iterable[pa.RecordBatch]:
        listed = run.manifest
        names = listed.point_names if with_points else ()
        columns = [
            "row",
            *manifest_rows.content_columns(
                names, members=listed.has_members, columns=listed.columns, likelihood=listed.has_likelihood
            ),
        ]
        return listed.iter_columns(columns, batch_rows=manifest_rows.GROUP_ROWS)

    return Opened(
        place=_absolute(run.root),
        run=run,
        version=None,
        runs=[("", run)],
        rows=[(0, 0, run.manifest.rows)],
        blocks=blocks,
        root_of=lambda _: run.manifest.root,
        regions=lambda: cast(Regions, run.regions),
    )


def _of_dataset(folder: dataset_folder.DatasetFolder, which: str | None) -> Opened:
    version = folder.version(which)
    known = dataset_rows.current(folder, version)
    if not len(known):
        raise errors.InputError(f"version {version.version} of {folder.root!r} has no rows: there is nothing to probe")
    runs = [(part.name, folder.part(part.name)) for part in version.parts]
    numbers = {part.number: at for at, part in enumerate(version.parts)}
    starts = np.flatnonzero(np.r_[True, (np.diff(known.part) != 0) | (np.diff(known.row) != 1)])
    counts = np.diff(np.r_[starts, len(known)])
    rows = [
        (numbers[part], row, count)
        for part, row, count in zip(
            known.part[starts].tolist(), known.row[starts].tolist(), counts.tolist(), strict=True
        )
    ]
    return Opened(
        place=_absolute(folder.root),
        run=runs[-1][1],
        version=version.version,
        runs=runs,
        rows=rows,
        blocks=lambda with_points: dataset_rows.manifest_blocks(known, with_points=with_points),
        root_of=lambda row: known.roots[known.root_of[row]],
        regions=lambda: dataset_rows.current_regions(folder, known),
    )


def _absolute(root: str) -> str:
    return root if is_remote(root) else str(Path(root).absolute())


def _refuse_inside(out: str, source: Opened) -> None:
    """Refuse an output folder that is the source or lies in it: nothing there may change."""
    if is_remote(out) != is_remote(source.place):
        return
    if is_remote(out):
        inside = f"{out.rstrip('/')}/".startswith(f"{source.place.rstrip('/')}/")
    else:
        inside = Path(out).resolve().is_relative_to(Path(source.place).resolve())
    if inside:
        raise errors.InputError(
            f"--out {out!r} is in the source {source.place!r}, where nothing may change: give a folder beside it"
        )


def _read_labels(given: ProbeParameters) -> PointTable | None:
    if given.points is None:
        return None
    return reading.read_points(
        given.points, columns=given.points_columns, scale=given.points_scale, min_likelihood=given.min_likelihood
    )


def _read_regions(given: ProbeParameters) -> RegionTable:
    return region_reading.read_regions(
        given.regions, columns=given.regions_columns, scale=given.regions_scale, min_score=given.min_score
    )


def _require_own_regions(source: Opened) -> None:
    """Raise `InputError` if a source has no regions."""
    if source.run.regions is None:
        raise errors.InputError(
            f"a product needs regions, and {source.place!r} has none of its own: give --regions FILE"
        )


def _products(
    given: ProbeParameters, source: Opened, table: PointTable | None, areas: RegionTable | None
) -> tuple[tuple[products.Product, ...], bool, bool]:
    """Return the products, and whether they use the source's own points, and its own regions."""
    run = source.run
    found = _model(run)
    stored = probe_source.stored_slots(run)
    if not stored:
        raise errors.InputError(
            f"{source.place!r} stores no output of its model as it is, only products of it: extract its images again "
            f"to another --out with --maps (float16), or --product 'maps={found.outputs[0].name}:none@float32' (exact)"
        )
    parsed = [products.parse_product(text, dtype=given.dtype) for text in given.products]
    if not parsed:
        slots = [slot for slot in found.outputs if slot.name in stored]
        parsed = [
            product
            for product in products.default_products(slots, with_points=True, with_regions=True, dtype=given.dtype)
            if (product.steps[0].module == "spatial_point" and table is not None)
            or (product.steps[0].module in post_encoder.OF_REGIONS and areas is not None)
        ]
        if slots and slots[0].name != found.outputs[0].name:
            parsed = [dataclasses.replace(product, slot=product.slot or slots[0].name) for product in parsed]
    needed = any(step.module == "spatial_point" for product in parsed for step in product.steps)
    with_own = table is None and needed
    of_regions = any(step.module in post_encoder.OF_REGIONS for product in parsed for step in product.steps)
    with_own_regions = areas is None and of_regions
    if with_own_regions:
        _require_own_regions(source)
    names = table.names if table is not None else run.manifest.point_names if with_own else ()
    slots = list(tiles.outputs(found, parsed, run.tiles))
    earlier = CELLS not in run.identity
    if not earlier:
        bars = geometry.leaves_bars(run.preprocessing)
        parsed = [products.recorded(product, slots, bars=bars) for product in parsed]
    built = products.build_products(
        parsed, slots, point_count=len(names), region_count=int(of_regions), cells=run.cells
    )
    store_plan.refuse_whole_chunks(built, given.chunk_channels)
    for product in built:
        _refuse_unstored(product, stored, source.place)
        if not earlier and product.slot not in run.cells and map_cells.is_placed(product):
            raise errors.InputError(
                f"product {product.name!r}: the run does not know where the cells of {product.slot!r} lie: extract "
                "with regions, or use spatial_point(nearest) or spatial_point(bilinear_corners), or a pooling with "
                "(bars)"
            )
    if not earlier and geometry.leaves_bars(run.preprocessing):
        planning.warn_of_bars(built, slots)
    planning.warn_of_one_cell(built, slots)
    if table is not None and not any(product.needs_points for product in built):
        LOGGER.warning(
            "no product uses the points: add --product 'probes=spatial_point(cell)' to store vectors at them"
        )
    if areas is not None and not any(product.needs_regions for product in built):
        LOGGER.warning("no product uses the regions: add --product 'regions=region_mean' to store a vector of each")
    return built, with_own, with_own_regions


def _refuse_unstored(product: products.Product, stored: Mapping[str, str], place: str) -> None:
    if product.slot in stored:
        return
    has = ", ".join(f"{slot} (as {name})" for slot, name in stored.items())
    raise errors.InputError(
        f"product {product.name!r} needs the output slot {product.slot!r}, which {place!r} does not store as it is; it "
        f"stores {has}: name one of these, {product.name}={next(iter(stored))}:{_modules(product)}, or extract the "
        f"images again to another --out with --product 'maps={product.slot}:none@float32'"
    )


def _modules(product: products.Product) -> str:
    return "+".join(map(str, products.parse_product(product.text).steps))


def _listed(
    path: Path, source: Opened, table: PointTable | None, areas: RegionTable | None, *, with_own: bool
) -> manifest.Manifest:
    like, plain = source.run.manifest, functools.partial(source.blocks, False)
    if with_own:
        listed = manifest.write_like(path, like, functools.partial(source.blocks, True))
        return manifest.with_regions(listed, plain, source.root_of, areas)
    return manifest.write_relabelled(path, like, plain, source.root_of, table, areas)


def _identity(
    run: RunFolder,
    record: SourceRecord,
    wanted: Sequence[products.Product],
    listed: manifest.Manifest,
    regions: Regions | None,
) -> dict[str, object]:
    """Return what a probe set means: what the source does, but for its products and points, and the source itself."""
    # What is made of stored values here is computed in float32, so it is not the same anywhere.
    others = (POINTS_SCALE, REPRODUCIBLE)
    base = {name: value for name, value in without_images(run.identity).items() if name not in others}
    texts = {text.partition("=")[0]: text for text in run.identity["products"]}
    scale = listed.points_scale if listed.point_names else PIXELS
    return {
        **base,
        "products": [product.text for product in wanted],
        **({} if scale.text is None else {POINTS_SCALE: scale.text}),
        PROBED: {
            "source": record.digest,
            "version": record.version,
            "slots": {slot: texts[name] for slot, name in record.slots.items()},
        },
        "images": planning.images_of(listed, regions),
    }


def _refuse_other(
    run: RunFolder,
    identity: Mapping[str, object],
    listed: manifest.Manifest,
    source: Opened,
    regions: Regions | None,
) -> None:
    """Raise `StoreError` naming the differences if the folder holds another probe set, or no probe set."""
    if not run.is_probe_set:
        raise errors.OtherRunError(
            f"--out {run.root!r} holds a run that was extracted, not a probe set: give another --out"
        )
    if run.identity == identity:
        return
    before, after = ({name: value for name, value in of.items() if name != PROBED} for of in (run.identity, identity))
    lines = [planning.describe_meanings(before, after)]
    if run.identity["images"] != identity["images"]:
        lines += planning.images_difference(run, listed, regions)
    if run.identity[PROBED] != identity[PROBED]:
        was = probe_source.read(run.objects)
        lines.append(_other_source(was, run.identity[PROBED], identity[PROBED], source))
    raise errors.OtherRunError(
        f"{run.root!r} holds another probe set, whose identity is fixed. It differs in "
        + "; ".join(filter(None, lines))
        + f". Give another --out, or continue it with genenc resume {argument(run.root)}"
    )


def _other_source(was: SourceRecord, old: Mapping[str, Any], new: Any, source: Opened) -> str:
    if old["version"] != new["version"]:
        return f"the version of the dataset: {old['version']} -> {new['version']}"
    if old["slots"] != new["slots"]:
        return f"the stored outputs: {', '.join(old['slots'].values())} -> {', '.join(new['slots'].values())}"
    fingerprints = [part.fingerprint[:12] for part in was.parts[:1]]
    now = source.run.store.plan.fingerprint[:12]
    return f"the source: {source.place!r} is another run than the one that was probed ({fingerprints[0]} -> {now})"


def _shard_rows(source: Opened, wanted: Sequence[products.Product]) -> int:
    """Return the images per shard: those of a run, so that each of its shards is read once, unless that is too much."""
    if source.version is not None:
        _, own = tiles.recorded_products(source.run, _model(source.run))
        return store_plan.choose_shard_rows(
            sum(count for _, _, count in source.rows), [*own, *wanted], device="cuda", smallest_batch=1
        )
    rows = source.run.store.plan.shard_rows
    most = max(store_plan.SHARD_BYTES // max(sum(map(store_plan.stored_row_bytes, wanted)), 1), 1)
    return next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)


def _model(run: RunFolder) -> spec.RuntimeModelSpec:
    return spec.RuntimeModelSpec.from_json(run.objects.read(MODEL_SPEC).decode())


@dataclasses.dataclass(frozen=True, slots=True)
class _Made:
    """A probe set that is planned."""

    wanted: Sequence[products.Product]
    listed: manifest.Manifest
    regions: Regions | None
    record: SourceRecord
    identity: Mapping[str, object]
    with_own: bool
    """Whether its points are the source's own."""
    with_own_regions: bool


def _publish(root: Root, given: ProbeParameters, source: Opened, planned: _Made, *, scratch: Path) -> None:
    wanted, listed, identity = planned.wanted, planned.listed, planned.identity
    folder = scratch / "run" if is_remote(root) else Path(root)
    objects = local.LocalObjects(folder)
    if not is_remote(root):
        with out_folder.writing(folder):
            creation.discard_unfinished(objects)
    creation.refuse_remains(objects, identity)
    with out_folder.writing(folder):
        folder.mkdir(exist_ok=True)
        if planned.regions is not None:
            (listed.path.parent / REGIONS).replace(folder / REGIONS)
        listed.path.replace(folder / MANIFEST)
    listed = manifest.Manifest.open(folder / MANIFEST)
    run, found = source.run, _model(source.run)
    records.write_text(objects, MODEL_SPEC, run.objects.read(MODEL_SPEC).decode())
    # As if the source had been asked for all this from the start.
    labels: Any = run.given if planned.with_own else given
    areas: Any = run.given if planned.with_own_regions else given
    asked = {name: getattr(areas if name in _REGION_LABELS else labels, name) for name in _LABELS}
    texts = tuple(product.text for product in wanted)
    as_extracted = run.given.model_copy(
        update={
            **asked,
            "products": texts,
            "maps": False,
            "shard_rows": None,
            "chunk_channels": given.chunk_channels,
            "out": given.out,
        }
    )
    made = {
        PARAMETERS: as_extracted.model_dump(mode="json"),
        ASKED: given.model_dump(mode="json"),
        probe_source.SOURCE: planned.record.as_json(),
    }
    for key, content in made.items():
        records.write_json(objects, key, content)
    probe_source.note_place(objects, source.place)
    planning.create_store(
        objects,
        as_extracted,
        wanted,
        listed,
        identity=identity,
        outputs=run.outputs,
        not_stored=products.outputs_not_stored(found, wanted),
        shard_rows=_shard_rows(source, wanted),
        beside={key: objects.digest(key) for key in (ASKED, probe_source.SOURCE)},
        regions=planned.regions,
    )
    if is_remote(root):
        upload.publish(objects, open_objects(root))
