"""Where the cells of maps lie: followed through a model, compared with where each cell is seen to look."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from genenc_core.encoding.cells import Cells
from genenc_core.encoding.point_sampling import SpatialPoint
from genenc_core.encoding.pooling import PointBatch
from genenc_core.models import encoder_module, receptive_field, resolve


def windows(model: nn.Module, width: int) -> list[tuple[float, float]]:
    """Return the pixel columns, from and to, that each column of a map depends on, by changing one after the other."""
    with torch.inference_mode():
        plain = model(torch.zeros(1, 3, width, width))
        spans = [[width, 0] for _ in range(plain.shape[3])]
        for column in range(width):
            image = torch.zeros(1, 3, width, width)
            image[..., column] = 1
            for cell in (model(image) != plain).any(2).any(1)[0].nonzero().flatten().tolist():
                spans[cell] = [min(spans[cell][0], column), max(spans[cell][1], column + 1)]
    return [(float(start), float(stop)) for start, stop in spans]


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """One layer whose positive weights let every pixel of a window count."""
    kernel, stride = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["conv", "mean", "max", "patch", "dilated"]))
    if kind == "patch":
        found: nn.Module = nn.Conv2d(3, 3, stride, stride=stride)
    elif kind == "conv":
        found = nn.Conv2d(3, 3, kernel, stride=stride, padding=draw(st.integers(0, kernel // 2)))
    elif kind == "dilated":
        found = nn.Conv2d(3, 3, 3, stride=stride, dilation=2)
    else:
        pool = nn.AvgPool2d if kind == "mean" else nn.MaxPool2d
        found = pool(kernel, stride, draw(st.integers(0, kernel // 2)), ceil_mode=draw(st.booleans()))
    for parameter in found.parameters():
        nn.init.constant_(parameter, 0.5)
    return found


def unevenness(chain: list[nn.Module], width: int) -> float:
    """Return by how many pixels the middle of a window may be off the place that it stands for.

    Half a cell of a layer's input where windows cannot lie evenly around their strides, lie as evenly as they can, and
    are as many as those that divide the input.
    """
    total, pixels = 0.0, 1
    image = torch.zeros(1, 3, width, width)
    for layer in chain:
        kernel, stride, padding, dilation = (
            item if isinstance(item, int) else item[0]
            for item in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
        )
        size, image = image.shape[3], layer(image)
        if abs(padding - (dilation * (kernel - 1) + 1 - stride) / 2) == 0.5 and image.shape[3] == -(-size // stride):
            total += pixels / 2
        pixels *= stride
    return total


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(chain=st.lists(layers(), min_size=1, max_size=3), width=st.integers(24, 57), data=st.data())
def test_cell_centres_match_gradients(chain: list[nn.Module], width: int, data: st.DataObject) -> None:
    """Every stride, padding, dilation, leftover pixels, ceil_mode: by windows that were measured, not worked out."""
    model = nn.Sequential(*chain).eval()
    try:
        with torch.inference_mode():
            cells = model(torch.zeros(1, 3, width, width)).shape[3]
    except RuntimeError:
        hypothesis.reject()
    found = receptive_field.cells(model, lambda run, images: {"m": run(images)}, size=(width, width))
    (_, (stride, first)) = found["m"]
    spans, uneven = windows(model, width), unevenness(chain, width)
    widest = max(stop - start for start, stop in spans)
    for cell, (start, stop) in enumerate(spans):
        # At the borders windows are cut short.
        if 2 <= cell < cells - 2 and start > 0 and stop < width and stop - start == widest:
            assert first + cell * stride == pytest.approx((start + stop) / 2, abs=uneven + 1e-3)
            assert start - uneven <= first + (cell - 0.5) * stride or stop - start < stride
    x = data.draw(st.floats(0, width))
    place = Cells(stride=(stride or width, stride or width), first=(first, first))
    batch = PointBatch(
        xy=torch.tensor([[[x, width / 2]]], dtype=torch.float64),
        valid=torch.ones(1, 1, dtype=torch.bool),
        input_size=(width, width),
        cells=place,
    )
    columns = torch.arange(float(cells)).expand(1, 1, cells, cells)
    probed = int(SpatialPoint("cell", 1).apply(columns, batch).item())
    distances = [abs(x - (first + cell * stride)) for cell in range(cells)]
    assert distances[probed] <= min(distances) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "stride", "first"),
    [
        ("resnet18", 64, 32, 16),
        ("resnet18", 100, 32, 16),
        ("timm/test_efficientnet", 64, 32, 16),
        ("timm/vit_tiny_patch16_224", 100, 16, 8),
        ("convnext_tiny", 64, 32, 16),
        ("timm/test_vit", 48, 16, 8),
        # Pools of 3 at every second cell without padding: the middle of what a cell looks at.
        ("alexnet", 224, 32, 31.5),
        ("squeezenet1_1", 224, 16, 15.5),
        ("inception_v3", 299, 32, 37.5),
        ("googlenet", 224, 32, 16),
        # Padded by an operation before, as TensorFlow does: at the right only where the size is even.
        ("timm/tf_mobilenetv3_small_minimal_100", 224, 32, 16),
        ("timm/tf_mobilenetv3_small_minimal_100", 240, 32, 16),
    ],
)
def test_known_models(name: str, size: int, stride: float, first: float) -> None:
    """Maps divide their input evenly where it is a multiple; leftover pixels do not stretch cells."""
    built = resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=(size, size)))
    found = receptive_field.cells(built.module, encoder_module.EncoderModule.slots, size=(size, size))
    assert found["features"] == ((stride, first), (stride, first))


def test_learnt_slopes_move_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.PReLU(4), nn.Conv2d(4, 4, 3, 2, 1), nn.PReLU()).eval()
    found = receptive_field.cells(model, lambda run, images: {"m": run(images)}, size=(30, 32))
    assert found == {"m": ((4, 2), (4, 2))}


@pytest.mark.parametrize("size", [64, 75])
def test_padding_before_a_convolution_is_its_own(size: int) -> None:
    inside = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(3)))
    before = nn.Sequential(*(layer for _ in range(3) for layer in (nn.ZeroPad2d(1), nn.Conv2d(3, 3, 3, stride=2))))
    found = [
        receptive_field.cells(model.eval(), lambda run, images: {"m": run(images)}, size=(size, size))
        for model in (inside, before)
    ]
    assert found[0] == found[1] == {"m": ((8, 4), (8, 4))}


@pytest.mark.parametrize(("up", "stride"), [(4, 1), (2, 4), (0, 16)])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_a_decoder_brings_cells_back_to_where_the_encoder_took_them_from(kernel: int, up: int, stride: int) -> None:
    down = [nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(4)]
    padding, more = {2: (0, 0), 3: (1, 1), 4: (1, 0)}[kernel]
    back = [nn.ConvTranspose2d(3, 3, kernel, stride=2, padding=padding, output_padding=more) for _ in range(up)]
    model = nn.Sequential(*down, *back).eval()
    found = receptive_field.cells(model, lambda run, images: {"m": run(images)}, size=(128, 128))
    assert found["m"] == ((stride, stride / 2), (stride, stride / 2))


class Levels(nn.Module):
    """A level of stride 4 beside one of stride 32, enlarged to it and weaker: together they are one map."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fine = nn.Conv2d(3, 4, 4, stride=4, padding=2)
        self.deep = nn.Sequential(*(nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(3)))
        self.fuse, self.linear = nn.Conv2d(8, 4, 1), nn.Linear(8, 4)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 4 or 8, h, w]."""
        fine = self.fine(images)
        deep = nn.functional.interpolate(self.deep(fine) * 0.1, size=fine.shape[2:], mode="bilinear")
        both = torch.cat((deep, fine), 1)
        if self.how == "conv":
            return self.fuse(both)
        if self.how == "linear":
            return self.linear(both.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.how == "stack":
            return torch.stack((deep, fine)).sum(0)
        return both if self.how == "none" else fine + deep


@pytest.mark.parametrize("size", [(60, 90), (97, 131), (64, 96)])
@pytest.mark.parametrize("how", ["conv", "linear", "stack", "none", "sum"])
def test_fused_levels_have_the_finest_grid(how: str, size: tuple[int, int]) -> None:
    model = Levels(how).eval()
    found = receptive_field.cells(model, lambda run, images: {"m": run(images)}, size=size)["m"]
    assert found == ((4.0, 0.0), (4.0, 0.0))
    (_, (stride, first)) = found
    image = torch.zeros(1, 3, *size)
    with torch.inference_mode():
        plain = model(image)
        for column in range(0, size[1] - 3, 7):
            image[..., column] = 1
            changed = (model(image) - plain).abs().sum((0, 1, 2))
            image[..., column] = 0
            assert int(changed.argmax()) == int((column + 0.5 - first) / stride + 0.5)


def test_resampled_values_are_centred() -> None:
    """Neighbours that were put side by side into channels are of one level, and the mean of their places counts."""
    model = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 1))
    found = receptive_field.cells(model, lambda run, images: {"m": run(images)}, size=(32, 32))
    assert found["m"] == ((4.0, 2.0), (4.0, 2.0))


class Mixed(nn.Module):
    """A map whose every cell is of the whole image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, 4, 4]."""
        return images.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4) * 2


def test_outputs_without_centres_are_omitted() -> None:
    assert receptive_field.cells(Mixed(), lambda run, images: {"m": run(images)}, size=(32, 32)) == {}


class Written(nn.Module):
    """A map a part of which is written over with another part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 4, h, w]."""
        maps = self.conv(images)
        maps[..., 3:] = maps[..., :-3].clone()
        return maps


class Regrouped(nn.Module):
    """Tokens that were taken for channels: a cell's channels are of patches far apart."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 5, 4, 4), after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 5, h, w]."""
        maps = self.conv(images)
        return self.after(maps.flatten(2).transpose(1, 2).reshape(maps.shape))  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Written(), Regrouped(nn.Identity()), Regrouped(nn.Conv2d(5, 5, 3, 1, 1))])
def test_permuted_positions_have_no_grid(model: nn.Module) -> None:
    assert receptive_field.cells(model, lambda run, images: {"m": run(images)}, size=(64, 64)) == {}


def test_failing_model_has_no_cells() -> None:
    assert receptive_field.cells(nn.Linear(7, 2), lambda run, images: {"m": run(images)}, size=(32, 32)) == {}


class Windowed(nn.Module):
    """Reduces square windows of the image from a first pixel on, as people write it without a pooling layer."""

    def __init__(self, how: str, kernel: int, stride: int, first: int) -> None:
        super().__init__()
        self.how, self.kernel, self.stride, self.first = how, kernel, stride, first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images[:, :, self.first :, self.first :]
        if self.how == "patches":
            batch, channels, height, width = images.shape
            rows, columns = height // self.kernel, width // self.kernel
            images = images[:, :, : rows * self.kernel, : columns * self.kernel]
            return images.reshape(batch, channels, rows, self.kernel, columns, self.kernel).mean((3, 5))
        unfolded = images.unfold(2, self.kernel, self.stride).unfold(3, self.kernel, self.stride)
        if self.how == "one after the other":
            return unfolded.amax(-1).sum(-1)
        return unfolded.mean((4, 5))


@hypothesis.given(
    how=st.sampled_from(["patches", "windows", "one after the other"]),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 9),
    first=st.integers(0, 12),
)
def test_windows_reduced_by_hand_have_their_middles(how: str, kernel: int, stride: int, first: int) -> None:
    model, width = Windowed(how, kernel, stride, first), 48
    seen = windows(model, width)
    found = receptive_field.cells(model, lambda model, images: {"map": model(images)}, size=(width, width))
    (step, start), across = found["map"]
    assert across == (step, start)
    middles = [(low + high) / 2 for low, high in seen]
    assert [start + step * cell for cell in range(len(seen))] == pytest.approx(middles, abs=1e-3)
