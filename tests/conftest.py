"""What all tests share. Heavy imports wait for a test: the process in which pytest-xdist hands tests out runs none."""

import functools
import gc
import logging

import pytest


@pytest.fixture(scope="session", autouse=True)
def _alone_and_quiet():
    """One thread, no hints of Lightning's, and two of its look-ups at which it repeats itself made short."""
    import torch
    from lightning.fabric.utilities import registry
    from lightning.fabric.utilities.rank_zero import rank_zero_module
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
    from threadpoolctl import threadpool_limits

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Whichever of the two packages was imported last speaks for both; the other one is by some tests.
    rank_zero_module.log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's and SciPy's too: threads that wait for each other slow small matrices down
    gc.freeze()  # what is imported by now stays; looking through it again and again took 8 % of what draws
    gc.set_threshold(20_000, 20, 20)
    with pytest.MonkeyPatch.context() as patch:
        # Each trainer reads the metadata of all that is installed: 8 % of a small run.
        patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        # Each logged value is taken apart and copied to be moved, even where it is already: 1 ms a tag, half of a look.
        move = _ResultMetric.to

        def moved(self, *args, **kwargs):
            device = kwargs.get("device", args[0] if args else None)
            here = device is not None and self.is_tensor and self.value.device == torch.device(device)
            return self if here else move(self, *args, **kwargs)

        patch.setattr(_ResultMetric, "to", moved)
        yield


@pytest.fixture
def fit(tmp_path):
    """Train a small model with callbacks, for two epochs unless told otherwise, and give its trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    from .models import Classifier, loader

    def run(*callbacks, model=None, train=None, validate=None, datamodule=None, seed=0, ckpt_path=None, **options):
        settings = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": TensorBoardLogger(tmp_path, name="logs"),
            "default_root_dir": tmp_path,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
        } | options
        pl.seed_everything(seed, verbose=False)
        model = Classifier() if model is None else model() if isinstance(model, type) else model
        trainer = pl.Trainer(callbacks=list(callbacks), **settings)
        if datamodule is not None:
            trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        else:
            train = loader(shuffle=True) if train is None else train
            validate = loader(seed=1) if validate is None else None if validate == [] else validate
            trainer.fit(model, train, validate, ckpt_path=ckpt_path)
        return trainer

    run.logs = tmp_path / "logs"
    return run
