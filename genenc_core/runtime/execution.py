"""Execution options of eager models that slightly change features: precision and compilation."""

from dataclasses import dataclass

from genenc_core import errors
from genenc_core.choices import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Precision and compilation of an eager model; the default is plain float32."""

    precision: Precision = "float32"
    compile: bool = False

    def identity(self) -> dict[str, object]:
        """Return the non-default options, which are part of a run's identity."""
        options: dict[str, object] = {} if self.precision == "float32" else {"precision": self.precision}
        return options | ({"compile": True} if self.compile else {})

    def describe(self) -> str:
        """Return a description, e.g. `bfloat16, compiled`."""
        return self.precision + (", compiled" if self.compile else "")

    def check(self, backend: str, device: str) -> None:
        """Check that a backend and device support these options.

        Raises:
            InputError: they do not.
        """
        if self.identity() and backend != "eager":
            option = f"--precision {self.precision}" if self.precision != "float32" else "--compile"
            raise errors.InputError(
                f"{option} applies to --backend eager only: an artifact ({backend}) computes as it was exported. Omit "
                "it, or give the model by name"
            )
        if self.precision == "tf32" and not device.startswith("cuda"):
            raise errors.InputError(
                f"precision tf32 needs a CUDA device, but the model would run on {device}: give --precision float32 or "
                "bfloat16, or another --device"
            )
