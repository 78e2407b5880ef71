"""YOLOv3-tiny without box decoding: two backbone maps and the raw outputs of both heads; reads Darknet weights."""

import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors, spec
from genenc_core.models.encoder_module import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_file, load_state

NATIVE = (416, 416)
STRIDE = 32

# Three anchors of four box sides, one objectness and COCO's 80 classes.
HEAD_CHANNELS = 3 * (4 + 1 + 80)

_DARKNET_SUFFIX = ".weights"
_DARKNET_ORDER = ("bias", "weight", "running_mean", "running_var")


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build YOLOv3-tiny, the 13 convolutions of Darknet's configuration.

    Slots at 416 x 416 pixels: `p4` [256, 26, 26] and `p5` [1024, 13, 13] are the backbone's maps (layers 8 and 12),
    `head_p4` [255, 26, 26] and `head_p5` [255, 13, 13] the detection heads before decoding (layers 22 and 15). Images
    are letterboxed and divided by 255. Weights are Darknet's `yolov3-tiny.weights` or a state dict.

    Raises:
        InputError: a side is not a multiple of 32, `pretrained`, or the weights do not fit.
    """
    height, width = image_size or NATIVE
    if height % STRIDE or width % STRIDE:
        raise errors.InputError(
            f"{name!r} does not accept {height} x {width} pixels: each side must be a multiple of {STRIDE}, or its two "
            "scales do not align. Give another --image-size, such as 416."
        )
    if choice.kind == "pretrained":
        raise errors.InputError(
            f"the weights of {name!r} are not downloaded. Get yolov3-tiny.weights from the Darknet project and give it "
            "with --weights FILE, or try the rest with --weights random:0, whose features mean nothing."
        )
    with construction_rng(choice):
        model = YoloTiny()
    model.eval().requires_grad_(False)
    if choice.path is not None and choice.path.suffix.lower() == _DARKNET_SUFFIX:
        load_state(read_darknet(choice.path, model), choice, model=model, trunk=model)
    elif choice.path is not None:
        load_file(choice, model=model, trunk=model)
    preprocessing = spec.Preprocessing(
        height=height, width=width, fit="pad", pad_position="center", pad_value=(128, 128, 128), antialias=False
    )
    return Parts(
        model=model,
        trunk=model,
        preprocessing=preprocessing,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        stages=tuple(name for name, _ in model.named_children()),
    )


class YoloTiny(nn.Module):
    """The network; a convolution's name is its layer number in Darknet's configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_0 = _convolution(3, 16, 3)
        self.layer_2 = _convolution(16, 32, 3)
        self.layer_4 = _convolution(32, 64, 3)
        self.layer_6 = _convolution(64, 128, 3)
        self.layer_8 = _convolution(128, 256, 3)
        self.layer_10 = _convolution(256, 512, 3)
        self.layer_12 = _convolution(512, 1024, 3)
        self.layer_13 = _convolution(1024, 256, 1)
        self.layer_14 = _convolution(256, 512, 3)
        self.layer_15 = nn.Conv2d(512, HEAD_CHANNELS, 1)
        self.layer_18 = _convolution(256, 128, 1)
        self.layer_21 = _convolution(384, 256, 3)
        self.layer_22 = nn.Conv2d(256, HEAD_CHANNELS, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the four slots for [B, 3, H, W] in [0, 1]."""
        maps = self.layer_0(images)
        for layer in (self.layer_2, self.layer_4, self.layer_6, self.layer_8):
            maps = layer(functional.max_pool2d(maps, 2))
        fine = maps
        maps = self.layer_10(functional.max_pool2d(fine, 2))
        # Darknet's stride-1 pool extends right and down; cells beyond the edge are ignored.
        maps = functional.max_pool2d(functional.pad(maps, (0, 1, 0, 1), value=-torch.inf), 2, stride=1)
        coarse = self.layer_12(maps)
        shared = self.layer_13(coarse)
        raised = functional.interpolate(self.layer_18(shared), scale_factor=2.0, mode="nearest")
        return {
            "p4": fine,
            "p5": coarse,
            "head_p4": self.layer_22(self.layer_21(torch.cat((raised, fine), 1))),
            "head_p5": self.layer_15(self.layer_14(shared)),
        }


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            norm=nn.BatchNorm2d(out_channels, eps=1e-5),
            act=nn.LeakyReLU(0.1),
        )
    )


def read_darknet(path: Path, model: YoloTiny) -> "OrderedDict[str, torch.Tensor]":
    """Read a Darknet weights file: a header, then the float32 values of each convolution in layer order.

    The kernel is preceded by bias, scale, mean and variance with batch normalisation, and by the bias without.

    Raises:
        InputError: unreadable, or its length does not match this network.
    """
    try:
        data = path.read_bytes()
        major, minor, _revision = struct.unpack_from("<3i", data)
    except (OSError, struct.error) as error:
        raise errors.InputError(f"cannot read weights {str(path)!r} as a Darknet file: {error}.") from error
    # The counter of images seen in training has 64 bits since version 0.2.
    start = 12 + (8 if major * 10 + minor >= 2 else 4)
    own = model.state_dict()
    names = list(_darknet_names(model))
    wanted = sum(own[name].numel() for name in names)
    if len(data) != start + 4 * wanted:
        raise errors.InputError(
            f"weights {str(path)!r} do not fit the model: a Darknet file of YOLOv3-tiny with {HEAD_CHANNELS} head "
            f"channels has {start + 4 * wanted} bytes, this one has {len(data)}. Give yolov3-tiny.weights."
        )
    values = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=start).astype(np.float32))
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, part in zip(names, torch.split(values, [own[name].numel() for name in names]), strict=True):
        state[name] = part.reshape(own[name].shape)
    return state


def _darknet_names(model: YoloTiny) -> Iterator[str]:
    """Yield the state dict's names in file order."""
    for layer, module in model.named_children():
        if isinstance(module, nn.Conv2d):
            yield from (f"{layer}.bias", f"{layer}.weight")
        else:
            yield from (f"{layer}.norm.{part}" for part in _DARKNET_ORDER)
            yield f"{layer}.conv.weight"
