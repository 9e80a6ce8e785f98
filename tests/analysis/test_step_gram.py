"""Products of steps against NumPy's of the whole path, however the path grew, was read and was thinned."""

import numpy as np
import pytest

from rnn_callbacks.analysis.step_gram import CHUNK, StepGram, path_steps

SNAPSHOTS = 61
SIZES = {"hidden": 17, "bias": 1, "head": 5}


@pytest.fixture
def generator():
    return np.random.default_rng(7)


@pytest.fixture
def path(generator):
    """The weights of each part, (E, P), far from zero."""
    return {part: 3 + generator.normal(size=(SNAPSHOTS, size)).cumsum(0) for part, size in SIZES.items()}


def reader(path, width=4):
    """Some columns at a time, and never what was not asked for."""

    def read(part, rows):
        assert (np.diff(rows) > 0).all()
        return (path[part][rows, at : at + width] for at in range(0, path[part].shape[1], width))

    return read


def grown(path, counts, *, most=500, width=4):
    gram = StepGram(list(path), most=most)
    for count in counts:
        gram.extend(reader(path, width), count)
    return gram


def assert_steps_of(found, weights):
    """Every number is that of these weights, (E, P), by the definitions."""
    at_points, steps = np.diff(weights[found.points], axis=0), np.diff(weights, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(found.products, at_points @ at_points.T, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.squares, lengths**2, rtol=1e-12)
    np.testing.assert_allclose(found.lengths, lengths, rtol=1e-12)
    np.testing.assert_allclose(found.adjacent, (steps[1:] * steps[:-1]).sum(1), atol=1e-10)
    cosines = [a @ b / np.sqrt(a @ a * (b @ b)) for a, b in zip(steps[1:], steps[:-1], strict=True)]
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-12)
    np.testing.assert_allclose(found.norms, np.linalg.norm(weights, axis=1), rtol=1e-12)


def assert_same(one, other):
    np.testing.assert_array_equal(one.points, other.points)
    for name in ("products", "squares", "adjacent", "norms"):
        # Sums in another order: rounding of numbers of size 100.
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-11, atol=1e-11)


def test_products_lengths_cosines_and_norms_are_those_of_the_weights(path):
    found = path_steps(path["hidden"])
    assert found.points.tolist() == list(range(SNAPSHOTS))
    assert found.products.shape == (SNAPSHOTS - 1, SNAPSHOTS - 1)
    assert_steps_of(found, path["hidden"])


GROWTHS = {
    "one by one": range(1, SNAPSHOTS + 1),
    "two by two": [*range(2, SNAPSHOTS, 2), SNAPSHOTS],
    "three by three": [*range(1, SNAPSHOTS, 3), SNAPSHOTS],
    "with nothing new": [1, 1, 2, 2, 2, 3, 30, 30, SNAPSHOTS, SNAPSHOTS],
    "over several doublings at once": [7, SNAPSHOTS],
    "unevenly": [2, 3, 8, 9, 20, 21, 22, 47, 60, SNAPSHOTS],
}


@pytest.mark.parametrize("most", [*range(3, 21), 31, 60, 61, 500])
@pytest.mark.parametrize("counts", GROWTHS.values(), ids=GROWTHS)
def test_growing_is_the_same_as_all_at_once(path, counts, most):
    found = grown(path, counts, most=most).of(["hidden"])
    assert_same(found, path_steps(path["hidden"], most=most))
    assert_steps_of(found, path["hidden"])


@pytest.mark.parametrize("most", [3, 4, 7, 16, 17])
def test_every_count_on_the_way_is_the_path_so_far(path, most):
    gram = StepGram(list(path), most=most)
    for count in range(1, SNAPSHOTS + 1):
        gram.extend(reader(path), count)
        found = gram.of(["head"])
        assert_same(found, path_steps(path["head"][:count], most=most))
        assert (found.points[0], found.points[-1], len(found.norms)) == (0, count - 1, count)


@pytest.mark.parametrize("most", [3, 5, 8, 13])
def test_long_path_is_drawn_at_powers_of_two_and_its_last_snapshot(generator, most):
    weights = generator.normal(size=(1001, 2))
    gram = StepGram(["all"], most=most)
    for count in (*range(1, 90), 500, 777, 1000, 1001):
        gram.extend(reader({"all": weights}), count)
        found = gram.of(["all"])
        grid = found.points[:-1] if found.points[-1] % gram.stride else found.points
        np.testing.assert_array_equal(grid, np.arange(0, count, gram.stride))
        assert found.points[-1] == count - 1
        assert np.log2(gram.stride) % 1 == 0
        assert len(found.products) <= most  # all that is kept of the steps
        assert gram.stride == 1 or len(grid) > most // 2 - 1  # no more is thrown away than needed
    assert len(found.norms) == 1001
    assert gram._kept.nbytes <= 8 * most**2


@pytest.mark.parametrize("most", [6, 500])
def test_parts_add_up_to_the_whole(path, most):
    gram = grown(path, [5, 6, 31, SNAPSHOTS], most=most)
    whole = np.concatenate(list(path.values()), axis=1)
    assert_same(gram.of(list(path)), path_steps(whole, most=most))
    assert_steps_of(gram.of(list(path)), whole)
    assert_steps_of(gram.of(["head", "bias"]), np.concatenate([path["head"], path["bias"]], axis=1))
    for part, weights in path.items():
        assert_steps_of(gram.of([part]), weights)


@pytest.mark.parametrize("width", [1, 2, 5, 16, 17, 1000])
def test_width_of_what_is_read_at_a_time_does_not_matter(path, width):
    counts = [4, 9, SNAPSHOTS]
    assert_same(
        grown(path, counts, most=12, width=width).of(["hidden"]), grown(path, counts, most=12, width=3).of(["hidden"])
    )


def test_weights_in_memory_are_read_a_chunk_at_a_time(generator):
    weights = generator.normal(size=(CHUNK // 512, 1031)).astype(np.float32)  # 512 columns fit, so 512 + 512 + 7
    assert_steps_of(path_steps(weights, most=3), weights.astype(np.float64))


def test_rotation_of_the_weights_changes_nothing_but_their_order_in_time_does(generator, path):
    weights = path["hidden"]
    rotation = np.linalg.qr(generator.normal(size=(17, 17)))[0]
    assert_same(path_steps(weights @ rotation, most=9), path_steps(weights, most=9))
    assert not np.allclose(path_steps(weights[::-1]).squares, path_steps(weights).squares)


def test_single_precision_is_summed_in_double(generator):
    # Steps of one unit in the last place of 1000: their products are exact in double, and hopeless in single precision.
    weights = 1000 + np.cumsum(generator.integers(-3, 4, (23, 4001)), 0) * 2.0**-14
    single = weights.astype(np.float32)
    np.testing.assert_array_equal(single, weights)
    found, steps = grown({"all": single}, [5, 23], most=9, width=1000).of(["all"]), np.diff(weights, axis=0)
    np.testing.assert_array_equal(found.squares, (steps**2).sum(1))
    np.testing.assert_array_equal(found.adjacent, (steps[1:] * steps[:-1]).sum(1))
    drawn = np.diff(weights[found.points], axis=0)
    np.testing.assert_array_equal(found.products, drawn @ drawn.T)
    np.testing.assert_allclose(found.norms, np.linalg.norm(weights, axis=1), rtol=1e-14)
    assert {found.products.dtype, found.squares.dtype, found.adjacent.dtype, found.norms.dtype} == {np.dtype("f8")}


@pytest.mark.parametrize("size", [1e38, 1e-38])
def test_largest_and_smallest_single_precision_weights_have_lengths(generator, size):
    weights = (size * generator.uniform(0.5, 1, (7, 11))).astype(np.float32)
    found = path_steps(weights)
    double = weights.astype(np.float64)
    np.testing.assert_allclose(found.norms, np.linalg.norm(double, axis=1), rtol=1e-14)
    np.testing.assert_allclose(found.lengths, np.linalg.norm(np.diff(double, axis=0), axis=1), rtol=1e-14)


def test_step_without_length_has_cosine_zero_and_none_is_beyond_one():
    found = path_steps(np.array([[0.1], [0.4], [0.7], [0.7], [0.3], [0.5]]))
    assert found.cosines.tolist() == [1.0, 0.0, 0.0, -1.0]  # 0.1 apart is not quite 0.1 apart
    many = path_steps(np.arange(50)[:, None] * np.random.default_rng(0).normal(size=31))
    assert many.cosines.max() <= 1
    np.testing.assert_allclose(many.cosines, 1, atol=1e-15)


def test_one_snapshot_has_no_step_and_two_have_one():
    one, two = path_steps(np.array([[3.0, 4.0]])), path_steps(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert (one.points.tolist(), one.norms.tolist()) == ([0], [5.0])
    assert (one.products.shape, one.lengths.shape, one.cosines.shape) == ((0, 0), (0,), (0,))
    assert (two.products.tolist(), two.lengths.tolist(), two.cosines.shape) == ([[25.0]], [5.0], (0,))


def test_failed_reading_changes_nothing_and_can_be_repeated(path):
    gram = grown(path, [6], most=6)
    before = gram.of(list(path))

    def broken(part, rows):
        if part == "head":
            raise OSError("the disk is gone")
        return reader(path)(part, rows)

    with pytest.raises(OSError, match="the disk is gone"):
        gram.extend(broken, SNAPSHOTS)  # which would also have thinned it
    assert (gram.count, gram.stride) == (6, 1)
    assert_same(gram.of(list(path)), before)
    gram.extend(reader(path), SNAPSHOTS)
    assert_same(gram.of(["hidden"]), path_steps(path["hidden"], most=6))


def test_known_snapshots_are_read_only_where_they_are_drawn_or_next_to_new_ones(path):
    asked = []

    def read(part, rows):
        asked.append(rows.tolist())
        return reader(path)(part, rows)

    gram = grown({"head": path["head"]}, [17], most=5)
    gram.extend(read, 17)
    assert asked == []
    gram.extend(read, 19)
    assert asked == [[0, 4, 8, 12, 15, 16, 17, 18]]


def test_known_products_are_kept_and_not_computed_again(path):
    gram = grown(path, [30])
    known = gram.of(["hidden"])
    changed = {part: np.where(np.arange(SNAPSHOTS)[:, None] < 28, 0, weights) for part, weights in path.items()}
    gram.extend(reader(changed), 31)
    found = gram.of(["hidden"])
    np.testing.assert_array_equal(found.products[:-1, :-1], known.products)
    np.testing.assert_array_equal(found.norms[:-1], known.norms)


def test_weights_are_not_written_to(path):
    for weights in path.values():
        weights.flags.writeable = False
    grown(path, [3, SNAPSHOTS], most=5)
    path_steps(path["hidden"], most=5)


def test_results_do_not_change_when_the_path_grows(path):
    gram = grown(path, [20], most=7)
    found = gram.of(["hidden"])
    kept = [array.copy() for array in (found.points, found.products, found.squares, found.adjacent, found.norms)]
    gram.extend(reader(path), SNAPSHOTS)
    now = (found.points, found.products, found.squares, found.adjacent, found.norms)
    for old, new in zip(kept, now, strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_makes_no_path_is_refused(path):
    with pytest.raises(ValueError, match="most must be at least 3 points, got 2"):
        StepGram(["all"], most=2)
    gram = StepGram(list(path))
    with pytest.raises(ValueError, match="there is no snapshot yet"):
        gram.of(["head"])
    gram.extend(reader(path), 5)
    with pytest.raises(ValueError, match="the path has 5 snapshots already, got 4"):
        gram.extend(reader(path), 4)
    with pytest.raises(ValueError, match=r"no part is called \['tail'\]"):
        gram.of(["head", "tail"])


@pytest.mark.parametrize("shape", [(7,), (0, 3), (3, 0), (2, 3, 5)])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"weights must be \(E, P\), a row for each snapshot, got shape \("):
        path_steps(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(path, bad):
    path["hidden"][30, 2] = bad
    with pytest.raises(ValueError, match="weights must be finite; leave out the snapshots that hold NaN or infinity"):
        path_steps(path["hidden"])
