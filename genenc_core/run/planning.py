"""Makes a run folder: images listed, model resolved, shapes worked out, store created, before any data flows."""

import dataclasses
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from genenc_core import errors, spec, spec_edits, text
from genenc_core.encoding import batching, control, products, tile_plan
from genenc_core.encoding.budget import FailureBudget
from genenc_core.encoding.cells import Cells
from genenc_core.export import backends, describe
from genenc_core.images import folders, frames, geometry, label_check, manifest, point_scale, points, sources
from genenc_core.models import state_files, weights
from genenc_core.provenance import environment
from genenc_core.run import encoders, map_cells, model_files, out_folder, outputs_check, records, store_plan, tiles
from genenc_core.run import parameters as run_parameters
from genenc_core.run.folder import (
    CELLS,
    MANIFEST,
    MODEL_FOLDER,
    MODEL_SPEC,
    PARAMETERS,
    POINTS_SCALE,
    RunFolder,
    file_digest,
)
from genenc_core.store import creation, layout, local, publication, run_store
from genenc_core.store.objects import Root, is_remote, open_objects

LOGGER = logging.getLogger(__name__)
_NOT_NORMALISED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class SlotsNotStored(UserWarning):
    """Outputs of the model of which nothing is stored, though nothing was said of what to store."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything about a run that is known before its images are listed."""

    model: encoders.ResolvedModel
    preprocessing: spec.Preprocessing
    products: tuple[products.Product, ...]
    points: points.PointTable | None
    device: str
    tiles: tile_plan.TilePlan | None = None
    cells: Mapping[str, Cells] | None = None
    """where the cells of maps lie that products need to know it of; None: a run of genenc 0.1.0, where all divide the
    input evenly"""
    outputs: Mapping[str, object] | None = None
    """what the model gives for a few fixed images: `outputs_check.sketch`"""


def create_run(given: run_parameters.ExtractParameters) -> Root:
    """Create the run folder that the parameters describe, or find it already made; return where it is.

    Raises:
        InputError: something given cannot be used; nothing is left behind.
        StoreError: the folder holds another run; the difference is named, and nothing in it is changed.
    """
    source = check_parameters(given)
    table = _points(given)
    root: Root = given.out if is_remote(given.out) else Path(given.out)
    with out_folder.planning_folder(given.out) as scratch:
        exists = run_store.RunStore.exists(root)
        given = _with_its_entry(root, given) if exists else given
        run = RunFolder(root) if exists else None
        earlier = run is not None and CELLS not in run.identity
        design = make_design(given, table, export_to=None if exists else scratch, earlier=earlier, run=run)
        control.current().checkpoint()
        if exists:  # what counts as an image does not change with the decoders that are installed
            source = dataclasses.replace(source, extensions=RunFolder(root).manifest.extensions)
        listed = manifest.write_manifest(scratch / MANIFEST, source, points=design.points, limit=given.limit)
        if listed.left_out:
            warnings.warn(folders.describe(listed.left_out), folders.FilesLeftOut, stacklevel=2)
        control.current().checkpoint()
        if not exists:
            frames.check(listed)
        if table is not None and not exists:
            label_check.check(listed, scale_given=given.points_scale is not None)
        if exists:
            _refuse_other_run(root, design, listed)
            _refuse_other_shards(root, given.shard_rows)
        elif isinstance(root, Path):
            with out_folder.writing(root):
                creation.discard_unfinished(local.LocalObjects(root))
            _create(root, given, design, listed)
        else:
            _create(scratch / "run", given, design, listed)
            publication.publish(local.LocalObjects(scratch / "run"), open_objects(root))
    return root


def _points(given: run_parameters.ExtractParameters) -> points.PointTable | None:
    if given.points is None:
        return None
    return points.read_points(Path(given.points), columns=given.points_columns, scale=given.points_scale)


def check_parameters(given: run_parameters.ExtractParameters) -> sources.ImageSource:
    """Refuse at once what can be refused without a model; return the opened image source."""
    FailureBudget.parse(given.max_failures)
    if given.image_size is not None:
        run_parameters.parse_image_size(given.image_size)
    tiles.check(given)
    if given.weights == "":
        raise errors.InputError(
            "--weights is an empty text, perhaps of a variable that is not set: give a file, pretrained or "
            "random:SEED, or leave it out"
        )
    if given.points_columns is not None and given.points is None:
        raise errors.InputError(f"--points-columns {given.points_columns!r} needs --points FILE")
    if given.points_scale is not None and given.points is None:
        raise errors.InputError(f"--points-scale {given.points_scale!r} needs --points FILE")
    point_scale.PointsScale.parse(given.points_scale)
    if given.limit is not None and given.limit < 1:
        raise errors.InputError(f"--limit {given.limit} leaves no images: give at least 1")
    if given.shard_rows is not None and given.shard_rows < 1:
        raise errors.InputError(f"--shard-rows {given.shard_rows} is too small: give at least 1")
    for product in given.products:
        products.parse_product(product, dtype=given.dtype)
    backends.resolve_device(given.device)
    out_folder.check(given.out)
    return sources.open_source(given.images, image_column=given.image_column)


def make_design(
    given: run_parameters.ExtractParameters,
    table: points.PointTable | None,
    *,
    export_to: Path | None,
    earlier: bool = False,
    run: RunFolder | None = None,
) -> Design:
    """Resolve the model and work out preprocessing and products.

    `earlier`: as genenc 0.1.0 did, whose runs go on to mean what they meant: the model's own fit and `nearest` probes
    where nothing is said of them, and poolings that count bars. `run`: one that is there, whose outputs and products
    are taken where none are given.
    """
    model = encoders.resolve_model(given, export_to=export_to)
    if run is not None:
        model = encoders.as_recorded(model, run)
    device = encoders.device_of(model, given.device)
    if export_to is not None:
        encoders.refuse_other_axes(model, given)
        model = encoders.by_name(model, device=device, trust=given.trust)
        encoders.try_once(model, device=device, trust=given.trust)
    if given.batch_size != "auto":
        batching.Bounds.of(model.spec.resolved_batch_mode()).refuse_outside(given.batch_size)
    its_own = _its_products(run, given) if run else ()
    wanted = _wanted(given, model.spec.outputs, with_points=table is not None, recorded=its_own)
    count = len(table.names) if table else 0
    tiled = tiles.plan(given, model.spec, wanted)
    fit = given.fit or ("pad" if table is not None and not earlier else None)
    preprocessing = _preprocessing(given, model.spec, tiled, fit)
    slots = tiles.outputs(model.spec, wanted, tiled)
    if not earlier:
        bars = geometry.leaves_bars(preprocessing)
        wanted = [products.recorded(product, slots, bars=bars) for product in wanted]
    built = products.build_products(wanted, slots, point_count=count)
    # A run goes on with the cells that it has: later versions place some of them more exactly.
    cells = None if earlier else run.cells if run is not None else map_cells.find(model, given, built, tiled)
    if run is not None and not earlier and not run.cells and tiled is not None:
        _warn_of_tiles(model, given, built, tiled)
    if cells is not None and geometry.leaves_bars(preprocessing):
        _note_bars(built)
    if table is not None and not any(product.needs_points for product in built):
        LOGGER.warning("no product takes the points: --product 'probes=spatial_point(cell)' stores vectors at them")
    not_stored = products.not_stored(slots, built)
    if not_stored and not given.products:
        told = f"not stored: output slots {not_stored}. --product 'NAME=SLOT:none' stores such ones in another run"
        warnings.warn(told, SlotsNotStored, stacklevel=3)
    return Design(
        model=model,
        preprocessing=preprocessing,
        products=built,
        points=table,
        device=device,
        tiles=tiled,
        cells=cells,
        outputs=None if export_to is None else outputs_check.tried(model, device=device, trust=given.trust),
    )


def _warn_of_tiles(
    model: encoders.ResolvedModel,
    given: run_parameters.ExtractParameters,
    built: Sequence[products.Product],
    tiled: tile_plan.TilePlan,
) -> None:
    """Warn of an existing run whose tiles do not join: it goes on as it began, whichever command continues it."""
    try:
        map_cells.find(model, given, built, tiled)
    except errors.InputError as error:
        warnings.warn(f"the maps of this run are wrong where its tiles meet, make it again: {error}", stacklevel=4)


def _wanted(
    given: run_parameters.ExtractParameters,
    outputs: Sequence[spec.SlotSpec],
    *,
    with_points: bool,
    recorded: Sequence[str],
) -> list[products.ProductSpec]:
    """Return the products that are given, else those that a run has, else the default ones."""
    if recorded:
        return [products.parse_product(text) for text in recorded]
    wanted = [products.parse_product(text, dtype=given.dtype) for text in given.products]
    wanted = wanted or list(products.default_products(outputs, with_points=with_points, dtype=given.dtype))
    return wanted + list(products.map_products(outputs) if given.maps else ())


def _its_products(folder: RunFolder, given: run_parameters.ExtractParameters) -> tuple[str, ...]:
    """Return the products of a run that was asked for without naming any, as now: what is made by default changes."""
    if given.products:
        return ()
    before = records.read_json(folder.objects, PARAMETERS)
    now = given.model_dump(mode="json")
    kept = ("products", "dtype", "maps")
    same = all(before.get(name, now[name]) == now[name] for name in kept) and _has_points(before) == _has_points(now)
    return tuple(folder.identity["products"]) if same else ()


def _has_points(asked: Mapping[str, object]) -> bool:
    return asked.get("points") is not None


def _with_its_entry(root: Root, given: run_parameters.ExtractParameters) -> run_parameters.ExtractParameters:
    """Return the parameters with the entry of the weights file that a run was made with, unless one is given.

    Runs from before it could be chosen took the plain weights where there is an EMA beside them.
    """
    if given.weights_key is not None or given.weights is None or not Path(given.weights).is_file():
        return given
    block = records.read_json(RunFolder(root).objects, MODEL_SPEC).get("genenc")
    source = block.get("source") if isinstance(block, Mapping) else None
    if not isinstance(source, Mapping):
        return given
    return given.model_copy(update={"weights_key": str(source.get("weights_key") or state_files.PLAIN)})


def _note_bars(wanted: Sequence[products.Product]) -> None:
    """Say of which products the bars around images are part, as no mask can be laid over them."""
    names = [item.name for item in wanted if not item.needs_points and "over=" not in item.text and _is_vector(item)]
    if names:
        LOGGER.warning(
            "the bars around padded images count in %s: the model makes vectors of whole inputs by itself; --fit "
            "stretch or crop has no bars",
            ", ".join(names),
        )


def _is_vector(product: products.Product) -> bool:
    return len(product.signature.shape) == 1


def make_identity(design: Design, listed: manifest.Manifest, *, artifact: object) -> dict[str, object]:
    """Return what a run means, as readable JSON: two runs with equal identities hold the same rows."""
    found = design.model.spec
    block = found.genenc or spec.GenencBlock()
    slots = [slot.model_dump(mode="json", exclude_none=True) for slot in (*found.inputs, *found.outputs)]
    return {
        "model": found.model_id if block.source is None else f"{block.source.kind}/{block.source.name}",
        **_outside_name(block),
        **_given_values(block),
        "slots": slots,
        "weights": block.weights_sha256 or artifact,
        **({} if block.code is None else {"code": block.code}),
        **({} if block.files is None else {"files": block.files}),
        "backend": design.model.backend,
        "artifact": artifact,
        "preprocessing": design.preprocessing.model_dump(mode="json"),
        **({"execution": design.model.execution.identity()} if design.model.execution.identity() else {}),
        **({} if design.tiles is None else {"tiles": design.tiles.identity()}),
        "products": [product.text for product in design.products],
        **({} if design.cells is None else {CELLS: {name: at.as_json() for name, at in design.cells.items()}}),
        **({} if listed.points_scale.text is None else {POINTS_SCALE: listed.points_scale.text}),
        "images": {"rows": listed.rows, "digest": listed.digest, "points": list(listed.point_names)},
    }


def _create(root: Path, given: run_parameters.ExtractParameters, design: Design, listed: manifest.Manifest) -> None:
    """Write the folder's files, the store last: without it the folder is no run, and the next call starts again."""
    identity = make_identity(design, listed, artifact=_artifact(design))
    objects = local.LocalObjects(root)
    creation.refuse_remains(objects, identity)
    with out_folder.writing(root):
        root.mkdir(exist_ok=True)
        listed.path.replace(root / MANIFEST)
    listed = manifest.Manifest.open(root / MANIFEST)
    own_spec = model_files.localised(_as_run(design), root, eager=design.model.backend == "eager")
    records.write_text(objects, MODEL_SPEC, spec_edits.sealed(own_spec).to_json())
    records.write_json(objects, PARAMETERS, given.model_dump(mode="json"))
    records.write_text(
        objects,
        "README.md",
        store_plan.readme(
            identity,
            listed,
            design.products,
            out=given.out,
            not_stored=products.outputs_not_stored(design.model.spec, design.products),
        ),
    )
    plan = store_plan.make_plan(
        design.products,
        listed,
        identity=identity,
        outputs=design.outputs,
        made={"fingerprint": environment.digest(identity), "model_spec_sha256": file_digest(objects, MODEL_SPEC)},
        shard_rows=min(given.shard_rows or _default_shard_rows(design, listed.rows), listed.rows),
    )
    beside = {key: objects.digest(key) for key in _originals(objects)}
    store = run_store.RunStore.create(root, plan, coordinates=store_plan.coordinates(listed), beside=beside)
    LOGGER.info("%s: %d images in %d shards", text.printable(given.out), listed.rows, store.shard_count)


def _as_run(design: Design) -> spec.RuntimeModelSpec:
    """Return the model's spec with the run's own preprocessing, that of a tile where images are cut into tiles."""
    found, own = design.model.spec, design.preprocessing
    if design.tiles is not None:
        _, height, width = found.inputs[0].shape
        own = own.model_copy(update={"height": height, "width": width})
    block = (found.genenc or spec.GenencBlock()).model_copy(update={"preprocessing": own})
    return found.model_copy(update={"genenc": block})


def _originals(objects: local.LocalObjects) -> list[str]:
    """Return the files beside the features that say what the run is and how it was made."""
    model = objects.walk(MODEL_FOLDER) if objects.kind(MODEL_FOLDER) else ()
    return [MANIFEST, MODEL_SPEC, PARAMETERS, "README.md", *sorted(f"{MODEL_FOLDER}/{name}" for name, _ in model)]


def _refuse_other_run(root: Root, design: Design, listed: manifest.Manifest) -> None:
    """Raise `StoreError` naming every difference when the folder holds a run with another identity."""
    old = dict(run_store.RunStore.open(root).plan.identity)
    exported_here = design.model.backend != "eager" and not design.model.spec.weights_path
    identity = make_identity(design, listed, artifact=old["artifact"] if exported_here else _artifact(design))
    if not {"code", "files"} & old.keys():
        # Of an earlier version, which recorded neither, and for a model without tensors the digest of nothing.
        identity = {key: value for key, value in identity.items() if key not in ("code", "files")}
        if old["weights"] == weights.OF_NOTHING and identity["weights"] is None:
            identity["weights"] = weights.OF_NOTHING
    if old == identity:
        _refuse_other_place(root, listed)
        return
    told = layout.describe_identity(_without_images(old), _without_images(identity))
    lines = [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", told)]
    if old["images"] != identity["images"]:
        lines.append(manifest.describe_difference(RunFolder(root).manifest, listed))
    raise errors.OtherRunError(
        f"{str(root)!r} holds another run, and a run never changes what it means. It differs in "
        + "; ".join(line for line in lines if line)
        + ". Give another --out, or repeat the command that made it (`genenc resume` continues it as it is)"
    )


def _refuse_other_shards(root: Root, given: int | None) -> None:
    """Raise `StoreError` where an existing run is asked for in shards of another size."""
    plan = run_store.RunStore.open(root).plan
    if given is not None and min(given, plan.rows) != plan.shard_rows:
        raise errors.OtherRunError(
            f"{str(root)!r} holds a run in shards of {plan.shard_rows} images, and --shard-rows is {given}: the size "
            f"of its shards is fixed. Leave --shard-rows out, or give {plan.shard_rows} or another --out"
        )


def _refuse_other_place(root: Root, listed: manifest.Manifest) -> None:
    """Raise `StoreError` where a run's images are still where they were and others, that seem the same, were named."""
    known, given = (Path(rows.read(0, 1).paths[0]) for rows in (RunFolder(root).manifest, listed))
    if known != given and known.exists() and not (given.exists() and known.samefile(given)):
        raise errors.OtherRunError(
            f"the images of the run {str(root)!r} begin with {str(known)!r}, which is still there, and those given "
            f"with {str(given)!r}: other files of the same names, sizes and times. Give another --out, or go on with "
            "the images that it has (`genenc resume`)"
        )


def _outside_name(block: spec.GenencBlock) -> dict[str, object]:
    """Return what a model's name leaves open."""
    source = block.source
    if source is None:
        return {}
    told: dict[str, object] = {}
    if source.layers:
        told["layers"] = list(source.layers)
    if source.arguments:
        told["arguments"] = source.arguments
    if source.kind == "python" and block.mean and block.std and (block.mean, block.std) != _NOT_NORMALISED:
        # An own model's code can change without its name and its weights.
        told |= {"mean": list(block.mean), "std": list(block.std)}
    return told


def _given_values(block: spec.GenencBlock) -> dict[str, object]:
    """Return what an artifact is given, and which of its outputs are kept, where that is not the usual."""
    told: dict[str, object] = {}
    if not block.normalization_inside and block.mean and block.std:
        told["normalization"] = {"mean": list(block.mean), "std": list(block.std)}
    if block.input is not None:
        told["input"] = block.input.model_dump(mode="json")
    if block.output_positions is not None:
        told["output_positions"] = list(block.output_positions)
    if block.channels_last_outputs is not None:
        told["channels_last_outputs"] = list(block.channels_last_outputs)
    if block.channels_first_lists is not None:
        told["channels_first_lists"] = list(block.channels_first_lists)
    return told


def _artifact(design: Design) -> str | None:
    eager = design.model.backend == "eager"
    return model_files.identity_digest(None if eager else model_files.artifact_digests(design.model.spec))


def _default_shard_rows(design: Design, rows: int) -> int:
    smallest = design.model.spec.resolved_batch_mode().min
    tiled = design.tiles.count if design.tiles else 1
    return store_plan.choose_shard_rows(
        rows, design.products, device=design.device, smallest_batch=smallest, tiles=tiled
    )


def _preprocessing(
    given: run_parameters.ExtractParameters,
    found: spec.RuntimeModelSpec,
    tiled: tile_plan.TilePlan | None,
    fit: spec.Fit | None,
) -> spec.Preprocessing:
    preprocessing = describe.preprocessing_of(found)
    if tiled is not None:
        # The border that a model's own evaluation cuts away is what a canvas is there to keep.
        height, width = tiled.canvas
        preprocessing = preprocessing.model_copy(update={"height": height, "width": width, "resize_short": None})
    if given.decode is not None:
        preprocessing = preprocessing.model_copy(update={"decode": given.decode})
    if fit is None or fit == preprocessing.fit:
        return preprocessing
    # Only a crop has a size to resize to before it.
    return preprocessing.model_copy(update={"fit": fit, "resize_short": None})


def _without_images(identity: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in identity.items() if key != "images"}
