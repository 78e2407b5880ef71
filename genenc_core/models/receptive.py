"""Where in the image each cell of a model's maps looks, followed through the operations of one forward pass.

Beside every tensor that comes of the image goes its *trace*: for each element the centre (y, x) of what it looks at, in
pixels of the input, and how far that reaches. Convolutions and poolings move centres as their strides, paddings and
kernels say; views, slices and permutations move traces as they move values; of two summands or factors (a residual
connection and its branch), and of levels side by side in one map, the one that looks at less counts. What mixes places
without an order (attention, a global mean) has no centre. Nothing is computed but positions.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from genenc_core.models import probing

Trace = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""y, x and reach, float32, each of the shape of the tensor that they are of."""
Axis = tuple[float, float]
"""stride and centre of the first cell, in pixels"""
_NOWHERE = "mixes places"
_TOLERANCE = 1e-3
_MOST_CELLS = 4
"""How many cells apart the channels of one cell may look; further, its values are not of one place."""
_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "_reshape_alias",
        "reshape",
        "permute",
        "transpose",
        "t",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "roll",
        "flip",
        "index_select",
        "unfold",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "cat",
        "stack",
        "repeat",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "narrow",
        "index",
        "gather",
        "movedim",
        "swapaxes",
        "unflatten",
        "flatten",
    ]
)
_SAME = frozenset(
    [
        "clone",
        "alias",
        "detach",
        "_to_copy",
        "to",
        "contiguous",
        "lift_fresh",
        "native_dropout",
        "dropout",
        "native_layer_norm",
        "layer_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "batch_norm",
        "native_group_norm",
        "group_norm",
        "instance_norm",
        "cudnn_batch_norm",
        "_softmax",
        "softmax",
        "_log_softmax",
        "_batch_norm_impl_index",
    ]
)
_REDUCES = frozenset(["mean", "sum", "amax", "amin", "max", "min", "var", "var_mean", "std", "linalg_vector_norm"])


def cells(
    module: nn.Module, slots: Callable[[Any, torch.Tensor], Mapping[str, torch.Tensor]], *, size: tuple[int, int]
) -> dict[str, tuple[Axis, Axis]]:
    """Return where the cells of a model's maps are centred: slot -> (vertical, horizontal) stride and first centre.

    Slots whose cells have no centres on an even grid, or whose model does what is not followed here, are left out.

    Args:
        module: a model on the CPU.
        slots: runs it on images `[1, 3, height, width]`, and returns its outputs by slot.
        size: (height, width) of the images.
    """

    def look(model: Any, images: torch.Tensor) -> dict[str, tuple[Axis, Axis]]:
        return traced(lambda given: slots(model, given), images)

    try:
        return probing.observe(module, look, batch=1, size=size)
    except Exception:  # whatever a model's own code does: nothing is known of it then
        return {}


def traced(
    run: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], images: torch.Tensor
) -> dict[str, tuple[Axis, Axis]]:
    """Return the cells of what `run` makes of images `[B, 3, H, W]`, as `cells` does."""
    with _Tracing(images) as tracing:
        outputs = dict(run(images))
    with _disable_current_modes():
        found = {name: _grid(tracing.trace(tensor)) for name, tensor in outputs.items() if tensor.ndim == 4}
    return {name: grid for name, grid in found.items() if grid is not None}


class _Tracing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the trace of every tensor that comes of the images."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        with _disable_current_modes():
            shape, (height, width) = tuple(images.shape), images.shape[-2:]
            y = (torch.arange(height, dtype=torch.float32) + 0.5)[:, None].expand(shape)
            x = (torch.arange(width, dtype=torch.float32) + 0.5).expand(shape)
            # Weak, so that the memory of a large model's tensors is given back while it runs.
            self._traces: MutableMapping[torch.Tensor, Trace | str] = WeakTensorKeyDictionary()
            self._traces[images] = (y, x, torch.zeros(()).expand(shape))

    def trace(self, tensor: torch.Tensor) -> Trace | None:
        """Return the trace of a tensor; None where it has none."""
        found = self._traces.get(tensor)
        return found if isinstance(found, tuple) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and work out the traces of what it gives."""
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(leaf in self._traces for leaf in inputs):
            outputs = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            with _disable_current_modes(), torch.no_grad():
                traces = self._followed(func, args, kwargs or {}, inputs, outputs)
            for tensor, trace in zip(outputs, traces, strict=True):
                self._traces[tensor] = trace
        return result

    def _followed(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: list[Any], outputs: list[Any]
    ) -> Sequence[Trace | str]:
        name = func.overloadpacket._qualified_op_name.rpartition("::")[2]
        try:
            if name.rstrip("_") == "copy":
                self._forget_whole(args[0])
                return [self._broadcast([args[1]], outputs[0].shape)] * len(outputs)
            if name in _MOVES:
                return self._moved(func, args, kwargs, outputs)
            if name in _SAME:
                first = self._of(args[0])
                return [first if out.shape == args[0].shape else _NOWHERE for out in outputs]
            if name in _RESAMPLES:
                return self._resampled(_RESAMPLES[name], args, outputs)
            if name in _REDUCES:
                return [self._mean(args, out.shape) for out in outputs]
            if name in ("mm", "bmm", "addmm", "baddbmm", "linear", "matmul"):
                return [self._product(args[-2:] if name != "linear" else args[:2], name, out.shape) for out in outputs]
            if torch.Tag.pointwise in func.tags:
                return [self._broadcast(inputs, out.shape) for out in outputs]
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
            pass  # an operation in a form that is not followed
        return [_NOWHERE] * len(outputs)

    def _forget_whole(self, part: torch.Tensor) -> None:
        """Lose the traces of tensors that `part`, which something is written into, is a view of, or they of it."""
        storage = part.untyped_storage()._cdata
        for other in list(self._traces):
            if other is not part and other.untyped_storage()._cdata == storage:
                self._traces[other] = _NOWHERE

    def _of(self, tensor: Any) -> Trace | str:
        """Return the trace of an input; one of no image's looks nowhere."""
        return self._traces.get(tensor, _NOWHERE)

    def _moved(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Any]
    ) -> Sequence[Trace | str]:
        def part(at: int) -> list[torch.Tensor]:
            def swap(leaf: Any) -> Any:
                if not isinstance(leaf, torch.Tensor):
                    return leaf
                trace = self._of(leaf)
                if isinstance(trace, tuple):
                    return trace[at]
                if not leaf.is_floating_point():
                    return leaf  # an index
                return torch.full((), math.inf if at == 2 else 0.0).expand(tuple(leaf.shape))

            given, named = _pytree.tree_map(swap, (tuple(args), dict(kwargs)))
            found = _pytree.tree_leaves(_without_views(func)(*given, **named))
            if [tuple(item.shape) for item in found] != [tuple(item.shape) for item in outputs]:
                raise ValueError("other shapes")
            return found

        return list(zip(part(0), part(1), part(2), strict=True))

    def _broadcast(self, inputs: Sequence[Any], shape: torch.Size) -> Trace | str:
        """Return for each element the trace of the input that looks at least far."""
        best: Trace | str = _NOWHERE
        for leaf in inputs:
            trace = self._of(leaf)
            if isinstance(trace, str):
                continue
            if isinstance(best, str):
                best = trace
            elif best is not trace:
                best = _nearer(trace, best, shape)
        return best if isinstance(best, str) else tuple(item.expand(tuple(shape)) for item in best)  # type: ignore[return-value]

    def _mean(self, args: Sequence[Any], shape: torch.Size) -> Trace | str:
        """Return the trace of a reduction: a centre only where all that is reduced looks at one place."""
        trace = self._of(args[0])
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(args[0].ndim))
        dims = [dims] if isinstance(dims, int) else list(dims)
        return trace if isinstance(trace, str) else _gathered(trace, dims, tuple(shape))

    def _product(self, factors: Sequence[Any], name: str, shape: torch.Size) -> Trace | str:
        """Return the trace of a matrix product with a constant: the centre of what each row looks at."""
        left, right = factors
        known = [item in self._traces for item in (left, right)]
        if all(known):
            return _NOWHERE
        trace = self._of(left if known[0] else right)
        if isinstance(trace, str):
            return trace
        dim = -1 if known[0] else -2
        given = left if known[0] else right
        kept = list(given.shape)
        kept[dim] = 1
        found = _gathered(trace, [dim], tuple(kept), anywhere=name != "matmul")
        return found if isinstance(found, str) else tuple(item.expand(tuple(shape)) for item in found)  # type: ignore[return-value]

    def _resampled(self, places: "_Places", args: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Trace | str]:
        trace = self._of(args[0])
        if isinstance(trace, str):
            return [trace] * len(outputs)
        out = outputs[0].shape
        if places is _padded:
            moved = trace
            for dim, at in _padded(args, out).items():
                moved = tuple(_sampled(item, dim, at) for item in moved)  # type: ignore[assignment]
            return [moved] * len(outputs)
        merged = _gathered(trace, [1], (trace[0].shape[0], 1, *trace[0].shape[2:]), anywhere=True)
        assert isinstance(merged, tuple)
        rows, columns, kernel = places(args, out)
        step = max(_step(merged[0], -2), _step(merged[1], -1))
        if _spread(trace, merged) > _MOST_CELLS * max(step, 1):
            return [_NOWHERE] * len(outputs)
        y, x, reach = (_sampled(_sampled(item, -2, rows), -1, columns) for item in merged)
        moved = (y, x, reach + step * kernel / 2)
        return [tuple(item.expand(tuple(out)) for item in moved)] * len(outputs)  # type: ignore[list-item]


def _nearer(one: Trace, other: Trace, shape: torch.Size) -> Trace:
    """Return for each element of `shape` the trace that looks at least far, once for what repeats (channels, keys)."""
    given = [item.expand(tuple(shape)) for item in (*one, *other)]
    for dim in range(len(shape)):
        if all(item.stride(dim) == 0 for item in given):
            given = [item.narrow(dim, 0, 1) for item in given]
    first, second = given[:3], given[3:]
    nearer = first[2] < second[2]
    y, x, reach = (torch.where(nearer, a, b) for a, b in zip(first, second, strict=True))
    return y, x, reach


def _without_views(func: Any) -> Any:
    return torch.ops.aten.reshape.default if "view" in str(func).partition(".")[2] else func


def _gathered(trace: Trace, dims: list[int], shape: tuple[int, ...], *, anywhere: bool = False) -> Trace | str:
    """Return the middle of a trace over `dims`; without `anywhere`, only where it is one place.

    Where finer levels lie beside coarser ones that were enlarged to them, the finest has the map's geometry.
    """
    y, x, reach = trace
    least = reach.amin(dims, keepdim=True)
    finest = reach <= least + _TOLERANCE
    count = finest.sum(dims, keepdim=True)
    far, middle = 0.0, []
    for item in (y, x):
        low, high = item.where(finest, item.new_tensor(math.inf)), item.where(finest, item.new_tensor(-math.inf))
        far = max(far, float((high.amax(dims) - low.amin(dims)).max()))
        middle.append((item.where(finest, item.new_zeros(())).sum(dims, keepdim=True) / count).reshape(shape))
    if far > _TOLERANCE and not anywhere:
        return _NOWHERE
    return middle[0], middle[1], (least + far).reshape(shape)


def _spread(trace: Trace, merged: Trace) -> float:
    """Return how far apart the channels of a cell look at most: `_gathered` has added it to the reach."""
    finite = torch.isfinite(merged[2])
    return float((merged[2] - trace[2].amin(1, keepdim=True))[finite].max()) if bool(finite.any()) else 0.0


def _sampled(values: torch.Tensor, dim: int, at: torch.Tensor) -> torch.Tensor:
    """Return values at fractional indices of an axis, continued as a straight line beyond its ends."""
    count = values.shape[dim]
    if count == 1:
        return values.index_select(dim, torch.zeros(len(at), dtype=torch.long))
    low = at.floor().clamp(0, count - 2).long()
    shape = [1] * values.ndim
    shape[dim] = len(at)
    share = (at - low).to(values.dtype).reshape(shape)
    before, after = values.index_select(dim, low), values.index_select(dim, low + 1)
    # Not before + share * (after - before): what looks nowhere is infinitely far.
    return torch.where(share == 0, before, torch.where(share == 1, after, before + share * (after - before)))


def _step(values: torch.Tensor, dim: int) -> float:
    if values.shape[dim] == 1:
        return 1.0
    return float((values.select(dim, 1) - values.select(dim, 0)).abs().max())


_Places = Callable[[Sequence[Any], torch.Size], Any]


def _pair(value: Any) -> tuple[int, int]:
    found = (value,) if isinstance(value, int) else tuple(value)
    return (found[0], found[-1])


def _windows(
    out: torch.Size,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the middles of windows in cells of the input, vertically and horizontally, and their extent.

    A window of k cells at every s-th one stands for the s cells in its middle. Where k - s is odd, as with the kernels
    of 3 at every second cell of a ResNet, no padding puts that middle where the window's own is; it is then taken where
    the padding is the nearest to an even one, so that a map of W / s cells divides W evenly.
    """
    extents = [(kernel[axis] - 1) * dilation[axis] for axis in (0, 1)]
    firsts = []
    for extent, step, pad in zip(extents, stride, padding, strict=True):
        uneven = abs(pad - (extent + 1 - step) / 2) == 0.5
        firsts.append((step - 1) / 2 if uneven else extent / 2 - pad)
    rows, columns = (torch.arange(out[axis - 2], dtype=torch.float64) * stride[axis] + firsts[axis] for axis in (0, 1))
    return rows, columns, max(extents)


def _convolved(args: Sequence[Any], out: torch.Size) -> Any:
    kernel = _pair(args[1].shape[2:])
    stride, padding, dilation = (_pair(item) for item in args[3:6])
    if not args[6]:
        return _windows(out, kernel, stride, padding, dilation)
    rows, columns = (
        (torch.arange(out[axis - 2], dtype=torch.float64) + padding[axis] - dilation[axis] * (kernel[axis] - 1) / 2)
        / stride[axis]
        for axis in (0, 1)
    )
    return rows, columns, 1


def _pooled(args: Sequence[Any], out: torch.Size) -> Any:
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] not in ([], None) else kernel
    padding = _pair(args[3]) if len(args) > 3 else (0, 0)
    return _windows(out, kernel, stride, padding, (1, 1))


def _max_pooled(args: Sequence[Any], out: torch.Size) -> Any:
    dilation = _pair(args[4]) if len(args) > 4 else (1, 1)
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] not in ([], None) else kernel
    return _windows(out, kernel, stride, _pair(args[3]) if len(args) > 3 else (0, 0), dilation)


def _adaptive(args: Sequence[Any], out: torch.Size) -> Any:
    sides, extent = [], 0
    for axis in (-2, -1):
        count, cells = args[0].shape[axis], out[axis]
        starts = [at * count // cells for at in range(cells)]
        stops = [-(-(at + 1) * count // cells) for at in range(cells)]
        sides.append(torch.tensor([(a + b - 1) / 2 for a, b in zip(starts, stops, strict=True)], dtype=torch.float64))
        extent = max(extent, *(b - a for a, b in zip(starts, stops, strict=True)))
    return sides[0], sides[1], extent


def _enlarged(args: Sequence[Any], out: torch.Size) -> Any:
    corners = len(args) > 2 and args[2] is True
    sides = []
    for axis in (-2, -1):
        count, cells = args[0].shape[axis], out[axis]
        at = torch.arange(cells, dtype=torch.float64)
        sides.append(at * (count - 1) / max(cells - 1, 1) if corners else (at + 0.5) * count / cells - 0.5)
    return sides[0], sides[1], 1


def _padded(args: Sequence[Any], out: torch.Size) -> dict[int, torch.Tensor]:
    pads = list(args[1])
    return {
        -1 - at // 2: torch.arange(out[-1 - at // 2], dtype=torch.float64) - pads[at] for at in range(0, len(pads), 2)
    }


_RESAMPLES: Mapping[str, _Places] = {
    "convolution": _convolved,
    "_convolution": _convolved,
    "avg_pool2d": _pooled,
    "max_pool2d_with_indices": _max_pooled,
    "max_pool2d": _max_pooled,
    "_adaptive_avg_pool2d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"), _enlarged),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), _enlarged),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "pad"), _padded),
}


def _grid(trace: Trace | None) -> tuple[Axis, Axis] | None:
    """Return stride and first centre, vertically and horizontally, of a map's cells; None for no even grid."""
    if trace is None:
        return None
    finest = _gathered(trace, [1], (trace[0].shape[0], 1, *trace[0].shape[2:]), anywhere=True)
    if isinstance(finest, str) or not bool(torch.isfinite(finest[2]).all()):
        return None
    spread = _spread(trace, finest)
    axes = []
    for values, dim in ((finest[0], -2), (finest[1], -1)):
        line = values.double().mean([at for at in range(4) if at != dim % 4])
        count = len(line)
        stride = float((line[-1] - line[0]) / (count - 1)) if count > 1 else 0.0
        even = line[0] + stride * torch.arange(count, dtype=torch.float64)
        shape = [1] * 4
        shape[dim] = count
        if (count > 1 and stride <= 0) or float((values - even.reshape(shape)).abs().max()) > _TOLERANCE * max(
            stride, 1
        ):
            return None
        if count > 1 and spread > _MOST_CELLS * max(stride, 1):
            return None
        axes.append((_rounded(stride), _rounded(float(line[0]))))
    return axes[0], axes[1]


def _rounded(value: float) -> float:
    """Return a position without the noise of float32: kernels and strides give halves, quarters and the like."""
    near = round(value * 4096) / 4096
    return near if abs(value - near) < 1e-4 else value
