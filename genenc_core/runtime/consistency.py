"""Check, on synthetic images, that a model's features are deterministic and depend only on the image itself."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Run = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]

STEADY, STEADY_IN_HALF = 1e-3, 3e-2
"""largest difference that kernels for other batch sizes cause, relative to a slot's largest value"""
_CONTRASTS = ((255, 0), (64, 180), (40, 0))
"""(range, minimum) of the images in turn, so that the batch statistics of any two differ clearly"""
REMEDY = (
    "so the stored features of an image would depend on more than the image. Put the model in evaluation mode before "
    "it is saved or returned (model.eval()), and remove randomness and state that is kept between calls."
)


def images(size: tuple[int, int], count: int, *, channels: int = 3) -> torch.Tensor:
    """Return reproducible images, float32 [count, channels, height, width] of bytes / 255: coarse blocks and noise."""
    height, width = size
    values = np.empty((count, channels, height, width), dtype=np.float32)
    for index in range(count):
        draw = np.random.RandomState(index)  # the stream of this generator is frozen
        blocks = draw.randint(0, 256, (channels, 8, 8))
        coarse = blocks[:, np.arange(height)[:, None] * 8 // height, np.arange(width)[None] * 8 // width]
        mixed = (3 * coarse + draw.randint(0, 256, (channels, height, width))) // 4
        span, minimum = _CONTRASTS[index % len(_CONTRASTS)]
        values[index] = mixed * span // 255 + minimum
    return torch.from_numpy(values) / 255


def fault(
    run: Run,
    *,
    size: tuple[int, int],
    batch_min: int,
    batch_max: int,
    device: torch.device,
    limit: float = STEADY,
    channels: int = 3,
) -> str | None:
    """Describe how the features of an image depend on more than the image; None if they do not.

    Runs the same batch twice, images beside other images and alone (or with copies, if `batch_min` is above 1), and the
    batch in another order. Batches have two images, or the closest size from `batch_min` to `batch_max` (0: unlimited).
    """
    count = max(min(2, batch_max) if batch_max else 2, batch_min)
    samples = images(size, count + 1, channels=channels).to(device)
    batch = samples[:count].contiguous()
    first, again = _run_copy(run, batch), _run_copy(run, batch)
    if problem := difference(first, again, limit):
        return (
            f"returns different features for the same images each time ({problem}), as with dropout, other randomness "
            "or state that is kept between calls"
        )
    if count > 1:
        others = _run_copy(run, torch.cat([samples[:1], samples[-1:].expand(count - 1, -1, -1, -1)]))
        single = [
            _run_copy(run, samples[at : at + 1].expand(1 if batch_min == 1 else count, -1, -1, -1))
            for at in (0, 1, count)
        ]
        pairs = ((first, 0, others, 0), (single[0], 0, first, 0), (single[1], 0, first, 1), (single[2], 0, others, 1))
        for one, at, other, place in pairs:
            if problem := difference(_image(one, at), _image(other, place), limit):
                return (
                    f"returns different features for an image beside other images ({problem}), as batch statistics do"
                )
        rolled = {slot: value.roll(-1, 0) for slot, value in _run_copy(run, batch.roll(1, 0)).items()}
        if problem := difference(first, rolled, limit):
            return f"returns different features for an image at another position in the batch ({problem})"
    return None


def _run_copy(run: Run, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Run on a copy of the images, since a model may overwrite its input."""
    return run(images.clone(memory_format=torch.contiguous_format))


def _image(outputs: Mapping[str, torch.Tensor], at: int) -> dict[str, torch.Tensor]:
    return {slot: value[at : at + 1] for slot, value in outputs.items()}


def difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], limit: float = STEADY) -> str | None:
    """Describe the slot that differs most; None if none differs by more than `limit` of its largest value."""
    if one.keys() != other.keys():
        return f"its outputs are {', '.join(one)}, then {', '.join(other)}"
    shares = {slot: _largest(one[slot], other[slot]) for slot in one}
    worst = max(shares, key=lambda slot: shares[slot])
    return None if shares[worst] <= limit else f"{worst!r} differs by {100 * shares[worst]:.2g} % of its largest value"


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    before, after = (torch.nan_to_num(item.double(), nan=0.0, posinf=0.0, neginf=0.0) for item in (one, other))
    size = max(before.abs().max().item(), after.abs().max().item()) if before.numel() else 0.0
    return 0.0 if size == 0 else (before - after).abs().max().item() / size


def by_position(run: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> Run:
    """Return a runner whose outputs are named by position."""

    def named(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return {f"output {position}": value for position, value in enumerate(run(batch))}

    return named
