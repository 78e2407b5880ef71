"""The inspection: lists images, decodes a sample, places labels, measures a small run, and says what it found."""

import contextlib
import dataclasses
import functools
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from genenc_core import errors, spec, statuses, text
from genenc_core.choices import Fit
from genenc_core.encoding import cancellation
from genenc_core.images.containers import kinds
from genenc_core.images.decode import geometry
from genenc_core.images.decode.limits import Limits
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.sources import folders, image_source, manifest, manifest_rows, text_order
from genenc_core.images.sources.regions import Regions
from genenc_core.inspection import cost, images, regions, sheet
from genenc_core.inspection.parameters import OF_MODEL, InspectParameters
from genenc_core.run import channels, options, out_folder, planning, status
from genenc_core.run.folder import DATASET
from genenc_core.run.parameters import parse_image_size
from genenc_core.store.backends.objects import is_remote
from genenc_core.store.store_keys import STORE_FILE
from genenc_core.system import files, limits, progress_rate, scratch

ON_SHEET: Final = 24
"""Images on the contact sheet."""
_KINDS: Final = 8
"""Kinds that are listed as text."""
_SHEET: Final = "contact_sheet.png"
_SIDE: Final = 224
"""Sides of the sheet's images without a model."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels of the images that were looked at, through the model's geometry."""

    names: tuple[str, ...]
    images_without: int
    """Of all images."""
    absent: int
    """Images of the points file that are not among the images."""
    uncertain: int
    """Labels left out because of their likelihood."""
    states: dict[str, int]
    """State of the points of the images looked at, as `point_status` names it -> count."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Areas:
    """Regions, and those of the images that were looked at through the model's geometry."""

    count: int
    """Of all images."""
    kinds: dict[str, int]
    """box, mask or crowd -> count."""
    categories: dict[str, int]
    """Class -> count, the most frequent first."""
    most: int
    """Regions of the image with the most."""
    images_without: int
    absent: int
    """Images of the regions file that are not among the images."""
    uncertain: int
    """Regions left out because of their score."""
    states: dict[str, int]
    """State of the regions of the images looked at, as `region_status` names it -> count."""
    under_a_cell: int | None
    """Of these: regions smaller than a cell of the model's map; None without a model."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found."""

    images: int
    bytes: int
    missing: int
    """Images of a list whose files are not there."""
    left_out: dict[str, int]
    """Extension of files that are no images -> count."""
    looked_at: int
    formats: dict[str, int]
    """Of the readable images that were looked at, as the following."""
    pixels: dict[str, int]
    """Bits and colours -> count."""
    sizes: dict[str, int]
    """Width x height, upright -> count."""
    turned: int
    """Images with an EXIF orientation other than 1."""
    unreadable: dict[str, str]
    """Image -> reason."""
    preprocessing: str
    """How they are fitted to the model, or to the contact sheet without one."""
    labels: Labels | None
    regions: Areas | None
    warnings: tuple[str, ...]
    refused: str
    """Why `genenc extract` would refuse these labels; "" if it would not."""
    model: str
    """Empty without one."""
    cost: cost.Cost | None
    contact_sheet: Image.Image | None = dataclasses.field(repr=False, compare=False)

    @property
    def exit_code(self) -> int:
        """That of `genenc inspect`."""
        return errors.InputError.exit_code if self.refused else 3 if self.unreadable or self.missing else 0

    def as_json(self) -> dict[str, Any]:
        """Return everything but the sheet as JSON data."""
        found = dataclasses.asdict(dataclasses.replace(self, contact_sheet=None))
        del found["contact_sheet"]
        return found


def inspect(given: InspectParameters) -> Inspection:
    """Look at images and labels, and at what a run over them would cost.

    Nothing is written but temporary files, which are removed.

    Raises:
        InputError: no images, an invalid parameter, labels that cannot be read or matched, an unknown model, or an
            `out` that `write` refuses or in which the contact sheet would be one of the images.
        OSError: the volume with the images fails.
        Stopped: a stop was requested.
    """
    said: list[str] = []
    with cancellation.ensure(), scratch.TemporaryFolder("inspect") as folder, _collected(said):
        found = _looked(given, Path(folder))
    return dataclasses.replace(found, warnings=tuple(dict.fromkeys(said)))


def _looked(given: InspectParameters, folder: Path) -> Inspection:
    """Return what an inspection finds, without its warnings; raises as `inspect`."""
    _refuse_without_model(given)
    asked = given.extraction(str(folder / "run"))
    source = planning.check_parameters(asked)
    if given.out:
        _check_place(given.out, source)
    table, areas = planning.read_labels(asked), planning.read_regions(asked)
    design = planning.make_design(asked, table, areas, export_to=folder / "model") if given.model else None
    preprocessing = _geometry(given, design)
    source = dataclasses.replace(source, channels=preprocessing.channels)
    listed = _listed(folder, source, table, areas, given.limit)
    found = planning.write_regions(folder / "regions.parquet", areas, listed)
    refused = _refused(listed, given, table, found, preprocessing.channels)
    rows = np.unique(np.linspace(0, listed.rows - 1, min(given.sample, listed.rows)).round().astype(np.int64))
    chosen = manifest.write_selection(folder / "sample.parquet", listed, rows)
    sample = images.look(
        chosen,
        preprocessing,
        keep=ON_SHEET,
        workers=given.decode_workers or min(limits.cores(), 4),
        limits=Limits(seconds=given.image_timeout, megapixels=given.max_megapixels),
    )
    points, states = _placed(chosen, sample, preprocessing)
    of_sample = None if found is None else regions.place(found, rows, sample, preprocessing)
    drawn = _drawn(chosen, sample, points, preprocessing, given.model, of_sample)
    measured = None
    if design is not None and len(sample.rows):
        few = None if found is None else regions.chosen(found, rows, folder / "regions.parquet")
        measured = cost.measure(asked, design, chosen, listed.rows, few, scratch=folder)
    seen = None if found is None or of_sample is None else _areas(found, listed, of_sample, design)
    return _found(given, listed, rows, sample, preprocessing, refused, states, seen, drawn, measured)


def _refuse_without_model(given: InspectParameters) -> None:
    """Raise `InputError` for an option that has no effect without a model."""
    for name in () if given.model else OF_MODEL:
        field, value = InspectParameters.model_fields[name], getattr(given, name)
        if value != field.default:
            flag = options.shown(field).flag or name.replace("_", "-")
            shown = "" if value is True else f" {value[0] if isinstance(value, tuple) else value!r}"
            raise errors.InputError(f"--{flag}{shown} has no effect without a model: add --model, or leave it out")


def _listed(
    folder: Path,
    source: image_source.ImageSource,
    table: PointTable | None,
    areas: RegionTable | None,
    limit: int | None,
) -> manifest.Manifest:
    listed = manifest.write_manifest(
        folder / "listed.parquet",
        source,
        points=table,
        regions=areas,
        limit=limit,
        checkpoint=cancellation.current().raise_if_cancelled,
    )
    text_order.check(source, listed)
    return listed


def _refused(
    listed: manifest.Manifest,
    given: InspectParameters,
    table: PointTable | None,
    found: Regions | None,
    channels: spec.Channels | None,
) -> str:
    """Return why a run would refuse the images or labels, "" if it would not."""
    try:
        planning.warn_of_images(listed, given, table=table, regions=found, channels=channels)
    except errors.InputError as error:
        return str(error)
    return ""


def _geometry(given: InspectParameters, design: planning.Design | None) -> spec.Preprocessing:
    if design is not None:
        return design.preprocessing
    height, width = parse_image_size(given.image_size) if given.image_size else (_SIDE, _SIDE)
    fit: Fit = given.fit or "pad"
    return spec.Preprocessing(height=height, width=width, fit=fit, channels=channels.without_model(given))


def _placed(
    chosen: manifest.Manifest, sample: images.Sample, preprocessing: spec.Preprocessing
) -> tuple[np.ndarray, dict[str, int]]:
    """Return the points of the readable images in model pixels, float64 `[n, K, 2]`, and counts by state."""
    own = chosen.read(0, chosen.rows).points[sample.rows]
    if chosen.points_scale.relative:
        own = own * sample.sizes[:, None, ::-1]
    if not own.shape[1] or not len(own):
        return own, {}
    points, state = geometry.map_points(own, sample.affines, sample.sizes, preprocessing)
    return points, statuses.counts(statuses.written(statuses.POINTS), state)


def _drawn(
    chosen: manifest.Manifest,
    sample: images.Sample,
    points: np.ndarray,
    preprocessing: spec.Preprocessing,
    model: str,
    of_sample: regions.Placed | None,
) -> Image.Image | None:
    if not sample.pixels:
        return None
    names = chosen.read(0, chosen.rows).image_ids
    at = {row: number for number, row in enumerate(sample.rows.tolist())}
    title = f"{model or 'no model'}: {preprocessing.describe()}; {len(sample.pixels)} of {len(names)} images looked at"
    shown = sample.pixels
    if preprocessing.channels is not None:
        own = preprocessing.channels
        title = f"{sheet.what_is_shown((own.names or own.chosen or tuple(range(own.count)))[:3])}; {title}"
        shown = sheet.in_colours(shown)
    return sheet.draw(
        title,
        {names[row]: image for row, image in shown.items()},
        {names[row]: points[at[row]] for row in sample.pixels} if chosen.point_names else {},
        chosen.point_names,
        {} if of_sample is None else {names[row]: of_sample.drawn.get(at[row], []) for row in sample.pixels},
        [] if of_sample is None else of_sample.categories,
    )


def _areas(
    found: Regions, listed: manifest.Manifest, of_sample: regions.Placed, design: planning.Design | None
) -> Areas:
    per_image = np.bincount(found.rows, minlength=listed.rows)
    return Areas(
        count=len(found),
        kinds=dict(Counter(found.texts("kind")).most_common()),
        categories=dict(Counter(filter(None, found.texts("category"))).most_common()),
        most=int(per_image.max()),
        images_without=int((per_image == 0).sum()),
        absent=int(found.labels.get("absent", 0)),
        uncertain=int(found.labels.get("uncertain", 0)),
        states=of_sample.states,
        under_a_cell=None if design is None else regions.under_a_cell(of_sample, design),
    )


def _bytes(listed: manifest.Manifest) -> tuple[int, int]:
    """Return the bytes of all files, each counted once, and how many images are missing."""
    total = missing = 0
    containers: dict[str, int] = {}
    for batch in listed.iter_columns(["path", "bytes"]):
        sizes = manifest_rows.numbers(batch.column("bytes"))
        missing += int((sizes < 0).sum())
        if not listed.has_members:
            total += int(sizes[sizes > 0].sum())
            continue
        for path, size in zip(batch.column("path").to_pylist(), np.maximum(sizes, 0).tolist(), strict=True):
            if kinds.is_remote(path) and kinds.remote_extension(path) != "tar":
                total += size
            else:
                containers[path] = size
    for path, size in containers.items():
        if kinds.is_remote(path):
            total += size
            continue
        place = listed.root / folders.to_path(path)
        files = [each.stat().st_size for each in place.rglob("*") if each.is_file()] if place.is_dir() else [size]
        total += sum(files)
    return total, missing


def _found(
    given: InspectParameters,
    listed: manifest.Manifest,
    rows: np.ndarray,
    sample: images.Sample,
    preprocessing: spec.Preprocessing,
    refused: str,
    states: dict[str, int],
    areas: Areas | None,
    drawn: Image.Image | None,
    measured: cost.Cost | None,
) -> Inspection:
    size, missing = _bytes(listed)
    names = {row: listed.read(int(rows[row]), int(rows[row]) + 1).image_ids[0] for row in sample.unreadable}
    sizes, counts = np.unique(sample.sizes, axis=0, return_counts=True)
    shown = sorted(zip(counts.tolist(), sizes.tolist(), strict=True), reverse=True)
    labels = None
    if listed.point_names:
        labels = Labels(
            names=listed.point_names,
            images_without=int(listed.labels.get("images_without", 0)),
            absent=int(listed.labels.get("absent", 0)),
            uncertain=int(listed.labels.get("uncertain", 0)),
            states=states,
        )
    return Inspection(
        images=listed.rows,
        bytes=size,
        missing=missing,
        left_out={kind: count for kind, (count, _) in listed.left_out.items()},
        looked_at=len(rows),
        formats=dict(sample.formats.most_common()),
        pixels=dict(sample.kinds.most_common()),
        sizes={f"{width} x {height}": count for count, (height, width) in shown},
        turned=int((sample.orientations > 1).sum()),
        unreadable={names[row]: reason for row, reason in sorted(sample.unreadable.items())},
        preprocessing=preprocessing.describe(),
        labels=labels,
        regions=areas,
        warnings=(),
        refused=refused,
        model=given.model,
        cost=measured,
        contact_sheet=drawn,
    )


def lines(found: Inspection) -> list[str]:
    """Return what was found as text."""
    said = [
        f"{text.plural(found.images, 'image')}, {text.size(found.bytes)}; {found.looked_at} looked at, evenly spread"
    ]
    if found.missing:
        said.append(f"  {text.plural(found.missing, 'file')} of the list missing")
    said += [f"  {_counted(counts)}" for counts in (found.formats, found.pixels, found.sizes) if counts]
    if found.turned:
        said.append(f"  {found.turned} turned upright by their EXIF orientation")
    if found.unreadable:
        said.append(f"  {len(found.unreadable)} of {found.looked_at} cannot be read:")
        shown = list(found.unreadable.items())[: images.UNREADABLE_SHOWN]
        said += [f"    {name}: {reason}" for name, reason in shown]
    if found.left_out:
        said.append(f"  files that are left out: {_counted(found.left_out)}")
    said.append(f"{found.model or 'no model'}: {found.preprocessing}")
    if found.labels is not None:
        said += _label_lines(found.labels)
    if found.regions is not None:
        said += _region_lines(found.regions)
    if found.refused:
        said.append(f"these labels would be refused: {found.refused}")
    said += [f"warning: {words}" for words in found.warnings]
    return said + ([] if found.cost is None else _cost_lines(found.cost, found.images))


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{count} {name or 'without an extension'}" for name, count in list(counts.items())[:_KINDS]]
    return ", ".join([*shown, *([f"and {len(counts) - _KINDS} more kinds"] if len(counts) > _KINDS else [])])


def _label_lines(labels: Labels) -> list[str]:
    names = ", ".join(labels.names[:_KINDS]) + (", ..." if len(labels.names) > _KINDS else "")
    states = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in labels.states.items() if count)
    said = [f"{text.plural(len(labels.names), 'point')} ({names}); of the images looked at: {states or 'none'}"]
    if labels.states.get("outside_view"):
        said.append("  outside view: cut off by the fit; --fit pad or stretch shows the model whole images")
    return said + status.label_lines(dataclasses.asdict(labels))


def _region_lines(areas: Areas) -> list[str]:
    states = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in areas.states.items() if count)
    said = [
        f"{text.plural(areas.count, 'region')} ({_counted(areas.kinds)}), up to {areas.most} in an image; of the "
        f"images looked at: {states or 'none'}"
    ]
    if areas.categories:
        said.append(f"  categories: {_counted(areas.categories)}")
    if areas.states.get("outside_view"):
        said.append("  outside view: cut off by the fit; --fit pad or stretch shows the model whole images")
    if areas.under_a_cell:
        said.append(
            f"  {areas.under_a_cell} smaller than a cell of the map: their vectors are those of a cell or two; use a "
            "larger --image-size or an earlier layer (--layers)"
        )
    return said + status.label_lines(dataclasses.asdict(areas), what="regions")


def _cost_lines(measured: cost.Cost, count: int) -> list[str]:
    memory = "" if measured.memory_bytes is None else f", memory {text.size(measured.memory_bytes)} and decode workers"
    busiest = f"; the busiest stage is {measured.limited_by}" if measured.limited_by else ""
    return [
        f"{measured.images_per_second:.3g} images/s, measured on {measured.measured}{busiest}",
        f"all {text.plural(count, 'image')}: {progress_rate.duration(measured.seconds)}, disk "
        f"{text.size(measured.disk_bytes)}{memory}",
    ]


def write(found: Inspection, out: str) -> list[Path]:
    """Write `inspection.json` and `contact_sheet.png`; return their paths.

    Raises:
        InputError: the folder is not writable, on S3, or a run's or dataset's.
    """
    _check_place(out)
    folder = Path(out)
    data = {folder / "inspection.json": (json.dumps(found.as_json(), indent=2) + "\n").encode()}
    if found.contact_sheet is not None:
        stored = io.BytesIO()
        found.contact_sheet.save(stored, format="PNG")
        data[folder / _SHEET] = stored.getvalue()
    with out_folder.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in data.items():
            files.replace(path, functools.partial(_write, content))
    return list(data)


def _check_place(out: str, source: image_source.ImageSource | None = None) -> None:
    folder = Path(out)
    if is_remote(out) or any((folder / name).exists() for name in (STORE_FILE, DATASET)):
        raise errors.InputError(f"--out {out!r} is no place for an inspection: give a local folder that holds no run")
    out_folder.refuse_inside_run(folder)
    if source is not None and folders.would_list(source, folder.resolve() / _SHEET):
        raise errors.InputError(
            f"--out {out!r} is inside {source.describe()}, whose next run would take {_SHEET} for one of its images: "
            "give a folder outside"
        )


def _write(content: bytes, partial: Path) -> None:
    files.write_new(partial, content)


@contextlib.contextmanager
def _collected(said: list[str]) -> Iterator[None]:
    """Collect the warnings of genenc instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            own = (item for item in caught if item.category.__module__.startswith("genenc_core"))
            said += [str(item.message) for item in own]
