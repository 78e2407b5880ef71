"""Models as the tests of their sources want them."""

import pytest

import shallow as shallow_models


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transformers of few blocks."""
    shallow_models.make(monkeypatch)
