"""Python API of genenc. Names in `__all__` follow semantic versioning; everything else may change.

Importing this module is fast: torch is imported on first use. The examples take random weights, which need no
download; their features mean nothing.
"""

import csv
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pydantic

from genenc_core import float_values
from genenc_core.errors import GenencError, InputError, StoreError
from genenc_core.run import parameters, records, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.run.records import Incomplete, Result
from genenc_core.store.backends.objects import Root, is_remote
from genenc_core.store.repair import Repaired
from genenc_core.store.run_store import RunStore
from genenc_core.store.verify import VerifyReport

if TYPE_CHECKING:
    import PIL.Image
    import xarray

    from genenc_core.dataset.documents import Version
    from genenc_core.dataset.folder import DatasetFolder
    from genenc_core.export.exporter import ExportedModel
    from genenc_core.features.comparison import Comparison
    from genenc_core.features.export import Exported
    from genenc_core.features.provenance import Written
    from genenc_core.features.reading import Features
    from genenc_core.features.rerun import Rerun
    from genenc_core.features.search import Neighbours
    from genenc_core.features.trace import Trace
    from genenc_core.inspection.inspect import Inspection
    from genenc_core.report.preview import Preview
    from genenc_core.report.report import Report
    from genenc_core.report.values import Audit
    from genenc_core.runtime.model_registry import ModelRegistry

    Image = str | os.PathLike[str] | np.ndarray | PIL.Image.Image

Kind = TypeVar("Kind")

__all__ = [
    "Run",
    "Dataset",
    "open",
    "extract",
    "inspect",
    "probe",
    "report",
    "preview",
    "audit",
    "update",
    "encode",
    "export",
    "models",
    "registry",
    "verify",
    "search",
    "trace",
    "compare",
    "rerun_from",
    "export_features",
    "export_provenance",
    "Result",
    "Incomplete",
    "GenencError",
    "InputError",
    "StoreError",
]


class Run:
    """A run: features of a list of images, in a folder or under an S3 prefix.

    Example:
        >>> run = Run.create(images="photos", model="resnet18", weights="random:0", image_size=64, out="run")
        >>> run.plan()
        [0]
        >>> run.encode().status.ok
        6
        >>> run.arrays().features.shape
        (6, 512)
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @classmethod
    def create(cls, images: str, model: str, out: str, **options: Any) -> "Run":
        """List the images, resolve the model and create the run folder, or open an existing one; encodes nothing.

        Args:
            images: a folder, a glob, a list (CSV, Parquet, JSON lines), or a file with images inside.
            model: a model's name, `package.module:factory`, a model file, or a RuntimeModelSpec JSON.
            out: the run folder, or `s3://bucket/prefix`.
            options: those of `genenc extract`, with `_` for `-`: `points`, `weights`, `products`, ...

        Raises:
            InputError: an invalid argument or input; no files are left behind.
            StoreError: the folder holds another run, or is damaged.
        """
        from genenc_core.run import planning

        return cls(planning.create_run(_parameters(images, model, out, options)))

    @classmethod
    def open(cls, place: Root) -> "Run":
        """Open an existing run; no model is loaded.

        Raises:
            InputError: not a run folder.
            StoreError: it is damaged; `verify` lists the problems.
        """
        return cls(RunFolder(_fixed(place)))

    def __repr__(self) -> str:
        return f"Run.open({self.place!r})"

    @property
    def place(self) -> str:
        """The folder or `s3://` address."""
        return self.folder.root

    @property
    def parameters(self) -> ExtractParameters:
        """The parameters that the run was made with."""
        return self.folder.given

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity as JSON data: model, weights, preprocessing, products, images; equal for runs with equal rows."""
        return self.folder.identity

    def plan(self, shards: str = "pending") -> list[int]:
        """Return the shards that `encode` would encode: `pending`, `failed`, a list like `0,3-7`, or `unreadable`.

        Raises:
            InputError: not of these forms, or a shard that the run does not have.
        """
        return status.select_shards(self.folder, _selection(shards))

    def encode(
        self,
        shards: str = "pending",
        *,
        device: str | None = None,
        batch_size: int | None = None,
        max_failures: str | None = None,
        trust: bool = False,
        accept_changed: bool = False,
    ) -> Result:
        """Encode shards, commit them and verify the run; several processes may do so concurrently.

        Args:
            shards: as for `plan`; `unreadable` retries images that could not be read.
            device: `auto`, `cpu` or `cuda:N`; None for the run's own.
            batch_size: images per call; None for the run's own.
            max_failures: unreadable images allowed per shard, `12` or `5%`; None for the run's own.
            trust: import the code that the run folder names.
            accept_changed: store files that changed since the run was planned.

        Returns:
            The run's status (`status`) and bottleneck (`bound`).

        Raises:
            InputError: an invalid argument.
            StoreError: the folder is damaged.
            Incomplete: some shards were not done; see its `result`, and call `encode` again to retry them.
        """
        from genenc_core.run import driver

        given = {"device": device, "batch_size": batch_size, "max_failures": max_failures}
        changes = _valid(parameters.Changes, {**given, "trust": trust, "accept_changed": accept_changed})
        return driver.complete(driver.resume(self.folder, _selection(shards), changes))

    def verify(self, *, content: bool = False) -> VerifyReport:
        """Check every committed object against its record, and the run's input files; read-only.

        `content` also decodes every object and compares the digest of its values.
        """
        return status.verify_run(self.folder, content=content)

    def repair(self, *, content: bool = False) -> Repaired:
        """Repair the problems that `verify` finds: damaged shards become pending, metadata is rewritten.

        Raises:
            StoreError: an I/O error, or another process is repairing the run.
        """
        return status.repair_run(self.folder, content=content)

    def status(self) -> records.RunStatus:
        """Count the run's rows, shards and points from its commit records.

        Raises:
            StoreError: a commit record is damaged.
        """
        return status.run_status(self.folder)

    def arrays(self, *, raw: bool = False) -> "xarray.Dataset":
        """Open the store lazily: every product `[image, ...]`, `status` `[image]` (1: stored), and coordinates.

        Rows that are not stored yet or unreadable are NaN. Products that are stored as `int8` or `uint8` are float32
        values, computed as they are read; `raw`: the integers, and `PRODUCT_scale` and `PRODUCT_offset`, as stored.
        Products of regions are `[region, ...]`: a row for each region, in the order of the images, without the places
        that a shard leaves free; `region_image_id` names its image: `.sel(region=run.region_image_id == "a.png")`.

        Raises:
            InputError: xarray is not installed.
        """
        _require_xarray()
        import xarray

        from genenc_core.dataset import reading
        from genenc_core.run import float_arrays

        opened: xarray.Dataset = xarray.open_zarr(self.folder.store.zarr_store(), consolidated=False)
        return reading.regions_alone(opened if raw else float_arrays.decoded(opened))


class Dataset:
    """A dataset that `genenc update` makes: runs of one meaning as its parts, and versions of which rows are current.

    A version never changes: what it reads today it reads for ever, whatever later updates add.

    Example:
        >>> made = update("faces", "photos", "resnet18", weights="random:0", image_size=64, points="labels.csv")
        >>> rows = Dataset.open("faces", version=1).arrays()
        >>> rows.features.sel(image_id="img_002.png").shape
        (512,)
        >>> rows.probes.sel(image_id=["img_004.png", "img_001.png"], point="snout").dims
        ('image', 'probes_channel')
    """

    def __init__(self, folder: "DatasetFolder | RunFolder", version: "Version | None") -> None:
        self.folder = folder
        self._version = version

    @classmethod
    def open(cls, place: Root, version: int | str | None = None) -> "Dataset":
        """Open a version of a dataset, or a single run; no model is loaded, and no part is read.

        Args:
            place: the dataset or run, a folder or `s3://bucket/prefix`.
            version: a number or tag; None for the newest.

        Raises:
            InputError: not a dataset or run, or there is no such version.
            StoreError: it is damaged.
        """
        from genenc_core.dataset import folder

        fixed = _fixed(place)
        if isinstance(version, bool) or not isinstance(version, int | str | None):
            raise InputError(f"version {version!r} is of type {type(version).__name__}: give a number or a tag")
        if not folder.exists(place) and RunStore.exists(place):
            if version is not None:
                raise InputError(f"{str(place)!r} is a single run, which has no version {version!r}: leave it out")
            return cls(RunFolder(fixed), None)
        found = folder.DatasetFolder(fixed)
        return cls(found, found.version(version))

    def __repr__(self) -> str:
        return f"Dataset.open({self.place!r}{'' if self.version is None else f', version={self.version}'})"

    @property
    def place(self) -> str:
        """The folder or `s3://` address."""
        return self.folder.root

    @property
    def version(self) -> int | None:
        """The number of the version; None for a single run."""
        return None if self._version is None else self._version.version

    def arrays(self, *, raw: bool = False) -> "xarray.Dataset":
        """Open the current rows of all parts lazily, in a fixed order, with the arrays that `Run.arrays` has.

        Every product `[image, ...]`, `status` `[image]` (1: stored, 2: unreadable), and coordinates; `image_id` and
        `point` select by name: `.sel(image_id="a.png", point="snout")`. Only what is asked for is read: one row of one
        product takes at most two object reads, and the first of a part one more, which checks that the part is the
        one of the version. Names are read when one is first asked for. The result can be pickled, and shared by
        threads. `raw`: as for `Run.arrays`.

        Raises:
            InputError: xarray is not installed.
            StoreError: the version is damaged; reading raises it for a part that is missing, damaged or another one.
        """
        _require_xarray()
        from genenc_core.dataset import reading
        from genenc_core.run import float_arrays

        if isinstance(self.folder, RunFolder):
            opened = reading.open_run(self.folder)
        else:
            assert self._version is not None
            opened = reading.open_version(self.folder, self._version)
        return opened if raw else float_arrays.decoded(opened)


def open(place: Root, version: int | str | None = None) -> "Features":
    """Open the features of a run, or of a version of a dataset, as xarray, NumPy or a torch Dataset.

    Args:
        place: a run or dataset, a folder or `s3://bucket/prefix`.
        version: of a dataset: a number or tag; None for the newest.

    Returns:
        `xarray()` (lazy; one `channel` axis for products of one encoder output; `.sel(image_id=..., point=...)`),
        `numpy(product)`, `torch(product)`.

    Raises:
        InputError: not a run or dataset, or there is no such version.
        StoreError: it is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "opened", weights="random:0", image_size=64, fit="pad", maps=True)
        >>> found = open("opened").xarray()
        >>> (found.maps * found.features).mean("channel").dims
        ('image', 'y', 'x')
    """
    from genenc_core.features import reading

    if isinstance(version, bool) or not isinstance(version, int | str | None):
        raise InputError(f"version {version!r} is of type {type(version).__name__}: give a number or a tag")
    return reading.Features(_fixed(place), version)


def extract(images: str, model: str, out: str, **options: Any) -> Run:
    """Extract features from images: create or continue a run, encode missing shards and verify it.

    Arguments as for `Run.create`. Unreadable images are rows with status 2, not errors.

    Raises:
        InputError: an invalid argument or input; no files are left behind.
        StoreError: the folder holds another run, or is damaged.
        Incomplete: some shards were not done; the same call continues the run.

    Example:
        >>> run = extract("photos", "resnet18", "features", weights="random:0", image_size=64, points="labels.csv")
        >>> run.status().ok, run.status().unreadable
        (6, 0)
        >>> run.arrays().probes.dims
        ('image', 'point', 'probes_channel')
    """
    from genenc_core.run import driver

    return Run(driver.complete(driver.extract(_parameters(images, model, out, options))).run)


def probe(source: Root, out: str, **options: Any) -> Run:
    """Store vectors at new points, or poolings, of the maps that a run or dataset stores; needs no image or model.

    The probe set is a run of its own, with the images of the source: nothing in the source changes. Its values are
    those that the source would hold if it had been asked for them; maps stored as float16, int8 or uint8 were
    rounded before.

    Args:
        source: a run, or a dataset (its newest version, or `version`), that stores maps (`maps=True`, or products
            with `none`).
        out: the folder of the probe set, or `s3://bucket/prefix`.
        options: those of `genenc probe`, with `_` for `-`: `points`, `products`, `version`, ...

    Returns:
        The probe set. Where the source is not complete, it is not either; the same call continues it.

    Raises:
        InputError: an invalid argument or input, or no map is stored; no files are left behind.
        StoreError: the folder holds another probe set, or is damaged, or the source is.
        Incomplete: some shards were not done; the same call continues.

    Example:
        >>> run = extract("photos", "resnet18", "mapped", weights="random:0", image_size=64, fit="pad", maps=True)
        >>> probes = probe("mapped", "probed", points="labels.csv", products=["probes=spatial_point"])
        >>> probes.arrays().probes.sel(image=1).dims
        ('point', 'probes_channel')
    """
    from genenc_core.probing import probe as probing
    from genenc_core.probing.parameters import ProbeParameters
    from genenc_core.run import driver

    given = _valid(ProbeParameters, _as_text({"source": _fixed(source), "out": _fixed(out), **options}))
    return Run(driver.complete(probing.probe(given)).run)


def update(place: Root, images: str = "", model: str = "", **options: Any) -> Dataset:
    """Create or update a dataset: encode the images that are new or changed, and make a version.

    Nothing new: nothing is written. A part that a killed update left is continued.

    Args:
        place: the dataset, a folder or `s3://bucket/prefix`.
        images: as for `Run.create`; those of the last update by default, like everything that is not given.
        model: as for `Run.create`; it must stay the same.
        options: those of `genenc update`, with `_` for `-`: those of `genenc extract`, `by`, `vanished`, ...

    Returns:
        The dataset at its newest version.

    Raises:
        InputError: an invalid argument or input, or more than half of the images vanished.
        StoreError: another model, preprocessing or products than the dataset's, or damage.
        Incomplete: some shards were not done; the next update encodes their images.

    Example:
        >>> update("nightly", "photos", "resnet18", weights="random:0", image_size=64).version
        1
        >>> update("nightly").version
        1
    """
    _refuse_out(options, f"the dataset is {str(place)!r}: leave it out")
    from genenc_core.dataset import update as updating
    from genenc_core.dataset.parameters import UpdateParameters

    given = _valid(UpdateParameters, _as_text({"images": images, "model": model, "out": _fixed(place), **options}))
    parameters.check_engine(given.engine, given.engine_address, given.engine_workers, threads_only=_IN_FLOWS)
    done = updating.complete(updating.update(given))
    return Dataset(done.folder, done.version)


def encode(
    images: "Sequence[Image]", model: str, *, points: np.ndarray | None = None, **options: Any
) -> dict[str, np.ndarray]:
    """Encode a few images and return arrays with the same values that a run would store.

    Args:
        images: paths, uint8 RGB arrays `[H, W, 3]`, grey ones `[H, W]`, or Pillow images, of any sizes; upright, as
            files are (EXIF). For models of other channels, or with `channels` or `value_range`, arrays `[H, W, C]` of
            any of their types.
        model: as for `Run.create`.
        points: float `[B, K, 2]`, x and y in pixels from the top left edge of each image; NaN for missing points.
        options: as for `Run.create`, but `out` and `limit`.

    Returns:
        Arrays `[B, ...]` by product: `features` `[B, C]`, and with points `probes` `[B, K, C]`.

    Raises:
        InputError: an image cannot be read (the first is named), or an invalid argument.

    Example:
        >>> frame = np.zeros((48, 64, 3), np.uint8)
        >>> encode([frame, "photos/img_000.png"], "resnet18", weights="random:0", image_size=64)["features"].shape
        (2, 512)
    """
    _refuse_out(options, "encode returns arrays: use extract for a run folder")
    if options.get("limit") is not None:
        raise InputError(f"limit {options['limit']!r} is no option here: give fewer images")
    if isinstance(images, str | os.PathLike) or not hasattr(images, "__len__"):
        raise InputError(
            f"images is of type {type(images).__name__}: give a list of paths, uint8 RGB arrays or Pillow images"
        )
    if not len(images):
        raise InputError("images is empty: give at least one image")
    import zarr

    from genenc_core.images.sources import folders

    with tempfile.TemporaryDirectory(prefix="genenc-encode-") as folder:
        as_channels = any(options.get(name) is not None for name in ("channels", "value_range"))
        paths = [_path(image, Path(folder) / f"{at:06d}.png", as_channels) for at, image in enumerate(images)]
        # By ids of their own: a path may be given twice, or be no text.
        rows = [[_image_id(at), folders.to_text(path)] for at, path in enumerate(paths)]
        listed = _write_table(Path(folder) / "images.csv", ["image_id", "path"], rows)
        if points is not None:
            # Never guess another scale.
            options = {"points_scale": "1", **options, "points": str(_write_points(points, len(paths), Path(folder)))}
        run = extract(str(listed), model, str(Path(folder) / "run"), **{"max_failures": "100%", **options})
        group: Any = zarr.open_group(run.folder.store.zarr_store(), mode="r")
        names = [text.partition("=")[0] for text in run.identity["products"]]
        _refuse_unreadable(run)
        return {
            name: float_values.read(
                name,
                lambda each: np.asarray(group[each][:]),
                lambda each: group[each].attrs,
                lambda each: group[each].metadata.dimension_names,
            )
            for name in names
        }


def inspect(images: str, model: str = "", **options: Any) -> "Inspection":
    """Look at a sample of images, place labels in what the model sees, and measure a small run; nothing is written.

    Args:
        images: as for `Run.create`.
        model: as for `Run.create`; without one, images and labels alone.
        options: as for `Run.create` but `out`, and `sample`, how many images to look at (200).

    Returns:
        Counts by format, bits and size; unreadable images; the labels' states; `cost` of a run over all images; a
        `contact_sheet` (a Pillow image); `as_json()`.

    Raises:
        InputError: no images, an invalid argument, labels that match no image, or an unknown model.

    Example:
        >>> found = inspect("photos", "resnet18", weights="random:0", image_size=64, points="labels.csv")
        >>> found.images, found.pixels, found.labels.states["ok"]
        (6, {'8-bit RGB': 6}, 6)
        >>> found.contact_sheet.save("contact_sheet.png")
    """
    _refuse_out(options, "nothing is written: save `contact_sheet` and `as_json()` of the result")
    from genenc_core.inspection import inspect as inspecting
    from genenc_core.inspection.parameters import InspectParameters

    return inspecting.inspect(_valid(InspectParameters, _as_text({"images": images, "model": model, **options})))


def report(source: Root, out: str | os.PathLike[str] = "", **options: Any) -> "Report":
    """Look at a run or dataset: what ran, its images, maps, projection, values, times and origin, as one HTML page.

    Nothing in it changes, and no model is loaded. Needs matplotlib (`genenc[report]`).

    Args:
        source: a run, or a dataset (its newest version, or `version`).
        out: the `.html` file to write; without one, nothing is written.
        options: those of `genenc report`, with `_` for `-`: `sample`, `color_by`, `projection`, ...

    Returns:
        The page as `html`, and what is in it: `counts`, `audits`, `lines()`, `as_json()`.

    Raises:
        InputError: an invalid argument, `out` lies in the run, or matplotlib is not installed.
        StoreError: the run or dataset is damaged.
    """
    from genenc_core.report import report as reporting
    from genenc_core.report import report_file
    from genenc_core.report.parameters import ReportParameters

    given = _valid(ReportParameters, _as_text({"source": _fixed(source), "out": os.fspath(out), **options}))
    path = report_file.check(given) if out else None
    made = reporting.make(given)
    if path is not None:
        report_file.write(made.html, path)
    return made


def preview(source: Root, **options: Any) -> "Preview":
    """Draw pictures of one image whose map is stored; nothing is written.

    Args:
        source: a run, or a dataset (its newest version, or `version`).
        options: those of `genenc preview` but `out`: `row` or `image`, `at`, `maps`, `channels`.

    Returns:
        `pictures`, Pillow images by file name: the image, its map in colours, its channels, and the similarity of the
        cell at each point with all cells; `notes`: what is not shown, and why.

    Raises:
        InputError: an invalid argument, no such image, or no map is stored.
        StoreError: the run or dataset is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "seen", weights="random:0", image_size=64, fit="pad", maps=True)
        >>> seen = preview("seen", image="img_002.png", at="40,30")
        >>> sorted(seen.pictures)
        ['channels.png', 'image.png', 'pca.png', 'similarity-40-30.png']
    """
    _refuse_out(options, "nothing is written: save the `pictures` of the result")
    from genenc_core.report import preview as previewing
    from genenc_core.report.parameters import PreviewParameters

    return previewing.make(_valid(PreviewParameters, _as_text({"source": _fixed(source), **options})))


def audit(source: Root, *, version: int | str | None = None, product: str | None = None) -> "list[Audit]":
    """Look for values that make no sense: NaN, constant, repeated and outlying vectors, dead dimensions, drift.

    All stored vectors are read, or a seeded sample of them where a product has more than 8 GiB.

    Args:
        source: a run or a dataset.
        version: of a dataset, a number or tag; None for the newest.
        product: the array to audit; None for all but maps.

    Returns:
        One `Audit` for each product: counts with the first rows of each, `findings` in words, `as_json()`.

    Raises:
        InputError: not a run or dataset, or no such product.
        StoreError: it is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "sound", weights="random:0", image_size=64, points="labels.csv")
        >>> [(found.product, found.not_finite.count) for found in audit("sound")]
        [('features', 0), ('probes', 0)]
    """
    from genenc_core.report import subject, values

    opened = subject.open_rows(_fixed(source), version)
    known = values.audited(opened)
    chosen = [each for each in known if product in (None, each.name)]
    if product is not None and not chosen:
        names = ", ".join(each.name for each in known) or "none"
        raise InputError(f"product {product!r} has no vectors to audit in {str(source)!r}; known: {names}")
    return [found for each in chosen if (found := values.audit(opened, each)) is not None]


def export(model: str, out: str, **options: Any) -> "list[ExportedModel]":
    """Export a model to files that run without its code, with specs; each file is compared with the model.

    Args:
        model: a model's name, `package.module:factory`, or a model file.
        out: a folder.
        options: those of `genenc export`, with `_` for `-`: `formats`, `image_size`, `batch_max`, ...

    Raises:
        InputError: an invalid argument, or the model cannot be exported.

    Example:
        >>> (made,) = export("resnet18", "exported", weights="random:0", image_size=64, formats="torchscript")
        >>> made.spec.outputs[0].shape
        (512, 2, 2)
    """
    from genenc_core.run import model_export

    return model_export.export(_valid(parameters.ExportParameters, _as_text({"model": model, "out": out, **options})))


def models(search: str = "") -> list[str]:
    """Return the names of encoders of genenc, torchvision and timm that contain `search`.

    Example:
        >>> "resnet18" in models("resnet")
        True
    """
    return [name for name in registry().ids() if search.lower() in name.lower()]


def registry(*folders: str | os.PathLike[str]) -> "ModelRegistry":
    """Return a registry of models by id: all model names, and the RuntimeModelSpec JSONs in these folders.

    It can register more specs (`register_from_json`), list ids (`ids`), describe a model (`info`) and create encoders
    (`create`): callables from float32 RGB `[B, 3, H, W]` in [0, 1] to outputs by slot name, maps `[B, C, h, w]`.

    Raises:
        InputError: no such folder, or a file in it is not a valid spec.

    Example:
        >>> known = registry()
        >>> encoder = known.create("resnet18", weights="random:0", image_size=(64, 64), device="cpu")
        >>> import torch
        >>> encoder(torch.zeros(1, 3, 64, 64))["features"].shape
        torch.Size([1, 512, 2, 2])
    """
    from genenc_core.runtime import model_registry

    found, problems = model_registry.folders(tuple(map(str, folders)))
    for problem in problems.values():
        raise InputError(problem)
    return found


def verify(place: Root, *, content: bool = False) -> VerifyReport:
    """Verify a run as `Run.verify` does, even if it is too damaged to open.

    Raises:
        InputError: not a run folder.
        StoreError: its store cannot be read.

    Example:
        >>> verify("features", content=True).ok
        True
    """
    return status.verify_place(_fixed(place), content=content)


def search(source: Root, *, vector: np.ndarray | None = None, **options: Any) -> "Neighbours":
    """Find the stored vectors nearest to that of an image, a stored row, or a vector; exact, in bounded memory.

    Args:
        source: a run or dataset, a folder or `s3://bucket/prefix`.
        vector: a vector to search for, in place of an image or row.
        options: those of `genenc search`, with `_` for `-`: `like`, `row`, `point`, `top`, `product`, `metric`, ...

    Returns:
        The neighbours in order of distance: `rows`, `image_ids`, `distances`; what was left out (`left_out`).

    Raises:
        InputError: an invalid argument, no such image, point or product, or the vector asked for is not stored.
        StoreError: the run or dataset is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "searched", weights="random:0", image_size=64)
        >>> search("searched", row="img_002.png", top=3).distances.shape
        (3,)
        >>> found = search("searched", like="photos/img_004.png")
        >>> found.image_ids[0], float(found.distances[0])
        ('img_004.png', 0.0)
    """
    from genenc_core.features import search as searching
    from genenc_core.features.parameters import SearchParameters

    given = _valid(SearchParameters, _as_text({"source": _fixed(source), **options}))
    return searching.search(given) if vector is None else searching.search_vector(given, vector)


def trace(source: Root, image: str, version: int | str | None = None) -> "Trace":
    """Return everything that is recorded of one row: file, transform, model, shard, attempt, session, versions.

    Args:
        source: a run or dataset, a folder or `s3://bucket/prefix`.
        image: the `image_id` or the end of it, the path, or `#N` for row N.
        version: of a dataset: a number or tag; None for the newest.

    Raises:
        InputError: not a run or dataset, or there is no such image or version.
        StoreError: a record is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "traced", weights="random:0", image_size=64)
        >>> found = trace("traced", "img_002.png")
        >>> found.state["status"], found.commit["shard"], found.model["name"]
        ('ok', 0, 'torchvision/resnet18')
        >>> print(found.lines()[1])
          image id         img_002.png
    """
    from genenc_core.features import trace as tracing
    from genenc_core.features.parameters import TraceParameters

    return tracing.trace(_valid(TraceParameters, {"source": _fixed(source), "image": image, "version": version}))


def compare(source: Root, other: Root, **options: Any) -> "Comparison":
    """Compare the features that two runs or versions have of the same images, by `image_id`, and why they differ.

    Args:
        source: a run or dataset, a folder or `s3://bucket/prefix`.
        other: the one to compare with it.
        options: those of `genenc compare`, with `_` for `-`: `product`, `other_product`, `different_images`, ...

    Returns:
        `cosine`, `difference`, linear `cka`, the `worst` rows, and entries of `identity` and `made_with` that differ.

    Raises:
        InputError: an invalid argument, no images in common, or images of one name that are other files.
        StoreError: one of them is damaged.

    Example:
        >>> one = extract("photos", "resnet18", "one", weights="random:0", image_size=64)
        >>> two = extract("photos", "resnet18", "two", weights="random:1", image_size=64)
        >>> found = compare("one", "two")
        >>> found.vectors, found.same, [entry.name for entry in found.identity]
        (6, False, ['weights'])
        >>> 0 < found.cka < 1
        True
    """
    from genenc_core.features import comparison
    from genenc_core.features.parameters import CompareParameters

    given = _as_text({"source": _fixed(source), "other": _fixed(other), **options})
    return comparison.compare(_valid(CompareParameters, given))


def rerun_from(source: Root, out: Root, **options: Any) -> "Rerun":
    """Make a run again from its record alone, and compare its values with the first one's; the same call continues.

    Args:
        source: a run, a folder or `s3://bucket/prefix`.
        out: the new run folder, or `s3://bucket/prefix`.
        options: those of `genenc rerun-from`, with `_` for `-`: `device`, `decode_workers`, `trust`.

    Returns:
        Whether all values are `identical`; arrays and shards that are `differing`, and what the `environment` has
        otherwise.

    Raises:
        InputError: an invalid argument, or a run that is not complete.
        StoreError: images, model, weights or code are not those of the run; the message names them.
        Incomplete: some shards were not done; the same call continues.

    Example:
        >>> run = extract("photos", "resnet18", "first", weights="random:0", image_size=64)
        >>> rerun_from("first", "again").identical
        True
    """
    from genenc_core.features import rerun
    from genenc_core.features.parameters import RerunParameters

    given = _as_text({"source": _fixed(source), "out": _fixed(out), **options})
    return rerun.rerun(_valid(RerunParameters, given))


def export_features(source: Root, out: Root, **options: Any) -> "Exported":
    """Write the features of a run or dataset as Parquet, NumPy files, HDF5, or a folder for the Hugging Face Hub.

    Args:
        source: a run or dataset, a folder or `s3://bucket/prefix`.
        out: a folder, of `hdf5` a file, which must not exist; it appears when it is complete.
        options: those of `genenc export-features`, with `_` for `-`: `format`, `products`, `only_ok`, `version`, ...

    Returns:
        The files that were written, and how many rows were left out.

    Raises:
        InputError: an invalid argument, or a library is not installed.
        StoreError: the run or dataset is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "exportable", weights="random:0", image_size=64)
        >>> export_features("exportable", "tables").files
        ('README.md', 'croissant.json', 'images.parquet', 'metadata.json')
    """
    from genenc_core.features import export as exporting
    from genenc_core.features.parameters import ExportFeaturesParameters

    given = _as_text({"source": _fixed(source), "out": _fixed(out), **options})
    return exporting.export(_valid(ExportFeaturesParameters, given))


def export_provenance(source: Root, **options: Any) -> "Written":
    """Write where a run or version comes from: as an RO-Crate, or as OpenLineage events.

    Args:
        source: a run or dataset, a folder or `s3://bucket/prefix`.
        options: those of `genenc export-provenance`, with `_` for `-`: `format`, `out`, `license`, `agent`, `version`.

    Returns:
        The file that was written: beside the arrays, unless `out` names a new folder.

    Raises:
        InputError: an invalid argument, or a place that cannot be written.
        StoreError: a record is damaged.

    Example:
        >>> run = extract("photos", "resnet18", "told", weights="random:0", image_size=64)
        >>> written = export_provenance("told", license="CC-BY-4.0")
        >>> os.path.relpath(written.place), written.sessions
        ('told/ro-crate-metadata.json', 1)
    """
    from genenc_core.features import provenance
    from genenc_core.features.parameters import ExportProvenanceParameters

    given = _as_text({"source": _fixed(source), **options})
    return provenance.write(_valid(ExportProvenanceParameters, given))


def _require_xarray() -> None:
    try:
        import xarray  # noqa: F401
    except ImportError as error:
        raise InputError("xarray is not installed: pip install 'genenc[xarray]'") from error


def _parameters(images: str, model: str, out: str, options: Mapping[str, Any]) -> ExtractParameters:
    given = _valid(ExtractParameters, _as_text({"images": images, "model": model, "out": _fixed(out), **options}))
    parameters.check_engine(given.engine, given.engine_address, given.engine_workers, threads_only=_IN_FLOWS)
    return given


_IN_FLOWS = "run the flow, genenc_flows.extraction.extract_features or genenc_flows.dataset.update_dataset"


def _as_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with paths as text."""
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}


def _refuse_out(options: Mapping[str, Any], why: str) -> None:
    if options.get("out") is not None:
        raise InputError(f"out {options['out']!r} is no option here: {why}")


def _fixed(place: Root) -> Root:
    """Return the place as it is named now, whatever the working directory is later."""
    if not isinstance(place, str | os.PathLike):
        raise InputError(f"the place {place!r} is of type {type(place).__name__}: give a folder, or s3://bucket/prefix")
    return place if is_remote(place) or not str(place) else os.path.abspath(place)  # noqa: PTH100 -- keeps links


def _selection(shards: str) -> str:
    if not isinstance(shards, str):
        raise InputError(
            f"shards {shards!r} is of type {type(shards).__name__}: give pending, failed or a text such as '0,3-7'"
        )
    return shards


def _valid(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    try:
        return pydantic.TypeAdapter(kind).validate_python(given)
    except pydantic.ValidationError as error:
        raise InputError(parameters.wrong_options(error, flags=False)) from error


def _refuse_unreadable(run: Run) -> None:
    found = status.survey(run.folder, most=1, committed_rows=False)
    for image in found.unreadable:
        (path,) = run.folder.manifest.read(image["row"], image["row"] + 1).paths
        raise InputError(f"image {image['row']} ({path!r}) cannot be read: {image['reason']}")


def _path(image: "Image", place: Path, as_channels: bool) -> str:
    import PIL.Image

    if isinstance(image, str | os.PathLike):
        return os.path.abspath(image)  # noqa: PTH100 -- does not resolve links
    if not isinstance(image, np.ndarray | PIL.Image.Image):
        raise InputError(
            f"an image is of type {type(image).__name__}: give a path, a uint8 RGB array [H, W, 3] or a Pillow image"
        )
    if isinstance(image, np.ndarray):
        image = image[..., None] if image.ndim == 2 else image
        if _has_channels(image, as_channels):
            return _write_channels(image, place.with_suffix(".tif"))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"an image array is {image.dtype} {list(image.shape)}: give uint8 RGB [H, W, 3] (from OpenCV: "
                "image[..., ::-1]), grey [H, W], or, with `channels` or `value_range`, other channels [H, W, C]"
            )
        image = PIL.Image.fromarray(np.ascontiguousarray(image))
    try:
        _upright(image).save(place, compress_level=1, exif=b"")
    except (OSError, ValueError) as error:
        raise InputError(
            f"a Pillow image of mode {image.mode!r} cannot be stored as PNG: {error}; give image.convert('RGB')"
        ) from error
    return str(place)


def _has_channels(image: np.ndarray, as_channels: bool) -> bool:
    """Return whether an array `[H, W, C]` is not RGB, by its channels, or because it is to be read so."""
    rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    known = image.ndim == 3 and image.dtype.kind in "uif" and min(image.shape) > 0
    return known and not rgb and (as_channels or image.shape[2] not in (3, 4))


def _write_channels(image: np.ndarray, place: Path) -> str:
    import tifffile

    # One plane per channel; a single one is a page of one sample.
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    layout: Any = {"planarconfig": "separate"} if len(planes) > 1 else {}
    tifffile.imwrite(place, planes, photometric="minisblack", metadata=None, **layout)
    return str(place)


def _upright(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Return an opened photo turned as its file is when it is read by path: by its EXIF, not by other metadata."""
    import PIL.Image

    from genenc_core.images.decode import headers

    own = image.info
    image.info = {key: value for key, value in own.items() if "xmp" not in str(key).lower()}
    try:
        image.load()  # turns a TIFF
    finally:
        image.info = {**own, **image.info}
    orientation = headers.exif_orientation(image.info.get("exif") or b"")
    return image.transpose(PIL.Image.Transpose(_TURNED[orientation])) if orientation in _TURNED else image


_TURNED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation -> Pillow's operation that makes the image upright (`PIL.ImageOps.exif_transpose`)."""


def _image_id(at: int) -> str:
    return f"genenc-encode-{at:06d}"


def _write_points(points: np.ndarray, images: int, folder: Path) -> Path:
    try:
        points = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"points of type {type(points).__name__} is no array of numbers: give float [{images}, K, 2], x and y in "
            "pixels; files of points are for extract"
        ) from error
    if points.ndim != 3 or points.shape[0] != images or points.shape[2] != 2:
        raise InputError(f"points has shape {list(points.shape)}: expected [{images}, K, 2], x and y in pixels")
    if np.isinf(points).any():
        raise InputError("points has infinite values: give NaN for missing points")
    rows = [
        [_image_id(at), f"p{number:06d}", *("" if np.isnan(value) else repr(float(value)) for value in xy)]
        for at, of_image in enumerate(points)
        for number, xy in enumerate(of_image)
    ]
    return _write_table(folder / "points.csv", ["image", "point", "x", "y"], rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
    return path
