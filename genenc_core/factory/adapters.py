"""Adapters of the peft package (such as LoRA) for backbones."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import registry

_TESTED = ("LORA",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """A validated `peft_config`."""

    method: str
    replace_qkv: str | None
    options: dict[str, Any]


class QkvParts(nn.Module):
    """A fused projection [3 d, d] as three linear layers, to which adapters can be applied separately."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.in_features
        self.q_linear, self.k_linear, self.v_linear = (
            _slice(fused, slice(part * width, (part + 1) * width)) for part in range(3)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values concatenated to [..., 3 d], as the fused layer does."""
        return torch.cat((self.q_linear(tokens), self.k_linear(tokens), self.v_linear(tokens)), -1)


def check(given: Mapping[str, Any]) -> AdapterConfig:
    """Validate a `peft_config`.

    Raises:
        InputError: no method, or an unknown key.
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
        raise errors.InputError(f"peft_config_kwargs {options!r} must be a mapping.")
    return AdapterConfig(method=method.upper(), replace_qkv=given.get("replace_qkv"), options=dict(options))


def adapted(backbone: nn.Module, config: AdapterConfig) -> nn.Module:
    """Wrap `backbone` with an adapter; its layers are modified in place.

    Raises:
        InputError: peft is not installed, does not know the method, or rejects the options.
    """
    try:
        import peft
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise errors.InputError(
            f"peft_config needs the package peft ({errors.reason(error)}): pip install 'genenc[peft]'."
        ) from error
    kinds = {str(getattr(key, "value", key)): kind for key, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if config.method not in kinds:
        raise errors.InputError(f"peft has no method {config.method!r}.{registry.nearest(config.method, kinds)}")
    if config.method not in _TESTED:
        text = f"peft method {config.method} is passed on to peft, but not tested with genenc"
        warnings.warn(text, UserWarning, stacklevel=3)
    if config.replace_qkv is not None:
        split_qkv(backbone, config.replace_qkv)
    try:
        wrapped: nn.Module = peft.get_peft_model(backbone, kinds[config.method](**config.options))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise errors.InputError(f"peft rejects {config.options}: {errors.reason(error)}.") from error
    return wrapped


def split_qkv(model: nn.Module, ending: str) -> None:
    """Replace all submodules named `ending` or `*.ending` by an equivalent `QkvParts`.

    Raises:
        InputError: no such module, or one that is not a linear layer from d to 3 d.
    """
    matches = [name for name, _ in model.named_modules() if name == ending or name.endswith(f".{ending}")]
    if not matches:
        raise errors.InputError(f"replace_qkv {ending!r}: no module name of the backbone ends with it.")
    for name in matches:
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
