"""The numbers of a checkpoint, in a small size: what must hold holds, what is not there fails."""

import re

import numpy as np
import pytest
import torch

from examples import checkpoint


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(checkpoint, "draw", lambda *_: None)  # PHATE takes seconds


def test_what_the_package_says_is_what_torch_computes_and_an_untrained_network_has_gained_nothing(tmp_path, capsys):
    assert checkpoint.main(["--epochs", "0", "--logs", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert re.findall(r"  (holds|FAILS)  ", said) == ["holds", "FAILS", "holds", "holds", "holds"]
    assert re.search(r"a probe reads 8\d%; trained 8\d%, \+0.00 bits", said)


def test_a_file_of_any_number_of_units_is_taken(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(checkpoint.Reader(13).state_dict(), tmp_path / "own.pt")
    assert checkpoint.main(["--checkpoint", str(tmp_path / "own.pt"), "--logs", str(tmp_path)]) == 1
    assert re.search(r"own\.pt: answers .*\n.*\(360, 8, 13\)", capsys.readouterr().out)
    assert not (tmp_path / "checkpoint" / "trained.pt").exists()


def test_torch_moves_what_is_no_fixed_point():
    """A GRU without weights halves its state: zero is its fixed point, and each unit remembers for 1 / ln 2 steps."""
    layer = torch.nn.GRU(3, 5, batch_first=True)
    for weight in layer.parameters():
        torch.nn.init.zeros_(weight)
    states = np.stack([np.zeros(5), np.full(5, 0.5)])
    assert checkpoint.moved(layer, np.zeros(3), states) == pytest.approx([0, 0.25])
    with torch.no_grad():
        assert checkpoint.timescales(layer, torch.rand(7, 11, 3)) == pytest.approx(np.full(5, 1 / np.log(2)))


def test_training_teaches_what_an_untrained_network_does_not_know(tmp_path):
    (rows, labels), held = checkpoint.digits(0)
    checkpoint.train((rows[:320], labels[:320]), 8, tmp_path, 0)
    after = checkpoint.restore(tmp_path / "trained.pt")
    assert checkpoint.share_right(checkpoint.Reader().eval(), held) < 0.25 < 0.5 < checkpoint.share_right(after, held)


@pytest.mark.parametrize("state", [None, {"weight": torch.zeros(3)}, {"readout.weight": torch.zeros(10, 7)}])
def test_what_is_no_checkpoint_of_it_is_named(state, tmp_path, capsys):
    file = tmp_path / "own.pt"
    if state is not None:
        torch.save(state, file)
    with pytest.raises(SystemExit, match="2"):
        checkpoint.main(["--checkpoint", str(file), "--logs", str(tmp_path)])
    assert "own.pt is no state_dict of Reader" in capsys.readouterr().err
