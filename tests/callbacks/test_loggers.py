"""The same look in every logger, at the step that Lightning gives the user's own numbers there."""

import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnn_callbacks import GateMonitor
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning

from ..models import Classifier

PLACE = "gates/encoder.rnn.l0"
TAG, FLAG, GATE, PICTURE = (
    f"{PLACE}/update/mean",
    f"{PLACE}/flags/update_mean_above",
    f"{PLACE}/update",
    "gates/encoder.rnn",
)


class TwoOptimizers(Classifier):
    """Lightning's ``global_step`` counts each of them, its loggers' step does not."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class Accumulating(Classifier):
    """Two batches a step."""


HOW = {TwoOptimizers: ([2, 5], {}), Accumulating: ([1, 3], {"accumulate_grad_batches": 2})}


@pytest.fixture(params=HOW, ids=lambda model: model.__name__)
def watch(request, fit):
    """Train with loggers for two epochs, looking, drawing and raising a flag in both; and the steps to find."""
    steps, options = HOW[request.param]

    def run(*loggers):
        flags = {"update_mean_above": 0.0}
        monitor = GateMonitor(every_n_epochs=1, figure_every_n_epochs=1, flags=flags, on_error="raise")
        with pytest.warns(RecurrentHealthWarning, match="update_mean is 0"):
            fit(monitor, model=request.param, logger=list(loggers), **options)
        return steps

    return run


def test_tensorboards_of_both_packages_and_csv_at_once(watch, tmp_path):
    steps = watch(
        CSVLogger(tmp_path, name="csv"),
        TensorBoardLogger(tmp_path, name="tb"),
        pytorch_lightning.loggers.TensorBoardLogger(tmp_path, name="other"),
    )
    for name in ("tb", "other"):
        found = EventAccumulator(
            str(tmp_path / name / "version_0"), size_guidance={"images": 0, "histograms": 0}
        ).Reload()
        for events in (
            found.Scalars("val_loss"), found.Scalars(TAG), found.Images(PICTURE), found.Histograms(GATE),
            found.Tensors(f"{FLAG}/text_summary"),
        ):  # fmt: skip
            assert [event.step for event in events] == steps
        assert "custom_scalars__config__" in found.Tags()["tensors"]
    folder = tmp_path / "csv" / "version_0"
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    at = [int(row[header.index("step")]) for row in rows if row[header.index(TAG)]]
    assert at == steps
    names = [f"epoch={epoch:04d}-step={step:08d}" for epoch, step in enumerate(steps)]
    assert sorted(path.stem for path in folder.rglob("*.png")) == [f"encoder.rnn-{name}" for name in names]
    assert sorted(path.stem for path in folder.rglob("*.npz")) == names
    assert not list(tmp_path.rglob("other/*/rnn_callbacks"))  # once is enough


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:wandb", "ignore::ResourceWarning")
def test_weights_and_biases_has_all_of_it_at_lightnings_step(watch, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    logger = WandbLogger(save_dir=tmp_path, mode="offline", project="project", name="name")
    logged, log = [], logger.experiment.log

    def listen(data, *arguments, **options):
        logged.append(data)
        assert "step" not in options  # W&B drops what comes at an earlier step of its own than the last
        return log(data, *arguments, **options)

    monkeypatch.setattr(logger.experiment, "log", listen)
    steps = watch(logger)
    wandb.finish()
    for tag in ("val_loss", TAG, PICTURE, GATE, FLAG, f"{FLAG}/text"):
        assert [data["trainer/global_step"] for data in logged if tag in data] == steps
    assert isinstance(next(data[GATE] for data in logged if GATE in data), wandb.Histogram)
    assert isinstance(next(data[f"{FLAG}/text"] for data in logged if f"{FLAG}/text" in data), wandb.Html)
    media = [path for path in tmp_path.rglob("files/media/**/*") if path.is_file()]
    assert sorted(path.suffix for path in media) == [".html", ".html", ".png", ".png"]
    assert all("above the limit of 0" in path.read_text() for path in media if path.suffix == ".html")
    assert Image.open(next(path for path in media if path.suffix == ".png")).size[0] > 100
    assert len(list((tmp_path / "project" / logger.version).rglob("*.npz"))) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_has_numbers_pictures_and_texts_at_lightnings_step(watch, tmp_path):
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=str(tmp_path / "kept"))
    steps = watch(logger)
    for tag in ("val_loss", TAG):
        assert [metric.step for metric in logger.experiment.get_metric_history(logger.run_id, tag)] == steps
    kept = tmp_path / "kept" / logger.run_id / "artifacts"
    texts = sorted((kept / PLACE / "flags").iterdir())
    assert [path.name for path in texts] == [f"update_mean_above-step={step:08d}.md" for step in steps]
    assert "above the limit of 0" in texts[0].read_text()
    pictures = sorted((kept / "images").glob("gates~encoder.rnn*.png"), key=lambda path: path.name)
    assert [path.name.split("+")[1:3] for path in pictures] == [["step", str(step)] for step in steps]
    assert len(list(tmp_path.glob("lightning_logs/version_0/rnn_callbacks/gates/*.npz"))) == 2  # it has no folder
