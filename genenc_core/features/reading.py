"""Features as xarray, NumPy or a torch Dataset: axes and coordinates that fit each other, nothing read before use.

In the store every product has axes of its own (`features_channel`, `maps_channel`), as those of several encoder outputs
differ. Here the axes of one output are one: `maps * probes` needs no renaming.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from genenc_core import errors, statuses
from genenc_core.store.backends.objects import Root
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored
from genenc_core.text import plural

if TYPE_CHECKING:
    import torch.utils.data
    import xarray

_AXES = ("channel", "y", "x")


class Features:
    """The features of a run, or of a version of a dataset.

    Example:
        >>> from genenc_core import api
        >>> made = api.extract("photos", "resnet18", "read", weights="random:0", image_size=64, points="labels.csv")
        >>> features = api.open("read")
        >>> features.xarray().probes.sel(image_id="img_002.png", point="snout").dims
        ('channel',)
        >>> features.numpy("features").shape
        (6, 512)
        >>> features.torch("probes", point="snout")[0]["probes"].shape
        torch.Size([512])
    """

    def __init__(self, place: Root, version: int | str | None = None) -> None:
        self._place = place
        self._stored = stored_rows.open_rows(place, version)

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version={self.version}"
        return f"api.open({self.place!r}{version})"

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def place(self) -> str:
        """The folder or `s3://` address."""
        return self._stored.place

    @property
    def version(self) -> int | None:
        """The number of the version; None for a single run."""
        return self._stored.version

    @property
    def identity(self) -> Mapping[str, Any]:
        """What all rows have in common: model, weights, preprocessing, products."""
        return self._stored.identity

    @property
    def products(self) -> list[str]:
        """Names of the products."""
        return self._stored.products

    def xarray(self) -> "xarray.Dataset":
        """Return all arrays, lazily: select images by `image_id`, points by `point`.

        The axes of products of one encoder output have one name: `channel`, `y`, `x`, where all products are of one
        output and length, else `OUTPUT_channel`. Columns of the list are coordinates; one with the name of an axis gets
        `_column` behind it.

        Raises:
            InputError: xarray is not installed.
            StoreError: the version is damaged.
        """
        try:
            import xarray

            from genenc_core.run import float_arrays
        except ImportError as error:
            raise errors.InputError("xarray is not installed: pip install 'genenc[xarray]'") from error
        opened: xarray.Dataset = float_arrays.decoded(self._stored.as_xarray())
        axes = common_names(self._stored)
        columns = {name: f"{name}_column" for name in axes.values() if name in opened.variables}
        return opened.rename_vars(columns).rename_dims(axes)

    def numpy(self, product: str, *, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return a product, `[image, ...]`: all rows, or some in the order asked for; rows without features are NaN.

        Raises:
            InputError: no such product, or a row that there is not.
            StoreError: the run or dataset is damaged.
        """
        name = self._stored.product(product).name
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise errors.InputError(
                f"{self._stored.title!r} has no row {outside[0]}: it has {plural(len(self), 'row')}"
            )
        return self._stored.read(name, wanted)

    def image_ids(self) -> list[str]:
        """Return the names of all images, in order."""
        return self._stored.images.text("image_id", np.arange(len(self)))

    def status(self) -> np.ndarray:
        """Return the state of every row, uint8 `[image]`: 1 stored, 2 unreadable, 0 not written."""
        return self._stored.status.copy()

    def torch(self, product: str, *, point: str | None = None) -> "torch.utils.data.Dataset[dict[str, Any]]":
        """Return the rows that have features as a map-style Dataset, for a DataLoader with any number of workers.

        Each item is a dict: the product's values as a tensor under its name, `row`, `image_id`.

        Args:
            product: its name.
            point: of a product of points: only this one, of the images where it is.

        Raises:
            InputError: no such product or point.
            StoreError: the run or dataset is damaged.
        """
        from genenc_core.features import torch_rows

        array = self._stored.product(product)
        at = None if point is None else stored_rows.point_index(self._stored, point)
        if at is not None and not array.of_points:
            raise errors.InputError(f"the product {product!r} has one vector for each image: leave the point out")
        rows = np.flatnonzero(self._stored.status == statuses.OK)
        if at is not None and "point_status" in self._stored.arrays:
            rows = rows[self._stored.take("point_status", rows)[:, at] == statuses.POINT_OK]
        return torch_rows.Rows(self._place, self.version, product, at, rows)


def common_names(stored: Stored) -> dict[str, str]:
    """Return new names of the products' axes: one for those of one encoder output and length."""
    found: dict[str, str] = {}
    arrays = stored.arrays.keys() - set(stored.columns)
    taken = {dim for array in stored.arrays.values() for dim in array.dims} | {"image", *arrays}
    for axis in _AXES:
        groups: dict[tuple[str, int], list[str]] = {}
        for name in stored.products:
            array = stored.arrays.get(name)
            own = f"{name}_{axis}"
            if array is not None and own in array.dims and array.slot:
                groups.setdefault((array.slot, array.shape[array.dims.index(own)]), []).append(own)
        slots = [slot for slot, _ in groups]
        for (slot, _), owns in groups.items():
            new = axis if len(groups) == 1 else f"{slot}_{axis}"
            # Outputs of one name and several lengths keep their own axes.
            if slots.count(slot) == 1 and (new not in taken or new in owns):
                found |= dict.fromkeys(owns, new)
    return {own: new for own, new in found.items() if own != new}
