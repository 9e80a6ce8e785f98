"""The HParams page, as TensorBoard's own server would give it."""

import json
import warnings
from argparse import Namespace
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import pytest
import pytorch_lightning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data
from torch import nn
from werkzeug.test import Client

from rnn_callbacks.callbacks.hparams_page import declare_headlines

from ..models import loader


class Tuned(pl.LightningModule):
    """As small as a model can be that has hyperparameters and numbers."""

    def __init__(self, lr=0.25, **options):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.log("speed", self.hparams.lr * 2 + self.global_step)
        return self.net.weight.sum()

    def configure_optimizers(self):
        return None


class Plain(Tuned):
    def save_hyperparameters(self):
        self.hparams.lr = 0.25  # not saved


class Declares(pl.Callback):
    def __init__(self, *tags):
        self.tags = tags

    def on_fit_start(self, trainer, pl_module):
        declare_headlines(trainer, pl_module, self.tags)


@pytest.fixture
def train(fit, tmp_path):
    def run(*tags, model=None, **options):
        with pytest.warns(UserWarning, match="configure_optimizers. returned .None."):
            return fit(
                Declares(*tags),
                model=model or Tuned(),
                train=loader(4, 2),
                validate=[],
                max_epochs=1,
                **{"logger": TensorBoardLogger(tmp_path, name="logs")} | options,
            )

    run.logs = tmp_path / "logs"
    return run


def page(folder):
    """Columns and rows of the page: names of hyperparameters, tags of metrics, and for each run what they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard brings along
        from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    plugin = HParamsPlugin(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder)), logdir=str(folder)))
    routes = plugin.get_plugin_apps()
    found = ask(routes["/experiment"], includeMetrics=True)
    parameters = [info["name"] for info in found.get("hparamInfos", [])]
    tags = [info["name"]["tag"] for info in found.get("metricInfos", [])]
    asked = [{"hparam": name} for name in parameters] + [{"metric": {"tag": tag}} for tag in tags]
    groups = ask(
        routes["/session_groups"], startIndex=0, sliceSize=99, colParams=asked,
        allowedStatuses=["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN", "STATUS_FAILURE"],
    )  # fmt: skip
    sessions = [session for group in groups.get("sessionGroups", []) for session in group["sessions"]]
    rows = {
        session["name"]: {value["name"]["tag"]: value["value"] for value in session.get("metricValues", [])}
        for session in sessions
    }
    return parameters, tags, rows


def ask(route, **question):
    answer = Client(route).post("/", data=json.dumps(question), content_type="application/json")
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


def scalars(folder):
    (run,) = folder.glob("version_*")
    found = EventAccumulator(str(run)).Reload()
    return {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_the_page_shows_the_latest_of_the_headline_numbers_beside_hyperparameters(train):
    train("speed", "later")
    assert page(train.logs) == (["lr"], ["hp_metric", "speed", "later"], {"version_0": {"hp_metric": -1, "speed": 1.5}})


def test_no_number_is_logged_for_the_columns(train):
    train("speed", "later")
    assert scalars(train.logs) == {"hp_metric": [0], "speed": [0, 1], "epoch": [0, 1]}


@dataclass
class Size:
    units: int = 3


ODD = {
    "options": {"deep": {"er": 1}, 5: "five"},
    "flag": True,
    "nothing": None,
    "sizes": [1, 2],
    "stages": [{"lr": 1}, {"lr": 2}],
    "none": [],
    "one": np.float32(1),
    "space": Namespace(a=1),
    "size": Size(),
    "kind": Size,
}


def test_hyperparameters_stand_there_as_without_us(train, tmp_path):
    def written(logs):
        return page(logs)[0], ask_infos(logs)

    def ask_infos(logs):
        (run,) = logs.glob("version_*")
        content = EventAccumulator(str(run)).Reload().SummaryMetadata("_hparams_/experiment").plugin_data.content
        return sorted((info.name, info.type) for info in parse_experiment_plugin_data(content).hparam_infos)

    train("speed", model=Tuned(**ODD), logger=TensorBoardLogger(tmp_path, name="ours"))
    train(model=Tuned(**ODD), logger=TensorBoardLogger(tmp_path, name="theirs"))  # no tags: only Lightning writes
    assert page(tmp_path / "ours")[1] == ["hp_metric", "speed"]
    assert page(tmp_path / "theirs")[1] == ["hp_metric"]
    assert written(tmp_path / "ours") == written(tmp_path / "theirs")
    assert len(page(tmp_path / "ours")[0]) > 9


def test_a_data_modules_hyperparameters_are_columns_too(fit, tmp_path):
    class Data(pl.LightningDataModule):
        def __init__(self, share=0.5):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return loader(4, 2)

    with pytest.warns(UserWarning, match="configure_optimizers. returned .None."):
        fit(Declares("speed"), model=Tuned(), datamodule=Data(), max_epochs=1)
    assert page(fit.logs)[:2] == (["lr", "share"], ["hp_metric", "speed"])


# ---- where nothing is declared ---------------------------------------------------------------------------------------


def test_without_hyperparameters_there_is_no_page(train):
    train("speed", model=Plain())
    assert page(train.logs) == ([], [], {})


def test_hyperparameters_that_are_not_to_be_logged_are_not(train):
    class Kept(Tuned):
        def save_hyperparameters(self):
            super().save_hyperparameters(logger=False)

    train("speed", model=Kept())
    assert page(train.logs) == ([], [], {})


def test_a_trainer_that_logs_no_hyperparameters_gets_no_columns(train):
    train("speed", enable_autolog_hparams=False)
    assert page(train.logs) == ([], [], {})


class Own(Tuned):
    """Declares columns of its own, as Lightning's documentation shows it."""

    def on_train_start(self):
        self.logger.log_hyperparams(self.hparams, {"speed": 0})


def test_whoever_declares_columns_of_their_own_keeps_them(train, tmp_path):
    train("other", model=Own(), logger=TensorBoardLogger(tmp_path, name="logs", default_hp_metric=False))
    assert page(train.logs) == (["lr"], ["speed"], {"version_0": {"speed": 1.5}})


def test_other_loggers_and_fast_dev_runs_are_left_alone(train, tmp_path):
    train("speed", logger=[CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path, name="logs")])
    assert page(train.logs)[1] == ["hp_metric", "speed"]
    train("speed", logger=False)
    train("speed", fast_dev_run=True)


def test_a_logger_of_the_other_package_is_known(train, tmp_path):
    train("speed", logger=pytorch_lightning.loggers.TensorBoardLogger(tmp_path, name="logs"))
    assert page(train.logs)[1] == ["hp_metric", "speed"]


# ---- several runs ----------------------------------------------------------------------------------------------------


def test_the_second_fit_of_a_logger_and_a_resumed_run_do_no_harm(train, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="logs")
    train("speed", logger=logger)
    train("speed", logger=logger)
    train("other", logger=TensorBoardLogger(tmp_path, name="logs", version=0))
    parameters, tags, rows = page(train.logs)
    assert (parameters, tags, list(rows)) == (["lr"], ["hp_metric", "speed"], ["version_0"])


def test_runs_with_other_headlines_and_without_any_have_rows_under_the_columns_of_the_first(train):
    train("speed", "gru")
    train("speed", "lstm", model=Tuned(lr=0.5))
    train()
    first = {"hp_metric": -1, "speed": 1.5}
    assert page(train.logs) == (
        ["lr"],
        ["hp_metric", "speed", "gru"],
        {"version_0": first, "version_1": first | {"speed": 2.0}, "version_2": first},
    )
