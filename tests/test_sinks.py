import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rnn_callbacks import sinks
from rnn_callbacks.report import Histogram


class Wandb:
    """The part of a W&B logger that we need; the package itself is not among what we install."""

    name, version, log_dir, experiment = "project", "abc123", None, object()
    log_table = None

    def __init__(self, folder):
        self.save_dir = folder
        self.images, self.metrics = [], []

    def log_image(self, key, images, step):
        self.images.append((key, images[0].shape, step))

    def log_metrics(self, metrics, step):
        self.metrics.append((metrics, step))


class Mlflow:
    """The part of an MLflow logger that we need."""

    log_dir, run_id = None, "r1"

    def __init__(self):
        self.images, self.texts = [], []
        self.experiment = SimpleNamespace(log_image=self._log_image, log_text=self._log_text)

    def _log_image(self, run_id, image, key, step):
        self.images.append((run_id, image.shape, key, step))

    def _log_text(self, run_id, text, artifact_file):
        self.texts.append((run_id, text, artifact_file))


def square():
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_axes((0, 0, 1, 1)).set_facecolor("red")
    return figure


def test_pictures_go_to_loggers_by_what_they_can_do_and_to_disk(tmp_path):
    wandb, mlflow, csv = Wandb(tmp_path), Mlflow(), SimpleNamespace(experiment=object())
    trainer = SimpleNamespace(loggers=[wandb, mlflow, csv])
    drawn = []

    def draw():
        drawn.append(1)
        return square()

    sinks.log_figures(trainer, {"gates/a.rnn": draw}, str(tmp_path), noun="gates", epoch=2, step=9)
    assert len(drawn) == 1
    assert wandb.images == [("gates/a.rnn", (50, 100, 3), 9)]
    assert mlflow.images == [("r1", (50, 100, 3), "gates/a.rnn", 9)]
    path = tmp_path / "rnn_callbacks" / "gates" / "figures" / "a.rnn-epoch=0002-step=00000009.png"
    assert np.array(Image.open(path))[25, 50].tolist() == [255, 0, 0]


def test_texts_and_histograms_go_to_loggers_by_what_they_can_do(tmp_path, monkeypatch):
    seen = SimpleNamespace(Html=lambda text: ("html", text), Histogram=lambda np_histogram: ("histogram", np_histogram))
    monkeypatch.setitem(sys.modules, "wandb", seen)
    wandb, mlflow, csv = Wandb(tmp_path), Mlflow(), SimpleNamespace(experiment=object())
    trainer = SimpleNamespace(loggers=[wandb, mlflow, csv])
    sinks.log_texts(trainer, {"gates/a/flags/b": "0.1 < **0.2**\n"}, 9)
    sinks.log_histograms(trainer, {"gates/a/update": Histogram(np.linspace(0, 1, 3), np.array([4, 5]))}, 9)
    page = '<pre style="white-space: pre-wrap">0.1 &lt; **0.2**\n</pre>'
    assert wandb.metrics == [
        ({"gates/a/flags/b/text": ("html", page)}, 9),
        ({"gates/a/update": ("histogram", ([4, 5], [0, 0.5, 1]))}, 9),
    ]
    assert mlflow.texts == [("r1", "0.1 < **0.2**\n", "gates/a/flags/b-step=00000009.md")]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sinks.log_figures(SimpleNamespace(loggers=[]), {"gates/a": square}, None, noun="gates", epoch=0, step=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fast", [True, False])
def test_loggers_without_a_folder_per_run_get_one(tmp_path, fast):
    trainer = SimpleNamespace(loggers=[Wandb(tmp_path)], default_root_dir="unused", fast_dev_run=fast)
    assert sinks.run_folder(trainer) == (None if fast else f"{tmp_path}/project/abc123")


def test_a_run_without_loggers_gets_the_next_free_version(tmp_path):
    trainer = SimpleNamespace(loggers=[], default_root_dir=tmp_path, fast_dev_run=False)
    assert sinks.run_folder(trainer) == f"{tmp_path}/lightning_logs/version_0"
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    assert sinks.run_folder(trainer) == f"{tmp_path}/lightning_logs/version_1"
