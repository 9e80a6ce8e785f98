import numpy as np
import pytest

from rnn_callbacks.compare.quantities import SECTIONS, common_names, common_series, direction, quantity_of

from .known_runs import run


def shared(runs):
    return common_series(runs, common_names(runs))


BEST_LOW = (
    "val_error_rate r2_loss accuracy_loss valLoss loss/val nll neg_log_likelihood wer test/mae Perplexity incorrect"
)
BEST_HIGH = "val_acc trainAcc valacc val_R2 f1_score F1Score acc1 top5 reward/mean MulticlassAccuracy BinaryAUROC"
UNKNOWN = "learning_rate power lower previous account interrupt supply forward epoch_time"


@pytest.mark.parametrize("names, expected", [(BEST_LOW, "low"), (BEST_HIGH, "high"), (UNKNOWN, "")])
def test_a_name_tells_which_way_a_metric_is_better(names, expected):
    assert {name: direction(name) for name in names.split()} == dict.fromkeys(names.split(), expected)


def test_a_tag_of_ours_has_its_words_and_unit():
    found = quantity_of("gates/enc.l0/timescale/q50")
    assert (found.section, found.label, found.unit) == ("gates", "enc.l0: memory of the median unit", "steps")
    assert found.logarithmic
    assert found.headline


def test_a_module_with_dots_keeps_its_name():
    assert quantity_of("gates/net.enc.0.l1_reverse/forget/mean").label.startswith("net.enc.0.l1_reverse: forget gate")


def test_braces_in_a_name_are_no_places_to_fill():
    assert quantity_of("gates/{place}{0}/{part}/open").label == "{place}{0}: {part} gate, share wide open"


def test_a_flag_is_known_by_its_tag():
    found = quantity_of("probes/concepts/ink/flags/forgotten")
    assert found.is_flag
    assert found.label == "concepts/ink: flag forgotten"


def test_a_cost_is_a_detail_of_its_own_section():
    found = quantity_of("gates/overhead")
    assert (found.section, found.headline, found.better) == ("cost", False, "low")


def test_no_attractor_is_no_timescale_of_zero():
    assert quantity_of("fixed_points/m/zero/slowest_timescale").missing == 0
    assert quantity_of("probes/concepts/x/emergence_epoch").missing == -1


@pytest.mark.parametrize("tag", ["", "/", "gates", "gates/", "gates//", "gates/flags/", "//flags//", "a\nb", "lr-Adam"])
def test_any_tag_is_a_quantity(tag):
    found = quantity_of(tag)
    assert found.tag == tag
    assert found.section in SECTIONS


@pytest.mark.parametrize("noun", ["gates", "gradient_flow", "fixed_points", "probes", "weight_trajectory"])
def test_a_hostile_tag_is_only_a_tag(noun):
    """A pattern that tries all ways to split at dots needs 2^40 attempts, and would never come back."""
    for tag in ("a." * 40 + "/x/y/z", "a./" * 2000, "." * 5000, "a.l" + "1" * 5000 + "x"):
        assert quantity_of(f"{noun}/{tag}").tag == f"{noun}/{tag}"
        assert len(shared([run("one", {f"{noun}/{tag}": [1]}), run("two", {f"{noun}/b.l0/x": [1]})])) == 2


def test_layers_of_other_names_share_one():
    first, second = shared(
        [
            run("a", {"gates/lstm.l0/forget/mean": [0.25], "fixed_points/lstm/zero/saddles": [1]}),
            run("b", {"gates/gru.l0/update/mean": [0.25], "fixed_points/gru/zero/saddles": [2]}),
        ]
    )
    assert first["gates/recurrent.l0/retention/mean"].values == 0.25
    assert second["gates/recurrent.l0/retention/mean"].values == 0.75  # an LSTM keeps f, a GRU here 1 - u
    assert second["fixed_points/recurrent/zero/saddles"].values == 2


@pytest.mark.parametrize(
    "modules",
    [
        (("lstm",), ("lstm",)),
        (("enc", "dec"), ("gru",)),
        (("recurrent", "lstm"), ("recurrent", "gru")),  # which would have replaced the numbers of another layer
        (("lstm",), ()),
    ],
)
def test_layers_keep_their_names_where_none_can_be_shared(modules):
    runs = [run(str(n), {f"gates/{name}.l0/input/mean": [0.5] for name in names}) for n, names in enumerate(modules)]
    assert [set(found) for found in shared(runs)] == [set(one.series) for one in runs]


def test_a_second_layer_that_is_alike_keeps_its_name():
    runs = [
        run(name, {f"gates/{name}.l0/input/mean": [n], "gates/dec.l0/input/mean": [9]}) for n, name in enumerate("xy")
    ]
    found = shared(runs)
    assert [one["gates/recurrent.l0/input/mean"].values[0] for one in found] == [0, 1]
    assert [one["gates/dec.l0/input/mean"].values[0] for one in found] == [9, 9]


def test_cells_without_gates_get_no_retention():
    (found,) = shared([run("a", {"gates/rnn.l0/hidden/saturated": [0.1]})])
    assert list(found) == ["gates/rnn.l0/hidden/saturated"]
    assert np.isfinite(found["gates/rnn.l0/hidden/saturated"].values).all()


def test_what_lightning_logs_by_itself_is_no_metric_to_compare():
    assert [quantity_of(tag).headline for tag in ("epoch", "step", "hp_metric", "lr-Adam", "loss_step", "loss")] == [
        *[False] * 5,
        True,
    ]
