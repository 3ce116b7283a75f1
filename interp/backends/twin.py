"""A second module tree over the same weights, for libraries that rewire what they are given."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def twin(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` that shares its parameters, buffers and forward hooks.

    The dictionaries themselves are shared: a parameter that is added, exchanged or changed and a
    hook that is registered on either tree act on both. Submodules, configs and patched forwards
    are the copy's own: whatever replaces them leaves ``model`` as it was.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        shared = [module._parameters, *(vars(module)[name] for name in _HOOKS)]
        shared += [buffer for buffer in module._buffers.values() if buffer is not None]
        memo |= {id(part): part for part in shared}
    return copy.deepcopy(model, memo)
