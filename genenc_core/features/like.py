"""The vector of an image that is not stored: encoded by a run of one image, like the run that is searched.

Model files, preprocessing, products and batch size are the run's own, so that an image that it stores has the very
vector that is stored.
"""

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np

from genenc_core import errors, statuses
from genenc_core.features import execution
from genenc_core.features.parameters import SearchParameters
from genenc_core.images.labels import matching
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.sources import folders, image_source, manifest
from genenc_core.run import driver, model_cache, out_folder, planning, records, status, tiles
from genenc_core.run.folder import MANIFEST, RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored
from genenc_core.system import digests, files, scratch
from genenc_core.text import argument

_IMAGE_ID = "image-that-is-searched-for"


def encoded(stored: Stored, product: str, given: SearchParameters) -> np.ndarray:
    """Return the vector of an image, or of a pixel of it, `[channels]`.

    Raises:
        InputError: the image cannot be read, or the run has no model to encode it with.
        StoreError: the run is damaged, or its model is not the one that it was made with.
    """
    assert given.like is not None
    run = stored.model_run
    if run.is_probe_set:
        raise errors.InputError(
            f"{run.root!r} is a probe set, which has no model: search it with --row, or search the run that was probed"
        )
    path = Path(os.path.abspath(given.like))  # noqa: PTH100 -- does not resolve links
    if not path.is_file():
        raise errors.InputError(f"--like {given.like!r} is no file: give an image")
    point = _pixel(given.at, run) if given.at is not None else None
    if given.point is not None and point is None:
        raise errors.InputError(
            f"--point {given.point!r} with --like needs --at X,Y: the pixel of {given.like!r} to look at"
        )
    with scratch.TemporaryFolder("search") as place:
        made = _create(run, path, Path(place), given, point)
        _encode(made, run, trust=given.trust)
        return _vector(stored_rows.open_rows(made.root), product, given)


def is_stored_as(stored: Stored, position: int, image: str) -> bool:
    """Return whether a row was made from a file with the bytes of this one, by the digest in its commit record."""
    origin = stored.origin(position)
    record = origin.run.store.record(origin.row // origin.run.store.plan.shard_rows)
    if record is None:
        return False
    recorded = stored_rows.digests_of(record)[origin.row - record.rows[0]]
    return bool(recorded) and recorded == files.digest(Path(image), digests.IMAGE_FILE.algorithm)[1]


def _create(
    run: RunFolder, image: Path, place: Path, given: SearchParameters, point: tuple[float, float] | None
) -> RunFolder:
    listed, count = place / "image.csv", execution.usual(run)[1] or 1
    # A whole batch of it: kernels round differently for other batch sizes.
    rows = [[f"{_IMAGE_ID}-{at}", folders.to_text(str(image))] for at in range(count)]
    with listed.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image_id", "path"], *rows])
    names = run.manifest.point_names
    table = None
    if names:
        xy = np.full((1, len(names), 2), np.nan)
        if point is not None and given.point is not None:
            xy[0, names.index(given.point)] = point
        own = {"scale": run.points_scale, "individuals": run.manifest.individuals}
        table = PointTable(names=names, images=(matching.normal(f"{_IMAGE_ID}-0"),), xy=xy, **own)  # type: ignore[arg-type]
    asked = run.given.model_copy(
        update={"images": str(listed), "out": str(place / "run"), "points": None, "limit": None, "shard_rows": count}
    )
    design = design_of(run, asked)
    design = dataclasses.replace(design, products=tuple(each for each in design.products if not each.needs_regions))
    with out_folder.planning_folder(asked.out) as plans:
        source = image_source.open_source(asked.images, image_column="path")
        images = manifest.write_manifest(plans / MANIFEST, source, points=table)
        planning.publish(Path(asked.out), asked, design, images, scratch=plans, like=run)
    return RunFolder(Path(asked.out))


def design_of(run: RunFolder, given: ExtractParameters) -> planning.Design:
    """Return what is known of a run before its images are listed, from its records; loads no weights.

    Raises:
        InputError: a file of the model is missing.
        StoreError: a file of the model is not the one that the run was made with.
    """
    model = model_cache.run_model(run)
    _, built = tiles.recorded_products(run, model.spec)
    return planning.Design(
        model=model,
        preprocessing=run.preprocessing,
        products=built,
        points=None,
        device=model_cache.device_of(model, given.device),
        tiles=run.tiles,
        cells=run.cells,
    )


def _encode(made: RunFolder, run: RunFolder, *, trust: bool) -> None:
    _, size = execution.usual(run)
    options = records.Options.of(made.given)
    options = dataclasses.replace(
        options, batch_size=size, device=device_like(run), trust=trust, max_failures="100%", decode_workers=1
    )
    driver.complete(driver.Session(made, options, command="search").work("pending"))
    for image in status.survey(made, most=1, committed_rows=False).unreadable:
        raise errors.InputError(f"the image to search for cannot be read: {image['reason']}")


def device_like(run: RunFolder) -> str:
    """Return the device to repeat a run on: of the kind that it was made on, if there is one here."""
    import torch

    kind, _ = execution.usual(run)
    if kind.startswith("cuda") and not torch.cuda.is_available():
        return "auto"
    return "cuda:0" if kind.startswith("cuda") else kind or "auto"


def _vector(stored: Stored, product: str, given: SearchParameters) -> np.ndarray:
    found = stored.take(product, np.arange(1))[0]
    if given.point is not None:
        at = stored_rows.point_index(stored, given.point)
        state = int(stored.take("point_status", np.arange(1))[0, at])
        if state != statuses.POINT_OK:
            words = next(each.name for each in statuses.POINTS if each.value == state).replace("_", " ")
            raise errors.InputError(f"--at {given.at!r} of {given.like!r} has no vector: {words}; give another pixel")
        found = found[at]
    return np.asarray(found, np.float64).reshape(-1)


def _pixel(text: str, run: RunFolder) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
        if not np.isfinite([x, y]).all():
            raise ValueError
    except ValueError as error:
        raise errors.InputError(f"--at {text!r} is no pixel: give X,Y from the top left, such as 120,80.5") from error
    if run.points_scale.relative:
        raise errors.InputError(
            f"the points of {run.root!r} are fractions of the images' sizes, where --at is not known: search with "
            f"genenc search {argument(run.root)} --row IMAGE_ID --point NAME"
        )
    return x, y
