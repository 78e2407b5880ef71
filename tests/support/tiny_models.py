"""Small models for tests, built by `tiny_models:NAME`; weights depend on the caller's seed."""

import threading
import time

import torch
from torch import nn


def conv() -> nn.Module:
    """Return a net of two strided convolutions: [B, 3, H, W] -> [B, 6, H/8, W/8]."""
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.GELU(), nn.Conv2d(4, 6, 3, stride=2, padding=1))


def pooled() -> nn.Module:
    """Return a net whose one output is a vector: [B, 3, H, W] -> [B, 6]."""
    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Colours(nn.Module):
    """Mean colour of each 8 x 8 block, so that a point probe's value tells its position in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, H/8, W/8]."""
        return nn.functional.avg_pool2d(images, 8)


def colours() -> nn.Module:
    """Return `Colours`."""
    return Colours()


class TwoMaps(nn.Module):
    """Two output slots of different size from one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, stride=4)
        self.second = nn.Conv2d(4, 8, 2, stride=2)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `fine` [B, 4, H/4, W/4] and `coarse` [B, 8, H/8, W/8]."""
        fine = self.first(images)
        return {"fine": fine, "coarse": self.second(fine)}


def two_maps() -> nn.Module:
    """Return `TwoMaps`."""
    return TwoMaps()


class NanForDark(nn.Module):
    """A model that returns NaN for black images."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, H/8, W/8], NaN where the image is black."""
        return torch.log(nn.functional.avg_pool2d(images, 8)) * 0.0 + 1.0


def nan_for_dark() -> nn.Module:
    """Return `NanForDark`."""
    return NanForDark()


class Huge(nn.Module):
    """A model whose features overflow float16."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, H/8, W/8] of about 1e6."""
        return nn.functional.avg_pool2d(images, 8) * 0.0 + 1e6


def huge() -> nn.Module:
    """Return `Huge`."""
    return Huge()


class Slow(Colours):
    """Slow `Colours`, so that a test can interrupt it; not so on other threads than the one that encodes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, H/8, W/8] after 50 ms."""
        if threading.current_thread().name.startswith("genenc-encoder"):
            time.sleep(0.05)
        return super().forward(images)


def slow() -> nn.Module:
    """Return `Slow`."""
    return Slow()


class RaisesForDark(Colours):
    """`Colours` that raises for black images, as a user's model might."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, H/8, W/8], or raise ValueError."""
        if (images.flatten(1).amax(1) == 0).any():
            raise ValueError("too dark")
        return super().forward(images)


def raises_for_dark() -> nn.Module:
    """Return `RaisesForDark`."""
    return RaisesForDark()


class Wide(Colours):
    """256 channels of 2 x 2 blocks: maps as large as those of big models, at negligible cost."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 256, H/2, W/2], the mean colours repeated."""
        return nn.functional.avg_pool2d(images, 2).repeat(1, 86, 1, 1)[:, :256]


def wide() -> nn.Module:
    """Return `Wide`."""
    return Wide()


def unpadded() -> nn.Module:
    """Map [B, 3, H, W] to [B, 5, h, w], h = ceil((H - 2) / 2) - 4, w alike."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 3)
    )


def every_third() -> nn.Module:
    """Map [B, 3, H, W] to [B, 4, h, w], h = (H - 19) // 3 + 1, w alike."""
    return nn.Conv2d(3, 4, 19, stride=3)


class Branching(nn.Module):
    """A net with data-dependent control flow, which torch.export rejects."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.conv(images)
        return maps if maps.mean() > 0 else 2 * maps


def branching() -> nn.Module:
    return Branching()


class SixBands(nn.Module):
    """A model of six channels, which declares them and their statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(6, 4, 5, stride=4, padding=2), nn.GELU(), nn.Conv2d(4, 5, 2, stride=2))
        self.genenc = {
            "channels": 6,
            "image_size": 32,
            "mean": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
            "std": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 5, H/8, W/8]."""
        found: torch.Tensor = self.body(images)
        return found


def six_bands() -> nn.Module:
    """Return `SixBands`."""
    return SixBands()


def six_bands_with_three_means() -> nn.Module:
    """Return `SixBands` with a declaration that contradicts itself."""
    model = SixBands()
    model.genenc = {**model.genenc, "mean": (0.1, 0.2, 0.3)}
    return model


class Bands(nn.Module):
    """Mean of each channel of six in each 8 x 8 block, so that a probe's value tells its channel and position."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.genenc = {"channels": 6, "image_size": 32}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 6, H/8, W/8]."""
        return nn.functional.avg_pool2d(images, 8)


def bands() -> nn.Module:
    """Return `Bands`."""
    return Bands()


class Narrow(nn.Module):
    """A net that computes in float32 whatever its tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 6, H/8, W/8]."""
        found: torch.Tensor = self.body(images)
        return found.float().tanh().to(images.dtype)


def narrow() -> nn.Module:
    """Return `Narrow`."""
    return Narrow()


class OfTheBatch(nn.Module):
    """A net that is off by a millionth of the other images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 6, H/8, W/8]."""
        found: torch.Tensor = self.body(images)
        return found + 1e-6 * found.mean(0, keepdim=True)


def of_the_batch() -> nn.Module:
    """Return `OfTheBatch`."""
    return OfTheBatch()
