"""The Zarr convention `emb:`: what the vectors in a group are, in attributes that any reader of Zarr sees.

Its page is `EMB.md`, its JSON Schema `emb.schema.json`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from genenc_core import spec, statuses, stored_arrays
from genenc_core.encoding import products
from genenc_core.images.sources import manifest
from genenc_core.images.sources import regions as region_rows
from genenc_core.images.sources.regions import Regions
from genenc_core.run.folder import CELLS

PREFIX: Final = "emb:"
VERSION: Final = "1"
CONVENTION: Final = {
    "uuid": "c604b3dd-e62e-4f9e-95d7-9ea0a1333044",
    "name": PREFIX,
    "description": "Vectors that an encoder computed from images: model, layer, preprocessing, pooling, quantization, "
    "geometry of points",
}
"""An entry of `zarr_conventions`. It has no URL: the project has no address of its own yet."""
_ORIGIN = "top left edge of the image, after EXIF orientation; x to the right, y down"


def attributes(
    identity: Mapping[str, Any],
    wanted: Sequence[products.Product],
    listed: manifest.Manifest,
    regions: Regions | None,
) -> dict[str, object]:
    """Return the attributes of a run's group, with the registration of the convention."""
    found = {
        "version": VERSION,
        "model": _model(identity),
        "preprocessing": _preprocessing(identity),
        "tiles": identity.get("tiles"),
        "images": {
            "dimension": "image",
            "names": "image_id",
            "files": "path",
            "status": stored_arrays.STATUS,
            "with_vectors": statuses.OK,
            "geometry": "image_affine",
        },
        "vectors": {product.name: _vectors(product) for product in wanted},
        "points": _points(listed) if listed.point_names else None,
        "regions": None if regions is None else _regions(regions),
        "cells": identity.get(CELLS),
    }
    own = {f"{PREFIX}{name}": value for name, value in found.items() if value}
    return {stored_arrays.CONVENTIONS: [CONVENTION], **own}


def _model(identity: Mapping[str, Any]) -> dict[str, Any]:
    execution = identity.get("execution") or {}
    found = {
        "name": identity["model"],
        "weights_sha256": identity.get("weights"),
        "artifact_sha256": identity.get("artifact"),
        "backend": identity.get("backend"),
        "precision": execution.get("precision", "float32"),
        "compiled": execution.get("compile") or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _preprocessing(identity: Mapping[str, Any]) -> dict[str, Any] | None:
    stored = identity.get("preprocessing")
    if stored is None:
        return None
    described = spec.Preprocessing.model_validate_json(json.dumps(stored)).describe()
    return {"description": described, **stored}


def _vectors(product: products.Product) -> dict[str, Any]:
    values, *beside = product.arrays
    found: dict[str, Any] = {
        "of": of(product),
        "layer": product.slot,
        "pooling": [str(step) for step in products.parse_product(product.text).steps],
        "channel_dimension": product.signature.dims[product.channel_axis],
        "channels": product.signature.shape[product.channel_axis],
        "type": values.dtype,
    }
    if beside:
        names = {array.of.suffix: array.name for array in beside if array.of is not None}
        values_are = f"stored * {names['scale']}" + (f" + {names['offset']}" if "offset" in names else "")
        found["quantization"] = {**names, "values": values_are}
    return found


def of(product: products.Product) -> str:
    """Return what each vector of a product is of: `image`, `point`, `region`, `cell` of a map, or `token`."""
    if product.needs_points:
        return "point"
    if product.needs_regions:
        return "region"
    return {1: "image", 2: "token"}.get(len(product.signature.shape), "cell")


def _points(listed: manifest.Manifest) -> dict[str, Any]:
    found: dict[str, Any] = {"dimension": stored_arrays.POINT, "names": stored_arrays.POINT}
    if listed.individuals:
        found["individuals"] = stored_arrays.INDIVIDUAL
    found |= {"x": "point_x", "y": "point_y", "units": "1" if listed.points_scale.relative else "pixel"}
    if listed.has_likelihood:
        found["likelihood"] = stored_arrays.LIKELIHOOD
    return found | {"origin": _ORIGIN, "status": stored_arrays.POINT_STATUS, "seen": statuses.POINT_OK}


def _regions(regions: Regions) -> dict[str, Any]:
    return {
        "dimension": stored_arrays.REGION,
        "image": "region_image",
        "box": [f"region_{name}" for name in region_rows.BOX],
        "units": "1" if regions.scale.relative else "pixel",
        "origin": _ORIGIN,
        "status": stored_arrays.REGION_STATUS,
        "seen": statuses.REGION_OK,
    }


_EACH: Final = {
    "image": "one vector for each image",
    "point": "one vector for each point of each image",
    "region": "one vector for each region",
    "cell": "one vector for each cell of each image's map",
    "token": "one vector for each token of each image",
}


def more(name: str, product: products.Product, identity: Mapping[str, Any]) -> dict[str, object]:
    """Return further attributes of an array of a product: what it holds, or the units of what it is scaled by."""
    return {"description": describe(product, identity)} if name == product.name else {"units": "1"}


def describe(product: products.Product, identity: Mapping[str, Any]) -> str:
    """Return what a product's array holds, in a sentence."""
    steps = products.parse_product(product.text).steps
    pooled = " + ".join(map(str, steps))
    how = "as it is" if pooled == "none" else f"through {pooled}"
    channels = product.signature.shape[product.channel_axis]
    return f"output slot {product.slot!r} of {identity['model']}, {how}: {_EACH[of(product)]}, of {channels} channels"
