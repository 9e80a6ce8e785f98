import csv
import math

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from rnn_callbacks.compare.metrics_csv import read_csv


def rows(series):
    return list(zip(series.steps.tolist(), series.values.tolist(), series.epochs.tolist(), strict=True))


def test_what_csv_logger_wrote_comes_back(tmp_path):
    logger = CSVLogger(tmp_path, name="logs", version=0)
    generator = np.random.default_rng(0)
    losses, rates = generator.normal(size=20), generator.normal(size=20)
    for step in range(20):
        logger.log_metrics({"lr, of 'Adam' \"fast\"": rates[step]}, step)  # as a monitor does, without an epoch
        if step % 5 == 4:
            logger.log_metrics({"val/löss": losses[step], "epoch": step // 5}, step)
    logger.save()
    found, problems = read_csv((tmp_path / "logs" / "version_0" / "metrics.csv").read_bytes())
    assert problems == []
    assert found.keys() == {"lr, of 'Adam' \"fast\"", "val/löss", "epoch"}
    assert rows(found["val/löss"]) == [(step, losses[step], step // 5) for step in (4, 9, 14, 19)]
    assert rows(found["lr, of 'Adam' \"fast\""]) == [(step, rates[step], step // 5) for step in range(20)]
    assert np.isnan(found["val/löss"].walls).all()


def test_a_cell_that_is_no_number_costs_itself_only():
    found, problems = read_csv(b"epoch,step,a,b\n0,1,0.5,oops\n0,2,1_0,2\nx,3,nan,inf\n0,4,,-inf\n")
    assert [(step, value) for step, value, _ in rows(found["b"])] == [(2, 2), (3, math.inf), (4, -math.inf)]
    assert found["a"].steps.tolist() == [1, 3]
    assert math.isnan(found["a"].values[1])
    assert problems == ["3 cells are no numbers, first row 1, b: 'oops'; they were left out"]


@pytest.mark.parametrize("step", ["x", "1.5", "inf", "nan", "1e30", "1_0", str(2**63), "", "9" * 5000])
def test_a_row_whose_step_is_none_costs_itself_only(step):
    found, problems = read_csv(f"step,a\n1,2\n{step},5\n3,4\n".encode())
    assert found["a"].steps.tolist() == [1, 3]
    assert problems == [f"1 cells are no numbers, first row 2, step: {step[:40]!r}; they were left out"]


@pytest.mark.parametrize(
    "step, expected", [("2.0", 2), ("-3", -3), (str(2**62 + 1), 2**62 + 1), (" 7 ", 7), ("1e3", 1000)]
)
def test_steps_are_whole_numbers_of_any_size(step, expected):
    found, problems = read_csv(f"step,a\n{step},5\n".encode())
    assert (found["a"].steps.tolist(), problems) == ([expected], [])


def test_a_file_cut_at_any_byte_makes_no_number():
    whole = b'epoch,step,loss,"a, b"\r\n' + b"".join(b"%d,%d,%d.125,0.75\r\n" % (n // 3, n, n + 10) for n in range(9))
    expected, _ = read_csv(whole)
    for cut in range(len(whole)):
        found, problems = read_csv(whole[:cut])
        complete = max(0, whole[:cut].count(b"\n") - 1)
        assert sum(len(series.steps) for series in found.values()) == 3 * complete
        for tag, series in found.items():
            assert rows(series) == rows(expected[tag])[:complete]
        assert bool(problems) == (not whole[:cut].endswith(b"\n") and cut > 0)


def test_rows_with_more_or_fewer_cells_than_columns_are_left_out():
    found, problems = read_csv(b"step,a,b\n1,2,3\n2,0,5,1\n3,4\n\n5,6,7\n")  # 0,5: a comma for a point
    assert found["a"].steps.tolist() == found["b"].steps.tolist() == [1, 5]
    assert problems == ["2 rows do not have 3 cells, first row 2; they were left out"]


def test_blank_cells_and_rows_are_no_trouble():
    found, problems = read_csv(b"step,a,b\n1, ,2\n, ,\n,,\n3,4,\n")
    assert {tag: rows(series)[0][:2] for tag, series in found.items()} == {"b": (1, 2), "a": (3, 4)}
    assert problems == []


def test_without_a_column_of_steps_its_columns_are_named():
    assert read_csv(b"epoch,loss\n1,2\n") == ({}, ["has no column `step`, its columns are epoch, loss"])


@pytest.mark.parametrize("content", [b"", b"\n", b"step,a\n", b"step,a\r\n\r\n"])
def test_a_table_without_rows_holds_nothing(content):
    assert read_csv(content)[0] == {}


def test_a_quote_that_is_never_closed_costs_what_follows():
    found, problems = read_csv(b'step,a\n1,2\n2,"3\n' + b"4,5\n" * 100_000)
    assert found["a"].steps.tolist() == [1]
    assert problems == [f"row 2 cannot be read: field larger than field limit ({csv.field_size_limit()}); "
                        "what follows was left out"]  # fmt: skip


def test_bytes_that_are_no_text_cost_themselves_only():
    found, problems = read_csv(b"\xef\xbb\xbfstep,a\n1,2\n2,\xff\xfe\n3,\x004\n")
    assert rows(found["a"])[0][:2] == (1, 2)
    assert found["a"].values.tolist() == [2, 4]
    assert len(problems) == 1


@pytest.mark.parametrize("seed", range(30))
def test_garbage_raises_nothing(seed):
    found, _ = read_csv(b"step,a\n" + np.random.default_rng(seed).bytes(2000))
    assert isinstance(found, dict)


def test_a_step_written_twice_has_the_value_written_last():
    found, _ = read_csv(b"step,a\n2,1\n1,5\n2,3\n")
    assert [row[:2] for row in rows(found["a"])] == [(1, 5), (2, 3)]
