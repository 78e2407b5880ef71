"""Receptive field centres of the cells of a model's maps, traced through the operations of one forward pass.

Every tensor derived from the image has a *trace*: for each element the centre (y, x) of its receptive field, in pixels
of the input, and its reach. Convolutions and pooling move centres according to stride, padding and kernel; views,
slices and permutations move traces like values; of two summands or factors (a residual connection and its branch), and
of levels concatenated in one map, the trace with the smaller reach is used. Operations that mix all positions
(attention, a global mean) have no centre. Only positions are computed.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from genenc_core.models import fake_run

Trace = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""y, x and reach, float32, each of the shape of the traced tensor"""
Axis = tuple[float, float]
"""stride and centre of the first cell, in pixels"""
Border = tuple[tuple[int, int], tuple[int, int]]
"""pixels of padding at the top and bottom, left and right"""
_NO_BORDER: Border = ((0, 0), (0, 0))
_NOWHERE = "no centre"
_TOLERANCE = 1e-3
_MAX_SPREAD_CELLS = 4
"""largest distance, in cells, between the centres of one cell's channels; beyond it the cell has no centre"""
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
        "prelu",
        "_prelu_kernel",
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
    module: nn.Module,
    slots: Callable[[Any, torch.Tensor], Mapping[str, torch.Tensor]],
    *,
    size: tuple[int, int],
    channels: int = 3,
) -> dict[str, tuple[Axis, Axis]]:
    """Return the grid of cell centres of each map: slot -> (vertical, horizontal) stride and first centre.

    Slots without a regular grid of centres, or computed by unsupported operations, are omitted.

    Args:
        module: a model on the CPU.
        slots: runs it on images `[1, channels, height, width]`, and returns its outputs by slot.
        size: (height, width) of the images.
        channels: of the images.
    """

    def look(model: Any, images: torch.Tensor) -> dict[str, tuple[Axis, Axis]]:
        return traced(lambda batch: slots(model, batch), images)

    try:
        return fake_run.observe(module, look, batch=1, size=size, channels=channels)
    except Exception:  # the model's own code may raise anything
        return {}


def traced(
    run: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], images: torch.Tensor
) -> dict[str, tuple[Axis, Axis]]:
    """Return the grids of the maps that `run` computes from images `[B, C, H, W]`, as `cells` does."""
    with _Tracing(images) as tracing:
        outputs = dict(run(images))
    with _disable_current_modes():
        grids = {name: _grid(tracing.trace(tensor)) for name, tensor in outputs.items() if tensor.ndim == 4}
    return {name: grid for name, grid in grids.items() if grid is not None}


class _Tracing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the trace of every tensor derived from the images."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        with _disable_current_modes():
            shape, (height, width) = tuple(images.shape), images.shape[-2:]
            self._side = min(height, width)
            y = (torch.arange(height, dtype=torch.float32) + 0.5)[:, None].expand(shape)
            x = (torch.arange(width, dtype=torch.float32) + 0.5).expand(shape)
            # Weak, so that tensors of a large model are freed while it runs.
            self._traces: MutableMapping[torch.Tensor, Trace | str] = WeakTensorKeyDictionary()
            self._traces[images] = (y, x, torch.zeros(()).expand(shape))
            self._borders: MutableMapping[torch.Tensor, Border] = WeakTensorKeyDictionary()

    def trace(self, tensor: torch.Tensor) -> Trace | None:
        """Return the trace of a tensor; None if it has none."""
        trace = self._traces.get(tensor)
        return trace if isinstance(trace, tuple) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and compute the traces of its outputs."""
        with self:  # in inference mode composite operations arrive undecomposed
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(leaf in self._traces for leaf in inputs):
            outputs = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            with _disable_current_modes(), torch.no_grad():
                traces = self._output_traces(func, args, kwargs or {}, inputs, outputs)
            for tensor, trace in zip(outputs, traces, strict=True):
                self._traces[tensor] = trace
        return result

    def _output_traces(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: list[Any], outputs: list[Any]
    ) -> Sequence[Trace | str]:
        name = func.overloadpacket._qualified_op_name.rpartition("::")[2]
        try:
            if name.rstrip("_") == "copy":
                self._drop_aliases(args[0])
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
            pass  # unsupported arguments
        return [_NOWHERE] * len(outputs)

    def _drop_aliases(self, part: torch.Tensor) -> None:
        """Drop the traces of tensors that share storage with `part`, which is being written to."""
        storage = part.untyped_storage()._cdata
        for other in list(self._traces):
            if other is not part and other.untyped_storage()._cdata == storage:
                self._traces[other] = _NOWHERE

    def _of(self, tensor: Any) -> Trace | str:
        """Return the trace of an input; `_NOWHERE` if it is not derived from the images."""
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

            trace_args, trace_kwargs = _pytree.tree_map(swap, (tuple(args), dict(kwargs)))
            moved = _pytree.tree_leaves(_without_views(func)(*trace_args, **trace_kwargs))
            if [tuple(item.shape) for item in moved] != [tuple(item.shape) for item in outputs]:
                raise ValueError("shapes differ")
            return moved

        return list(zip(part(0), part(1), part(2), strict=True))

    def _broadcast(self, inputs: Sequence[Any], shape: torch.Size) -> Trace | str:
        """Return for each element the input trace with the smallest reach."""
        best: Trace | str = _NOWHERE
        for leaf in inputs:
            trace = self._of(leaf)
            if isinstance(trace, str):
                continue
            if isinstance(best, str):
                best = trace
            elif best is not trace:
                best = _smaller_reach(trace, best, shape)
        return best if isinstance(best, str) else tuple(item.expand(tuple(shape)) for item in best)  # type: ignore[return-value]

    def _mean(self, args: Sequence[Any], shape: torch.Size) -> Trace | str:
        """Return the trace of a reduction: the middle of what is reduced, unless that is most of the image."""
        trace = self._of(args[0])
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(args[0].ndim))
        dims = [dims] if isinstance(dims, int) else list(dims)
        return trace if isinstance(trace, str) else _merged(trace, dims, tuple(shape), within=self._side / 2)

    def _product(self, factors: Sequence[Any], name: str, shape: torch.Size) -> Trace | str:
        """Return the trace of a matrix product with a constant: one centre per row."""
        left, right = factors
        known = [item in self._traces for item in (left, right)]
        if all(known):
            return _NOWHERE
        trace = self._of(left if known[0] else right)
        if isinstance(trace, str):
            return trace
        dim = -1 if known[0] else -2
        factor = left if known[0] else right
        kept = list(factor.shape)
        kept[dim] = 1
        rows = _merged(trace, [dim], tuple(kept), within=_TOLERANCE if name == "matmul" else math.inf)
        return rows if isinstance(rows, str) else tuple(item.expand(tuple(shape)) for item in rows)  # type: ignore[return-value]

    def _resampled(self, places: "_Places", args: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Trace | str]:
        trace = self._of(args[0])
        if isinstance(trace, str):
            return [trace] * len(outputs)
        out = outputs[0].shape
        if places is _padded:
            moved = trace
            for dim, at in _padded(args, out).items():
                moved = tuple(_sampled(item, dim, at) for item in moved)  # type: ignore[assignment]
            self._borders[outputs[0]] = _border(args)
            return [moved] * len(outputs)
        merged = _merged(trace, [1], (trace[0].shape[0], 1, *trace[0].shape[2:]), within=math.inf)
        assert isinstance(merged, tuple)
        rows, columns, kernel = places(args, out, self._borders.get(args[0], _NO_BORDER))
        step = max(_step(merged[0], -2), _step(merged[1], -1))
        if _spread(trace, merged) > _MAX_SPREAD_CELLS * max(step, 1):
            return [_NOWHERE] * len(outputs)
        y, x, reach = (_sampled(_sampled(item, -2, rows), -1, columns) for item in merged)
        moved = (y, x, reach + step * kernel / 2)
        return [tuple(item.expand(tuple(out)) for item in moved)] * len(outputs)  # type: ignore[list-item]


def _smaller_reach(one: Trace, other: Trace, shape: torch.Size) -> Trace:
    """Return for each element of `shape` the trace with the smaller reach; broadcast dimensions (stride 0) stay 1."""
    parts = [item.expand(tuple(shape)) for item in (*one, *other)]
    for dim in range(len(shape)):
        if all(item.stride(dim) == 0 for item in parts):
            parts = [item.narrow(dim, 0, 1) for item in parts]
    first, second = parts[:3], parts[3:]
    is_smaller = first[2] < second[2]
    y, x, reach = (torch.where(is_smaller, a, b) for a, b in zip(first, second, strict=True))
    return y, x, reach


def _without_views(func: Any) -> Any:
    return torch.ops.aten.reshape.default if "view" in str(func).partition(".")[2] else func


def _merged(trace: Trace, dims: list[int], shape: tuple[int, ...], *, within: float = _TOLERANCE) -> Trace | str:
    """Average the centres of a trace over `dims` if they lie within so many pixels of each other.

    Only the elements with the smallest reach count: of levels resized to one map, the finest sets its geometry.
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
    if far > within:
        return _NOWHERE
    return middle[0], middle[1], (least + far).reshape(shape)


def _spread(trace: Trace, merged: Trace) -> float:
    """Return the largest distance between the centres of a cell's channels, which `_merged` has added to the reach."""
    finite = torch.isfinite(merged[2])
    return float((merged[2] - trace[2].amin(1, keepdim=True))[finite].max()) if bool(finite.any()) else 0.0


def _sampled(values: torch.Tensor, dim: int, at: torch.Tensor) -> torch.Tensor:
    """Interpolate values linearly at fractional indices of an axis; extrapolate beyond its ends."""
    count = values.shape[dim]
    if count == 1:
        return values.index_select(dim, torch.zeros(len(at), dtype=torch.long))
    low = at.floor().clamp(0, count - 2).long()
    shape = [1] * values.ndim
    shape[dim] = len(at)
    share = (at - low).to(values.dtype).reshape(shape)
    before, after = values.index_select(dim, low), values.index_select(dim, low + 1)
    # Not before + share * (after - before), which is NaN for an infinite reach.
    return torch.where(share == 0, before, torch.where(share == 1, after, before + share * (after - before)))


def _step(values: torch.Tensor, dim: int) -> float:
    if values.shape[dim] == 1:
        return 1.0
    return float((values.select(dim, 1) - values.select(dim, 0)).abs().max())


_Places = Callable[[Sequence[Any], torch.Size, Border], Any]


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


def _windows(
    size: torch.Size,
    border: Border,
    out: torch.Size,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the window centres in cells of the input, vertically and horizontally, and the window extent.

    A window of k cells at stride s represents its s middle cells. If k - s is odd, as for the 3 x 3 kernels of stride 2
    in a ResNet, no padding centres them in the window. If the map has W / s cells, rounded up, they are then placed so
    that it divides W evenly; without padding, as in AlexNet, it has fewer, and the window's own centre is used.

    Args:
        size: shape of the input, `[..., H, W]`.
        border: what an operation before padded of it, which counts as padding.
        out: shape of the map, `[..., h, w]`.
        kernel: of the windows, vertically and horizontally; so are `stride`, `padding` and `dilation`.
    """
    extents = [(kernel[axis] - 1) * dilation[axis] for axis in (0, 1)]
    firsts = []
    for axis, (extent, step, pad, (before, after)) in enumerate(zip(extents, stride, padding, border, strict=True)):
        bare = size[axis - 2] - before - after
        uneven = abs(pad + before - (extent + 1 - step) / 2) == 0.5 and out[axis - 2] == -(-bare // step)
        firsts.append(before + (step - 1) / 2 if uneven else extent / 2 - pad)
    rows, columns = (torch.arange(out[axis - 2], dtype=torch.float64) * stride[axis] + firsts[axis] for axis in (0, 1))
    return rows, columns, max(extents)


def _convolved(args: Sequence[Any], out: torch.Size, border: Border) -> Any:
    kernel = _pair(args[1].shape[2:])
    stride, padding, dilation = (_pair(item) for item in args[3:6])
    if not args[6]:
        return _windows(args[0].shape, border, out, kernel, stride, padding, dilation)
    rows, columns = (
        _enlarging(
            args[0].shape[axis - 2], out[axis - 2], stride[axis], padding[axis], dilation[axis] * (kernel[axis] - 1)
        )
        for axis in (0, 1)
    )
    return rows, columns, 1


def _enlarging(size: int, out: int, step: int, pad: int, extent: int) -> torch.Tensor:
    """Return the cell positions of a transposed convolution's map in its input: the inverse of `_windows`."""
    uneven = abs(pad - (extent + 1 - step) / 2) == 0.5 and out == step * size
    return (torch.arange(out, dtype=torch.float64) - ((step - 1) / 2 if uneven else extent / 2 - pad)) / step


def _pooled(args: Sequence[Any], out: torch.Size, border: Border) -> Any:
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] not in ([], None) else kernel
    padding = _pair(args[3]) if len(args) > 3 else (0, 0)
    return _windows(args[0].shape, border, out, kernel, stride, padding, (1, 1))


def _max_pooled(args: Sequence[Any], out: torch.Size, border: Border) -> Any:
    dilation = _pair(args[4]) if len(args) > 4 else (1, 1)
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] not in ([], None) else kernel
    padding = _pair(args[3]) if len(args) > 3 else (0, 0)
    return _windows(args[0].shape, border, out, kernel, stride, padding, dilation)


def _adaptive(args: Sequence[Any], out: torch.Size, _border: Border) -> Any:
    sides, extent = [], 0
    for axis in (-2, -1):
        count, cells = args[0].shape[axis], out[axis]
        starts = [at * count // cells for at in range(cells)]
        stops = [-(-(at + 1) * count // cells) for at in range(cells)]
        sides.append(torch.tensor([(a + b - 1) / 2 for a, b in zip(starts, stops, strict=True)], dtype=torch.float64))
        extent = max(extent, *(b - a for a, b in zip(starts, stops, strict=True)))
    return sides[0], sides[1], extent


def _enlarged(args: Sequence[Any], out: torch.Size, _border: Border) -> Any:
    corners = len(args) > 2 and args[2] is True
    sides = []
    for axis in (-2, -1):
        count, cells = args[0].shape[axis], out[axis]
        at = torch.arange(cells, dtype=torch.float64)
        sides.append(at * (count - 1) / max(cells - 1, 1) if corners else (at + 0.5) * count / cells - 0.5)
    return sides[0], sides[1], 1


def _border(args: Sequence[Any]) -> Border:
    """Return the padding of an operation, vertically and horizontally; none if it crops."""
    pads = [*args[1], 0, 0, 0, 0][:4]
    return _NO_BORDER if min(args[1]) < 0 else ((pads[2], pads[3]), (pads[0], pads[1]))


def _padded(args: Sequence[Any], out: torch.Size, _border: Border = _NO_BORDER) -> dict[int, torch.Tensor]:
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
    """Return the vertical and horizontal stride and first centre of a map's cells; None if the grid is irregular."""
    if trace is None:
        return None
    finest = _merged(trace, [1], (trace[0].shape[0], 1, *trace[0].shape[2:]), within=math.inf)
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
        if count > 1 and spread > _MAX_SPREAD_CELLS * max(stride, 1):
            return None
        axes.append((_rounded(stride), _rounded(float(line[0]))))
    return axes[0], axes[1]


def _rounded(value: float) -> float:
    """Round off float32 noise: positions from kernels and strides are dyadic fractions."""
    rounded = round(value * 4096) / 4096
    return rounded if abs(value - rounded) < 1e-4 else value
