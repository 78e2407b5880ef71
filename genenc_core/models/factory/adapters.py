"""Adapters of the package peft (LoRA and its kin) around a backbone."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import wording
from genenc_core.models.factory import registry

_TESTED = ("LORA",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """A `peft_config`, checked."""

    method: str
    replace_qkv: str | None
    options: dict[str, Any]


class QkvParts(nn.Module):
    """A fused projection [3 d, d] as three linear layers, so that an adapter can go to each on its own."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.in_features
        self.q_linear, self.k_linear, self.v_linear = (
            _slice(fused, slice(part * width, (part + 1) * width)) for part in range(3)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values [..., 3 d], as the fused layer does."""
        return torch.cat((self.q_linear(tokens), self.k_linear(tokens), self.v_linear(tokens)), -1)


def check(given: Mapping[str, Any]) -> AdapterConfig:
    """Read a `peft_config`.

    Raises:
        InputError: no method, or a key that is not known.
    """
    known = ("method", "replace_qkv", "peft_config_kwargs")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise errors.InputError(f"peft_config has no {unknown[0]!r}.{registry.nearest(unknown[0], known)}")
    method = given.get("method")
    if not isinstance(method, str):
        raise errors.InputError("peft_config needs the key 'method', for example LORA.")
    options = given.get("peft_config_kwargs") or {}
    if not isinstance(options, Mapping):
        raise errors.InputError(f"peft_config_kwargs {options!r} must be names and values.")
    return AdapterConfig(method=method.upper(), replace_qkv=given.get("replace_qkv"), options=dict(options))


def adapted(backbone: nn.Module, config: AdapterConfig) -> nn.Module:
    """Wrap `backbone`, whose layers are changed in place, with an adapter.

    Raises:
        InputError: peft is missing, does not know the method, or refuses the options.
    """
    try:
        import peft
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise errors.InputError(
            f"peft_config needs the package peft ({wording.reason(error)}): pip install 'genenc[peft]'."
        ) from error
    kinds = {str(getattr(key, "value", key)): kind for key, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if config.method not in kinds:
        raise errors.InputError(f"peft has no method {config.method!r}.{registry.nearest(config.method, kinds)}")
    if config.method not in _TESTED:
        text = f"peft method {config.method} is passed on to peft, but was never tested here"
        warnings.warn(text, UserWarning, stacklevel=3)
    if config.replace_qkv is not None:
        split_qkv(backbone, config.replace_qkv)
    try:
        wrapped: nn.Module = peft.get_peft_model(backbone, kinds[config.method](**config.options))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise errors.InputError(f"peft refuses {config.options}: {wording.reason(error)}.") from error
    return wrapped


def split_qkv(model: nn.Module, ending: str) -> None:
    """Replace every submodule whose name ends with `.ending` (or is it) by `QkvParts`; the outputs stay the same.

    Raises:
        InputError: no such module, or one that is not a linear layer from d to 3 d.
    """
    found = [name for name, _ in model.named_modules() if name == ending or name.endswith(f".{ending}")]
    if not found:
        raise errors.InputError(f"replace_qkv {ending!r}: no module of the backbone has a name that ends so.")
    for name in found:
        parent, _, child = name.rpartition(".")
        fused = model.get_submodule(name)
        if not isinstance(fused, nn.Linear) or fused.out_features != 3 * fused.in_features:
            raise errors.InputError(
                f"replace_qkv {ending!r}: {name!r} is not a linear layer from d to 3 d, but {fused}."
            )
        setattr(model.get_submodule(parent), child, QkvParts(fused))


def _slice(fused: nn.Linear, rows: slice) -> nn.Linear:
    part = nn.Linear(fused.in_features, fused.in_features, bias=fused.bias is not None, device=fused.weight.device)
    part = part.to(fused.weight.dtype)
    with torch.no_grad():
        part.weight.copy_(fused.weight[rows])
        if fused.bias is not None:
            part.bias.copy_(fused.bias[rows])
    return part
