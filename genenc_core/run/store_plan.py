"""Layout of a run's store: shapes, shards, chunks, attributes and the folder's README."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from genenc_core import errors, float_values, spec, statuses, stored_arrays, text
from genenc_core.encoding import products
from genenc_core.images.labels.scale import PointsScale
from genenc_core.images.sources import manifest, manifest_rows
from genenc_core.images.sources import regions as region_rows
from genenc_core.images.sources.regions import Regions
from genenc_core.run import emb, list_columns
from genenc_core.run.folder import PROBED, dataset_of
from genenc_core.store import layout
from genenc_core.store.backends.objects import is_remote, to_root
from genenc_core.text import argument

GPU_SHARD_ROWS = 4096
CPU_SHARD_ROWS = 256
FEWEST_SHARD_ROWS = 32
WANTED_SHARDS = 8
SHARD_BYTES = 512 * 2**20
CHUNK_ROWS = 256
CHUNK_BYTES = 8 * 2**20
_QUANTIZED_WORDS = (
    "Vectors are stored as integers with a scale (uint8: and an offset) each, as the attributes of each array say;\n"
    "`genenc_core.api.Run.open(...).arrays()` gives their values. `genenc status` says what that loses."
)
_OWN_ROW_BYTES = 32
"""Row size of the widest per-image array; all of them share its chunking."""


def choose_shard_rows(
    rows: int, wanted: Sequence[products.Product], *, device: str, smallest_batch: int, tiles: int = 1
) -> int:
    """Return the images per shard: a few seconds of work, at most 512 MiB, a multiple of 16, fewer for few images.

    Tiles count like images, so that shards of tiled images have correspondingly fewer rows.
    """
    row_bytes = max(sum(stored_row_bytes(product) for product in wanted), 1)
    most = max((GPU_SHARD_ROWS if device.startswith("cuda") else CPU_SHARD_ROWS) // tiles, 1)
    unit, smallest_batch = max(16 // tiles, 1), -(-smallest_batch // tiles)
    by_memory = SHARD_BYTES // row_bytes
    by_memory = by_memory // unit * unit if by_memory >= unit else max(by_memory, 1)
    share = -(-rows // WANTED_SHARDS)
    chosen = max(-(-share // unit) * unit, FEWEST_SHARD_ROWS // tiles, -(-smallest_batch // unit) * unit)
    chosen = max(min(chosen, most, by_memory), smallest_batch)
    return chosen if chosen <= CHUNK_ROWS else chosen // CHUNK_ROWS * CHUNK_ROWS


def make_plan(
    wanted: Sequence[products.Product],
    listed: manifest.Manifest,
    *,
    identity: Mapping[str, Any],
    made: Mapping[str, str],
    shard_rows: int,
    outputs: Mapping[str, Any] | None = None,
    chunk_channels: int | None = None,
    regions: Regions | None = None,
) -> layout.StorePlan:
    """Return the plan of all arrays; `made` holds the run's fingerprint and file digests.

    How many regions each image has is known, and so is the range of a shard's regions (`regions.positions`).

    `outputs` is the sketch of the model's outputs, not part of the identity because rounding differs between machines.
    `chunk_channels`: channels of the smallest readable block; None for all.
    """
    point_count = len(listed.point_names)
    taken = _taken((array.name, ("image", *array.dims)) for product in wanted for array in product.arrays)
    columns = tuple(list_columns.names(listed, taken).values())
    places = 0 if regions is None else region_rows.positions(regions, listed.rows, shard_rows)[1]
    arrays = [
        dataclasses.replace(array, attributes={**array.attributes, **emb.more(array.name, product, identity)})
        for product in wanted
        for array in (
            _region_product_arrays(product, listed.rows, shard_rows, places)
            if product.needs_regions
            else _product_arrays(product, listed, shard_rows, columns, chunk_channels)
        )
    ]
    arrays += [
        layout.array_plan(
            array,
            {"image": listed.rows, "point": point_count},
            chunk_rows=_chunk_rows(shard_rows, point_count if array.of_points else _OWN_ROW_BYTES, most=shard_rows),
        )
        for array in stored_arrays.written_by("encoder", with_points=point_count > 0)
    ]
    if regions is not None:
        state = stored_arrays.get(stored_arrays.REGION_STATUS)
        length = places * -(-listed.rows // shard_rows)
        arrays.append(layout.array_plan(state, {stored_arrays.REGION: length}, chunk_rows=places))
    shown = ("model", "weights", "backend", "preprocessing", "tiles", PROBED)
    model = {key: identity[key] for key in shown if key in identity} | ({"outputs": outputs} if outputs else {})
    return layout.StorePlan(
        rows=listed.rows,
        shard_rows=shard_rows,
        arrays=tuple(arrays),
        fingerprint=made["fingerprint"],
        identity=identity,
        attributes={
            "title": f"Image features of {identity['model']}",
            "genenc": {**made, "manifest_sha256": listed.digest, "shard_rows": shard_rows, **model},
            **emb.attributes(identity, wanted, listed, regions),
        },
        region_places=places,
    )


def coordinates(
    listed: manifest.Manifest, plan: layout.StorePlan, regions: Regions | None = None
) -> list[layout.CoordinatePlan]:
    """Return the arrays known before any image is read: ids, paths, points, regions, and further columns of a list."""
    values: dict[str, Any] = {name: _texts(listed, name) for name in manifest_rows.TEXT_COLUMNS}
    values |= {stored_arrays.POINT: list(listed.point_names), stored_arrays.INDIVIDUAL: list(listed.individuals)}
    values |= {
        name: _positions(listed, name) for name in (*manifest_rows.POINT_COLUMNS, manifest_rows.LIKELIHOOD_COLUMN)
    }
    return [
        layout.CoordinatePlan(
            name=array.name,
            dims=array.dims,
            kind=array.dtype,
            values=values[array.name],
            attributes=_coordinate_attributes(array, listed.points_scale, plan),
        )
        for array in stored_arrays.written_by(
            "creator",
            with_points=bool(listed.point_names),
            with_individuals=bool(listed.individuals),
            with_likelihoods=listed.has_likelihood,
        )
    ] + [
        *([] if regions is None else _region_coordinates(listed, plan, regions)),
        *list_columns.coordinates(listed, _taken((array.name, array.dims) for array in plan.arrays)),
    ]


def _region_coordinates(
    listed: manifest.Manifest, plan: layout.StorePlan, regions: Regions
) -> list[layout.CoordinatePlan]:
    places, each = region_rows.positions(regions, plan.rows, plan.shard_rows)
    length = each * plan.shard_count
    ids = _ids(listed, regions)
    boxes = dict(zip(region_rows.BOX, regions.boxes.T, strict=True))
    values: dict[str, tuple[Any, Any]] = {
        "region_image": (regions.rows, -1),
        "region_image_id": (ids, ""),
        "region_score": (regions.scores, np.nan),
        **{f"region_{name}": (regions.texts(name), "") for name in ("name", "category", "individual", "kind")},
        **{f"region_{name}": (edges, np.nan) for name, edges in boxes.items()},
    }
    return [
        layout.CoordinatePlan(
            name=array.name,
            dims=array.dims,
            kind=array.dtype,
            values=region_rows.spread(values[array.name][0], places, length, values[array.name][1]),
            attributes=_coordinate_attributes(array, regions.scale, plan),
        )
        for array in stored_arrays.written_by("creator", with_points=False, with_regions=True)
        if array.of_regions
    ]


def _ids(listed: manifest.Manifest, regions: Regions) -> list[str]:
    """Return the image_id of each region."""
    wanted, first, found = regions.rows, 0, list[str]()
    for batch in listed.iter_columns(["image_id"]):
        start, stop = np.searchsorted(wanted, [first, first + batch.num_rows])
        found += batch.column(0).take(pa.array(wanted[start:stop] - first)).to_pylist()
        first += batch.num_rows
    return found


def _taken(arrays: Iterable[tuple[str, Sequence[str]]]) -> set[str]:
    """Return the names that a column of a list cannot have: those of all arrays, and of their axes."""
    every = {"image", *stored_arrays.LENGTHS, *(array.name for array in stored_arrays.TABLE)}
    return every.union(*((name, *dims) for name, dims in arrays))


def readme(
    identity: Mapping[str, Any],
    listed: manifest.Manifest,
    wanted: Sequence[products.Product],
    *,
    out: str,
    weights: str | None,
    not_stored: str = "",
    regions: Regions | None = None,
) -> str:
    """Return the run folder's README; `out` and `weights` are as given by the user.

    `not_stored` lists model outputs that are not stored.
    """
    where, opening = ".", '\nrun = xarray.open_zarr("features.zarr", consolidated=False)'
    if is_remote(out):
        where = argument(out)
        opening = f"""from genenc_core.store.run_store import RunStore

# The environment names the server: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL.
run = xarray.open_zarr(RunStore.open("{out}").zarr_store(), consolidated=False)"""
    rows = "\n".join(
        f"| `{array.name}` | {_axes(array)} | {array.dtype} | "
        f"{f'`{item.text}`' if array.of is None else array.of.meaning} |"
        for item in wanted
        for array in item.arrays
    )
    first = wanted[0].name
    whole = f"\n{_QUANTIZED_WORDS}" if any(item.dtype in stored_arrays.QUANTIZED for item in wanted) else ""
    shown = " + ".join(
        [" * ".join(f"run.{each.name}" for each in wanted[0].arrays[:2])]
        + [f"run.{each.name}" for each in wanted[0].arrays[2:]]
    )
    values = "" if len(wanted[0].arrays) == 1 else f"\n{first} = {shown}"
    tiles = "" if "tiles" not in identity else f"\nTiles: {_tiles_words(identity['tiles'])}."
    left_out = f"\nLeft out: {text.markdown(listed.what_is_left_out)}." if listed.left_out else ""
    outputs = f"\nOutputs that are not stored: {text.markdown(not_stored)}." if not_stored else ""
    commands = f"Check the folder with `genenc verify {where}`; go on with\n`genenc resume {where}`."
    if (dataset := dataset_of(to_root(out))) is not None:
        whole_set = argument(dataset) if is_remote(out) else "../.."
        commands = (
            f"It is a part of a dataset: check that with\n`genenc verify {whole_set}`; go on with `genenc update "
            f"{whole_set}`."
        )
    rows_mean = ", ".join(f"{each.value} {each.name.replace('_', ' ')}" for each in statuses.ROWS)
    preprocessing = spec.Preprocessing.model_validate_json(json.dumps(identity["preprocessing"])).describe()
    scale = listed.points_scale
    drawn = f" ({weights}: not trained, these features mean nothing)" if (weights or "").startswith("random") else ""
    scaled = "" if scale.text is None else f"\nPoints: the coordinates of the points file were {scale.describe()}."
    if regions is not None:
        scaled += _regions_words(regions)
    probed = _probed_words(identity[PROBED]) if PROBED in identity else ""
    return f"""# Features of {listed.rows} images from {text.markdown(identity["model"])}

One image is one row, the same index in every array and in `images.parquet`. `status` says which rows count:
{rows_mean} (NaN). {commands}

```python
import xarray
{opening}{values}
good = {first if values else f"run.{first}"}[(run.status == {statuses.OK}).compute()]
print(good.sizes, good.image_id.values[:3])
```

| array | axes | stored as | product |
|---|---|---|---|
{rows}

Weights `{str(identity["weights"])[:16]}`{drawn}, backend {identity["backend"]}.
Preprocessing: {preprocessing}.{tiles}{probed}{scaled}{outputs}{left_out}{whole}
Do not mix these vectors with those of another run: other weights or preprocessing mean another space.
"""


def _product_arrays(
    product: products.Product,
    listed: manifest.Manifest,
    shard_rows: int,
    columns: Sequence[str],
    chunk_channels: int | None,
) -> Iterator[layout.ArrayPlan]:
    """Yield the plans of a product's values, and if they are integers, of what they are scaled by."""
    probes = product.needs_points
    values, *beside = product.arrays
    flags = [stored_arrays.STATUS, *([stored_arrays.POINT_STATUS] if probes else [])]
    attributes: dict[str, object] = {
        "long_name": f"{product.text.partition('@')[0]} of output slot {product.slot}",
        "units": "1",
        "coordinates": " ".join([_coordinates_of(listed, with_points=probes), *columns]),
        "ancillary_variables": " ".join([*flags, *(array.name for array in beside)]),
        "genenc_product": product.text,
        **_scaled_by(beside),
    }
    tail = _chunk_tail(product, chunk_channels)
    for array in (values, *beside):
        chunk = array.shape if array.of is not None or not tail else tail
        yield layout.ArrayPlan(
            name=array.name,
            shape=(listed.rows, *array.shape),
            dtype=array.dtype,
            dims=("image", *array.dims),
            chunk_rows=_chunk_rows(shard_rows, math.prod(chunk) * np.dtype(array.dtype).itemsize),
            fill=array.empty,
            attributes=attributes if array.of is None else {"long_name": f"{array.of.meaning} of {product.name}"},
            # zstd saves 7 % on dense values but takes several times as long; missing points are all NaN and compress
            # well.
            compress=probes,
            chunk_tail=tail if array.of is None else (),
        )


def _chunk_tail(product: products.Product, channels: int | None) -> tuple[int, ...]:
    """Return the chunk's lengths along a product's axes; () if its channels are not divided."""
    shape, axis = product.signature.shape, product.channel_axis
    if channels is None or channels >= shape[axis]:
        return ()
    return (*shape[:axis], channels, *shape[axis + 1 :])


def refuse_whole_chunks(wanted: Sequence[products.Product], channels: int | None) -> None:
    """Refuse a number of channels per chunk that divides no product.

    Raises:
        InputError: no product has more channels.
    """
    if channels is not None and not any(_chunk_tail(product, channels) for product in wanted):
        sizes = ", ".join(f"{item.name} {item.signature.shape[item.channel_axis]}" for item in wanted)
        raise errors.InputError(
            f"--chunk-channels {channels} divides nothing: no product has more channels ({sizes}); give fewer, or "
            "leave it out"
        )


def _region_product_arrays(
    product: products.Product, rows: int, shard_rows: int, places: int
) -> Iterator[layout.ArrayPlan]:
    """Yield the plans of flat arrays `[region, ...]`: one row per region."""
    values, *beside = product.arrays
    attributes: dict[str, object] = {
        "long_name": f"{product.text.partition('@')[0]} of output slot {product.slot}",
        "units": "1",
        "coordinates": stored_arrays.region_coordinates(),
        "ancillary_variables": " ".join([stored_arrays.REGION_STATUS, *(array.name for array in beside)]),
        "genenc_product": product.text,
        **_scaled_by(beside),
    }
    for array in (values, *beside):
        shape = array.shape[1:]
        yield layout.ArrayPlan(
            name=array.name,
            shape=(places * -(-rows // shard_rows), *shape),
            dtype=array.dtype,
            dims=array.dims,
            chunk_rows=_chunk_rows(places, math.prod(shape) * np.dtype(array.dtype).itemsize),
            fill=array.empty,
            attributes=attributes if array.of is None else {"long_name": f"{array.of.meaning} of {product.name}"},
            compress=True,  # places without a region are all alike
        )


def _scaled_by(beside: Sequence[products.ProductArray]) -> dict[str, object]:
    """Return attributes that name the arrays beside one of integers."""
    names = {each.of.suffix: each.name for each in beside if each.of is not None}
    return float_values.attributes(names) if names else {}


def _coordinates_of(listed: manifest.Manifest, *, with_points: bool) -> str:
    return stored_arrays.coordinates(
        with_points=bool(listed.point_names) and with_points,
        with_individuals=bool(listed.individuals) and with_points,
        with_likelihoods=listed.has_likelihood and with_points,
    )


def _tiles_words(tiles: Mapping[str, Any]) -> str:
    height, width = tiles["size"]
    return (
        f"each image was encoded in tiles of {height} x {width} pixels (overlap {tiles['overlap']}, trim "
        f"{tiles['trim']}, blend {tiles['blend']}), and maps are stitched"
    )


def _probed_words(probed: Mapping[str, Any]) -> str:
    stored = ", ".join(f"`{text}`" for text in probed["slots"].values())
    exact = ""
    for kind in ("float16", *stored_arrays.QUANTIZED):
        rounded = [slot for slot, text in probed["slots"].items() if text.endswith(f"@{kind}")]
        exact += f"; values of {', '.join(rounded)} were rounded to {kind} before" if rounded else ""
    return (
        f"\nMade by `genenc probe` from stored outputs ({stored}) of another run, which provenance/source.json "
        f"names{exact}."
    )


def stored_row_bytes(product: products.Product) -> int:
    """Return the stored bytes of one image's value."""
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in product.arrays)


def _chunk_rows(shard_rows: int, row_bytes: int, *, most: int = CHUNK_ROWS) -> int:
    """Return the largest divisor of the shard with at most `most` rows and 8 MiB."""
    most = max(1, min(most, CHUNK_BYTES // max(row_bytes, 1), shard_rows))
    return next(rows for rows in range(most, 0, -1) if shard_rows % rows == 0)


def _coordinate_attributes(
    array: stored_arrays.StoredArray, scale: PointsScale, plan: layout.StorePlan
) -> Mapping[str, object]:
    """Return an array's attributes, with units for coordinates of points and regions."""
    edges = [f"region_{name}" for name in region_rows.BOX]
    if array.name not in (*manifest_rows.POINT_COLUMNS, *edges):
        later = array.later if stored_arrays.CONVENTIONS in plan.attributes else {}
        return {**array.attributes, **later}
    axis, what = (array.name.split("_")[1], "regions") if array.of_regions else (array.name[-1], "points")
    side = {"x": "width", "y": "height"}[axis]
    comment = "origin at the top left edge of the image, after EXIF orientation"
    if scale.text is not None:
        comment += f"; the coordinates of the {what} file were {scale.describe()}"
    return {
        "long_name": f"{array.attributes['long_name']}" + (f", by its {side}" if scale.relative else ""),
        "units": "1" if scale.relative else "pixel",
        "comment": comment,
    }


def _texts(listed: manifest.Manifest, column: str) -> Iterator[list[str]]:
    for batch in listed.iter_columns([column]):
        yield batch.column(0).to_pylist()


def _positions(listed: manifest.Manifest, column: str) -> Iterator[np.ndarray]:
    count = len(listed.point_names)
    for batch in listed.iter_columns([column]):
        values: pa.FixedSizeListArray = batch.column(0)
        yield values.flatten().to_numpy(zero_copy_only=False).reshape(-1, count)


def _regions_words(regions: Regions) -> str:
    """Return how regions are stored, for the README."""
    scale = (
        "" if regions.scale.text is None else f"; the coordinates of the regions file were {regions.scale.describe()}"
    )
    states = ", ".join(f"{each.value} {each.name.replace('_', ' ')}" for each in statuses.REGIONS)
    return (
        f"\nRegions: {len(regions)}, in `regions.parquet` and on the axis `region`, one row each; `region_image` is "
        f"the row of the image, `region_status` one of {states}{scale}."
    )


def _axes(array: products.ProductArray) -> str:
    axes = zip(array.dims, array.shape, strict=True)
    if array.dims[:1] == ("region",):
        return ", ".join(["region", *(f"{dim} {size}" for dim, size in axes if dim != "region")])
    return ", ".join(["image", *(f"{dim} {size}" for dim, size in axes)])
