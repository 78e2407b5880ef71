"""Backbones from torchvision's classification models: the last map at each resolution, or a transformer's tokens."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torchvision.models as zoo
from torch import nn

from genenc_core import errors
from genenc_core.factory import backbones
from genenc_core.factory import features as feats
from genenc_core.models.sources import torchvision_source

Output = Literal["maps", "tokens"]


class TorchvisionMaps(nn.Module):
    """A convolutional model or Swin; its features are the last maps before each change of resolution."""

    def __init__(self, model: nn.Module, paths: Sequence[str], *, inputs: feats.InputInfo) -> None:
        super().__init__()
        self.body = model
        self.inputs = inputs
        self.channels_last = isinstance(model, zoo.SwinTransformer)
        self.relu_last = isinstance(model, zoo.DenseNet)
        # GoogLeNet and Inception convert their input to [-1, 1] for weights trained in TensorFlow.
        self.converts = bool(getattr(model, "transform_input", False))
        self.paths = list(paths)
        self.stages = list(range(len(self.paths)))
        self.eval()
        with torch.no_grad():
            shapes = [feature.shape for feature in self(torch.zeros((1, inputs.channels, inputs.height, inputs.width)))]
        following = [*(shape[2:] for shape in shapes[1:]), None]
        self.stages = [stage for stage in self.stages if shapes[stage][2:] != following[stage]]
        self.out_channels = [int(shapes[stage][1]) for stage in self.stages]

    def select(self, indices: Sequence[int]) -> None:
        """Keep only these stages.

        Raises:
            InputError: there is no such stage.
        """
        count = len(self.stages)
        if not indices or any(not -count <= index < count for index in indices):
            raise errors.InputError(f"backbone_out_indices {list(indices)} must be from {-count} to {count - 1}.")
        self.out_channels = [self.out_channels[index] for index in indices]
        self.stages = [self.stages[index] for index in indices]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of [B, 3, H, W], finest first unless selected otherwise."""
        current = self.body._transform_input(images) if self.converts else images  # type: ignore[operator]
        outputs = {}
        for stage, path in enumerate(self.paths):
            # By name, since an adapter may have replaced the module.
            current = self.body.get_submodule(path)(current)
            if stage in self.stages:
                outputs[stage] = current.permute(0, 3, 1, 2) if self.channels_last else current
        if self.relu_last and stage in outputs:
            outputs[stage] = nn.functional.relu(current)
        return [outputs[stage] for stage in self.stages]


class TorchvisionTransformer(nn.Module):
    """A vision transformer: tokens [B, 1 + h * w, C] after each layer (not normalised), or their maps."""

    def __init__(
        self, model: zoo.VisionTransformer, *, indices: Sequence[int] | None, output: Output, inputs: feats.InputInfo
    ) -> None:
        super().__init__()
        depth = len(model.encoder.layers)
        wanted = list(range(depth)) if indices is None else list(indices)
        if not wanted or any(not -depth <= index < depth for index in wanted):
            raise errors.InputError(f"backbone_out_indices {wanted} must be from {-depth} to {depth - 1}.")
        self.body = model
        self.inputs = inputs
        self.as_maps = output == "maps"
        self.stages = [index % depth for index in wanted]
        self.out_channels = [model.hidden_dim] * len(wanted)
        self.patch_size = model.patch_size
        self.layout = feats.PatchTokens(prefix=1, patch=(model.patch_size, model.patch_size))
        self.tokens = None if self.as_maps else self.layout

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one feature per selected layer."""
        model: Any = self.body
        patches = model.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((model.class_token.expand(patches.shape[0], -1, -1), patches), 1)
        tokens = model.encoder.dropout(tokens + model.encoder.pos_embedding)
        outputs = []
        for layer in model.encoder.layers:
            tokens = layer(tokens)
            outputs.append(tokens)
        features = [outputs[stage] for stage in self.stages]
        if not self.as_maps:
            return features
        grid = self.layout.grid(feats.image_size(images))
        return [feature[:, 1:].transpose(1, 2).unflatten(2, grid) for feature in features]


class TorchvisionBackbones:
    """The source `torchvision`."""

    def build(
        self,
        name: str,
        pretrained: bool = False,
        output: Output = "maps",
        out_indices: Sequence[int] | None = None,
        image_size: Any = None,
        **channels: Any,
    ) -> nn.Module:
        """Build a backbone; only transformers depend on `image_size`.

        It is for RGB images unless `channels` has `in_chans`, `in_channels` or `bands`.

        Raises:
            InputError: unknown output or stage, an unsupported size, or a failed download.
        """
        if output not in ("maps", "tokens"):
            raise errors.InputError(f"backbone_output {output!r} must be 'maps' or 'tokens'.")
        choice = backbones.random_or_pretrained(pretrained)
        parts = torchvision_source.build(
            name.lower(), choice, backbones.as_size(image_size), backbones.channels_in(channels)
        )
        model = parts.model
        inputs = backbones.input_info(parts)
        if isinstance(model, zoo.VisionTransformer):
            model.heads = nn.Sequential()
            return TorchvisionTransformer(model, indices=out_indices, output=output, inputs=inputs)
        if output == "tokens":
            raise errors.InputError(f"torchvision's {name!r} has no tokens; use backbone_output 'maps'.")
        paths = _paths(name, model)
        tops = {path.partition(".")[0] for path in paths}
        for child, _ in list(model.named_children()):
            if child not in tops:
                setattr(model, child, nn.Identity())
        maps = TorchvisionMaps(model, paths, inputs=inputs)
        if out_indices is not None:
            maps.select(out_indices)
        return maps

    def signature(self, name: str) -> inspect.Signature | None:  # noqa: ARG002
        """Return the arguments of `build`."""
        return backbones.keywords("pretrained", "output", "out_indices", "image_size", *backbones.CHANNELS, "bands")

    def includes_head(self, name: str) -> bool:  # noqa: ARG002
        """Return False, since this is not a decoder."""
        return False

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in torchvision_source.names()

    def __iter__(self) -> Iterator[str]:
        return iter(torchvision_source.names())

    def __len__(self) -> int:
        return len(torchvision_source.names())


_HEADS = ("avgpool", "fc", "AuxLogits", "aux1", "aux2", "dropout", "classifier", "norm", "permute", "flatten", "head")


def _paths(name: str, model: nn.Module) -> list[str]:
    """Return the names of the layers from the image to the last map, in order."""
    tops = [child for child, _ in model.named_children() if child not in _HEADS]
    known = ({"features"}, {"layers"}, {"stem", "blocks"}, {"stem", "trunk_output"})
    if set(tops) in known or tops[0].lower() in ("conv1", "conv2d_1a_3x3"):
        return [path for top in tops for path in _flattened(model, top)]
    raise errors.InputError(
        f"torchvision's {name!r} is newer than genenc, which does not know its feature layers. Use timm's model, or "
        "give package.module:factory."
    )


def _flattened(model: nn.Module, top: str) -> list[str]:
    """Return the children of a plain sequence, or the layer itself."""
    child = model.get_submodule(top)
    plain = type(child) in (nn.Sequential, nn.ModuleList) and len(child) > 0  # type: ignore[arg-type]
    return [f"{top}.{name}" for name, _ in child.named_children()] if plain else [top]
