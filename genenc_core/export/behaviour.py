"""Whether a model's features of an image are the image's alone and stay the same, seen on a few synthetic images."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Run = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]

STEADY, STEADY_IN_HALF = 1e-3, 3e-2
"""Largest difference, as a share of a slot's largest value, that kernels for other batches make."""
_CONTRASTS = ((255, 0), (64, 180), (40, 0))
"""(range, least value) of each image in turn: batch statistics of two of them differ much."""
REMEDY = (
    "so what is stored of an image would depend on more than the image. Put the model in evaluation mode before it is "
    "saved or returned (model.eval()), and remove what is random or kept between calls."
)


def images(size: tuple[int, int], count: int) -> torch.Tensor:
    """Return the same images always, float32 [count, 3, height, width] of bytes / 255: coarse blocks and noise."""
    height, width = size
    found = np.empty((count, 3, height, width), dtype=np.float32)
    for index in range(count):
        draw = np.random.RandomState(index)  # the numbers of this generator never change
        blocks = draw.randint(0, 256, (3, 8, 8))
        coarse = blocks[:, np.arange(height)[:, None] * 8 // height, np.arange(width)[None] * 8 // width]
        mixed = (3 * coarse + draw.randint(0, 256, (3, height, width))) // 4
        span, least = _CONTRASTS[index % len(_CONTRASTS)]
        found[index] = mixed * span // 255 + least
    return torch.from_numpy(found) / 255


def fault(
    run: Run, *, size: tuple[int, int], least: int, most: int, device: torch.device, limit: float = STEADY
) -> str | None:
    """Return in words how the features of an image depend on more than the image; None: they do not.

    The same batch is run twice, images in other company and alone (or, where `least` is more, with copies), and the
    batch in another order. Batches have two images, or the next number from `least` to `most` (0: any).
    """
    count = max(min(2, most) if most else 2, least)
    shown = images(size, count + 1).to(device)
    batch = shown[:count].contiguous()
    first, again = _of(run, batch), _of(run, batch)
    if told := difference(first, again, limit):
        return (
            f"returns different features for the same images each time ({told}), as dropout or other randomness does, "
            "or state that is kept between calls"
        )
    if count > 1:
        others = _of(run, torch.cat([shown[:1], shown[-1:].expand(count - 1, -1, -1, -1)]))
        alone = [_of(run, shown[at : at + 1].expand(1 if least == 1 else count, -1, -1, -1)) for at in (0, 1, count)]
        pairs = ((first, 0, others, 0), (alone[0], 0, first, 0), (alone[1], 0, first, 1), (alone[2], 0, others, 1))
        for one, at, other, place in pairs:
            if told := difference(_image(one, at), _image(other, place), limit):
                return f"gives an image other features beside other images ({told}), as batch statistics do"
        turned = {slot: value.roll(-1, 0) for slot, value in _of(run, batch.roll(1, 0)).items()}
        if told := difference(first, turned, limit):
            return f"returns different features for an image at another position in the batch ({told})"
    return None


def _of(run: Run, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Return the outputs for a copy of some images: a model may write over those that it gets."""
    return run(images.clone(memory_format=torch.contiguous_format))


def _image(found: Mapping[str, torch.Tensor], at: int) -> dict[str, torch.Tensor]:
    return {slot: value[at : at + 1] for slot, value in found.items()}


def difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], limit: float = STEADY) -> str | None:
    """Return the slot that differs most, in words; None: none by more than `limit` of its largest value."""
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
    """Return a file's runner with its outputs by their positions."""

    def named(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return {f"output {position}": value for position, value in enumerate(run(batch))}

    return named
