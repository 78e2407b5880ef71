"""A run's arrays worked out from its design: shapes, shards, chunks, names, and what the folder says of itself."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from genenc_core import spec, text
from genenc_core.encoding import products
from genenc_core.images import folders, manifest
from genenc_core.images.point_scale import PointsScale
from genenc_core.images.point_states import POINT_STATES
from genenc_core.store import layout
from genenc_core.store.objects import is_remote
from genenc_core.text import argument

GPU_SHARD_ROWS = 4096
CPU_SHARD_ROWS = 256
FEWEST_SHARD_ROWS = 32
WANTED_SHARDS = 8
SHARD_BYTES = 512 * 2**20
CHUNK_ROWS = 256
CHUNK_BYTES = 8 * 2**20
COORDINATES = "image_id path image_height image_width image_orientation"


def choose_shard_rows(
    rows: int, wanted: Sequence[products.Product], *, device: str, smallest_batch: int, tiles: int = 1
) -> int:
    """Return the images per shard: seconds of work, at most 512 MiB, fewer for few images, a multiple of 16.

    An image of many tiles is as much work as that many images, and a shard has that many fewer.
    """
    row_bytes = max(sum(_row_bytes(product) for product in wanted), 1)
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
) -> layout.StorePlan:
    """Return the plan of every array of the run; `made` holds its fingerprint and the digests of its files.

    `outputs` is what the model gives for a few fixed images, kept beside the identity: it rounds otherwise elsewhere.
    """
    point_count = len(listed.point_names)
    arrays = [_product_array(product, listed.rows, shard_rows, bool(point_count)) for product in wanted]
    arrays += _image_arrays(listed.rows, shard_rows)
    if point_count:
        arrays.append(_point_status(listed.rows, point_count, shard_rows))
    told = ("model", "weights", "backend", "preprocessing", "tiles")
    model = {key: identity[key] for key in told if key in identity} | ({"outputs": outputs} if outputs else {})
    return layout.StorePlan(
        rows=listed.rows,
        shard_rows=shard_rows,
        arrays=tuple(arrays),
        fingerprint=made["fingerprint"],
        identity=identity,
        attributes={
            "title": f"Image features of {identity['model']}",
            "genenc": {**made, "manifest_sha256": listed.digest, "shard_rows": shard_rows, **model},
        },
    )


def coordinates(listed: manifest.Manifest) -> list[layout.CoordinatePlan]:
    """Return the arrays that are known before any image is read: ids, paths and points."""
    plans = [
        layout.CoordinatePlan(
            name=name, dims=("image",), kind="string", values=_texts(listed, name), attributes={"long_name": meaning}
        )
        for name, meaning in (("image_id", "name of the image"), ("path", "path below the source root"))
    ]
    if not listed.point_names:
        return plans
    plans.append(layout.CoordinatePlan(name="point", dims=("point",), kind="string", values=list(listed.point_names)))
    plans += [
        layout.CoordinatePlan(
            name=f"point_{axis}",
            dims=("image", "point"),
            kind="float64",
            values=_positions(listed, f"point_{axis}"),
            attributes=_point_attributes(axis, listed.points_scale),
        )
        for axis in ("x", "y")
    ]
    return plans


def readme(
    identity: Mapping[str, Any],
    listed: manifest.Manifest,
    wanted: Sequence[products.Product],
    *,
    out: str,
    not_stored: str = "",
) -> str:
    """Return the text that a person who finds the folder needs; `out` is where it was asked for.

    `not_stored` says which outputs of the model are not.
    """
    where, opening = ".", '\nrun = xarray.open_zarr("features.zarr", consolidated=False)'
    if is_remote(out):
        where = argument(out)
        opening = f"""from genenc_core.store.run_store import RunStore

# The environment names the server: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL.
run = xarray.open_zarr(RunStore.open("{out}").zarr_store(), consolidated=False)"""
    rows = "\n".join(f"| `{item.name}` | {_axes(item)} | {item.dtype} | `{item.text}` |" for item in wanted)
    first = wanted[0].name
    tiles = "" if "tiles" not in identity else f"\nTiles: {_tiles_words(identity['tiles'])}."
    left_out = f"\nLeft out: {text.markdown(folders.describe(listed.left_out))}." if listed.left_out else ""
    outputs = f"\nOutputs that are not stored: {text.markdown(not_stored)}." if not_stored else ""
    preprocessing = spec.Preprocessing.model_validate_json(json.dumps(identity["preprocessing"])).describe()
    scale = listed.points_scale
    scaled = "" if scale.text is None else f"\nPoints: the coordinates of the points file were {scale.describe()}."
    return f"""# Features of {listed.rows} images from {text.markdown(identity["model"])}

One image is one row, the same index in every array and in `images.parquet`. `status` says which rows count:
0 not written, 1 ok, 2 unreadable (NaN). Check the folder with `genenc verify {where}`; go on with
`genenc resume {where}`.

```python
import xarray
{opening}
good = run.{first}[(run.status == 1).compute()]
print(good.sizes, run.image_id.values[:3])
```

| array | axes | stored as | product |
|---|---|---|---|
{rows}

Weights `{str(identity["weights"])[:16]}`, backend {identity["backend"]}.
Preprocessing: {preprocessing}.{tiles}{scaled}{outputs}{left_out}
Do not mix these vectors with those of another run: other weights or preprocessing mean another space.
"""


def _product_array(product: products.Product, rows: int, shard_rows: int, with_points: bool) -> layout.ArrayPlan:
    extra = " point_x point_y" if with_points and product.needs_points else ""
    flags = " point_status" if product.needs_points else ""
    return layout.ArrayPlan(
        name=product.name,
        shape=(rows, *product.signature.shape),
        dtype=product.dtype,
        dims=("image", *product.signature.dims),
        chunk_rows=_chunk_rows(shard_rows, _row_bytes(product)),
        fill=float("nan"),
        attributes={
            "long_name": f"{product.text.partition('@')[0]} of output slot {product.slot}",
            "units": "1",
            "coordinates": COORDINATES + extra,
            "ancillary_variables": "status" + flags,
            "genenc_product": product.text,
        },
        # Dense values gain 7 % from zstd, for several times the time of a write; a missing point is nothing but NaN.
        compress=product.needs_points,
    )


def _image_arrays(rows: int, shard_rows: int) -> list[layout.ArrayPlan]:
    def plan(name: str, dtype: str, fill: float, meaning: str, *, more: tuple[tuple[str, int], ...] = ()) -> Any:
        return layout.ArrayPlan(
            name=name,
            shape=(rows, *(size for _, size in more)),
            dtype=dtype,
            dims=("image", *(dim for dim, _ in more)),
            chunk_rows=_chunk_rows(shard_rows, 32, most=shard_rows),
            fill=fill,
            attributes={"long_name": meaning},
            compress=True,
        )

    affine = "scale x, scale y, offset x, offset y: model pixel = source pixel * scale + offset"
    return [
        plan("image_height", "int32", -1, "height of the image in pixels, after EXIF orientation"),
        plan("image_width", "int32", -1, "width of the image in pixels, after EXIF orientation"),
        plan("image_orientation", "uint8", 0, "EXIF orientation found and applied, 1 to 8; 0 not read"),
        plan("image_affine", "float64", float("nan"), affine, more=(("affine", 4),)),
    ]


def _point_status(rows: int, point_count: int, shard_rows: int) -> layout.ArrayPlan:
    return layout.ArrayPlan(
        name="point_status",
        shape=(rows, point_count),
        dtype="uint8",
        dims=("image", "point"),
        chunk_rows=_chunk_rows(shard_rows, point_count, most=shard_rows),
        fill=0,
        attributes={
            "long_name": "state of the point",
            "flag_values": [0, *POINT_STATES],
            "flag_meanings": " ".join(["not_written", *POINT_STATES.values()]),
        },
        compress=True,
    )


def _tiles_words(tiles: Mapping[str, Any]) -> str:
    height, width = tiles["size"]
    return (
        f"each image was encoded in tiles of {height} x {width} pixels (overlap {tiles['overlap']}, trim "
        f"{tiles['trim']}, blend {tiles['blend']}), and maps are stitched"
    )


def _row_bytes(product: products.Product) -> int:
    return int(np.prod(product.signature.shape)) * np.dtype(product.dtype).itemsize


def _chunk_rows(shard_rows: int, row_bytes: int, *, most: int = CHUNK_ROWS) -> int:
    """Return the largest divisor of the shard with at most `most` rows and 8 MiB."""
    most = max(1, min(most, CHUNK_BYTES // max(row_bytes, 1), shard_rows))
    return next(rows for rows in range(most, 0, -1) if shard_rows % rows == 0)


def _point_attributes(axis: str, scale: PointsScale) -> dict[str, str]:
    side = {"x": "width", "y": "height"}[axis]
    comment = "origin at the top left edge of the image, after EXIF orientation"
    if scale.text is not None:
        comment += f"; the coordinates of the points file were {scale.describe()}"
    return {
        "long_name": f"{axis} of the point in the source image" + (f", by its {side}" if scale.relative else ""),
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


def _axes(product: products.Product) -> str:
    axes = zip(product.signature.dims, product.signature.shape, strict=True)
    return ", ".join(["image", *(f"{dim} {size}" for dim, size in axes)])
