"""What every test shares: quiet, private Prefect settings, and one test server per session where it is asked for."""

import os
import tempfile
from collections.abc import Iterator

import pytest

from flows import local_server

# Set before anything imports Prefect, which reads them once.
local_server.quiet_environment()
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "180"
# What tests trust is not remembered for the person who runs them; processes that tests start inherit it.
_STATE = tempfile.TemporaryDirectory(prefix="genenc-test-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Give flows a temporary Prefect server of their own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
