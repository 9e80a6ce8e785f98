"""The reviews, the reader of text files, and the claims: each of them can fail."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from examples import sentiment
from examples._sentiment_reviews import LONGEST, VALENCES, WORDS, read, reviews, running_sum
from examples.sentiment import Reader, Walk, a_line, a_sum, claims
from rnn_callbacks.report import Report

UNITS = 8  # the embedding's width


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than the rest of a small run."""

    def sparing(callback, **asked):
        return callback(**asked | {"figure_every_n_epochs": 99})

    for callback in (sentiment.FixedPointTracker, sentiment.ProbeTracker):
        monkeypatch.setattr(sentiment, callback.__name__, partial(sparing, callback))


def test_reviews_are_as_they_are_described():
    words, liked = reviews(997, torch.Generator().manual_seed(0))
    lengths = (words > 0).sum(1)
    assert (lengths.min(), lengths.max()) == (10, LONGEST)
    assert all((row[:length] > 0).all() for row, length in zip(words, lengths, strict=True))  # padding only at the end
    assert (VALENCES[words[words > 0]] != 0).float().mean().item() == pytest.approx(0.4, abs=0.02)  # of 25,000 words
    clear = VALENCES[words].sum(1).abs() > 1.5  # three times the size of what chance adds
    assert ((VALENCES[words].sum(1) > 0) == liked)[clear].float().mean() > 0.99


def test_a_word_is_listed_by_its_valence():
    assert [WORDS.split()[place] for place in (1, 20, 21, 40)] == ["okay", "masterful", "slow", "atrocious"]
    assert len(set(WORDS.split())) == 41
    assert len(VALENCES) == 101


def test_the_running_sum_ends_with_the_review():
    words = torch.tensor([[20, 41, 40, 1], [40, 20, 0, 0]])
    expected = [[1, 1, 0, 0.1], [-1, 0, np.nan, np.nan]]
    np.testing.assert_allclose(running_sum((words, torch.zeros(2))).numpy(), expected, atol=1e-6)  # float32


# ---- a text file -----------------------------------------------------------------------------------------------------


def test_a_text_is_read_by_line(tmp_path):
    file = tmp_path / "reviews.txt"
    file.write_text("1\tA fine film\n\n0 a dull film\n" * 5, encoding="utf-8")
    words, liked = read(str(file))
    assert words.shape == (10, 3)
    assert liked.tolist() == [1, 0] * 5
    assert (words[0] == words[1]).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "line, words",
    [
        ("3 a film", "line 2: expected 1 or 0 and a sentence, got '3 a film'"),
        ("1", "line 2: expected 1 or 0 and a sentence, got '1'"),
        ("", "expected at least 10 lines with a label and a sentence, got 1"),
    ],
)
def test_what_is_no_review_is_named(line, words, tmp_path, capsys):
    file = tmp_path / "reviews.txt"
    file.write_text(f"1 a film\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(words)):
        read(str(file))
    with pytest.raises(SystemExit, match="2"):
        sentiment.main(["--text", str(file), "--logs", str(tmp_path)])
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_text_is_trained_on_without_claims_about_valences(tmp_path, capsys):
    file = tmp_path / "reviews.txt"
    file.write_text("1 a good film\n0 a bad film , to be honest\n" * 40)
    assert sentiment.main(["--text", str(file), "--epochs", "1", "--logs", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "(valences unknown: no claims about them)" in said
    assert len(re.findall("^  (holds|FAILS)  ", said, re.MULTILINE)) == 2


# ---- the claims ------------------------------------------------------------------------------------------------------


def test_a_network_that_has_not_learned_fails_every_claim(tmp_path, capsys):
    assert sentiment.main(["--epochs", "1", "--sequences", "64", "--logs", str(tmp_path)]) == 1
    verdicts = re.findall("^  (holds|FAILS)  (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(verdicts) == 5
    assert {verdict for verdict, _ in verdicts[2:]} == {"FAILS"}
    assert (verdicts[0][0], verdicts[1][0]) != ("holds", "holds")


@pytest.fixture(scope="module")
def summing():
    """A network made by hand: h' = tanh(0.99 h + valence / 100) in one unit; the second one forgets at once."""
    model = Reader("rnn", units=2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.meaning.weight[:101, 0] = VALENCES
        model.reader.weight_ih_l0[0, 0] = 0.01
        model.reader.weight_hh_l0[0, 0] = 0.999
    place = "fixed_points/reader/plain"
    fixed = {f"{place}/eigenvalues": np.array([[0.999 + 0j, 0]]), f"{place}/inputs": np.zeros(UNITS)}
    score = "probes/reader.l0/hidden/running_sum"
    return model, Report({}, fixed), Report({f"{score}/r2": 0.99, f"{score}/over_untrained": 0.9})


def held():
    return reviews(512, torch.Generator().manual_seed(1))[0]


def test_a_network_that_sums_fulfils_every_claim(summing):
    found = claims(summing[0], held(), *summing[1:])
    assert [claim.holds for claim in found] == [True] * 5


def test_a_network_that_forgets_has_no_line_and_no_sum(summing):
    model = Reader("rnn", units=2)
    model.load_state_dict(summing[0].state_dict())
    with torch.no_grad():
        model.reader.weight_hh_l0[0, 0] = 0.5
    assert [claim.holds for claim in claims(model, held(), *summing[1:])][1:3] == [False, False]


def test_plain_words_that_push_are_seen(summing):
    model = Reader("rnn", units=2)
    model.load_state_dict(summing[0].state_dict())
    with torch.no_grad():
        model.meaning.weight[41:101, 0] = torch.linspace(-0.6, 0.6, 60)
    assert [claim.holds for claim in claims(model, held(), *summing[1:])][3:] == [False, False]


@pytest.mark.parametrize("values", [[0.9, 0], [1.1, 0], [0.999, 0.99], [0.999, -1.05], [-0.999, 0]])
def test_eigenvalues_that_belong_to_no_line_are_seen(summing, values):
    fixed = dict(summing[1].arrays) | {"fixed_points/reader/plain/eigenvalues": np.array([values], complex)}
    assert not claims(summing[0], held(), replace(summing[1], arrays=fixed), summing[2])[0].holds


def test_without_a_fixed_point_there_is_no_eigenvalue(summing):
    fixed = dict(summing[1].arrays) | {"fixed_points/reader/plain/eigenvalues": np.zeros((0, 2), complex)}
    assert not claims(summing[0], held(), replace(summing[1], arrays=fixed), summing[2])[0].holds


def test_a_plane_is_no_line():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(997, 5, generator=generator) * torch.tensor([1, 1, 0, 0, 0])
    long = flat * torch.tensor([1, 0.1, 0, 0, 0])
    assert [a_line(Walk(rests, 1.0, None, None)).holds for rests in (flat, long, 0.1 * long)] == [False, True, False]


def test_a_place_that_tells_the_sum_only_roughly_is_not_enough():
    words = held()
    last = (words > 0).sum(1).numpy()
    sums = np.pad(VALENCES[words].cumsum(1).numpy(), [(0, 0), (1, 0)])
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.4 * sums[:, -1].std(), len(sums))[:, None]  # leaves 1 / 1.16 of the variance: 0.86
    for place, holds in ((sums, True), (sums + noise, False)):
        assert a_sum(Walk(None, 1.0, place, last), words, 0.0)[0].holds is holds
    assert not a_sum(Walk(None, 1.0, sums, last), words, 0.8)[0].holds  # the untrained network tells it as well
