"""Names of runs from their parameters, fit to be shown: paths and model names in them are anybody's text."""

from typing import Any, cast

from prefect.tasks import TaskRunNameCallbackWithParameters

from genenc_core import text


def named(template: str) -> TaskRunNameCallbackWithParameters:
    """Return what Prefect calls with a run's parameters for its name: the template filled in, fit to be shown."""

    def name(parameters: dict[str, Any]) -> str:
        return text.title(template.format(**parameters))

    return cast(TaskRunNameCallbackWithParameters, name)
