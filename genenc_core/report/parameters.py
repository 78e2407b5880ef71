"""Parameters of a report and of a preview, as set by users, config files or the Prefect form."""

from typing import Literal

from pydantic import field_validator, model_validator

from genenc_core import text
from genenc_core.choices import INPUT, PRODUCTS, STORE
from genenc_core.run import options
from genenc_core.run.options import option
from genenc_core.run.parameters import encodable, usable


class _OfResults(options.Parameters):
    """What a report and a preview have in common."""

    source: str = option(help="A run or dataset, or s3://bucket/prefix.", group=INPUT, often=True, path=True)
    version: str | None = option(
        None, help="Of a dataset: a version, by number or tag.", group=INPUT, usually="the newest", metavar="<N|tag>"
    )

    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object) -> object:
        return encodable(usable(value))

    @property
    def title(self) -> str:
        """Display name: the run's or dataset's."""
        return text.title(text.place(self.source))


class ReportParameters(_OfResults):
    """Parameters of a report."""

    out: str = option(
        "",
        help="The HTML file to write; a report that is there is replaced.",
        group=STORE,
        often=True,
        metavar="<file.html>",
        path=True,
        usually="NAME-report.html",
    )
    product: str | None = option(
        None,
        help="The stored vectors to project and to compare.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="the first vector of whole images",
    )
    maps: str | None = option(
        None, help="The stored feature map to show.", group=PRODUCTS, metavar="<name>", usually="the first one"
    )
    color_by: str | None = option(
        None,
        help="What colours the projection: folder, order, or a column of the list.",
        group=PRODUCTS,
        often=True,
        metavar="<folder|order|column>",
        usually="what tells images apart",
    )
    projection: Literal["pca", "umap"] = option(
        "pca", help="The projection to two dimensions; umap needs umap-learn.", group=PRODUCTS
    )
    sample: int = option(
        1000,
        help="Images to project and compare, drawn from all by the seed.",
        group=INPUT,
        often=True,
        limits={"ge": 2, "le": 20_000},
    )
    seed: int = option(0, help="Of the images that are drawn.", group=INPUT, limits={"ge": 0, "lt": 2**32})

    @property
    def file(self) -> str:
        """The file to write."""
        name = "".join(char if char.isalnum() or char in "-_." else "-" for char in text.place(self.source.rstrip("/")))
        return self.out or f"{name.lstrip('.') or 'run'}-report.html"


class PreviewParameters(_OfResults):
    """Parameters of a preview."""

    row: int | None = option(
        None,
        help="The image, by its row.",
        group=INPUT,
        often=True,
        metavar="<N>",
        limits={"ge": 0},
        usually="that of --image",
    )
    image: str | None = option(
        None,
        help="The image, by its name in images.parquet or the end of it.",
        group=INPUT,
        often=True,
        metavar="<image id>",
        usually="that of --row",
    )
    out: str = option(
        "", help="Folder for the PNGs.", group=STORE, often=True, metavar="<folder>", path=True, usually="preview"
    )
    maps: str | None = option(
        None, help="The stored feature map to show.", group=PRODUCTS, metavar="<name>", usually="the first one"
    )
    at: str | None = option(
        None,
        help="Compare the cell at x,y in pixels of the upright image, not those at the labelled points.",
        group=PRODUCTS,
        often=True,
        metavar="<x,y>",
        usually="the labelled points",
    )
    channels: int = option(
        16, help="Channels to show, those that vary most.", group=PRODUCTS, limits={"ge": 1, "le": 256}
    )

    @model_validator(mode="after")
    def _one_image(self) -> "PreviewParameters":
        if (self.row is None) == (self.image is None):
            raise ValueError("give the image: --row N, or --image ID")
        return self
