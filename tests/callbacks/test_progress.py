"""A long look shows itself in Lightning's own bars, and leaves them as they were."""

import io
import sys
import threading
import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import rich
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from rnn_callbacks.callbacks.progress import close_bar, shown

WORDS = "Somebody looks"
AT_ONCE, NEVER = 0.01, 600.0  # seconds
PATIENCE = 20.0  # seconds for a thread to get its turn on a busy machine; never spent where all is well


class Looks(pl.Callback):
    """Looks when validation, or an epoch, is over, until the bar names it or `fault` is raised."""

    def __init__(self, describe, *, when="on_validation_epoch_end", seconds=AT_ONCE, fault=None):
        self.describe, self.seconds, self.fault = describe, seconds, fault
        self.before = self.meanwhile = self.after = self.threads = None
        setattr(self, when, self.look)

    def look(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        self.before = self.describe(trainer.progress_bar_callback)
        known = set(threading.enumerate())
        try:
            with shown(trainer, WORDS, seconds=self.seconds):
                end = time.monotonic() + PATIENCE
                while self.seconds < NEVER and self.describe(trainer.progress_bar_callback) == self.before:
                    assert time.monotonic() < end
                    time.sleep(0.001)
                self.meanwhile = self.describe(trainer.progress_bar_callback)
                if self.fault is not None:
                    raise self.fault
        finally:
            self.threads = set(threading.enumerate()) - known
            self.after = self.describe(trainer.progress_bar_callback)


def lines_of_tqdm(bar):
    """Descriptions by stage, of lines that are live."""
    found = {"val": bar._val_progress_bar, "train": bar._train_progress_bar}
    return {stage: line.desc for stage, line in found.items() if line is not None and not line.disable}


def tasks_of_rich(bar):
    names = {bar.val_progress_bar_id: "val", bar.train_progress_bar_id: "train"}
    return {names[task.id]: task.description for task in bar.progress.tasks if task.visible and task.id in names}


@pytest.fixture(params=["tqdm", "rich"])
def screen(request):
    """A bar that writes to stdout as to a terminal, and a reader of its lines."""
    if request.param == "tqdm":
        yield TQDMProgressBar(), lines_of_tqdm
    else:
        yield RichProgressBar(console_kwargs={"force_terminal": True, "width": 100}), tasks_of_rich
        rich.reconfigure()


def test_a_long_look_is_named_in_the_line_of_the_validation_and_taken_away_again(fit, screen, capsys):
    bar, describe = screen
    looks = Looks(describe)
    fit(looks, bar, enable_progress_bar=True)
    assert set(looks.before) == {"val", "train"}
    assert looks.before["val"].startswith("Validation")
    assert looks.meanwhile["val"].removesuffix(": ") == WORDS
    assert looks.meanwhile["train"] == looks.before["train"]
    assert looks.after == looks.before
    written = capsys.readouterr().out
    assert written.count(WORDS) == 2  # drawn once in each epoch
    assert looks.before["val"] in written[written.rindex(WORDS) :]  # drawn anew


def test_without_a_validation_it_is_named_in_the_line_of_the_training(fit, screen, capsys):
    bar, describe = screen
    looks = Looks(describe, when="on_train_epoch_end")
    fit(looks, bar, enable_progress_bar=True, validate=[])
    assert looks.before["train"].startswith("Epoch 1")
    assert {stage: words.removesuffix(": ") for stage, words in looks.meanwhile.items()} == {"train": WORDS}
    assert looks.after == looks.before
    assert WORDS in capsys.readouterr().out


def test_after_a_validation_it_is_named_in_the_line_of_the_training(fit, screen):
    bar, describe = screen
    looks = Looks(describe, when="on_train_epoch_end")
    fit(looks, bar, enable_progress_bar=True)
    assert {stage: words.removesuffix(": ") for stage, words in looks.meanwhile.items()} == {"train": WORDS}
    assert looks.after == looks.before


def test_a_short_look_leaves_no_trace(fit, screen, capsys):
    bar, describe = screen
    looks = Looks(describe, seconds=NEVER)
    fit(looks, bar, enable_progress_bar=True)
    assert looks.meanwhile == looks.before == looks.after
    assert WORDS not in capsys.readouterr().out
    assert not looks.threads


@pytest.mark.parametrize("seconds", [AT_ONCE, NEVER])
def test_what_raises_inside_passes_and_leaves_neither_words_nor_a_thread(fit, screen, seconds):
    bar, describe = screen
    looks = Looks(describe, seconds=seconds, fault=ZeroDivisionError("inside"))
    with pytest.raises(ZeroDivisionError, match="inside"):
        fit(looks, bar, enable_progress_bar=True)
    assert looks.after == looks.before
    assert not looks.threads


class Another(ProgressBar):
    """A user's own kind, that has nothing of either."""

    def disable(self):
        pass


class Moody(TQDMProgressBar):
    """A user's own, of which one line cannot be read and the other refuses words."""

    @property
    def val_progress_bar(self):
        raise RuntimeError("not today")

    @property
    def train_progress_bar(self):
        return SimpleNamespace(disable=False, desc="x", set_description_str=lambda words: 1 / 0)


def trainer_with(bar, *, rank_zero=True):
    return SimpleNamespace(is_global_zero=rank_zero, progress_bar_callback=bar)


def wait(bar):
    """Wait in `shown` until its thread has done what it can."""
    known = set(threading.enumerate())
    with shown(trainer_with(bar), WORDS, seconds=0.0):
        for thread in set(threading.enumerate()) - known:
            thread.join(PATIENCE)


@pytest.mark.parametrize("make", [Another, Moody, TQDMProgressBar, RichProgressBar])
def test_a_bar_of_another_kind_or_one_that_raises_or_has_not_begun_is_left_alone(make, capsys):
    wait(make())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(
    "bar, rank_zero, threads", [(TQDMProgressBar, True, 1), (TQDMProgressBar, False, 0), (None, True, 0)]
)
def test_without_a_bar_and_on_other_ranks_there_is_no_thread(bar, rank_zero, threads):
    known = set(threading.enumerate())
    with shown(trainer_with(bar and bar(), rank_zero=rank_zero), WORDS, seconds=NEVER):
        assert len(set(threading.enumerate()) - known) == threads
    assert not set(threading.enumerate()) - known


def test_a_disabled_bar_stays_empty(fit, capsys):
    class Waits(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            wait(trainer.progress_bar_callback)

    fit(Waits(), TQDMProgressBar(refresh_rate=0), enable_progress_bar=True)
    assert WORDS not in capsys.readouterr().out


def test_what_is_printed_after_a_closed_bar_stands_on_a_line_of_its_own_and_is_the_last(fit, screen, capsys):
    bar, _ = screen
    stream = sys.stdout  # as a logging handler holds it, past what rich puts in its place

    class Prints(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if args[-1] == 1:
                raise ZeroDivisionError

        def on_exception(self, trainer, pl_module, exception):
            close_bar(trainer)
            stream.write("printed\n")

    with pytest.raises(ZeroDivisionError):
        fit(Prints(), bar, enable_progress_bar=True)
    before, _, behind = capsys.readouterr().out.partition("printed\n")
    assert before.removesuffix("\x1b[?25h").endswith("\n")  # rich shows the cursor again
    assert "Epoch" not in behind


def test_a_file_gets_richs_bar_once(fit):
    """There rich draws when it stops, which Lightning sees to; closing it twice would add a line."""
    stream = io.StringIO()

    class Closes(pl.Callback):
        def on_fit_end(self, trainer, pl_module):
            close_bar(trainer)

    def written(*callbacks):
        stream.seek(0)
        stream.truncate()
        fit(*callbacks, RichProgressBar(console_kwargs={"file": stream, "width": 100}), enable_progress_bar=True)
        return stream.getvalue().count("\n")

    assert written(Closes()) == written() > 0
    rich.reconfigure()
