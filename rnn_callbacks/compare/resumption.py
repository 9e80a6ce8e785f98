"""Several event files of one run, made one: what a resumed run repeats, and what was evaluated beside its training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .event_files import EventFile, Points
from .series import Series, epochs_of, joined

NOUNS = ("gates", "gradient_flow", "fixed_points", "probes", "representation", "weight_trajectory")
NOT_METRICS = ("epoch", "hp_metric", "step")

Parts = dict[str, list[Series]]  # by tag, in the order in which they were written


def is_metric(tag: str) -> bool:
    """Whether the model itself logged it: neither one of our callbacks nor Lightning by itself."""
    return tag.split("/")[0] not in NOUNS and tag not in NOT_METRICS


def merged(files: Sequence[EventFile], replays: Sequence[EventFile] = ()) -> dict[str, Series]:
    """Files of one run as one series for each tag.

    A run that is resumed from a checkpoint repeats what came after it: what earlier files have from the later one's
    first step on is dropped, also of tags that the later one did not come to. ``trainer.test`` and
    ``trainer.validate`` leave files of their own and repeat nothing: they add what the training did not log, and what
    came before its first value. (In a process of its own an evaluation logs at step 0, whatever the checkpoint.)

    Args:
        files: of the run.
        replays: files of replays of its checkpoints, which add what nobody logged while it was training. What looking
            cost then is left out: there was no training to compare it with.
    """
    training: Parts = defaultdict(list)
    evaluation: Parts = defaultdict(list)
    for file in sorted((file for file in files if file.points), key=_began):
        steps = _trainer_steps(file, training)
        if _is_evaluation(file, steps, training):
            for tag, found in file.points.items():
                if tag not in training:
                    evaluation[tag].append(_series(found))
            continue
        if len(steps) > 1 and not training.keys().isdisjoint(file.points):
            _drop(training, file, int(steps[0]))
        for tag, found in file.points.items():
            training[tag].append(_series(found))
    whole = {tag: joined(known) for tag, known in training.items()}
    whole = {tag: known for tag, known in whole.items() if len(known.steps)}
    for tag, known in evaluation.items():
        beside = joined(known)
        whole[tag] = joined([_before(beside, int(whole[tag].steps[0])), whole[tag]]) if tag in whole else beside
    epochs = whole.get("epoch")
    series = {
        tag: Series(known.steps, known.values, known.walls, epochs_of(known.steps, epochs))
        for tag, known in whole.items()
    }
    for replay in replays:
        series = _replayed(replay) | series
    return series


def _replayed(file: EventFile) -> dict[str, Series]:
    when = joined([_series(file.points["epoch"])]) if "epoch" in file.points else None
    return {
        tag: joined([Series(found.steps, found.values, found.walls, epochs_of(found.steps, when))])
        for tag, found in file.points.items()
        if not (tag.split("/")[0] in NOUNS and tag.endswith(("/seconds", "/overhead")))
    }


def _trainer_steps(file: EventFile, known: Mapping[str, object]) -> NDArray[np.int64]:
    """Steps of the trainer at which a file logged, increasing.

    Lightning logs ``epoch`` with everything but single batches of an evaluation, which it counts on an axis of their
    own. Without it, steps of the tags that were logged before, or of all.
    """
    if "epoch" in file.points:
        return np.unique(file.points["epoch"].steps)
    common = [found.steps for tag, found in file.points.items() if tag in known and tag not in NOT_METRICS]
    return np.unique(np.concatenate(common or [found.steps for found in file.points.values()]))


def _is_evaluation(file: EventFile, steps: NDArray[np.int64], training: Parts) -> bool:
    """Whether a file holds one step that does not go on where the training ended.

    A resumed run that logged once has all metrics of the training and a later step, an evaluation some at most.
    """
    if len(steps) > 1:
        return False
    metrics = {tag for tag in training if is_metric(tag)}
    last = max((int(part.steps.max()) for tag in metrics for part in training[tag] if len(part.steps)), default=None)
    return last is None or steps[0] <= last or not metrics <= file.points.keys()


def _drop(training: Parts, file: EventFile, begin: int) -> None:
    """Leave out what a resumed run goes over again."""
    for tag, known in training.items():
        first = min(begin, int(file.points[tag].steps.min())) if tag in file.points else begin
        training[tag] = [_before(part, first) for part in known]


def _series(found: Points) -> Series:
    return Series(found.steps, found.values, found.walls, np.full(len(found.steps), np.nan))


def _began(file: EventFile) -> float:
    """When its first number was written; the end of all times where no time is one."""
    walls = np.concatenate([found.walls for found in file.points.values()])
    return float(walls[np.isfinite(walls)].min(initial=np.inf))


def _before(series: Series, step: int) -> Series:
    kept = series.steps < step
    return Series(series.steps[kept], series.values[kept], series.walls[kept], series.epochs[kept])
