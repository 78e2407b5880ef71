"""Parameters of an update, as set by users, config files or the Prefect form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from genenc_core import errors
from genenc_core.choices import INPUT, MODEL, RUN, STORE
from genenc_core.models import trust
from genenc_core.run.options import option
from genenc_core.run.parameters import ExtractParameters, located

Comparison = Literal["", "stat", "content"]
Vanished = Literal["", "auto", "withdraw", "keep"]
_AT_FIRST: Mapping[str, str] = {"by": "stat", "vanished": "auto"}
"""Options with a value of the form for "as in the last update", which is empty, and what that is at first."""
_LAST = "those of the last update"
_EMPTY_AS_BEFORE = ("images", "model", *_AT_FIRST)
_OF_ONE_UPDATE = {"out", "limit", "trust", "accept_changed", "retry_unreadable"}


class UpdateParameters(ExtractParameters):
    """Parameters of an update: those of an extraction; what is not given is as in the last update."""

    images: str = option(
        "",
        help="As for extract: a folder, a quoted glob, a list, or a tar, video or array of images.",
        group=INPUT,
        often=True,
        path=True,
        usually=_LAST,
    )
    model: str = option(
        "",
        help="As for extract; it must stay the same.",
        group=MODEL,
        often=True,
        metavar="<name|file>",
        usually="the dataset's",
    )
    out: str = option(
        help="The dataset to create or update: a folder, or s3://bucket/prefix.",
        group=STORE,
        often=True,
        metavar="<folder>",
        path=True,
    )
    by: Comparison = option(
        "",
        help="How files are compared: by size and time, or, where these or the name differ, by content.",
        group=INPUT,
        often=True,
        metavar="<stat|content>",
        usually=f"{_LAST}; at first stat",
    )
    limit: int | None = option(
        None,
        help="Only the first N images that are new or changed, in this update; nothing is withdrawn.",
        group=INPUT,
        usually="all of them",
    )
    vanished: Vanished = option(
        "",
        help="Rows of images that are not listed any more: withdraw or keep them; auto: withdraw up to half of all.",
        group=INPUT,
        often=True,
        metavar="<auto|withdraw|keep>",
        usually=f"{_LAST}; at first auto",
    )
    retry_unreadable: bool = option(
        False, help="Try unreadable images again whose files are the same.", group=RUN, often=True
    )

    def completed(self, before: Mapping[str, Any]) -> "UpdateParameters":
        """Return the parameters with those of earlier updates for what is not given; relative paths become absolute.

        Raises:
            InputError: images or model is missing, or the recorded model is code that is not trusted.
        """
        fields = type(self).model_fields
        # What is meant for one update is not remembered, whatever a file says: `trust` above all.
        before = {name: value for name, value in before.items() if name not in _OF_ONE_UPDATE}
        given = {name: getattr(self, name) for name in self.model_fields_set}
        here = Path.cwd()
        given = {name: located(name, value, here, fields[name]) for name, value in given.items() if name != "out"}
        given = {name: value for name, value in given.items() if value != "" or name not in _EMPTY_AS_BEFORE}
        if "model" not in given and before:
            trust.require(trust.dotted(str(before["model"])), who=f"the dataset {self.out!r}", trust=self.trust)
        if {**before, **given}.get("engine", "threads") == "threads":
            before = {name: value for name, value in before.items() if name not in ("engine_address", "engine_workers")}
        given = {**_AT_FIRST, **before, **given}
        for name, shown in (("images", "IMAGES"), ("model", "--model")):
            if not given.get(name):
                raise errors.InputError(f"{shown} is missing: {self.out!r} is a new dataset, which needs it")
        return type(self).model_validate({**given, "out": self.out})

    def remembered(self) -> dict[str, Any]:
        """Return what later updates take where it is not given, as JSON data: not what is meant for this one alone."""
        found = self.model_dump(mode="json", exclude=_OF_ONE_UPDATE, exclude_unset=True)
        # Withdrawing more than half of the rows is asked for each time.
        return {name: value for name, value in found.items() if (name, value) != ("vanished", "withdraw")}

    def extraction(self, out: str) -> ExtractParameters:
        """Return the parameters of a part."""
        given = self.model_dump(exclude={"limit"}, exclude_unset=True)
        known = {name: value for name, value in given.items() if name in ExtractParameters.model_fields}
        return ExtractParameters.model_validate({**known, "out": out})

    def as_given(self) -> "UpdateParameters":
        """Return the parameters with only those values given that differ from their defaults.

        Prefect's form gives every value; whoever gives fewer means them.
        """
        if len(self.model_fields_set) < len(type(self).model_fields) // 2:
            return self
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(
            {
                name: value
                for name, value in given.items()
                if fields[name].is_required() or value != fields[name].default
            }
        )

    @property
    def title(self) -> str:
        """Display name: the dataset."""
        return self.run_title

    @property
    def is_trusted(self) -> bool:
        """Whether code that the model names may be imported: by `trust`, or because it was named here."""
        return self.trust or trust.dotted(self.model) is not None
