"""Parameters of what is done with stored features, as set by users, config files or the Prefect form."""

from typing import Any

from pydantic import field_validator

from genenc_core import choices, text
from genenc_core.choices import INPUT, POINTS, PRODUCTS, RUN, SEARCH, STORE
from genenc_core.run import options
from genenc_core.run.options import option
from genenc_core.run.parameters import TRUST, ExtractParameters, encodable, usable

VERSION: Any = option(
    None,
    help="Of a dataset: the version, a number or a tag.",
    group=INPUT,
    usually="the newest",
    metavar="<N|tag>",
)
MEMORY: Any = option(
    256,
    help="Memory for a block of stored vectors, in MiB; a row is read whole.",
    group=RUN,
    limits={"ge": 1, "le": 2**20},
)
SOURCE: Any = option(help="A run or dataset, or s3://bucket/prefix.", group=INPUT, often=True, path=True)


class _Parameters(options.Parameters):
    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object) -> object:
        return encodable(usable(value))


class SearchParameters(_Parameters):
    """Parameters of a search."""

    source: str = SOURCE
    like: str | None = option(
        None,
        help="An image file: it is encoded as the run's images were, with the run's own model.",
        group=SEARCH,
        often=True,
        metavar="<image>",
        path=True,
        usually="none",
    )
    row: str | None = option(
        None,
        help="A stored image: its image_id or the end of it, or #N; it is not among those found.",
        group=SEARCH,
        often=True,
        metavar="<image_id|#N>",
        usually="none",
    )
    point: str | None = option(
        None,
        help="Compare the vectors at this point.",
        group=SEARCH,
        often=True,
        metavar="<point>",
        usually="vectors of whole images",
    )
    region: str | None = option(
        None,
        help="A stored region: its name in the image that --row gives, or #N; the nearest regions are found.",
        group=SEARCH,
        often=True,
        metavar="<name|#N>",
        usually="none",
    )
    top: int = option(10, help="How many to find.", group=SEARCH, often=True, limits={"ge": 1, "le": 1_000_000})
    product: str = option(
        "",
        help="The product whose vectors are compared; its axes after the point are flattened.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="the first with a vector for each image, or for each point",
    )
    metric: choices.Metric = option("cosine", help="cosine: 1 - cos; l2: Euclidean.", group=SEARCH, often=True)
    at: str | None = option(
        None, help="With --like: the pixel to look at.", group=POINTS, metavar="<X,Y>", usually="the whole image"
    )
    any_point: bool = option(False, help="With --point: compare with all points of the images.", group=POINTS)
    version: str | None = VERSION
    memory: int = MEMORY
    trust: bool = TRUST

    @property
    def title(self) -> str:
        """Display name: what is searched."""
        return text.title(text.place(self.source))


class CompareParameters(_Parameters):
    """Parameters of a comparison."""

    source: str = option(help="A run or dataset, or s3://bucket/prefix.", group=INPUT, often=True, path=True)
    other: str = option(help="The one to compare with it.", group=INPUT, often=True, path=True)
    product: str = option(
        "",
        help="The product to compare.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="the first with vectors that both have",
    )
    other_product: str = option(
        "", help="The product of the other one.", group=PRODUCTS, metavar="<name>", usually="of the same name"
    )
    worst: int = option(10, help="How many of the rows that differ most to name.", group=PRODUCTS, limits={"ge": 0})
    different_images: bool = option(False, help="Compare images of one name although their files differ.", group=INPUT)
    version: str | None = VERSION
    other_version: str | None = option(
        None, help="Of the other dataset: its version.", group=INPUT, usually="the newest", metavar="<N|tag>"
    )
    memory: int = MEMORY

    @property
    def title(self) -> str:
        """Display name: the two."""
        return text.title(f"{text.place(self.source)} and {text.place(self.other)}")


class TraceParameters(_Parameters):
    """Parameters of a trace."""

    source: str = SOURCE
    image: str = option(
        help="The image: its image_id or the end of it, its path, or #N for a row.",
        group=INPUT,
        often=True,
        metavar="<image_id|#N>",
    )
    version: str | None = VERSION

    @property
    def title(self) -> str:
        """Display name: the image and where it is stored."""
        return text.title(f"{self.image} in {text.place(self.source)}")


class RerunParameters(_Parameters):
    """Parameters of a run that is made again."""

    source: str = option(help="A run, or s3://bucket/prefix.", group=INPUT, often=True, path=True)
    out: str = option(
        help="The new run folder, or s3://bucket/prefix.", group=STORE, often=True, metavar="<folder>", path=True
    )
    device: str | None = option(
        None,
        help="Where the model runs.",
        group=RUN,
        often=True,
        usually="the kind of device that the run was made on",
        metavar=options.DEVICES,
        values=options.DEVICE_VALUES,
    )
    decode_workers: int | None = ExtractParameters.model_fields["decode_workers"]  # type: ignore[assignment]
    trust: bool = TRUST

    @property
    def title(self) -> str:
        """Display name: the run."""
        return text.title(text.place(self.source))

    @property
    def run_title(self) -> str:
        """Display name of the new run."""
        return text.title(text.place(self.out))


class ExportFeaturesParameters(_Parameters):
    """Parameters of an export of features."""

    source: str = SOURCE
    out: str = option(
        help="What is written: a folder, of hdf5 a file; it must not exist.",
        group=STORE,
        often=True,
        metavar="<path>",
        path=True,
    )
    format: choices.FeatureFormat = option(
        "parquet",
        help="parquet: tables with vectors as fixed-size lists; npy: an array per file; hdf5: one file; hub: a folder "
        "for the Hugging Face Hub, with a card.",
        group=STORE,
        often=True,
    )
    products: tuple[str, ...] = option(
        (),
        help="The products to export. May be repeated.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="all",
        flag="product",
    )
    only_ok: bool = option(
        False, help="Leave out rows without features; otherwise they are kept, with their status.", group=PRODUCTS
    )
    version: str | None = VERSION
    memory: int = MEMORY

    @property
    def title(self) -> str:
        """Display name: what is exported as what."""
        return text.title(f"{text.place(self.source)} as {self.format}")
