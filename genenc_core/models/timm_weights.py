"""Weight files for timm's models, brought to a model's names and sizes by timm's own code."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genenc_core.models.weights import Convert, interpolated_note


def converting(model: nn.Module) -> Convert:
    """Return what converts a state dict as timm does for pretrained weights: names, and sizes of position embeddings.

    An embedding of another grid is interpolated with `timm.layers.resample_abs_pos_embed` (bicubic, antialiased) or
    what else the model's own `checkpoint_filter_fn` takes.
    """

    def converted(state: Mapping[str, torch.Tensor], notes: list[str]) -> Mapping[str, torch.Tensor] | None:
        convert: Any = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
        if convert is None:
            return None
        logger = logging.getLogger("timm")
        before = logger.level
        logger.setLevel(logging.WARNING)  # what it interpolates is noted here
        try:
            made = convert(dict(state), model)
        except Exception:  # of another model's file it may expect anything
            return None
        finally:
            logger.setLevel(before)
        if not isinstance(made, Mapping) or not all(isinstance(value, torch.Tensor) for value in made.values()):
            return None
        changed = [name for name, value in made.items() if name in state and state[name].shape != value.shape]
        notes += [interpolated_note(name, state[name], made[name]) for name in changed]
        if [name for name in made if name not in state]:
            notes.append("names are converted as timm does")
        return made

    return converted
