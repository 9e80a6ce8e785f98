"""``make bench``: the numbers this project aims at, as ratios of CPU time measured in alternation in one process.

Run it on a machine that is otherwise quiet; one thread. Nothing here is a test: a busy machine cannot break the gate.
"""

import logging
import warnings

import torch

from . import compare, fixed_points, gates, gradient_flow, probes, representation, weight_trajectory

PARTS = (gates, gradient_flow, fixed_points, probes, representation, weight_trajectory, compare)

if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{'what':<96}{'measured':>24}{'aim':>14}")
    for what, measured, aim in (row for part in PARTS for row in part.rows()):
        print(f"{what:<96}{measured:>24}{aim:>14}", flush=True)
