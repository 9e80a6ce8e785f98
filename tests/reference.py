"""The second road: torch's documented equations, one sequence and one step at a time."""

import torch
from torch import Tensor, nn


def _linear(module, name, layer, suffix, vector):
    weight = getattr(module, f"weight_{name}_l{layer}{suffix}")
    out = weight @ vector
    return out + getattr(module, f"bias_{name}_l{layer}{suffix}") if module.bias else out


def step(module: nn.RNNBase, layer: int, suffix: str, x: Tensor, h: Tensor, c: Tensor):
    """Gates by name, next h and next c, of one step of one sequence, as the torch documentation writes them."""
    gi, gh = _linear(module, "ih", layer, suffix, x), _linear(module, "hh", layer, suffix, h)
    if module.mode == "GRU":
        (ir, iz, inew), (hr, hz, hn) = gi.chunk(3), gh.chunk(3)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        n = torch.tanh(inew + r * hn)
        return {"reset": r, "update": 1 - z, "new": n}, (1 - z) * n + z * h, c
    if module.mode == "LSTM":
        i, f, g, o = (a + b for a, b in zip(gi.chunk(4), gh.chunk(4), strict=True))
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = f * c + i * g
        h = o * torch.tanh(c)
        if module.proj_size:
            h = getattr(module, f"weight_hr_l{layer}{suffix}") @ h
        return {"input": i, "forget": f, "cell": g, "output": o}, h, c
    h = (torch.tanh if module.mode == "RNN_TANH" else torch.relu)(gi + gh)
    return {"hidden": h}, h, c


@torch.no_grad()
def rebuild(module: nn.RNNBase, x: Tensor, h0: Tensor, c0: Tensor, between=lambda layer, rows: rows):
    """All gates, states and outputs of one sequence ``(T, I)``.

    Returns a dict (cell name) -> list over positions of (gates by name, h, c), and the outputs ``(T, directions * P)``.
    ``h0`` and ``c0`` are ``(C, P)`` and ``(C, H)``.
    """
    found, rows = {}, list(x)
    directions = ["", "_reverse"] if module.bidirectional else [""]
    for layer in range(module.num_layers):
        ways = []
        for way, suffix in enumerate(directions):
            cell = layer * len(directions) + way
            h, c = h0[cell], c0[cell]
            order = range(len(rows)) if suffix == "" else reversed(range(len(rows)))
            steps = [None] * len(rows)
            for t in order:
                gates, h, c = step(module, layer, suffix, rows[t], h, c)
                steps[t] = (gates, h, c)
            found[f"l{layer}{suffix}"] = steps
            ways.append([h for _, h, _ in steps])
        rows = [torch.cat(parts) for parts in zip(*ways, strict=True)]
        if layer < module.num_layers - 1:
            rows = between(layer, rows)
    return found, torch.stack(rows)
