"""Layers after a model's maps: its pooling and classifier as layers, and `pre_logits`, what the classifier gets."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeVar

import torch
from torch import nn

PRE_LOGITS: Final = "pre_logits"
"""Name of the layer that is the input of a model's classifier, one vector per image."""
Head = Literal["whole", "pre_logits"]
"""How much of a model is wanted: all its layers, or those up to its classifier."""
Value = TypeVar("Value")


class WholeModel(nn.Module):
    """A model's own forward pass, for layers that its trunk lacks; without a classifier it ends in `pre_logits`."""

    def __init__(self, model: nn.Module, head: Head, *, classifiers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.ends_in_vector = head == PRE_LOGITS
        self.removed = tuple(classifiers) if self.ends_in_vector else ()
        """names of the classifiers that were replaced by `Identity`"""
        self.pre_logits = nn.Identity()

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return what the model returns, under the name of the layer."""
        return {PRE_LOGITS: self.pre_logits(self.model(images))}


def without_classifier(state: Mapping[str, Value], classifiers: Sequence[str]) -> Mapping[str, Value]:
    """Return the entries of a state dict that are not of a classifier."""
    prefixes = tuple(f"{name}." for name in classifiers)
    return {name: value for name, value in state.items() if not name.startswith(prefixes)} if prefixes else state
