"""Who carries out long work: the core itself, or whatever the entry point plugs in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Runner(Protocol):
    """Whoever carries out long work: the core itself, or Prefect flows."""

    def session(self) -> AbstractContextManager[None]:
        """Set up what the work needs; entered before anything slow is imported."""
        ...

    def extract(self, given: Any) -> Any:
        """Make or continue a run; return a `driver.Result`."""
        ...

    def resume(self, root: str, shards: str, options: Any) -> Any:
        """Continue a run; return a `driver.Result`."""
        ...

    def export(self, given: Any) -> Any:
        """Export a model; return a list of `exporting.ExportedModel`."""
        ...


class PlainRunner:
    """The core without Prefect."""

    def session(self) -> AbstractContextManager[None]:
        """Set up nothing."""
        return nullcontext()

    def extract(self, given: Any) -> Any:
        """Call the driver."""
        from genenc_core.run import driver

        return driver.extract(given)

    def resume(self, root: str, shards: str, options: Any) -> Any:
        """Call the driver."""
        from genenc_core.run import driver

        return driver.resume(root, shards, options)

    def export(self, given: Any) -> Any:
        """Call the exporter."""
        from genenc_core.run import model_export

        return model_export.export(given)
