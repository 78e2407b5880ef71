"""Makes a run folder: images listed, model resolved, shapes worked out, store created, before any data flows."""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.encoding import batching, products, shards
from genenc_core.export import describe
from genenc_core.images import manifest, points, sources
from genenc_core.provenance import environment
from genenc_core.run import encoders, records, store_plan
from genenc_core.run import parameters as run_parameters
from genenc_core.store import layout, run_store

LOGGER = logging.getLogger(__name__)
MANIFEST = "images.parquet"
MODEL_SPEC = "model_spec.json"
PARAMETERS = "provenance/parameters.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything about a run that is known before its images are listed."""

    model: encoders.ResolvedModel
    preprocessing: spec.Preprocessing
    products: tuple[products.Product, ...]
    points: points.PointTable | None
    device: str

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names of the points, in the order of the `point` axis."""
        return self.points.names if self.points else ()


def create_run(given: run_parameters.ExtractParameters) -> Path:
    """Create the run folder that the parameters describe, or find it already made; return its path.

    Raises:
        InputError: something given cannot be used; nothing is left behind.
        StoreError: the folder holds another run; the difference is named.
    """
    root = Path(given.out)
    source = check_parameters(given)
    table = None if given.points is None else points.read_points(Path(given.points))
    made = _make_folder(root)
    try:
        design = make_design(given, table)
        _create(root, given, design, source)
    except BaseException:
        if made:
            _remove_if_unused(root)
        raise
    return root


def check_parameters(given: run_parameters.ExtractParameters) -> sources.ImageSource:
    """Refuse at once what can be refused without torch or a model; return the opened image source."""
    shards.FailureBudget.parse(given.max_failures)
    if given.image_size is not None:
        run_parameters.parse_image_size(given.image_size)
    if given.limit is not None and given.limit < 1:
        raise errors.InputError(f"--limit {given.limit} leaves no images: give at least 1")
    if given.shard_rows is not None and given.shard_rows < 1:
        raise errors.InputError(f"--shard-rows {given.shard_rows} is too small: give at least 1")
    for text in given.products:
        products.parse_product(text, dtype=given.dtype)
    encoders.resolve_device(given.device)
    _check_out(Path(given.out))
    return sources.open_source(given.images, image_column=given.image_column)


def make_design(given: run_parameters.ExtractParameters, table: points.PointTable | None) -> Design:
    """Resolve the model and work out preprocessing and products."""
    model = encoders.resolve_model(given, folder=Path(given.out) / encoders.MODEL_FOLDER)
    device = encoders.resolve_device(given.device)
    encoders.try_once(model, device=device, trust=given.trust)
    preprocessing = _preprocessing(given, model.spec)
    if given.batch_size != "auto":
        batching.Bounds.of(model.spec.resolved_batch_mode()).refuse_outside(given.batch_size)
    wanted = [products.parse_product(text, dtype=given.dtype) for text in given.products]
    if not wanted:
        defaults = products.default_products(with_points=table is not None, with_maps=given.maps, dtype=given.dtype)
        wanted = list(defaults)
    elif given.maps:
        wanted.append(products.parse_product("maps=none@float16"))
    count = len(table.names) if table else 0
    return Design(
        model=model,
        preprocessing=preprocessing,
        products=products.build_products(wanted, model.spec.outputs, point_count=count),
        points=table,
        device=device,
    )


def _create(root: Path, given: run_parameters.ExtractParameters, design: Design, source: sources.ImageSource) -> None:
    exists = run_store.RunStore.exists(root)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=root) as scratch:
        listed = manifest.write_manifest(Path(scratch) / MANIFEST, source, points=design.points, limit=given.limit)
        identity = make_identity(design, listed)
        if exists:
            refuse_other_run(root, identity, listed)
            return
        listed.path.replace(root / MANIFEST)
    localised = encoders.localised(design.model, root)
    records.write_text(root / MODEL_SPEC, localised.spec.to_json())
    records.write_json(root / PARAMETERS, {**given.model_dump(mode="json"), "backend": design.model.backend})
    listed = manifest.Manifest.open(root / MANIFEST)
    records.write_text(root / "README.md", store_plan.readme(identity, listed, design.products))
    plan = store_plan.make_plan(
        design.products,
        listed,
        identity=identity,
        fingerprint=environment.digest(identity),
        shard_rows=given.shard_rows or default_shard_rows(design, listed.rows),
    )
    store = run_store.RunStore.create(root, plan, coordinates=store_plan.coordinates(listed))
    LOGGER.info("%s: %d images in %d shards", root, listed.rows, store.shard_count)


def default_shard_rows(design: Design, rows: int) -> int:
    """Return the shard size when none is asked for."""
    smallest = design.model.spec.resolved_batch_mode().min
    return store_plan.choose_shard_rows(rows, design.products, device=design.device, smallest_batch=smallest)


def make_identity(design: Design, listed: manifest.Manifest) -> dict[str, object]:
    """Return what a run means, as readable JSON: two runs with equal identities hold the same rows."""
    found = design.model.spec
    block = found.genenc or spec.GenencBlock()
    slots = [slot.model_dump(mode="json", exclude_none=True) for slot in (*found.inputs, *found.outputs)]
    return {
        "model": found.model_id if block.source is None else f"{block.source.kind}/{block.source.name}",
        "slots": slots,
        "weights": block.weights_sha256 or encoders.artifact_digest(found),
        "backend": design.model.backend,
        "artifact": None if design.model.backend == "eager" else encoders.artifact_digest(found),
        "preprocessing": design.preprocessing.model_dump(mode="json"),
        "products": [product.text for product in design.products],
        "images": {"rows": listed.rows, "digest": listed.digest, "points": list(listed.point_names)},
    }


def refuse_other_run(root: Path, identity: Mapping[str, object], listed: manifest.Manifest) -> None:
    """Raise `StoreError` naming every difference when the folder holds a run with another identity."""
    old = run_store.RunStore.open(root).plan.identity
    if old == identity:
        return
    lines = [layout.describe_identity(_without_images(old), _without_images(identity))]
    if old["images"] != identity["images"]:
        lines.append(manifest.describe_difference(manifest.Manifest.open(root / MANIFEST), listed))
    raise errors.StoreError(
        f"{str(root)!r} holds another run, and a run never changes what it means. It differs in "
        + "; ".join(line for line in lines if line)
        + ". Give another --out, or repeat the command that made it (`genenc resume` continues it as it is)"
    )


def _preprocessing(given: run_parameters.ExtractParameters, found: spec.RuntimeModelSpec) -> spec.Preprocessing:
    preprocessing = describe.preprocessing_of(found)
    if given.fit is None or given.fit == preprocessing.fit:
        return preprocessing
    # Only a crop has a size to resize to before it.
    return preprocessing.model_copy(update={"fit": given.fit, "resize_short": None})


def _without_images(identity: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in identity.items() if key != "images"}


def _check_out(root: Path) -> None:
    """Refuse an output folder that cannot be made or that holds something else."""
    if root.exists() and not root.is_dir():
        raise errors.InputError(f"--out {str(root)!r} is a file: give a folder")
    if root.is_dir():
        known = {MANIFEST, MODEL_SPEC, "README.md", "features.zarr", "_txn", "provenance", encoders.MODEL_FOLDER}
        foreign = sorted(item.name for item in root.iterdir() if item.name not in known and item.name[0] != ".")
        if foreign and not (root / store_plan.STORE_RECORD).exists():
            raise errors.InputError(
                f"--out {str(root)!r} is not empty and not a run folder (it holds {foreign[0]!r}): give a new folder"
            )
    nearest = next(item for item in (root, *root.absolute().parents) if item.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise errors.InputError(f"--out {str(root)!r} cannot be written: {str(nearest)!r} is not a writable folder")


def _make_folder(root: Path) -> bool:
    """Create the folder; return whether it was not there before."""
    existed = root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root):
            pass
    except OSError as error:
        raise errors.InputError(f"--out {str(root)!r} cannot be written: {error}") from error
    return not existed


def _remove_if_unused(root: Path) -> None:
    """Take back a folder that this call made, as long as no store stands in it."""
    if (root / store_plan.STORE_RECORD).exists():
        return
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    root.rmdir()
