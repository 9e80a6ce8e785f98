"""What crosses the boundary of a recurrent module while the model runs for its own reasons.

Nothing here runs the model. A `Recorder` hangs a hook on each recurrent module, copies what goes in and what comes out
of the first sequences to host memory, and takes its hooks away again::

    with Recorder(model) as recorder:
        model(x)
    tape = recorder.tapes["encoder.rnn"]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .cells import Cell, cells, is_recurrent
from .tape import Call, Tape, boundary, continues, join, read_call


def recurrent_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the model whose equations are known, by dotted name; wrappers of torch.compile leave no trace."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if is_recurrent(module) and why_unheard(module) is None:
            name = path.replace("_orig_mod.", "").removesuffix("._orig_mod")
            found[name if name not in ("", "_orig_mod") else type(module).__name__.lower()] = module
    return found


def why_unheard(module: nn.Module) -> str | None:
    """The reason why a module that looks recurrent cannot be listened to; None where there is none."""
    kind = str(getattr(module, "original_name", type(module).__name__))
    if kind not in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return f"a TorchScript {kind} runs outside Python and takes no hooks; watch the model before torch.jit.script"
    if ".quantized" in type(module).__module__:
        return (
            f"a quantized {kind} has no float weights to rebuild its gates from; watch the model before quantizing it"
        )
    return None


class Recorder:
    """Listens to recurrent modules until it has heard enough sequences, and leaves no trace behind.

    Args:
        model: the model, or a recurrent module itself.
        modules: which modules to hear, by name; all recurrent modules of the model by default.
        max_sequences: how many sequences to keep per module, the first ones heard.
        max_megabytes: where to stop before that, so that long or wide sequences cannot fill the host's memory.

    Raises:
        ValueError: when a limit is not positive or the model has no recurrent module.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        modules: Mapping[str, nn.Module] | None = None,
        max_sequences: int = 256,
        max_megabytes: float = 256.0,
    ) -> None:
        self.modules = dict(recurrent_modules(model) if modules is None else modules)
        if not self.modules:
            raise ValueError("the model has no recurrent module to listen to (nn.RNN, nn.LSTM, nn.GRU or their cells)")
        if max_sequences < 1 or max_megabytes <= 0:
            raise ValueError(f"limits must be positive, got {max_sequences} sequences and {max_megabytes} megabytes")
        self.max_sequences = max_sequences
        self.max_megabytes = max_megabytes
        self.faults: dict[str, Exception] = {}  # what went wrong while listening, by module; never raised in a forward
        self.seconds = 0.0  # time spent in hooks since `open`
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._clear()

    def _clear(self) -> None:
        self._passages: dict[str, list[list[Call]]] = {name: [] for name in self.modules}
        self._snapshots: dict[str, tuple[Cell, ...]] = {}
        self._heard = dict.fromkeys(self.modules, 0)  # sequences, of batches before the current one
        self._current = dict.fromkeys(self.modules, 0)  # sequences of the current batch
        self._bytes = 0
        self._batch = 0
        self.faults.clear()
        self.seconds = 0.0

    def open(self) -> None:
        """Forget what was heard and listen anew."""
        self.close()
        self._clear()
        for name, module in self.modules.items():
            # dynamo must not trace into the hook; without dynamo in play its import would cost seconds.
            shield: Callable[[Any], Any] = torch.compiler.disable if "torch._dynamo" in sys.modules else lambda f: f
            before, after = shield(self._before(name)), shield(self._after(name))
            self._handles.append(module.register_forward_pre_hook(before))
            self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        if self._model not in self.modules.values():
            self._handles.append(self._model.register_forward_pre_hook(self._on_forward))

    def close(self) -> None:
        """Take the hooks away; what was heard stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._rng_states: dict[str, Tensor] = {}

    def __enter__(self) -> Recorder:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def listening(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    @property
    def tapes(self) -> dict[str, Tape]:
        """What was heard so far, by module name; modules that were not called have a tape without calls."""
        return {name: Tape(name, tuple(map(join, passages))) for name, passages in self._passages.items()}

    @property
    def batch(self) -> int:
        """Number of the batch being heard, from 0."""
        return self._batch

    def next_batch(self) -> None:
        """Say that a new batch begins, in which no sequence goes on from the last; with enough heard, stop."""
        if any(self._current.values()):
            self._batch += 1
        for name, sequences in self._current.items():
            self._heard[name] += sequences
            self._current[name] = 0
        if self._bytes >= self.max_megabytes * 2**20 or min(self._heard.values()) >= self.max_sequences:
            self.close()

    def _on_forward(self, model: nn.Module, args: object) -> None:
        self.next_batch()

    def _before(self, name: str) -> Callable[[nn.Module, object], None]:
        def keep_rng_state(module: nn.Module, args: object) -> None:
            if module.training and bool(getattr(module, "dropout", 0)) and getattr(module, "num_layers", 1) > 1:
                self._rng_states[name] = torch.get_rng_state()

        return keep_rng_state

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            room = self.max_sequences - self._heard[name]
            if room <= 0 or self._bytes >= self.max_megabytes * 2**20 or name in self.faults:
                return
            start = time.perf_counter()
            try:
                with torch.no_grad():
                    self._keep(name, module, boundary(args, kwargs), output, room)
            except Exception as fault:  # a forward pass of the user's must not fail for our sake
                self.faults[name] = fault
            self.seconds += time.perf_counter() - start

        return listen

    def _keep(self, name: str, module: nn.Module, given: tuple[Any, Any], output: Any, room: int) -> None:
        # In training the weights move from batch to batch, in validation they must not.
        key = f"{name}@{self._batch}" if module.training else name
        if key not in self._snapshots:
            self._snapshots[key] = cells(module)
        snapshot = self._snapshots[key]
        call = replace(
            read_call(module, snapshot, given, output, room),
            batch=self._batch,
            rng_state=self._rng_states.pop(name, None),
        )
        self._current[name] = max(self._current[name], len(call.lengths))
        self._bytes += sum(t.nbytes for t in (call.inputs, call.outputs, call.previous) if t is not None)
        passages = self._passages[name]
        if passages and continues(passages[-1][-1], call, hx=given[1]):
            passages[-1].append(call)
        else:
            passages.append([call])
