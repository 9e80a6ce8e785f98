import logging

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from threadpoolctl import threadpool_limits

from .models import Classifier, loader

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
torch.set_num_threads(1)
threadpool_limits(1)  # NumPy's and SciPy's too: threads that wait for each other slow small matrices down


@pytest.fixture
def fit(tmp_path):
    """Train a small model with callbacks, for two epochs unless told otherwise, and give its trainer."""

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
