"""All fixed points of a torch module's one-step map, found slowly and by a road of its own, to referee the package.

The map is the real module called on sequences of one step. Jacobians come from autograd, roots from a damped Newton
iteration, starts from a random run, noise, the box and the segments between the points found so far, until closure.
"""

import copy
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RESIDUAL = 1e-10
STRIDE = 1e-6
DISTANCE = 1e-4
BOX = 1 + 1e-9  # h is a product or a mean of values of tanh
HALVINGS = 12


@dataclass(frozen=True, eq=False)
class ReferencePoints:
    """Every fixed point that was found, sorted by the number of unstable directions."""

    states: NDArray[np.float64]  # (M, D), [h, c] for an LSTM
    jacobians: NDArray[np.float64]  # (M, D, D), row: next state, column: state
    eigenvalues: NDArray[np.complex128]  # (M, D)
    unstable: NDArray[np.int64]  # (M,), eigenvalues outside the unit circle
    index: NDArray[np.int64]  # (M,), sign of det(I - J); they sum to 1 over a complete set

    def counts(self) -> list[int]:
        """Points with 0, 1, 2, ... unstable directions: 8, 12, 6, 1 for a 3-bit flip-flop."""
        return np.bincount(self.unstable).tolist()


class StepMap:
    """One step of a copy of the module in float64 under a constant input: states (N, D) -> (N, D)."""

    def __init__(self, module: nn.Module, x):
        self.module = copy.deepcopy(module).double().eval()
        self.x = torch.as_tensor(x, dtype=torch.float64)
        self.units = module.hidden_size
        self.has_cell = isinstance(module, nn.LSTM | nn.LSTMCell)
        self.size = self.units * (2 if self.has_cell else 1)
        if getattr(module, "num_layers", 1) != 1 or getattr(module, "bidirectional", False):
            raise ValueError("module must have one layer and one direction")
        if getattr(module, "proj_size", 0):
            raise ValueError("module must not project its hidden state")

    def __call__(self, states: Tensor, inputs: Tensor | None = None) -> Tensor:
        x = self.x.expand(len(states), -1) if inputs is None else inputs
        parts = states.split(self.units, dim=1)
        if isinstance(self.module, nn.RNNCellBase):
            out = self.module(x, parts if self.has_cell else parts[0])
            return torch.cat(out, 1) if self.has_cell else out
        parts = tuple(part.unsqueeze(0).contiguous() for part in parts)
        time = 1 if self.module.batch_first else 0
        _, out = self.module(x.unsqueeze(time), parts if self.has_cell else parts[0])
        return torch.cat([part.squeeze(0) for part in out], 1) if self.has_cell else out.squeeze(0)

    def jacobians(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Next states (N, D) and Jacobians (N, D, D): rows of a batch do not mix, so one backward serves them all."""
        states = states.detach().requires_grad_()
        after = self(states)
        rows = [torch.autograd.grad(column.sum(), states, retain_graph=True)[0] for column in after.unbind(1)]
        return after.detach(), torch.stack(rows, 1)

    def with_implied_cell(self, h: Tensor) -> Tensor:
        """States whose c stands still given h: c = i g / (1 - f), read off from where c = 0 and c = 1 go."""
        if not self.has_cell:
            return h
        from_zero, from_one = (
            self(torch.cat([h, torch.full_like(h, c)], 1))[:, self.units :].detach() for c in (0.0, 1.0)
        )
        return torch.cat([h, from_zero / (1 - from_one + from_zero).clamp(min=1e-6)], 1)


@torch.no_grad()
def run_randomly(step: StepMap, steps: int, sequences: int, generator: torch.Generator) -> Tensor:
    """States visited under sparse pulses of +-1 on top of the constant input, (steps * sequences, D)."""
    state = torch.zeros(sequences, step.size, dtype=torch.float64)
    visited = []
    for _ in range(steps):
        shape = (sequences, len(step.x))
        pulses = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
        pulses = pulses * (torch.rand(shape, generator=generator) < 0.2)
        state = step(state, step.x + pulses)
        visited.append(state)
    return torch.cat(visited)


@torch.no_grad()
def follow(step: StepMap, states: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The states and where they are after so many steps under the constant input."""
    kept = [states]
    for time in range(1, max(lengths) + 1):
        states = step(states)
        if time in lengths:
            kept.append(states)
    return torch.cat(kept)


def solve(step: StepMap, starts: Tensor) -> Tensor:
    """Roots (M, D) of F(s) = s inside the box, from all starts, repeats included."""
    chunk = max(16, 2**23 // step.size**2)  # Jacobians of a chunk take 64 MB
    return torch.cat([solve_chunk(step, part) for part in starts.split(chunk)])


def solve_chunk(step: StepMap, starts: Tensor, iterations: int = 60) -> Tensor:
    """The same for so few starts that their Jacobians fit into memory, by Newton with step halving."""
    roots = []
    states = starts.clone()
    eye = torch.eye(step.size, dtype=torch.float64)
    for _ in range(iterations):
        after, jacobians = step.jacobians(states)
        gap = after - states
        size = gap.norm(dim=1)
        done = size <= RESIDUAL
        roots.append(states[done])
        alive = ~done & ((states[:, : step.units].abs() <= 1.5).all(1))
        states, gap, size, jacobians = states[alive], gap[alive], size[alive], jacobians[alive]
        if not len(states):
            break
        direction, _ = torch.linalg.solve_ex(eye - jacobians, gap)
        direction = direction.nan_to_num(0, 0, 0)
        # h lives in a box of half width 1: a longer stride leaves the region that the tangent speaks of
        direction = direction * (1 / direction[:, : step.units].norm(dim=1).clamp(min=1)).unsqueeze(1)
        states, moved = search_line(step, states, direction, size)
        states = states[moved]
        if not len(states):
            break
    return polish(step, torch.cat(roots))


def polish(step: StepMap, roots: Tensor) -> Tensor:
    """The roots after full Newton strides until they are short, less those outside the box and those that never are.

    A short stride is asked for because where a gate is all but shut the residual is small everywhere.
    """
    if not len(roots):
        return roots
    eye = torch.eye(step.size, dtype=torch.float64)
    for _ in range(20):
        after, jacobians = step.jacobians(roots)
        stride, _ = torch.linalg.solve_ex(eye - jacobians, after - roots)
        roots = roots + stride
        if (stride.norm(dim=1) <= STRIDE).all():
            break
    with torch.no_grad():
        residual = (step(roots) - roots).norm(dim=1)
    inside = (roots[:, : step.units].abs() <= BOX).all(1)
    return roots[inside & (residual <= RESIDUAL) & (stride.norm(dim=1) <= STRIDE)]


@torch.no_grad()
def search_line(step: StepMap, states: Tensor, direction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """States after the longest of the halved strides that shrinks the residual, and which ones moved at all."""
    chosen = states.clone()
    moved = torch.zeros(len(states), dtype=torch.bool)
    for halving in range(HALVINGS):
        scale = 0.5**halving
        (open_,) = torch.nonzero(~moved, as_tuple=True)
        if not len(open_):
            break
        trial = states[open_] + scale * direction[open_]
        better = (step(trial) - trial).norm(dim=1) < (1 - 1e-3 * scale) * size[open_]
        chosen[open_[better]] = trial[better]
        moved[open_[better]] = True
    return chosen, moved


def merge(known: Tensor, found: Tensor) -> Tensor:
    """The known points followed by those of the found ones that are none of them."""
    points = list(known)
    for state in found:
        if not points or (torch.stack(points) - state).norm(dim=1).min() > DISTANCE:
            points.append(state)
    return torch.stack(points) if points else known


def find_reference_points(module: nn.Module, x, *, seed: int = 0, starts: int = 256) -> ReferencePoints:
    """All fixed points of a one-layer recurrent module under the constant input x (I,).

    Args:
        module: RNN, LSTM, GRU or one of their cells; it is copied, never touched.
        x: the constant input, (I,).
        seed: of the random run, the noise and the box.
        starts: how many of each kind of start.
    """
    step = StepMap(module, x)
    generator = torch.Generator().manual_seed(seed)
    visited = run_randomly(step, 200, 16, generator)
    visited = visited[torch.randperm(len(visited), generator=generator)[:starts]]
    noise = 0.1 * torch.randn(visited.shape, generator=generator, dtype=torch.float64)
    box = 2 * torch.rand(starts, step.units, generator=generator, dtype=torch.float64) - 1
    mixed = (visited + visited.roll(1, 0))[:, : step.units] / 2
    h = torch.cat([box, mixed, torch.zeros(1, step.units, dtype=torch.float64)])
    first = torch.cat([visited, visited + noise, step.with_implied_cell(h).detach()])
    points = merge(first[:0], solve(step, follow(step, first, (3, 30))))
    tried = 0
    while len(points) > tried:
        pairs = [(i, j) for i, j in combinations(range(len(points)), 2) if j >= tried]
        tried = len(points)
        if not pairs:
            break
        left, right = points[torch.tensor(pairs)].unbind(1)
        middle = torch.cat([left + share * (right - left) for share in (0.25, 0.5, 0.75)])
        implied = step.with_implied_cell(middle[:, : step.units])
        points = merge(points, solve(step, torch.cat([implied, follow(step, middle, (3,))])))
    return describe(step, points)


def describe(step: StepMap, points: Tensor) -> ReferencePoints:
    """The points with their linearisations, sorted by the number of unstable directions."""
    jacobians = step.jacobians(points)[1].numpy() if len(points) else np.empty((0, step.size, step.size))
    eigenvalues = np.linalg.eigvals(jacobians).astype(np.complex128)
    unstable = (np.abs(eigenvalues) > 1).sum(1)
    index = np.linalg.slogdet(np.eye(step.size) - jacobians).sign.astype(np.int64)
    order = np.argsort(unstable, kind="stable")
    return ReferencePoints(points.numpy()[order], jacobians[order], eigenvalues[order], unstable[order], index[order])
