"""Create a run folder: list images, resolve the model, derive shapes and create the store."""

import dataclasses
import functools
import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from genenc_core import errors, spec, spec_edits, text
from genenc_core.encoding import batch_size, cancellation, products, tile_plan
from genenc_core.encoding.cells import Cells
from genenc_core.encoding.shard_encoding import FailureBudget
from genenc_core.images.decode import geometry, gpu_decode
from genenc_core.images.labels import reading, region_reading
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.labels.scale import PIXELS, PointsScale
from genenc_core.images.sources import (
    channel_check,
    folders,
    frames,
    image_source,
    input_size_check,
    label_check,
    manifest,
    region_check,
    text_order,
)
from genenc_core.images.sources import regions as region_rows
from genenc_core.images.sources.regions import Regions
from genenc_core.models import state_files, weights
from genenc_core.run import channels as run_channels
from genenc_core.run import (
    map_cells,
    margins,
    model_cache,
    model_files,
    out_folder,
    outputs_check,
    presets,
    records,
    same_files,
    store_plan,
    tiles,
)
from genenc_core.run import parameters as run_parameters
from genenc_core.run.decisions import KEY as REPRODUCIBLE
from genenc_core.run.folder import (
    CELLS,
    MANIFEST,
    MODEL_FOLDER,
    MODEL_SPEC,
    PARAMETERS,
    POINTS_SCALE,
    REGIONS,
    RunFolder,
    file_digest,
)
from genenc_core.run.identity import without_images
from genenc_core.runtime import backends, describe
from genenc_core.store import creation, layout, run_store, upload
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Root, open_objects, to_root
from genenc_core.system import digests

LOGGER = logging.getLogger(__name__)


class FirstSlotTaken(UserWarning):
    """A product uses the first of several output slots because none was named."""


class NotAntialiased(UserWarning):
    """Images are resized without antialiasing by default."""


class OneCell(UserWarning):
    """A product with a vector per point uses a map of one cell."""


class SlotsNotStored(UserWarning):
    """Outputs of the model are not stored by the default products."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The part of a run that is known before its images are listed."""

    model: model_cache.ResolvedModel
    preprocessing: spec.Preprocessing
    products: tuple[products.Product, ...]
    points: PointTable | None
    device: str
    regions: RegionTable | None = None
    tiles: tile_plan.TilePlan | None = None
    cells: Mapping[str, Cells] | None = None
    """Cell positions of maps by slot, where products need them; None for runs of genenc 0.1.0, where all divide the
    input evenly."""
    outputs: Mapping[str, object] | None = None
    """Fingerprint of the model's outputs, from `outputs_check.sketch`."""
    reproducible: Mapping[str, object] | None = None
    """What a run depends on whose bytes are the same anywhere, from `margins.identity`; None for others."""


def create_run(given: run_parameters.ExtractParameters) -> RunFolder:
    """Create the run folder that the parameters describe, or open it if it exists.

    Raises:
        InputError: an invalid parameter or input; no files are left behind.
        StoreError: the folder holds another run; the message names the differences and nothing is changed.
    """
    model_cache.CACHE.begin()
    source = check_parameters(given)
    table, region_table = read_labels(given), read_regions(given)
    root = to_root(given.out)
    with out_folder.planning_folder(given.out) as scratch:
        run = RunFolder(root) if run_store.RunStore.exists(root) else None
        given = given if run is None else _with_recorded_weights_key(run, given)
        earlier = run is not None and CELLS not in run.identity
        design = make_design(
            given, table, region_table, export_to=scratch if run is None else None, earlier=earlier, run=run
        )
        cancellation.current().raise_if_cancelled()
        source = source if run is None else run.manifest.listed_alike(source)
        source = dataclasses.replace(source, channels=design.preprocessing.channels)
        listed = manifest.write_manifest(
            scratch / MANIFEST,
            source,
            points=design.points if run is None else run.manifest.labelled_alike(design.points),
            regions=design.regions,
            limit=given.limit,
            checkpoint=cancellation.current().raise_if_cancelled,
        )
        if listed.left_out:
            warnings.warn(listed.what_is_left_out, folders.FilesLeftOut, stacklevel=2)
        cancellation.current().raise_if_cancelled()
        channels = design.preprocessing.channels
        regions = write_regions(scratch / REGIONS, design.regions, listed, channels=channels)
        if run is not None:
            _refuse_other_run(run, design, listed, regions)
            _refuse_other_shards(run, given.shard_rows)
            _refuse_other_chunks(run, given.chunk_channels)
            return run
        text_order.check(source, listed)
        warn_of_images(listed, given, table=table, regions=regions, channels=channels)
        publish(root, given, design, listed, scratch=scratch, regions=regions)
    return RunFolder(root)


def publish(
    root: Root,
    given: run_parameters.ExtractParameters,
    design: Design,
    listed: manifest.Manifest,
    *,
    scratch: Path,
    like: RunFolder | None = None,
    more: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    regions: Regions | None = None,
) -> None:
    """Create the run folder, its store last; `listed` and the file of `regions` beside it are moved into it.

    Args:
        root: its place.
        given: the parameters that are recorded.
        design: model, preprocessing, products.
        listed: the manifest of its images, in `scratch`.
        scratch: the folder of `out_folder.planning_folder`.
        like: a run whose model files and identity, but for the images, the new one has.
        more: further records to write in it, by key.
        regions: the regions of its images, as `write_regions` wrote them in `scratch`.

    Raises:
        InputError: the place is not writable.
        StoreError: it holds another run.
    """
    if isinstance(root, Path):
        with out_folder.writing(root):
            creation.discard_unfinished(local.LocalObjects(root))
        _create(root, given, design, listed, like, more, regions)
        return
    on_server = like if like is not None and model_files.are_on_server(like, root) else None
    _create(scratch / "run", given, design, listed, like, more, regions, on_server=on_server is not None)
    copied = () if on_server is None else (functools.partial(model_files.copy_on_server, on_server, root),)
    upload.publish(local.LocalObjects(scratch / "run"), open_objects(root), *copied)


def warn_of_images(
    listed: manifest.Manifest,
    given: run_parameters.ExtractParameters,
    *,
    table: PointTable | None,
    regions: Regions | None = None,
    channels: spec.Channels | None = None,
) -> None:
    """Look at some images of a new run, and at its labels, and warn of what may not be meant.

    Raises:
        InputError: the labels look normalised, swapped or scaled; or no image has the channels that are wanted.
    """
    if channels is not None:
        channel_check.check(listed, channels)
    frames.check(listed, channels)
    for option, size in (("--image-size", given.image_size), ("--canvas", given.canvas)):
        if size is not None:
            input_size_check.check(listed, option, run_parameters.parse_image_size(size), channels)
    if table is not None:
        label_check.check(listed, scale_given=given.points_scale is not None, channels=channels)
    if regions is not None:
        region_check.check(listed, regions, scale_given=given.regions_scale is not None, channels=channels)


def write_regions(
    path: Path,
    table: RegionTable | None,
    listed: manifest.Manifest,
    *,
    sizes: label_check.Sizes | None = None,
    channels: spec.Channels | None = None,
) -> Regions | None:
    """Write the regions that were matched with the images of a manifest; None without regions.

    `sizes` and `channels` as for `region_check.check`.
    """
    placed = listed.placed_regions
    if table is None or placed is None:
        return None
    found = region_check.rasterised(table, listed, placed, sizes=sizes, channels=channels)
    return region_rows.write(path, found, placed)


def read_regions(given: run_parameters.ExtractParameters) -> RegionTable | None:
    """Read the regions, if there are some; raises as `region_reading.read_regions`."""
    if not given.regions:
        return None
    return region_reading.read_regions(
        given.regions,
        columns=given.regions_columns,
        scale=given.regions_scale,
        min_score=given.min_score,
    )


def read_labels(given: run_parameters.ExtractParameters) -> PointTable | None:
    """Read the points file, if there is one; raises as `reading.read_points`."""
    if given.points is None:
        return None
    return reading.read_points(
        given.points,
        columns=given.points_columns,
        scale=given.points_scale,
        min_likelihood=given.min_likelihood,
    )


def check_parameters(given: run_parameters.ExtractParameters) -> image_source.ImageSource:
    """Validate what can be validated without a model; return the opened image source."""
    FailureBudget.parse(given.max_failures)
    run_parameters.check_engine(given.engine, given.engine_address, given.engine_workers)
    if given.image_size is not None:
        run_parameters.parse_image_size(given.image_size)
    tiles.check(given)
    if given.weights == "":
        raise errors.InputError(
            "--weights is empty, perhaps from an unset variable: give a file, pretrained or "
            "random:SEED, or leave it out"
        )
    if given.points_columns is not None and given.points is None:
        raise errors.InputError(f"--points-columns {given.points_columns!r} needs --points FILE")
    if given.points_scale is not None and given.points is None:
        raise errors.InputError(f"--points-scale {given.points_scale!r} needs --points FILE")
    check_regions(given.regions, given.regions_columns, given.regions_scale, given.min_score)
    if given.min_likelihood is not None and given.points is None:
        raise errors.InputError(f"--min-likelihood {given.min_likelihood:g} needs --points FILE")
    PointsScale.parse(given.points_scale)
    run_channels.check(given)
    presets.check(given)
    if given.limit is not None and given.limit < 1:
        raise errors.InputError(f"--limit {given.limit} leaves no images: give at least 1")
    if given.shard_rows is not None and given.shard_rows < 1:
        raise errors.InputError(f"--shard-rows {given.shard_rows} is too small: give at least 1")
    for product in given.products:
        products.parse_product(product, dtype=given.dtype)
    backends.resolve_device(given.device)
    out_folder.check(given.out)
    return image_source.open_source(given.images, image_column=given.image_column, frames=given.frames)


def check_regions(places: Sequence[str], columns: str | None, scale: str | None, min_score: float | None) -> None:
    """Raise `InputError` for an option of regions without any, or an invalid scale."""
    for name, value in (("--regions-columns", columns), ("--regions-scale", scale), ("--min-score", min_score)):
        if value is not None and not places:
            raise errors.InputError(f"{name} {value!r} needs --regions FILE")
    PointsScale.parse(scale, option=region_reading.OPTION)


def make_design(
    given: run_parameters.ExtractParameters,
    table: PointTable | None,
    regions: RegionTable | None = None,
    *,
    export_to: Path | None,
    earlier: bool = False,
    run: RunFolder | None = None,
) -> Design:
    """Resolve the model and derive preprocessing and products.

    `earlier` keeps the defaults of genenc 0.1.0 for its runs: the model's own fit, `nearest` probes, and pooling that
    includes bars. `run` is the existing run, if any, whose outputs and products are used where none are given.
    """
    model = model_cache.resolve_model(given, export_to=export_to)
    if run is not None:
        model = model_cache.with_recorded_outputs(model, run)
    device = model_cache.device_of(model, given.device)
    if export_to is not None:
        model_cache.refuse_other_axes(model, given)
        model = model_cache.with_named_outputs(model, device=device, trust=given.trust)
        model_cache.try_once(model, device=device, trust=given.trust)
    if given.batch_size != "auto":
        batch_size.Bounds.of(model.spec.resolved_batch_mode()).refuse_outside(given.batch_size)
    recorded = _recorded_products(run, given) if run else ()
    wanted = _select_products(
        given,
        model.spec.outputs,
        with_points=table is not None,
        with_regions=regions is not None,
        recorded=recorded,
    )
    count = len(table.names) if table else 0
    tiled = tiles.plan(given, model.spec, wanted)
    labelled = table is not None or regions is not None
    # Other tools do not change how images are fitted for labels.
    fit = given.fit or ("pad" if labelled and not earlier and given.like is None else None)
    preprocessing = _preprocessing(given, model.spec, tiled, fit)
    if preprocessing.channels is not None and preprocessing.decode != "full":
        raise errors.InputError(
            f"--decode {preprocessing.decode} is for JPEGs as RGB, but images are read as channels: leave it out"
        )
    if preprocessing.decode == "gpu":
        gpu_decode.require(device)
    if run is None and given.antialias is None and not preprocessing.antialias:
        message = (
            f"{given.model!r} does not declare how its images were resized: using {preprocessing.describe()}, as "
            "WhiskerToolbox does. If it was trained on images downscaled by PIL or torchvision, add --antialias"
        )
        warnings.warn(message, NotAntialiased, stacklevel=3)
    slots = tiles.outputs(model.spec, wanted, tiled)
    if not earlier:
        bars = geometry.leaves_bars(preprocessing)
        known = () if run is None else run.identity["products"]
        wanted = [item if str(item) in known else products.recorded(item, slots, bars=bars) for item in wanted]
    # How many regions each image has is known once they are matched with the images (`with_region_count`).
    built = products.build_products(wanted, slots, point_count=count, region_count=int(regions is not None))
    if run is None:
        products.refuse_names(built)
        store_plan.refuse_whole_chunks(built, given.chunk_channels)
    # An existing run keeps its cells: later versions place some of them more accurately.
    cells = None if earlier else run.cells if run is not None else map_cells.find(model, given, built, tiled)
    if run is not None and not earlier and not run.cells and tiled is not None:
        _warn_of_tiles(model, given, built, tiled)
    if cells is not None and geometry.leaves_bars(preprocessing):
        warn_of_bars(built, slots)
    warn_of_one_cell(built, slots)
    if table is not None and not any(product.needs_points for product in built):
        LOGGER.warning(
            "no product uses the points: add --product 'probes=spatial_point(cell)' to store vectors at them"
        )
    if regions is not None and not any(product.needs_regions for product in built):
        LOGGER.warning("no product uses the regions: add --product 'regions=region_mean' to store a vector of each")
    _warn_of_first_slot(given, slots)
    not_stored = products.not_stored(slots, built)
    if not_stored and not given.products:
        message = (
            f"output slots not stored: {not_stored}. To store them, extract to another --out with --product "
            "'NAME=SLOT:none'"
        )
        warnings.warn(message, SlotsNotStored, stacklevel=3)
    return Design(
        reproducible=margins.identity(given, model, built, preprocessing, new=run is None)
        if given.reproducible
        else None,
        model=model,
        preprocessing=preprocessing,
        products=built,
        points=table,
        device=device,
        regions=regions,
        tiles=tiled,
        cells=cells,
        outputs=None if export_to is None else outputs_check.try_model(model, device=device, trust=given.trust),
    )


def _warn_of_tiles(
    model: model_cache.ResolvedModel,
    given: run_parameters.ExtractParameters,
    built: Sequence[products.Product],
    tiled: tile_plan.TilePlan,
) -> None:
    """Warn if the tiles of an existing run do not join; the run continues as it was made."""
    try:
        map_cells.find(model, given, built, tiled)
    except errors.InputError as error:
        warnings.warn(
            f"the maps of this run are wrong at tile borders, extract again to another --out: {error}", stacklevel=4
        )


def _warn_of_first_slot(given: run_parameters.ExtractParameters, slots: Sequence[spec.SlotSpec]) -> None:
    """Warn about products that name no slot if there are several of the same rank."""
    unnamed = [each.name for text in given.products if (each := products.parse_product(text)).slot is None]
    alike = [slot.name for slot in slots if len(slot.shape) == len(slots[0].shape)]
    if unnamed and len(alike) > 1:
        message = (
            f"uses output slot {alike[0]!r}, the first of {', '.join(alike)}: select another with NAME=SLOT:MODULE"
        )
        warnings.warn(f"{', '.join(unnamed)}: {message}", FirstSlotTaken, stacklevel=4)


def _select_products(
    given: run_parameters.ExtractParameters,
    outputs: Sequence[spec.SlotSpec],
    *,
    with_points: bool,
    with_regions: bool,
    recorded: Sequence[str],
) -> list[products.ProductSpec]:
    """Return the products given, else those of the run, else the defaults."""
    if recorded:
        return [products.parse_product(text) for text in recorded]
    wanted = [products.parse_product(text, dtype=given.dtype) for text in given.products]
    wanted = wanted or list(
        products.default_products(outputs, with_points=with_points, with_regions=with_regions, dtype=given.dtype)
    )
    return wanted + list(products.map_products(outputs, dtype=given.dtype) if given.maps else ())


def _recorded_products(folder: RunFolder, given: run_parameters.ExtractParameters) -> tuple[str, ...]:
    """Return a run's products if neither it nor the parameters name any: defaults change between versions."""
    if given.products:
        return ()
    before = records.read_json(folder.objects, PARAMETERS)
    now = given.model_dump(mode="json")
    kept = ("products", "dtype", "maps")
    same = all(before.get(name, now[name]) == now[name] for name in kept) and _labelled(before) == _labelled(now)
    return tuple(folder.identity["products"]) if same else ()


def _labelled(asked: Mapping[str, object]) -> tuple[bool, bool]:
    return asked.get("points") is not None, bool(asked.get("regions"))


def _with_recorded_weights_key(
    run: RunFolder, given: run_parameters.ExtractParameters
) -> run_parameters.ExtractParameters:
    """Return the parameters with the run's entry of the weights file, unless one is given.

    Runs made before the entry could be chosen used the plain weights rather than an EMA.
    """
    if given.weights_key is not None or given.weights is None or not Path(given.weights).is_file():
        return given
    block = records.read_json(run.objects, MODEL_SPEC).get("genenc")
    source = block.get("source") if isinstance(block, Mapping) else None
    if not isinstance(source, Mapping):
        return given
    return given.model_copy(update={"weights_key": str(source.get("weights_key") or state_files.PLAIN)})


def warn_of_bars(wanted: Sequence[products.Product], slots: Sequence[spec.SlotSpec]) -> None:
    """Warn about products that include the bars around images because they cannot be masked."""
    names = [
        item.name
        for item in wanted
        if not item.needs_points
        and not item.needs_regions
        and (("over=" not in item.text and _is_vector(item)) or _has_one_cell(item, slots))
    ]
    if names:
        LOGGER.warning(
            "the bars around padded images affect %s, because the model reduces the whole input to vectors; use --fit "
            "stretch or crop to avoid bars",
            ", ".join(names),
        )


def warn_of_one_cell(wanted: Sequence[products.Product], slots: Sequence[spec.SlotSpec]) -> None:
    """Warn about products that have the same vector for every point of an image."""
    found = [item for item in wanted if (item.needs_points or item.needs_regions) and _has_one_cell(item, slots)]
    if found:
        what = "point" if found[0].needs_points else "region"
        message = (
            f"{', '.join(item.name for item in found)}: the map {found[0].slot!r} has one cell, so every {what} of an "
            "image gets the same vector: use the model before its pooling, an earlier layer (--layers), or a larger "
            "--image-size"
        )
        warnings.warn(message, OneCell, stacklevel=4)


def _has_one_cell(product: products.Product, slots: Sequence[spec.SlotSpec]) -> bool:
    shapes = {slot.name: slot.shape for slot in slots}
    return tuple(shapes[product.slot][1:]) == (1, 1)


def _is_vector(product: products.Product) -> bool:
    return len(product.signature.shape) == 1


def make_identity(
    design: Design, listed: manifest.Manifest, regions: Regions | None = None, *, artifact: object
) -> dict[str, object]:
    """Return a run's identity as JSON data: runs with equal identities hold the same rows."""
    return {**_meaning(design, listed.points_scale, artifact), "images": images_of(listed, regions)}


def images_of(listed: manifest.Manifest, regions: Regions | None = None) -> dict[str, object]:
    """Return the entry `images` of a run's identity; that of the regions is there only with some."""
    own = {"rows": listed.rows, "digest": listed.digest, "points": list(listed.point_names)}
    return own if regions is None else {**own, "regions": regions.digest}


def _meaning(design: Design, points_scale: PointsScale, artifact: object) -> dict[str, object]:
    """Return the identity without the images."""
    found = design.model.spec
    block = found.genenc or spec.GenencBlock()
    slots = [slot.model_dump(mode="json", exclude_none=True) for slot in (*found.inputs, *found.outputs)]
    return {
        "model": found.model_id if block.source is None else f"{block.source.kind}/{block.source.name}",
        **_source_entries(block),
        **_artifact_entries(block),
        "slots": slots,
        "weights": block.weights_sha256 or artifact,
        **({} if block.code is None else {"code": block.code}),
        **({} if block.files is None else {"files": block.files}),
        "backend": design.model.backend,
        "artifact": artifact,
        "preprocessing": design.preprocessing.model_dump(mode="json"),
        **({"execution": design.model.execution.identity()} if design.model.execution.identity() else {}),
        **({} if design.reproducible is None else {REPRODUCIBLE: dict(design.reproducible)}),
        **({} if design.tiles is None else {"tiles": design.tiles.identity()}),
        "products": [product.text for product in design.products],
        **({} if design.cells is None else {CELLS: {name: at.as_json() for name, at in design.cells.items()}}),
        **({} if points_scale.text is None else {POINTS_SCALE: points_scale.text}),
    }


def meaning(design: Design, earlier: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the identity, without images, of runs of this design; `earlier` is that of a run to compare with.

    A model that is exported for each run has the digest of the earlier export, which differs each time.
    """
    exported_here = design.model.backend != "eager" and not design.model.spec.weights_path
    artifact = earlier["artifact"] if earlier is not None and exported_here else _artifact(design)
    return _meaning(design, design.points.scale if design.points else PIXELS, artifact)


def describe_meanings(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Describe in one line how two identities differ, apart from the images; "" if they do not."""
    differences = layout.describe_identity(without_images(old), without_images(new))
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", differences)


def _create(
    root: Path,
    given: run_parameters.ExtractParameters,
    design: Design,
    listed: manifest.Manifest,
    like: RunFolder | None,
    more: Mapping[str, Mapping[str, object]],
    regions: Regions | None,
    *,
    on_server: bool = False,
) -> None:
    """Write the folder's files, the store last: without it the folder is not a run and the next call starts over.

    `on_server`: the model's files are those of `like`, which are copied on the server.
    """
    if like is None:
        identity = make_identity(design, listed, regions, artifact=_artifact(design))
    else:
        names = {product.name for product in design.products}
        texts = [text for text in like.identity["products"] if products.parse_product(text).name in names]
        identity = {**like.identity, "images": images_of(listed, regions), "products": texts}
    objects = local.LocalObjects(root)
    creation.refuse_remains(objects, identity)
    with out_folder.writing(root):
        root.mkdir(exist_ok=True)
        if regions is not None:
            (listed.path.parent / REGIONS).replace(root / REGIONS)
        listed.path.replace(root / MANIFEST)
    listed = manifest.Manifest.open(root / MANIFEST)
    if like is None:
        own_spec = model_files.localised(_run_spec(design), root, eager=design.model.backend == "eager")
        records.write_text(objects, MODEL_SPEC, spec_edits.with_digests(own_spec).to_json())
    else:
        model_files.take_over(like, objects, on_server=on_server)
    for key, record in {PARAMETERS: given.model_dump(mode="json"), **more}.items():
        records.write_json(objects, key, record)
    beside = {key: objects.digest(key) for key in more}
    if like is not None and on_server:
        beside |= model_files.recorded(like)
    wanted = with_region_count(design.products, regions, listed.rows)
    shard_rows = given.shard_rows or _default_shard_rows(design, wanted, listed.rows)
    create_store(
        objects,
        given,
        wanted,
        listed,
        identity=identity,
        outputs=design.outputs if like is None else like.outputs,
        not_stored=products.outputs_not_stored(design.model.spec, design.products),
        shard_rows=shard_rows,
        beside=beside,
        regions=regions,
    )


def with_region_count(
    wanted: Sequence[products.Product], regions: Regions | None, rows: int
) -> tuple[products.Product, ...]:
    """Return products whose size per image reckons with the number of regions."""
    if regions is None:
        return tuple(wanted)
    each = regions.per_image(rows)

    def counted(product: products.Product) -> products.Product:
        if not product.needs_regions:
            return product
        shape = (each, *product.signature.shape[1:])
        return dataclasses.replace(product, signature=dataclasses.replace(product.signature, shape=shape))

    return tuple(map(counted, wanted))


def create_store(
    objects: local.LocalObjects,
    given: run_parameters.ExtractParameters,
    wanted: Sequence[products.Product],
    listed: manifest.Manifest,
    *,
    identity: Mapping[str, object],
    outputs: Mapping[str, object] | None,
    not_stored: str,
    shard_rows: int,
    beside: Mapping[str, tuple[int, str]],
    regions: Regions | None = None,
) -> None:
    """Write the README and create the store of a run folder whose other files are there.

    Args:
        objects: the folder.
        given: the parameters that are recorded.
        wanted: its products.
        listed: its manifest.
        identity: what it means.
        outputs: the sketch of the model's outputs.
        not_stored: outputs that are not stored, for the README.
        shard_rows: images per shard, at most.
        beside: size and sha256 of files, beside those of every run, that must not change.
        regions: the regions of its images, whose file is in the folder.
    """
    records.write_text(
        objects,
        "README.md",
        store_plan.readme(
            identity,
            listed,
            wanted,
            out=given.out,
            weights=given.weights,
            not_stored=not_stored,
            regions=regions,
        ),
    )
    plan = store_plan.make_plan(
        wanted,
        listed,
        identity=identity,
        outputs=outputs,
        made={
            "fingerprint": digests.IDENTITY.hex_of_json(identity),
            "model_spec_sha256": file_digest(objects, MODEL_SPEC),
        },
        shard_rows=min(shard_rows, listed.rows),
        chunk_channels=given.chunk_channels,
        regions=regions,
    )
    files = {**{key: objects.digest(key) for key in _originals(objects)}, **beside}
    store = run_store.RunStore.create(
        objects.root, plan, coordinates=store_plan.coordinates(listed, plan, regions), beside=files
    )
    LOGGER.info("%s: %d images in %d shards", text.printable(given.out), listed.rows, store.shard_count)


def _run_spec(design: Design) -> spec.RuntimeModelSpec:
    """Return the model's spec with the run's preprocessing, at the size of a tile if images are tiled."""
    found, own = design.model.spec, design.preprocessing
    if design.tiles is not None:
        _, height, width = found.inputs[0].shape
        own = own.model_copy(update={"height": height, "width": width})
    block = (found.genenc or spec.GenencBlock()).model_copy(update={"preprocessing": own})
    return found.model_copy(update={"genenc": block})


def _originals(objects: local.LocalObjects) -> list[str]:
    """Return the files beside the features that describe the run and how it was made."""
    model = objects.walk(MODEL_FOLDER) if objects.kind(MODEL_FOLDER) else ()
    regions = [REGIONS] if objects.kind(REGIONS) else []
    return [
        MANIFEST,
        *regions,
        MODEL_SPEC,
        PARAMETERS,
        "README.md",
        *sorted(f"{MODEL_FOLDER}/{name}" for name, _ in model),
    ]


def _refuse_other_run(run: RunFolder, design: Design, listed: manifest.Manifest, regions: Regions | None) -> None:
    """Raise `StoreError` naming every difference if the folder holds a run with another identity."""
    old = dict(run.identity)
    exported_here = design.model.backend != "eager" and not design.model.spec.weights_path
    artifact = old["artifact"] if exported_here else _artifact(design)
    identity = make_identity(design, listed, regions, artifact=artifact)
    if not {"code", "files"} & old.keys():
        # Earlier versions recorded neither, and for models without tensors the digest of empty input.
        identity = {key: value for key, value in identity.items() if key not in ("code", "files")}
        if old["weights"] == weights.EMPTY_SHA256 and identity["weights"] is None:
            identity["weights"] = weights.EMPTY_SHA256
    if old == identity:
        same_files.refuse_others(run, listed)
        return
    lines = [describe_meanings(old, identity)]
    if old["images"] != identity["images"]:
        lines += images_difference(run, listed, regions)
    raise errors.OtherRunError(
        f"{run.root!r} holds another run, whose identity is fixed. It differs in "
        + "; ".join(line for line in lines if line)
        + ". Give another --out, or repeat the command that made it (`genenc resume` continues it as is)"
    )


def images_difference(run: RunFolder, listed: manifest.Manifest, regions: Regions | None) -> list[str]:
    """Return how images, points and regions of a run differ from others."""
    lines = [] if run.manifest.digest == listed.digest else [manifest.describe_difference(run.manifest, listed)]
    before = run.regions
    if (before and before.digest) != (regions and regions.digest):
        counts = ["none" if found is None else str(len(found)) for found in (before, regions)]
        lines.append("the regions differ" if counts[0] == counts[1] else f"regions: {counts[0]} -> {counts[1]}")
    return lines


def _refuse_other_shards(run: RunFolder, given: int | None) -> None:
    """Raise `StoreError` if an existing run has another shard size."""
    plan = run.store.plan
    if given is not None and min(given, plan.rows) != plan.shard_rows:
        raise errors.OtherRunError(
            f"{run.root!r} holds a run with shards of {plan.shard_rows} images, but --shard-rows is {given}: the "
            f"shard size is fixed. Leave --shard-rows out, or give {plan.shard_rows} or another --out"
        )


def _refuse_other_chunks(run: RunFolder, given: int | None) -> None:
    """Raise `StoreError` if an existing run has chunks of another number of channels."""
    own = run.given.chunk_channels
    if given is not None and given != own:
        raise errors.OtherRunError(
            f"{run.root!r} holds a run with chunks of {own or 'all'} channels, but --chunk-channels is {given}: the "
            f"chunks are fixed. Leave --chunk-channels out, or give {f'{own} or ' if own else ''}another --out"
        )


def _source_entries(block: spec.GenencBlock) -> dict[str, object]:
    """Return identity entries for what a model's name does not determine: layers, arguments, normalisation."""
    source = block.source
    if source is None:
        return {}
    entries: dict[str, object] = {}
    if source.layers:
        entries["layers"] = list(source.layers)
    if source.arguments:
        entries["arguments"] = source.arguments
    of_channels = block.preprocessing is not None and block.preprocessing.channels is not None
    normalises = block.mean and block.std and (set(block.mean), set(block.std)) != ({0.0}, {1.0})
    if (source.kind == "python" or of_channels) and normalises and block.mean and block.std:
        # The code of a user's model can change without its name and weights.
        entries |= {"mean": list(block.mean), "std": list(block.std)}
    return entries


def _artifact_entries(block: spec.GenencBlock) -> dict[str, object]:
    """Return identity entries for non-default inputs and outputs of an artifact."""
    entries: dict[str, object] = {}
    if not block.normalization_inside and block.mean and block.std:
        entries["normalization"] = {"mean": list(block.mean), "std": list(block.std)}
    if block.input is not None:
        entries["input"] = block.input.model_dump(mode="json")
    if block.output_positions is not None:
        entries["output_positions"] = list(block.output_positions)
    if block.channels_last_outputs is not None:
        entries["channels_last_outputs"] = list(block.channels_last_outputs)
    if block.channels_first_lists is not None:
        entries["channels_first_lists"] = list(block.channels_first_lists)
    return entries


def _artifact(design: Design) -> str | None:
    eager = design.model.backend == "eager"
    return model_files.identity_digest(None if eager else model_files.artifact_digests(design.model.spec))


def _default_shard_rows(design: Design, wanted: Sequence[products.Product], rows: int) -> int:
    smallest = design.model.spec.resolved_batch_mode().min
    tiled = design.tiles.count if design.tiles else 1
    return store_plan.choose_shard_rows(rows, wanted, device=design.device, smallest_batch=smallest, tiles=tiled)


def _preprocessing(
    given: run_parameters.ExtractParameters,
    found: spec.RuntimeModelSpec,
    tiled: tile_plan.TilePlan | None,
    fit: spec.Fit | None,
) -> spec.Preprocessing:
    preprocessing = describe.preprocessing_of(found)
    if tiled is not None:
        # No resize before a crop: a canvas is meant to keep the border that the model's evaluation crops.
        height, width = tiled.canvas
        preprocessing = preprocessing.model_copy(update={"height": height, "width": width, "resize_short": None})
    preprocessing = preprocessing.model_copy(update={"channels": run_channels.of_run(given, found)})
    for name in ("antialias", "decode", "resampling"):
        if (value := getattr(given, name)) is not None:
            preprocessing = preprocessing.model_copy(update={name: value})
    _refuse_resampling(preprocessing)
    if fit is not None and fit != preprocessing.fit:
        # Only a crop has a size to resize to before it.
        preprocessing = preprocessing.model_copy(update={"fit": fit, "resize_short": None})
    return preprocessing if given.crop_share is None else _cropped(preprocessing, given.crop_share, tiled)


def _refuse_resampling(preprocessing: spec.Preprocessing) -> None:
    """Raise `InputError` for what Pillow's resize does not do."""
    if preprocessing.resampling != "pillow":
        return
    if preprocessing.channels is not None:
        problem = "resizes 8-bit RGB, but images are read as channels"
    elif not preprocessing.antialias:
        problem = "always antialiases, but the model, or --no-antialias, asks for none"
    elif preprocessing.decode == "gpu":
        problem = "resizes on the CPU, but --decode gpu resizes on the GPU"
    else:
        return
    raise errors.InputError(f"--resampling pillow {problem}: give --resampling torch")


def _cropped(preprocessing: spec.Preprocessing, share: float, tiled: tile_plan.TilePlan | None) -> spec.Preprocessing:
    """Return the preprocessing with a crop that keeps this share of the shorter side."""
    if preprocessing.fit != "crop":
        raise errors.InputError(
            f"--crop-share {share:g} is for --fit crop, but images are fitted by {preprocessing.fit}: leave it out"
        )
    if tiled is not None:
        raise errors.InputError(f"--crop-share {share:g} has no meaning with a canvas, which keeps the border")
    side = min(preprocessing.height, preprocessing.width)
    return preprocessing.model_copy(update={"resize_short": math.floor(side / share) if share < 1 else None})
