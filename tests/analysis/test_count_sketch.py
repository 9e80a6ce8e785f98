"""Folds against what is written down about them: linear, right on average, as far off as is said, the same anywhere."""

import subprocess
import sys

import numpy as np
import pytest

from rnn_callbacks.analysis import count_sketch
from rnn_callbacks.analysis.count_sketch import SIZE, CountSketch

SMALL = 127  # buckets, a prime
LONG = 1009
SEEDS = 400


def whole_numbers(length, seed=0):
    """Sums of these have no rounding, in whatever order."""
    return np.random.default_rng(seed).integers(-1000, 1000, length).astype(np.float32)


def signs_and_buckets(length, key="w", seed=0, size=SMALL):
    """What each single number becomes: (p, size), the whole matrix of the fold."""
    sketch = CountSketch(seed, size)
    return np.stack([sketch.fold(row, key) for row in np.eye(length, dtype=np.float32)])


def test_fold_is_a_matrix_with_one_sign_in_each_row():
    matrix = signs_and_buckets(LONG)
    assert (np.abs(matrix).sum(1) == 1).all()
    assert (np.abs(matrix).max(1) == 1).all()
    values = whole_numbers(LONG)
    np.testing.assert_array_equal(CountSketch(size=SMALL).fold(values, "w"), values @ matrix)


def test_fold_of_a_difference_is_the_difference_of_the_folds():
    sketch = CountSketch(3, SMALL)
    a, b = whole_numbers(LONG), whole_numbers(LONG, 1)
    np.testing.assert_array_equal(sketch.fold(3 * a - b, "w"), 3 * sketch.fold(a, "w") - sketch.fold(b, "w"))


@pytest.mark.parametrize("length", [0, 1, SMALL - 1, SMALL])
def test_what_is_short_is_kept_as_it_is(length):
    sketch = CountSketch(size=SMALL)
    values = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    found = sketch.fold(values, "w")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values)
    assert sketch.width(length) == length


@pytest.mark.parametrize("length", [SMALL + 1, 2 * SMALL - 1, 2 * SMALL, LONG])
def test_what_is_longer_takes_as_many_numbers_as_there_are_buckets(length):
    sketch = CountSketch(size=SMALL)
    assert sketch.width(length) == len(sketch.fold(np.ones(length), "w")) == SMALL


def test_fold_reads_its_argument_and_leaves_it():
    for length in (SMALL, LONG):
        values = whole_numbers(length)
        values.flags.writeable = False
        found = CountSketch(size=SMALL).fold(values, "w")
        assert not np.shares_memory(found, values)


def one_hot_rows(rows, wide):
    matrix = np.zeros((rows, wide))
    matrix[:, 3] = 1.0
    return matrix.ravel()


def every(period, length=LONG):
    return (np.arange(length) % period == 5).astype(float)


VECTORS = {
    "normal": np.random.default_rng(0).standard_normal(LONG),
    "constant": np.ones(LONG),
    "one number": np.eye(LONG)[700],
    "one column of a matrix": one_hot_rows(53, 19),
    "one column as wide as there are buckets": every(SMALL),
    "two numbers a size apart": np.eye(LONG)[7] + np.eye(LONG)[7 + SMALL],
    "a period that divides twice the size": np.cos(np.arange(LONG) * np.pi / SMALL),
    "a heavy tail": np.random.default_rng(1).standard_cauchy(LONG),
    "half a row too long": np.ones(SMALL + SMALL // 2),
}


@pytest.mark.parametrize("name", VECTORS)
def test_squared_length_is_right_on_average_and_as_far_off_as_is_said(name):
    vector = VECTORS[name]
    true = vector @ vector
    folds = [CountSketch(seed, SMALL).fold(vector, "w") for seed in range(SEEDS)]
    found = np.array([fold @ fold for fold in folds]) / true
    said = np.sqrt(2 / SMALL)
    # Four standard errors of a mean; of a spread, with room for vectors that are rarely off, and then by much.
    assert abs(found.mean() - 1) <= 4 * said / np.sqrt(SEEDS)
    assert found.std() <= 1.35 * said
    assert CountSketch(0, SMALL).distance_error == pytest.approx(said / 2)


def test_distance_error_is_reached_by_numbers_that_are_spread_out():
    vector = np.random.default_rng(0).standard_normal(20 * SMALL)
    lengths = [np.linalg.norm(CountSketch(seed, SMALL).fold(vector, "w")) for seed in range(SEEDS)]
    # The spread of 400 draws is known to 1 / sqrt(800), 3.5 %; three of those, and 5 % for what short rows lack.
    assert np.std(lengths) / np.linalg.norm(vector) == pytest.approx(CountSketch(0, SMALL).distance_error, rel=0.15)


def test_error_at_the_usual_size_is_a_hundredth_of_a_distance():
    assert CountSketch().distance_error == pytest.approx(0.0110, abs=5e-5)
    a, b = (np.random.default_rng(seed).standard_normal(50_000).astype(np.float32) for seed in range(2))
    true = np.linalg.norm(a.astype(float) - b)
    ratios = [
        np.linalg.norm(sketch.fold(a, "w") - sketch.fold(b, "w")) / true
        for sketch in (CountSketch(seed) for seed in range(20))
    ]
    assert np.mean(ratios) == pytest.approx(1, abs=4 * 0.011 / np.sqrt(20))
    assert 0.006 < np.std(ratios) < 0.017


def test_inner_products_are_right_on_average():
    a, b = np.random.default_rng(0).standard_normal((2, LONG))
    found = [CountSketch(s, SMALL).fold(a, "w") @ CountSketch(s, SMALL).fold(b, "w") for s in range(SEEDS)]
    error = np.linalg.norm(a) * np.linalg.norm(b) * np.sqrt(2 / SMALL) / np.sqrt(SEEDS)
    assert np.mean(found) == pytest.approx(a @ b, abs=4 * error)


def test_two_numbers_meet_as_rarely_as_in_buckets_that_are_drawn_for_each():
    pairs = np.random.default_rng(0).integers(0, LONG, (200, 2))
    pairs = pairs[pairs[:, 0] // SMALL != pairs[:, 1] // SMALL]
    buckets = np.array([np.abs(signs_and_buckets(LONG, seed=seed)).argmax(1) for seed in range(8)])
    met = (buckets[:, pairs[:, 0]] == buckets[:, pairs[:, 1]]).mean()
    assert met == pytest.approx(1 / SMALL, abs=4 * np.sqrt(1 / SMALL / (8 * len(pairs))))
    for row in range(0, LONG, SMALL):  # and never, when they stand together
        assert all(len(set(seen[row : row + SMALL])) == len(seen[row : row + SMALL]) for seen in buckets)


def test_signs_are_as_often_minus_as_plus_and_follow_from_no_others():
    signs = signs_and_buckets(LONG).sum(1)
    assert abs(signs.mean()) < 4 / np.sqrt(LONG)
    for apart in (1, 8, 63, 64, 65, SMALL, 128):
        assert abs((signs[apart:] * signs[:-apart]).mean()) < 4 / np.sqrt(LONG - apart)


@pytest.mark.parametrize("length", [SMALL + 1, 5 * SMALL, 5 * SMALL + 1, LONG])
@pytest.mark.parametrize("block", [1, SMALL, 2 * SMALL + 5, 3 * SMALL, 64 * SMALL])
def test_fold_does_not_depend_on_how_many_numbers_are_folded_at_a_time(monkeypatch, length, block):
    values = whole_numbers(length)
    true = CountSketch(size=SMALL).fold(values, "w")
    monkeypatch.setattr(count_sketch, "BLOCK", block)
    np.testing.assert_array_equal(CountSketch(size=SMALL).fold(values, "w"), true)


def test_what_is_longer_than_a_block_folds_as_its_parts_do():
    length = count_sketch.BLOCK + 3 * SIZE + 1
    values, sketch = whole_numbers(length), CountSketch()
    parts = []
    for begin, end in ((0, 5), (5, count_sketch.BLOCK - 2), (count_sketch.BLOCK - 2, length)):
        part = np.zeros_like(values)
        part[begin:end] = values[begin:end]
        parts.append(sketch.fold(part, "w"))
    np.testing.assert_array_equal(sum(parts), sketch.fold(values, "w"))
    assert all(part.any() for part in parts)


def test_numbers_beyond_the_end_change_no_sign():
    values = whole_numbers(LONG)
    padded = np.append(values, np.zeros(3 * SMALL, np.float32))
    sketch = CountSketch(size=SMALL)
    np.testing.assert_array_equal(sketch.fold(padded, "w"), sketch.fold(values, "w"))


def test_half_and_single_precision_fold_as_double_does():
    values = whole_numbers(LONG)
    true = CountSketch(size=SMALL).fold(values.astype(np.float64), "w")
    for dtype in (np.float32, np.float16):
        found = CountSketch(size=SMALL).fold(values.astype(dtype), "w")
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, true)


def test_sums_are_taken_in_double_precision():
    values = np.tile(np.float32([1.0, 2**-30]), 2 * SMALL)
    a = CountSketch(size=SMALL).fold(values, "w")
    b = CountSketch(size=SMALL).fold(values.astype(np.float64), "w")
    np.testing.assert_array_equal(a, b)


def test_other_keys_and_other_seeds_have_other_signs_and_buckets():
    base = signs_and_buckets(LONG)
    for other in (signs_and_buckets(LONG, key="v"), signs_and_buckets(LONG, seed=1)):
        assert abs(np.sign(base.sum(1)) @ np.sign(other.sum(1))) < 4 * np.sqrt(LONG)
        same = (np.abs(base).argmax(1) == np.abs(other).argmax(1)).mean()
        assert same < 0.5  # a row may begin at the same bucket by chance


def test_equal_keys_have_equal_signs_in_every_process():
    values = whole_numbers(LONG)
    code = (
        "import importlib.util, sys; import numpy as np\n"
        "spec = importlib.util.spec_from_file_location('count_sketch', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"values = np.random.default_rng(0).integers(-1000, 1000, {LONG}).astype(np.float32)\n"
        f"print(module.CountSketch(7, {SMALL}).fold(values, 'läyer.weight[0:5]').tolist())\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, count_sketch.__file__],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
    )
    found = CountSketch(7, SMALL).fold(values, "läyer.weight[0:5]").tolist()
    assert told.stdout.strip() == str(found)


def test_no_buckets_are_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        CountSketch(size=0)


def test_a_single_bucket_holds_the_signed_sum():
    found = CountSketch(size=1).fold(np.array([1.0, 10.0, 100.0]), "w")
    assert found.shape == (1,)
    assert abs(found.item()) in {89, 91, 109, 111}
