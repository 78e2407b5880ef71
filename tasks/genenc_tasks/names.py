"""Run names from parameters, sanitised because they contain untrusted paths and model names."""

from typing import Any, cast

from prefect.tasks import TaskRunNameCallbackWithParameters

from genenc_core import text


def named(template: str) -> TaskRunNameCallbackWithParameters:
    """Return a Prefect callback that formats a run name from parameters and sanitises it."""

    def name(parameters: dict[str, Any]) -> str:
        return text.title(template.format(**parameters))

    return cast(TaskRunNameCallbackWithParameters, name)
