import numpy as np
import pytest
from matplotlib.figure import Figure

from rnn_callbacks import report as module
from rnn_callbacks.report import Histogram, Report, load, save

REPORT = Report(
    scalars={"gates/rnn.l0/update/mean": 0.1 + 0.2, "b": -1e300},
    arrays={"gates/x": np.arange(6, dtype=np.float32).reshape(2, 3), "names": np.array(["reset", "ü"])},
    histograms={"h": Histogram(np.linspace(0, 1, 3), np.array([4, 5]))},
    texts={"t": "**bold** and\nü"},
    figures={"f": Figure},
)


def test_every_part_but_the_figures_comes_back_equal(tmp_path):
    path = str(tmp_path / "new" / "folder" / "look.npz")
    save(REPORT, path, epoch=3, step=17)
    found = load(path)
    assert (found.epoch, found.step) == (3, 17)
    assert found.report.scalars == REPORT.scalars
    assert found.report.texts == REPORT.texts
    assert found.report.figures == {}
    assert set(found.report.arrays) == set(REPORT.arrays)
    for name, array in REPORT.arrays.items():
        assert found.report.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.report.arrays[name], array)
    np.testing.assert_array_equal(found.report.histograms["h"].counts, [4, 5])
    np.testing.assert_array_equal(found.report.histograms["h"].edges, [0, 0.5, 1])


def test_an_empty_report_comes_back_empty(tmp_path):
    save(Report({}), str(tmp_path / "look.npz"), epoch=0, step=0)
    found = load(str(tmp_path / "look.npz")).report
    assert (found.scalars, found.arrays, found.histograms, found.texts) == ({}, {}, {}, {})


def test_the_file_holds_no_pickle(tmp_path):
    save(REPORT, str(tmp_path / "look.npz"), epoch=0, step=0)
    with np.load(tmp_path / "look.npz", allow_pickle=False) as entries:
        assert {entries[key].dtype.kind for key in entries.files} <= set("fiU")


def test_a_write_that_fails_leaves_the_old_file_whole_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "look.npz"
    save(REPORT, str(path), epoch=1, step=1)
    before = path.read_bytes()

    def half(file, **entries):
        file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(module.np, "savez", half)
    with pytest.raises(OSError, match="No space left"):
        save(REPORT, str(path), epoch=2, step=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_object_array_is_refused(tmp_path):
    with pytest.raises(TypeError, match="gates/bad holds objects"):
        save(Report({}, {"gates/bad": np.array([{}], dtype=object)}), str(tmp_path / "x.npz"), epoch=0, step=0)
    assert not list(tmp_path.iterdir())


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 99)
    save(REPORT, str(tmp_path / "look.npz"), epoch=0, step=0)
    monkeypatch.setattr(module, "FORMAT", 1)
    with pytest.raises(ValueError, match="has format 99, this version of rnn-callbacks reads up to 1"):
        load(str(tmp_path / "look.npz"))
