"""What all examples share: Lightning's hints about hardware and workers stay out of a demonstration."""

import logging
import warnings

HINTS = ("GPU available", "TPU available", "💡 Tip")


def quiet(*, summary: bool) -> None:
    """Keep hints back, and all that Lightning's channel says unless the callbacks' summary is to be read there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO if summary else logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_hint)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter.*")


def _is_no_hint(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(HINTS)
