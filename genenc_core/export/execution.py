"""In which number format an eager model computes, and whether it is compiled: what changes its features a little."""

from dataclasses import dataclass

from genenc_core import errors
from genenc_core.choices import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How an eager model is computed; the default is as its author's own code would, in float32."""

    precision: Precision = "float32"
    compile: bool = False

    def identity(self) -> dict[str, object]:
        """Return what a run's identity holds of it: what is not the default."""
        told: dict[str, object] = {} if self.precision == "float32" else {"precision": self.precision}
        return told | ({"compile": True} if self.compile else {})

    def describe(self) -> str:
        """Return it in words."""
        return self.precision + (", compiled" if self.compile else "")

    def check(self, backend: str, device: str) -> None:
        """Check that a backend on a device can compute so.

        Raises:
            InputError: it cannot.
        """
        if self.identity() and backend != "eager":
            option = f"--precision {self.precision}" if self.precision != "float32" else "--compile"
            raise errors.InputError(
                f"{option} goes with --backend eager only: an artifact ({backend}) computes as it was exported. Leave "
                "it out, or give the model by its name"
            )
        if self.precision == "tf32" and not device.startswith("cuda"):
            raise errors.InputError(
                f"precision tf32 needs a CUDA device, and the model would run on {device}: give --precision float32 or "
                "bfloat16, or another --device"
            )
