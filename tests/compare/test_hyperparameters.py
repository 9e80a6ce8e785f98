import datetime
import math
import tracemalloc

import numpy as np
import pytest
import yaml
from lightning.pytorch.core.saving import save_hparams_to_yaml

from rnn_callbacks.compare.hyperparameters import LONGEST_TEXT, MOST, flattened, is_seed, matters, read_yaml


def test_what_lightning_saves_comes_back(tmp_path):
    saved = {
        "lr": 1e-05, "units": 64, "cell": "gru", "bidirectional": False, "dropout": None, "name": "3", "big": 1e300,
        "optimizer": {"name": "adam", "betas": [0.9, 0.999]}, "kernel": (3, 5), "empty": [], "nothing": {},
        "lr_of_a_sweep": np.logspace(-3, -1, 3)[1], "count": np.int64(7), "half": np.float32(0.5),
    }  # fmt: skip
    save_hparams_to_yaml(str(tmp_path / "hparams.yaml"), saved)
    assert read_yaml((tmp_path / "hparams.yaml").read_text()) == {
        "lr": 1e-05, "units": 64, "cell": "gru", "bidirectional": False, "dropout": None, "name": "3", "big": 1e300,
        "optimizer.name": "adam", "optimizer.betas": "[0.9, 0.999]", "kernel": "[3, 5]", "empty": "[]",
        "lr_of_a_sweep": 0.01, "count": 7, "half": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a: !!python/object/apply:os.system ['touch {}']", '["object/apply:os.system", "touch {}"]'),
        ("a: !!python/object/new:os.system ['touch {}']", '["object/new:os.system", "touch {}"]'),
        ("a: !!python/name:os.system ''", "name:os.system"),
        ("a: !!python/module:os", "module:os"),
        ('a: !!python/object/apply:builtins.eval [\'open("{}", "w")\']', None),
        ("a: !!python/object:subprocess.Popen {{args: touch {}}}", None),
        ("!!python/object/apply:os.system ['touch {}']: 1", None),
        ("a: !unknown [1, 2]", '["unknown", 1, 2]'),
    ],
)
def test_python_in_a_file_is_words_and_never_run(text, expected, tmp_path):
    trace = tmp_path / "trace"
    try:
        found = read_yaml(text.format(trace))
    except ValueError:
        assert expected is None
    else:
        assert expected is None or found["a"] == expected.format(trace)
    assert not trace.exists()


def bomb(kind):
    lines = ["a0: &a0 [x, x]" if kind == "list" else "a0: &a0 {x: 1, y: 2}"]
    for level in range(1, 25):
        names = f"*a{level - 1}"
        if kind == "merge":
            inside = f"{{<<: [{names}, {names}, {names}, {names}, {names}]}}"
        else:
            inside = f"[{names}, {names}, {names}]" if kind == "list" else f"{{k: {names}, l: {names}, m: {names}}}"
        lines.append(f"a{level}: &a{level} {inside}")
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["list", "mapping", "merge"])
def test_a_few_lines_that_say_billions_do_not_unfold(kind):
    tracemalloc.start()
    found = read_yaml(bomb(kind))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert 0 < len(found) <= 2 * MOST
    assert max(len(str(value)) for value in found.values()) <= LONGEST_TEXT


@pytest.mark.parametrize("text", ["a: &a [1, *a]\nb: 2", "a: &a {c: *a}\nb: 2", "b: 2\na: &a {<<: *a, c: 1}"])
def test_settings_that_hold_themselves_end(text):
    assert read_yaml(text)["b"] == 2


def test_many_settings_in_one_group_are_counted_and_the_others_kept():
    words = {f"word{n}": n for n in range(MOST + 1)}
    assert flattened({"lr": 0.1, "vocabulary": words, "z": {"y": 1}}) == {
        "lr": 0.1,
        "vocabulary": f"{MOST + 1} settings",
        "z.y": 1,
    }
    assert len(flattened(words)) == MOST + 1


@pytest.mark.parametrize("text", ["", "{}", "# nothing", "null", "---"])
def test_an_empty_file_has_no_settings(text):
    assert read_yaml(text) == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("- 1\n- 2", "it holds list, no settings by name"),
        ("just words", "it holds str, no settings by name"),
        ("a: 1\n\tb: 2", r"found character '\\t' that cannot start any token in line 2"),
        ("a: [1, 2", "expected ',' or ']'.* in line 1"),
        ("a: 1\n--- \nb: 2", "another document in line 2"),
        ("a: \x00", "unacceptable character"),
        ("a: *nowhere", "found undefined alias 'nowhere' in line 1"),
        ("? [1, 2]\n: 3", "found unhashable key in line 1"),
        ("a: !!int ''", ""),
        ("a: !!bool maybe", ""),
        ("a: !!timestamp today", ""),
        ("a: " + "[" * 600, "maximum recursion depth"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_settings_file_is_a_value_error_that_says_why(text, message):
    with pytest.raises(ValueError, match=f"settings cannot be read: .*{message}"):
        read_yaml(text)


def test_keys_of_any_kind_are_named_as_they_stand():
    text = "7: a\n2.5: b\ntrue: c\nnull: d\n2024-01-01: e\nGröße: f\nouter: {3: g}"
    assert read_yaml(text) == {
        "7": "a", "2.5": "b", "True": "c", "None": "d", "2024-01-01": "e", "Größe": "f", "outer.3": "g",
    }  # fmt: skip


def test_dates_stay_the_text_that_they_are_even_where_there_is_no_such_day():
    assert read_yaml("a: 2024-01-31\nb: 2024-13-45\nc: 2024-01-31 10:00:00") == {
        "a": "2024-01-31",
        "b": "2024-13-45",
        "c": "2024-01-31 10:00:00",
    }
    assert flattened({"day": datetime.date(2024, 1, 31)}) == {"day": "2024-01-31"}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".1e-2", "+1e-3", "1.e-3"])
def test_a_learning_rate_is_a_number_in_every_spelling(text):
    assert read_yaml(f"lr: {text}") == {"lr": 0.001}


@pytest.mark.parametrize("text", ["e3", "1e", "1e-3x", "1-3", "'1e-3'"])
def test_words_with_an_e_stay_words(text):
    assert read_yaml(f"a: {text}") == {"a": text.strip("'")}


def test_values_that_are_not_finite_are_read():
    found = read_yaml("a: .nan\nb: .inf\nc: -.inf")
    assert math.isnan(found["a"])
    assert (found["b"], found["c"]) == (math.inf, -math.inf)


def test_a_whole_number_that_no_screen_could_show_is_told_by_its_size():
    assert read_yaml(f"a: 0x{'f' * 10_000}") == {"a": "a number of 40000 bits"}
    assert flattened({"a": 2**63}) == {"a": 2**63}


def test_lists_are_text_and_long_ones_their_beginning():
    found = flattened({"a": [1, "x", None, [2, {"b": True}]], "b": list(range(20)), "c": ("ü",), "d": {3}})
    assert found["a"] == '[1, "x", null, [2, {"b": true}]]'
    assert found["b"] == "20 items, [0, 1, ...]"
    assert found["c"] == '["\\u00fc"]'
    assert found["d"] == "[3]"


def test_an_object_is_its_text():
    assert flattened({"a": complex(1, 2), "b": b"x"}) == {"a": "(1+2j)", "b": "b'x'"}


def test_merged_keys_are_there_and_the_own_value_wins():
    assert read_yaml("base: &b {lr: 1, units: 2}\nrun: {<<: *b, lr: 3}") == {
        "base.lr": 1,
        "base.units": 2,
        "run.lr": 3,
        "run.units": 2,
    }


def test_reading_leaves_other_yaml_as_it_was():
    read_yaml("a: 2024-01-31\nb: 1e-3")
    assert yaml.safe_load("a: 2024-01-31\nb: 1e-3") == {"a": datetime.date(2024, 1, 31), "b": "1e-3"}


@pytest.mark.parametrize(
    "name", ["seed", "seed_everything", "data.seed", "init_seed", "model.random_state", "random_state"]
)
def test_a_seed_is_told_by_its_name_and_makes_no_other_configuration(name):
    assert is_seed(name)
    assert not matters(name)


@pytest.mark.parametrize("name", ["lr", "seeds_of_plants", "model.units", "seed_length", "trainer.max_epochs"])
def test_other_settings_are_no_seed_and_make_another_configuration(name):
    assert not is_seed(name)
    assert matters(name)


@pytest.mark.parametrize(
    "name",
    ["ckpt_path", "config", "trainer.logger.class_path", "trainer.callbacks", "trainer.default_root_dir",
     "trainer.enable_progress_bar", "trainer.devices", "_instantiator", "data.save_dir"],
)  # fmt: skip
def test_where_files_go_and_who_watches_makes_no_other_configuration(name):
    assert not matters(name)
    assert not is_seed(name)
