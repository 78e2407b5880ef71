"""Prefect's test server, which tries requests again that its busy database refuses, as genenc's own server does.

Its client would wait two seconds or more for each, and a flow's tasks often write at once.
"""

import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_THEIRS, _OURS = "prefect.server.api.server:create_app", "patient_server:create_app"


def create_app() -> Any:
    """Return the application; called by the server's process."""
    from prefect.server.api import server

    from genenc_flows.server_process import RetryWhenBusy

    return RetryWhenBusy(server.create_app())


def use(patch: pytest.MonkeyPatch) -> None:
    """Let Prefect start this server where it would start its own."""
    from prefect.server.api import server

    def start(args: Sequence[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        assert _THEIRS in args
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        return subprocess.Popen([_OURS if word == _THEIRS else word for word in args], env={**env, "PYTHONPATH": path})

    patch.setattr(server, "subprocess", types.SimpleNamespace(**{**vars(subprocess), "Popen": start}))
