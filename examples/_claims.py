"""How every example ends: what is known to be true, beside what its run has left."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """Something known to be true, what the run's own files say of it, and whether they agree."""

    known: str
    seen: str
    holds: bool


def end(claims: Sequence[Claim], logs: str | Path) -> int:
    """Print each claim beside what was seen and where to look further; the exit status: 0 where all of them hold."""
    print("\nWhat is known to be true, and what this run's files say:\n")
    for claim in claims:
        print(f"  {'holds' if claim.holds else 'FAILS'}  {claim.known}\n         {claim.seen}")
    print(f"\nTo see more:  {command('tensorboard')} --logdir {logs}")
    return int(not all(claim.holds for claim in claims))


def command(name: str) -> str:
    """How a command of this environment is called, whether it was activated or not."""
    return name if shutil.which(name) else str(Path(sys.executable).with_name(name))
