"""TorchScript files: which of them may be called from several threads at once."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import resolve
from genenc_core.runtime.formats import torchscript

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Has what can be kept from call to call."""

    seen: dict[str, torch.Tensor]
    listed: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.seen = {"first": torch.zeros(1)}
        self.listed = [torch.zeros(1)]

    def count(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x


class Adds(Counting):
    """Counts its calls in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.calls.add_(1)


class Assigns(Counting):
    """Counts its calls in a new tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return x + self.calls


class AddsToAView(Counting):
    """Writes to a part of its buffer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.calls.view(-1)[0:1]
        part += x.mean()
        return x + self.calls


class AddsInABranch(Counting):
    """Counts where only larger batches come."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 3:
            for _ in range(2):
                x = self.count(x)
        return x


class Remembers(Counting):
    """Keeps its last batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen["last"] = x
        return x


class AddsElsewhere(Counting):
    """Counts on a thread of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.jit.wait(torch.jit.fork(added, self.calls))


class AddsToAListed(Counting):
    """Writes to a tensor in a list."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.listed[0].add_(1)


class AddsToAKept(Counting):
    """Writes to a tensor in a dict."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.seen["first"].add_(1)


class AddsToWhatIsUnchanged(Counting):
    """Writes to what an operation returns that may return its input, which its schema does not say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        same = self.calls.type_as(x)
        same += x.mean()
        return x + same


class Draws(Counting):
    """Draws random numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3)


class Drops(Counting):
    """Drops at random, if it is told to when it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.dropout(x, 0.5, x.size(0) > 3)


class Normalizes(Counting):
    """Counts in an operation whose schema does not say so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.native_batch_norm(x, None, None, self.calls, self.calls, True, 0.1, 1e-5)[0]


class Reads(Counting):
    """Writes only to what it has made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 3:
            x = x + 1
        x = torch.dropout(x * 2, 0.5, False)
        y = x * 2
        return y.add_(1).relu_() + self.calls


def added(value: torch.Tensor) -> torch.Tensor:
    return value.add_(1)


def concurrent(module: torch.jit.ScriptModule, path: Path) -> bool:
    """Whether a file is said to be for several threads."""
    module.save(str(path))
    return torchscript.load(path, CPU, None).concurrent


@pytest.mark.parametrize(
    "kind",
    [
        Adds,
        Assigns,
        AddsToAView,
        AddsInABranch,
        Remembers,
        AddsElsewhere,
        AddsToAListed,
        AddsToAKept,
        AddsToWhatIsUnchanged,
        Draws,
        Drops,
        Normalizes,
    ],
)
def test_stateful_module_is_not_concurrent(kind: type[nn.Module], tmp_path: Path) -> None:
    assert not concurrent(torch.jit.script(kind()), tmp_path / "kept.pt")


def test_trace_writing_to_a_buffer_is_not_concurrent(tmp_path: Path) -> None:
    constant = torch.zeros(1)

    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + constant.add_(1)

    for module in (Adds(), Constant()):
        assert not concurrent(torch.jit.trace(module, torch.rand(2, 3), check_trace=False), tmp_path / "kept.pt")


def test_hooked_module_is_not_concurrent(tmp_path: Path) -> None:
    def before(self: Reads, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        self.calls.add_(1)
        return given

    def after(self: Reads, given: tuple[torch.Tensor], found: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return found

    for register, hook in (("register_forward_pre_hook", before), ("register_forward_hook", after)):
        module = Reads()
        getattr(module, register)(hook)
        assert not concurrent(torch.jit.script(module), tmp_path / "hooked.pt")


def test_a_file_without_a_forward_method_is_refused(tmp_path: Path) -> None:
    class Other(nn.Module):
        @torch.jit.export
        def other(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(errors.InputError, match="without a forward method"):
        concurrent(torch.jit.script(Other()), tmp_path / "other.pt")


def test_stateless_module_is_concurrent(tmp_path: Path) -> None:
    assert concurrent(torch.jit.script(Reads()), tmp_path / "free.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64),
        ("convnext_tiny", 64),
        ("vit_b_32", 64),
        ("swin_t", 64),
        ("yolov3_tiny", 64),
        ("timm/test_vit", 160),
    ],
)
def test_genenc_exports_are_concurrent(name: str, side: int, tmp_path: Path) -> None:
    built = resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=(side, side)))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(built.module, torch.rand(2, 3, side, side), check_trace=False)
    assert concurrent(traced, tmp_path / "model.pt")
