"""The second road for gradients: torch's documented equations in a loop, differentiated by autograd."""

import torch

from . import reference


def unrolled(module, sequences, initial=None):
    """Every state of every cell, as tensors of one graph, from one step of one sequence at a time.

    ``sequences`` are tensors ``(T_b, I)``; ``initial`` gives ``(h0, c0)``, ``(C, P)`` and ``(C, H)``, for each.
    Returns, for each sequence, a dict (cell name) -> ``(hs, cs)`` by position, and the outputs
    ``(T_b, directions * P)``.
    """
    directions = ["", "_reverse"] if module.bidirectional else [""]
    width = module.proj_size or module.hidden_size
    found = []
    for number, sequence in enumerate(sequences):
        states, rows = {}, list(sequence)
        for layer in range(module.num_layers):
            ways = []
            for way, suffix in enumerate(directions):
                cell = layer * len(directions) + way
                h, c = sequence.new_zeros(width), sequence.new_zeros(module.hidden_size)
                if initial is not None:
                    h, c = initial[number][0][cell], initial[number][1][cell]
                hs, cs = [None] * len(rows), [None] * len(rows)
                for t in range(len(rows)) if suffix == "" else reversed(range(len(rows))):
                    _, h, c = reference.step(module, layer, suffix, rows[t], h, c)
                    for state in (h, c):
                        if state.requires_grad:
                            state.retain_grad()
                    hs[t], cs[t] = h, c
                states[f"l{layer}{suffix}"] = (hs, cs)
                ways.append(hs)
            rows = [torch.cat(parts) for parts in zip(*ways, strict=True)]
        found.append((states, torch.stack(rows)))
    return found


def gradients(states):
    """dL/dh ``(T, P)`` and dL/dc ``(T, H)`` by position, after a backward pass; zeros where nothing came back."""
    return [torch.stack([torch.zeros_like(s) if s.grad is None else s.grad for s in kind]) for kind in states]
