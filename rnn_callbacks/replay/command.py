"""``rnn-callbacks replay``. What it needs is imported when it runs: Lightning takes seconds, and help should not."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rnn-callbacks replay``."""
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help="files, folders or patterns, of one run")
    parser.add_argument("--config", metavar="FILE", help="YAML of LightningCLI; by default <run>/config.yaml")
    parser.add_argument("--model", metavar="PATH", help="package.module.Class, where the YAML has its settings only")
    parser.add_argument("--data", metavar="PATH", help="package.module.Class, likewise")
    parser.add_argument("--into", metavar="DIR", help="folder for the results; by default that of the run")
    parser.add_argument("--overwrite", action="store_true", help="throw away results that are there already")
    parser.add_argument("--trusted", action="store_true", help="read with an unrestricted pickle, if need be")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, ...")


def run(options: argparse.Namespace) -> int:
    """Replay, and say where the results are; 2 where that cannot be done."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # heavy, as the next one

    from .from_config import replay_from_config

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # an installed command does not look for modules here by itself
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    try:
        folder = replay_from_config(
            options.config or _config_beside(options.checkpoints),
            options.checkpoints,
            model=options.model,
            data=options.data,
            folder=options.into,
            overwrite=options.overwrite,
            trusted=options.trusted,
            accelerator=options.accelerator,
        )
    except (ValueError, OSError, ModuleNotFoundError, MisconfigurationException) as error:
        sys.stderr.write(f"rnn-callbacks replay: {error}\n")
        return 2
    sys.stdout.write(f"Results lie in {folder}\nTo see them:  tensorboard --logdir {folder}\n")
    return 0


def _config_beside(checkpoints: Sequence[str]) -> Path:
    from .checkpoints import find_checkpoints  # heavy

    homes = {path.resolve().parent.parent for path in find_checkpoints(checkpoints)}
    found = [home / "config.yaml" for home in homes if (home / "config.yaml").is_file()]
    if len(homes) != 1 or not found:
        raise FileNotFoundError("there is no <run>/config.yaml beside these checkpoints: name one with --config")
    return found[0]
