import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from rnn_callbacks.__main__ import main

from .known_runs import HOSTILE, write_run, write_snapshots


@pytest.fixture
def logs(tmp_path):
    """Three seeds each of two configurations: `val_loss` differs, `acc` does not."""
    generator = np.random.default_rng(0)
    for number in range(6):
        cell = "gru" if number < 3 else "lstm"
        end = 1.0 + 0.01 * generator.normal() + (cell == "lstm")
        numbers = {"val_loss": [9.0, end, end + 0.5], "acc": [0.1, 0.2, 0.5 + 0.1 * generator.normal()]}
        write_run(
            tmp_path / "logs" / f"version_{number}", numbers, {"cell": cell, "seed": number, "data_seed": number % 2}
        )
    return tmp_path / "logs"


def said(capsys, *arguments, code=0):
    assert main([str(one) for one in arguments]) == code
    return capsys.readouterr()


def test_runs_are_compared_in_words_and_tables(logs, capsys):
    out, err = said(capsys, "compare", logs)
    assert out.startswith("6 runs in 2 configurations, up to epoch 2 (counted from 0).")
    assert "- val_loss: " in out
    assert "Runs by their best val_loss" in out
    assert err == ""


def test_a_difference_is_an_exit_code_only_when_asked_for(logs, capsys):
    said(capsys, "compare", logs)
    said(capsys, "compare", logs, "--exit-code", code=1)
    said(capsys, "compare", logs, "--exit-code", "--tags", "acc", "--metric", "acc", code=0)
    said(capsys, "compare", logs / "version_0", "--exit-code", code=0)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere"),
        (["LOGS", "--metric", "loss"], "no run has a metric 'loss'; there are: acc, val_loss"),
        (["LOGS", "--group-by", "size"], "no run has a hyperparameter 'size'"),
        (["LOGS", "--tags", "x*"], r"no tag is like x\*"),
        (["LOGS", "--tensorboard", "LOGS"], "already holds something"),
        (["LOGS", "--report", "LOGS"], "Is a directory"),
    ],
)
def test_wrong_usage_is_told_and_exits_with_2(logs, capsys, arguments, words):
    _, err = said(capsys, "compare", *(str(logs) if one == "LOGS" else one for one in arguments), code=2)
    assert err.startswith("rnn-callbacks compare: ")
    assert re.search(words, err)
    assert err.count("\n") == 1


def test_a_folder_without_runs_exits_with_2(tmp_path, capsys):
    assert "no run under" in said(capsys, "show", tmp_path, code=2).err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compare"],
        ["compare", "x", "--align", "hour"],
        ["compare", "x", "--mode", "low"],
        ["show", "x", "--format", "xml"],
    ],
)
def test_what_is_no_command_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: rnn-callbacks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, examples",
    [
        ([], ["rnn-callbacks compare lightning_logs", "show", "replay"]),
        (["compare"], ["--group-by cell,lr", "exit codes"]),
    ],
)
def test_help_shows_examples(capsys, arguments, examples):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    words = capsys.readouterr().out
    assert all(example in words for example in examples)


def test_every_option_of_the_examples_exists(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    words = capsys.readouterr().out
    shown, listed = words.split("positional arguments:")
    assert set(re.findall(r"--[a-z-]+", shown)) <= set(re.findall(r"--[a-z-]+", listed)) | {"--html"}


def test_json_is_json(logs, capsys):
    found = json.loads(said(capsys, "compare", logs, "--format", "json").out)
    assert found["axis"] == "epoch"
    assert len(found["runs"]) == 6


def test_csv_is_a_row_for_each_number(logs, capsys):
    rows = list(csv.DictReader(io.StringIO(said(capsys, "compare", logs, "--format", "csv").out)))
    assert len(rows) == 12
    assert {row["tag"] for row in rows} == {"val_loss", "acc"}


def test_markdown_has_tables(logs, capsys):
    assert said(capsys, "compare", logs, "--format", "markdown").out.startswith(
        "## Runs by their best val_loss\n\n| run"
    )


def test_all_shows_details(logs, capsys):
    write_run(logs / "version_0", {"val_loss": [1.0], "lr-Adam": [0.5]}, {"cell": "gru"})
    assert "lr-Adam" not in said(capsys, "show", logs / "version_0").out
    assert "lr-Adam" in said(capsys, "show", logs / "version_0", "--all").out


def test_runs_are_grouped_as_asked(logs, capsys):
    out = said(capsys, "compare", logs, "--group-by", "data_seed", "--format", "json").out
    names = [one["name"] for one in json.loads(out)["groups"]]
    assert names == ["data_seed=0", "data_seed=1"]
    out = said(capsys, "compare", logs, "--group-by", "  cell , data_seed ", "--format", "json").out
    assert next(one["name"] for one in json.loads(out)["groups"]) == "cell=gru, data_seed=0"


@pytest.mark.parametrize("axis", ["epoch", "step", "time"])
def test_runs_are_aligned_as_asked(logs, capsys, axis):
    found = json.loads(said(capsys, "compare", logs, "--align", axis, "--format", "json").out)
    assert found["axis"] == axis
    assert found["runs"][0]["places"]["final"] == {"epoch": 2, "step": 29, "time": 120}[axis]


def test_the_best_epoch_is_chosen_as_asked(logs, capsys):
    def best(*options):
        found = json.loads(said(capsys, "compare", logs, "--format", "json", *options).out)
        return found["metric"], found["mode"], found["runs"][0]["places"]["best"]

    assert best() == ("val_loss", "min", 1)
    assert best("--mode", "max") == ("val_loss", "max", 0)
    assert best("--metric", "acc") == ("acc", "max", 2)


def test_tags_can_be_repeated(logs, capsys):
    out = said(capsys, "compare", logs, "--tags", "a*", "--tags", "val_*", "--format", "csv").out
    assert {row["tag"] for row in csv.DictReader(io.StringIO(out))} == {"acc", "val_loss"}


def test_files_are_written_and_named(logs, tmp_path, capsys):
    paths = [tmp_path / name for name in ("page.html", "report.md", "by_epoch")]
    err = said(capsys, "compare", logs, "--html", paths[0], "--report", paths[1], "--tensorboard", paths[2]).err
    assert err.splitlines() == [f"written: {path}" for path in paths]
    assert "<html" in paths[0].read_text()[:300]
    assert paths[1].read_text().startswith("# Field report")
    assert len(list(paths[2].rglob("events*"))) == 7


def test_page_and_tensorboard_show_how_far_the_weights_still_had_to_go(tmp_path, capsys):
    write_run(tmp_path / "logs", {"val_loss": [3.0, 2.0, 1.0]})
    write_snapshots(tmp_path / "logs", np.array([[0.0, 0.0], [3.0, 1.0], [5.0, 1.0]]), values=[3, 2, 1])
    page, folder = tmp_path / "page.html", tmp_path / "by_epoch"
    said(capsys, "show", tmp_path / "logs", "--html", page, "--tensorboard", folder)
    assert "way to the last weights that is left" in page.read_text()
    assert any(b"left_to_last" in path.read_bytes() for path in folder.rglob("events*"))


def test_show_tells_of_each_run(logs, capsys):
    out = said(capsys, "show", logs / "version_0", logs / "version_1").out
    assert out.count("One run, ") == 2


def test_show_writes_files_of_one_run_only(logs, tmp_path, capsys):
    said(capsys, "show", logs / "version_0", "--report", tmp_path / "one.md")
    assert (tmp_path / "one.md").read_text().startswith("# Field report")
    err = said(capsys, "show", logs, "--report", tmp_path / "many.md", code=2).err
    assert "show writes files of one run, got 6: name one, or use compare" in err


def test_what_could_not_be_read_is_named_without_its_control_characters(logs, capsys):
    (logs / "version_0" / "hparams.yaml").write_text("a: [1\x07")
    out, err = said(capsys, "compare", logs)
    assert "hparams.yaml: settings cannot be read" in err
    assert all(sign.isprintable() or sign == "\n" for sign in out + err)


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    name = HOSTILE.replace("/", "").replace("\ud800", "")
    write_run(tmp_path / name.replace("\n", ""), {name: [1.0], "val_loss": [2.0]}, {name: name})
    for kind in ("table", "csv", "markdown", "json"):
        out, err = said(capsys, "show", tmp_path, "--all", "--format", kind)
        assert all(sign.isprintable() or sign == "\n" for sign in out + err), kind


def in_process(*arguments, **options):
    command = [sys.executable, "-m", "rnn_callbacks", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_closed_pipe_is_no_error_and_changes_no_exit_code(logs):
    process = in_process("compare", logs, "--exit-code", "--format", "json")
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (1, b"")


def test_letters_that_the_output_does_not_have_become_question_marks(logs):
    process = in_process("compare", logs, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b" ? " in out


def test_a_run_without_numbers_is_named_and_left_out(tmp_path, capsys):
    write_run(tmp_path / "full", {"val_loss": [2.0, 1.0]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "events.out.tfevents.1").write_bytes(b"")
    assert main(["compare", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("One run, full")
    assert "empty: has logged no number; left out" in said.err
    assert main(["compare", str(tmp_path / "empty")]) == 2
    assert "no run has logged any number" in capsys.readouterr().err
