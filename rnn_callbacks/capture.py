"""What crosses the boundary of a recurrent module while the model runs for its own reasons.

Nothing here runs the model. A `Recorder` hangs a hook on each recurrent module, copies what goes in and what comes out
of the first sequences to host memory, and takes its hooks away again::

    with Recorder(model) as recorder:
        model(x)
    tape = recorder.tapes["encoder.rnn"]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .boundary import await_gradients, returns_gradient
from .cells import Cell, is_recurrent
from .crossing import Crossing, Room, read_call
from .hooks import Ear, uncompiled
from .snapshot import Snapshot
from .tape import Call, Tape, join, passage_of


def recurrent_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the model whose equations are known, by dotted name; wrappers of torch.compile leave no trace."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if is_recurrent(module):
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
    if ".quant" in type(module).__module__:
        return (
            f"a quantized {kind} has no float weights to rebuild its gates from; watch the model before quantizing it"
        )
    return None


class Recorder:
    """Listens to recurrent modules until it has heard enough sequences, and leaves no trace behind.

    While it listens, code compiled around a single-step cell or a cell of your own runs uncompiled, because a compiled
    graph calls no hooks; ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` are outside such graphs. A copy of the model made
    meanwhile, saved or not, is not listened to.

    Args:
        model: the model, or a recurrent module itself.
        modules: which modules to hear, by name; all recurrent modules of the model by default.
        max_sequences: how many sequences to keep per module, the first ones heard; a module called several times in a
            batch keeps the same sequences of the batch at each call.
        max_megabytes: where to stop before that, per module, so that long or wide sequences cannot fill the memory.
        gradients: keep the gradients that come back to the outputs too, and only calls to which some can.
        number: of the first batch and the step from one to the next, where several processes share the counting.

    Raises:
        ValueError: when a limit is not positive or the model has no recurrent module.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        modules: Mapping[str, nn.Module] | None = None,
        max_sequences: int = 256,
        max_megabytes: float = 32.0,
        gradients: bool = False,
        number: tuple[int, int] = (0, 1),
    ) -> None:
        self.modules = dict(recurrent_modules(model) if modules is None else modules)
        if not self.modules:
            raise ValueError("the model has no recurrent module to listen to (nn.RNN, nn.LSTM, nn.GRU or their cells)")
        if max_sequences < 1 or max_megabytes <= 0:
            raise ValueError(f"limits must be positive, got {max_sequences} sequences and {max_megabytes} megabytes")
        self.max_sequences = max_sequences
        self.max_megabytes = max_megabytes
        self.gradients = gradients
        self.number = number
        self.faults: dict[str, Exception] = {}  # what went wrong while listening, by module; never raised in a forward
        self.gradients_wanted = True  # whether a backward pass that runs now is one to listen to
        self.cut: set[int] = set()  # batches of which not every call could be kept
        self.without_gradient: set[str] = set()  # modules that ran where no gradient could come back
        self.seconds = 0.0  # time spent in hooks since `open`
        self._model = model
        self._opened = ExitStack()
        self._handles: list[RemovableHandle] = []
        self._clear()

    def _clear(self) -> None:
        self._passages: dict[str, list[list[Call]]] = {name: [] for name in self.modules}
        self._snapshots: dict[str, Snapshot] = {}
        self._rng_states: dict[str, Tensor | None] = {}
        self._heard = dict.fromkeys(self.modules, 0)  # sequences, of batches before the current one
        self._current = dict.fromkeys(self.modules, 0)  # sequences of the current batch
        self._bytes = dict.fromkeys(self.modules, 0)
        self._batch = self.number[0]
        self._told = False  # whether somebody else says where batches begin,
        self._called = False  # or the model as a whole is called
        self.faults.clear()
        self.cut.clear()
        self.without_gradient.clear()
        self.seconds = 0.0

    def open(self) -> None:
        """Forget what was heard and listen anew."""
        self.close()
        self._clear()
        self._opened.enter_context(uncompiled(self.modules.values()))
        for name, module in self.modules.items():
            if isinstance(module, nn.RNNBase):
                self._handles.append(module.register_forward_pre_hook(Ear(self._before(name))))
            # First in line: a hook of the user's may put something else in the output's place.
            self._handles.append(module.register_forward_hook(Ear(self._after(name)), with_kwargs=True, prepend=True))
        if getattr(self._model, "_orig_mod", self._model) not in self.modules.values():
            self._handles.append(self._model.register_forward_pre_hook(Ear(self._on_forward)))

    def close(self) -> None:
        """Take the hooks away; what was heard stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._snapshots.clear()
        self._opened.close()

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
    def sequences(self) -> dict[str, int]:
        """How many sequences were heard so far, by module name, taken or not."""
        return {name: self._heard[name] + current for name, current in self._current.items()}

    def take(self) -> dict[str, Tape]:
        """Hand over what was heard since the last time, so that memory is needed for a batch and not for all of them.

        To be called when a batch is over; the limit of sequences goes on counting, that of megabytes begins anew.
        """
        taken = {name: tape for name, tape in self.tapes.items() if tape.calls}
        for name in taken:
            self._passages[name] = []
            self._bytes[name] = 0
        return taken

    @property
    def batch(self) -> int:
        """Number of the batch being heard; from 0 on, where no other process counts too."""
        return self._batch

    def next_batch(self) -> None:
        """Say that a new batch begins, in which no sequence goes on from the last; with enough heard, stop.

        Without it, each forward pass of the model is a batch; if only parts of the model are called, each call that
        does not go on from an earlier one.
        """
        self._told = True
        self._advance()

    def _advance(self) -> None:
        if any(self._current.values()):
            self._batch += self.number[1]
        for name, sequences in self._current.items():
            self._heard[name] += sequences
            self._current[name] = 0
        if not any(self._room(name) for name in self.modules):
            self.close()

    def _on_forward(self, model: nn.Module, args: object) -> None:
        self._called = True
        if not self._told:
            self._advance()

    def _before(self, name: str) -> Callable[[nn.Module, object], None]:
        def keep_rng_state(module: Any, args: object) -> None:
            draws = module.training and module.num_layers > 1 and module.dropout > 0
            self._rng_states[name] = torch.get_rng_state() if draws else None

        return keep_rng_state

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # A forward pass inside a backward pass is activation checkpointing's second run of the same.
            room = self._room(name)
            if name in self.faults or torch._C._current_graph_task_id() != -1:
                return
            if room is None and not self.gradients:
                return
            start = time.perf_counter()
            try:
                crossing = Crossing.of(module, args, kwargs, output, self._rng_states.get(name))
                if self.gradients and not returns_gradient(crossing):
                    self.without_gradient.add(name)
                    return
                if room is None:
                    self.cut.add(self._batch)
                    return
                with torch.inference_mode(False), torch.no_grad():
                    self._keep(name, crossing, room)
            except Exception as fault:  # a forward pass of the user's must not fail for our sake
                self.faults[name] = fault
            self.seconds += time.perf_counter() - start

        return listen

    def _room(self, name: str) -> Room | None:
        left = self.max_megabytes - self._bytes[name] / 2**20
        room = Room(self.max_sequences - self._heard[name], left, self.gradients)
        return room if room.sequences > 0 and room.megabytes > 0 else None

    def _keep(self, name: str, crossing: Crossing, room: Room) -> None:
        call = read_call(crossing, self._cells(name, crossing.module), batch=self._batch, room=room)
        if 0 in call.inputs.shape[:2]:
            return
        passages = self._passages[name]
        passage = None if crossing.hx is None else passage_of(call, passages)
        if passage is None and not (self._told or self._called) and self._current[name]:
            # Nobody says where a batch begins: a call that does not go on from an earlier one is in the next.
            self._advance()
            less = self._room(name)
            if less is not None:
                self._keep(name, crossing, less)
            return
        self._current[name] = max(self._current[name], len(call.lengths))
        kept = [call.inputs, call.outputs, call.previous]
        if self.gradients:
            done = partial(self._heard_gradient, name)
            boundary = await_gradients(crossing, call, done, lambda: self.gradients_wanted)
            call = replace(call, boundaries=(boundary,))
            kept.append(boundary.outputs)
        self._bytes[name] += sum(tensor.nbytes for tensor in kept if tensor is not None)
        if passage is None:
            passages.append([call])
        else:
            passage.append(call)

    def _heard_gradient(self, name: str, seconds: float, fault: Exception | None) -> None:
        self.seconds += seconds
        if fault is not None:
            self.faults[name] = fault

    def _cells(self, name: str, module: nn.Module) -> tuple[Cell, ...]:
        """The module's equations; taken again in training at every batch, otherwise only if the weights moved."""
        known = self._snapshots.get(name)
        batch = self._batch if module.training else 0
        if known is None or known.batch != batch or not known.holds(module):
            known = self._snapshots[name] = Snapshot.of(module, batch)
            self._bytes[name] += known.nbytes
        return known.cells
