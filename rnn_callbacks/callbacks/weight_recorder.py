"""Snapshots of a model's trainable weights while it trains: where they go, how much room they may take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..analysis.count_sketch import CountSketch
from ..analysis.weight_parts import weight_pieces
from ..weight_snapshots import Column, Entry, SnapshotFile

Storage = Literal["auto", "exact", "sketch"]
MEGABYTE = 1e6


class NotFiniteError(ValueError):
    """A weight is NaN or infinite."""


@final
class WeightRecorder:
    """Takes snapshots of one model.

    Args:
        model: whose parameters; only those that are trainable, tied ones once. Buffers are no weights.
        modules: recurrent modules whose gates are told apart, by name.
        storage: ``exact``, ``sketch``, or ``auto``: exact while the run fits in `max_megabytes`.
        max_megabytes: on disk.
        expected: snapshots that the whole run will have; None where nobody knows.
        seed: of the sketch.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        *,
        storage: Storage = "auto",
        max_megabytes: float = 1000,
        expected: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.modules = dict(modules)
        self.storage = storage
        self.max_bytes = max_megabytes * MEGABYTE
        self.expected = expected
        self._sketch = CountSketch(seed)
        self._file: SnapshotFile | None = None

    @property
    def file(self) -> SnapshotFile:
        """Of the run."""
        assert self._file is not None, "begin was not called"
        return self._file

    @property
    def exact(self) -> bool:
        """Whether the snapshots are the weights themselves."""
        return self.file.facts["sketch"] is None

    @property
    def distance_error(self) -> float:
        """Relative standard error of distances; 0 where snapshots are exact."""
        folded = any(column.width < column.last - column.first for column in self.file.columns)
        return self._sketch.distance_error if folded else 0.0

    @property
    def frozen(self) -> list[str]:
        """Parameters that are not trainable now."""
        return [name for name, parameter in self._parameters().items() if not parameter.requires_grad]

    @property
    def trainable(self) -> set[str]:
        """The others."""
        return {name for name, parameter in self._parameters().items() if parameter.requires_grad}

    def _parameters(self) -> dict[str, Tensor]:
        """As they are now: pruning and parametrizing put others in their place."""
        named = self.model.named_parameters()
        return {name.replace("_orig_mod.", ""): p for name, p in named if not is_lazy(p)}

    # ---- where the path begins -------------------------------------------------------------------------------------

    def begin(self, path: Path, *, resumed: Path | None, step: int) -> None:
        """Open the run's file, and go on with the path that led to the present weights, where there is one.

        Args:
            path: of the run's file.
            resumed: of the file that the run's checkpoint knows of.
            step: optimizer steps that are done.
        """
        for place in dict.fromkeys(p for p in (resumed, path) if p is not None):
            known = _opened(place)
            count = sum(entry.step <= step for entry in known.entries) if known is not None and step else 0
            if known is not None and count and known.facts.get("storage") == self.storage and self._fits(known):
                if place.resolve() == path.resolve():
                    known.cut(count)
                    self._file = known
                else:
                    self._file = known.copy(path, count)
                self._drop_other_branch(step)
                if len(self.file):
                    return
        self._file = self._create(path)

    def _fits(self, known: SnapshotFile) -> bool:
        """Whether a path is one of this model's weights."""
        sizes = {name: p.numel() * (2 if p.is_complex() else 1) for name, p in self._parameters().items()}
        sketch = known.facts.get("sketch")
        return sketch in (None, self._sketch_facts) and all(sizes.get(n) == size for n, size in _sizes(known).items())

    def _drop_other_branch(self, step: int) -> None:
        """Last snapshots of this very step that are not the present weights were taken after another resumption."""
        if self.file.entries[-1].step < step:
            return
        try:
            now = np.concatenate([np.empty(0, self.file.dtype), *self._numbers()], dtype=self.file.dtype)
        except NotFiniteError:
            now = np.empty(0, self.file.dtype)
        while len(self.file) and self.file.entries[-1].step == step:
            width = self.file.row_width(self.file.entries[-1].columns)
            if np.array_equal(now[:width], self.file.row(len(self.file) - 1)[:width]):
                return
            self.file.cut(len(self.file) - 1)

    def _create(self, path: Path) -> SnapshotFile:
        parameters = self._parameters()
        tracked = {name: p for name, p in parameters.items() if p.requires_grad}
        wide = any(p.dtype in (torch.float64, torch.complex128) for p in parameters.values())
        exact = self.storage != "sketch"
        columns = self._columns(tracked, exact=exact)
        row = sum(column.width for column in columns) * (8 if wide else 4)
        if exact and self.storage == "auto" and row * (self.expected or 2) > self.max_bytes:
            folded = self._columns(tracked, exact=False)
            if 8 * sum(column.width for column in folded) < row:
                exact, columns = False, folded
        return self._new_file(path, columns, exact=exact, wide=wide)

    def _new_file(self, path: Path, columns: list[Column], *, exact: bool, wide: bool) -> SnapshotFile:
        facts: dict[str, Any] = {
            "storage": self.storage,  # as it was asked for
            "sketch": None if exact else self._sketch_facts,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "frozen": self.frozen,
        }
        # A fold of small steps is the difference of large folds, so those are kept in double precision.
        return SnapshotFile.create(path, columns, dtype="float64" if wide or not exact else "float32", facts=facts)

    @property
    def _sketch_facts(self) -> dict[str, int]:
        return {"seed": self._sketch.seed, "size": self._sketch.size}

    def _columns(self, parameters: Mapping[str, Tensor], *, exact: bool) -> list[Column]:
        pieces = weight_pieces(parameters, self.modules, others=self._parameters())
        return [
            Column(
                piece.part.key,
                piece.parameter,
                piece.first,
                piece.last,
                piece.last - piece.first if exact else self._sketch.width(piece.last - piece.first),
            )
            for piece in pieces
        ]

    # ---- while it trains -------------------------------------------------------------------------------------------

    def admit(self, *, epoch: int, step: int) -> Entry | None:
        """Take parameters in that have become trainable. They have not moved yet, so a snapshot of now belongs to them.

        Args:
            epoch: the last one that is over.
            step: optimizer steps that are done.

        Returns:
            The snapshot that is to be taken, in place of one of this very step if there was one; None where nothing
            has thawed.
        """
        known = {column.parameter for column in self.file.columns}
        thawed = {n: p for n, p in self._parameters().items() if p.requires_grad and n not in known}
        if not thawed:
            return None
        wanted = Entry(epoch, step, None, 0)
        if len(self.file) and self.file.entries[-1].step == step:
            wanted = self.file.entries[-1]
            self.file.cut(len(self.file) - 1)
        self.file.widen(self._columns(thawed, exact=self.exact))
        return wanted

    def take(self, *, epoch: int, step: int, value: float | None = None) -> None:
        """Add a snapshot of the weights as they are now.

        Raises:
            NotFiniteError: when a weight is NaN or infinite; the path is then as it was.
            ValueError: when a parameter is gone or has another shape.
            OSError: when the disk does not take it.
        """
        self.file.append(self._numbers(), epoch=epoch, step=step, value=value)
        if self.storage == "auto" and self.exact and self.file.nbytes > self.max_bytes:
            folded = sum(self._sketch.width(column.last - column.first) for column in self.file.columns)
            if 8 * folded < self.file.row_width(len(self.file.columns)) * self.file.dtype.itemsize:
                self._fold_file()

    def _numbers(self) -> Iterator[NDArray[np.floating]]:
        """What every column has now."""
        parameters, sizes, name = self._parameters(), _sizes(self.file), ""
        for column in self.file.columns:
            if column.parameter != name:
                name = column.parameter
                if name not in parameters:
                    raise ValueError(f"parameter {name} is gone, so the path of the weights ends here")
                values = _on_host(parameters[name])
                if len(values) != sizes[name]:
                    raise ValueError(f"parameter {name} has another shape now, so the path of the weights ends here")
                low, high = torch.aminmax(values) if len(values) else (0.0, 0.0)  # NaN where there is one
                if not (math.isfinite(low) and math.isfinite(high)):
                    raise NotFiniteError(f"{name} holds NaN or infinity")
                numbers = values.numpy()
            part = numbers[column.first : column.last]
            yield part if self.exact else self._sketch.fold(part, _key(column))

    def _fold_file(self) -> None:
        """Beyond its room the path goes on as a sketch: what was kept exactly is folded, and the file shrinks."""
        old = self.file
        pieces = [
            Column(c.part, c.parameter, c.first, c.last, self._sketch.width(c.last - c.first)) for c in old.columns
        ]
        path = old.path
        folded = self._new_file(path.with_name(path.name + ".folded"), pieces, exact=False, wide=True)
        folded.facts |= old.facts | {"sketch": folded.facts["sketch"]}
        folded.note(**folded.facts)
        ends = np.cumsum([c.width for c in old.columns])
        try:
            for number, entry in enumerate(old.entries):
                row = old.row(number)
                parts = (row[end - c.width : end] for c, end in zip(old.columns, ends, strict=True))
                folds = (self._sketch.fold(part, _key(c)) for part, c in zip(parts, old.columns, strict=True))
                folded.append(folds, epoch=entry.epoch, step=entry.step, value=entry.value)
        except OSError:
            folded.delete()  # it is tried again after the next snapshot
            raise
        folded.rename(path)
        self._file = folded


def _key(column: Column) -> str:
    return f"{column.parameter}[{column.first}:{column.last}]"


def _sizes(file: SnapshotFile) -> dict[str, int]:
    """Numbers of each parameter."""
    return {column.parameter: column.last for column in file.columns}


def _opened(path: Path) -> SnapshotFile | None:
    try:
        return SnapshotFile(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _on_host(parameter: Tensor) -> Tensor:
    """All numbers of a parameter in torch's order, ``(p,)``; half precision becomes float32."""
    values = parameter.detach()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    return values.to("cpu", torch.promote_types(values.dtype, torch.float32)).contiguous().flatten()
