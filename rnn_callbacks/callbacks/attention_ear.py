"""Listens to the attention weights that a model computes anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..analysis.attention import AttentionSums
from ..hooks import Ear

FUSED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@final
class AttentionEar:
    """Collects weights of every ``nn.MultiheadAttention`` of a model, while it is open.

    Those inside torch's transformer layers are left alone: the layers never ask for weights, and a hook would make
    them compute otherwise than unwatched.

    Args:
        model: whose.
        most: sequences of each module.
    """

    def __init__(self, model: nn.Module, most: int) -> None:
        inside = {id(part) for layer in model.modules() if isinstance(layer, FUSED) for part in layer.modules()}
        found = {name: m for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
        self.modules = {name: module for name, module in found.items() if id(module) not in inside}
        self.silent = dict.fromkeys(
            found.keys() - self.modules, "torch's transformer layers run it without computing weights"
        )
        self._most = most
        self._handles: list[RemovableHandle] = []
        self.begin()

    def begin(self) -> None:
        """Forget what was heard."""
        self.sums: dict[str, AttentionSums] = {}
        self.faults: dict[str, Exception] = {}

    def open(self) -> None:
        """Hang the hooks up."""
        self.close()
        for name, module in self.modules.items():
            hook = Ear(self._after(name))
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=True))

    def close(self) -> None:
        """Take the hooks away; what was heard stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _after(self, name: str) -> Callable[..., None]:
        def listen(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if name in self.faults or torch._C._current_graph_task_id() != -1:
                return
            try:
                with torch.inference_mode(False), torch.no_grad():
                    if module.training and module.dropout > 0:
                        self.silent[name] = "dropout changes its weights while it trains; listen to validation"
                        return
                    self._keep(name, args, kwargs, output[1])
            except Exception as fault:  # a forward pass of the user's must not fail for our sake
                self.faults[name] = fault

        return listen

    def _keep(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Tensor | None) -> None:
        if weights is None:
            self.silent[name] = "it was called with need_weights=False, so torch's fused path computes none"
            return
        self.silent.pop(name, None)
        named = dict(zip(("query", "key", "value", "key_padding_mask"), args, strict=False)) | kwargs
        query, mask = named["query"], named.get("key_padding_mask")
        if query.dim() == 2:  # one sequence without a dimension for it
            weights, mask = weights[None], None if mask is None else mask[None]
        sums = self.sums.setdefault(name, AttentionSums())
        left = self._most - sums.sequences
        if left > 0:
            masked = mask != 0 if mask is not None and named["key"] is query else None
            sums.add(weights[:left].clone(), None if masked is None else masked[:left])
