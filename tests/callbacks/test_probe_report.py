import warnings

import numpy as np

from rnn_callbacks.analysis.probe_findings import correct
from rnn_callbacks.callbacks.guard import Guard
from rnn_callbacks.callbacks.probe_report import ProbeReport

from ..figures.known_probes import looks, planted_labels

SITE = "l0/hidden"
EPOCHS = [0, 2, 4, 6]


def strengths(emerges):
    """Strong from a share of the training on."""
    return lambda share: {SITE: 3.0 if share >= emerges else 0.35}


def report(emergence):
    """Of a look at concepts that emerge at these shares of the training; never with None."""
    findings, courses = {}, {}
    for name, emerges in emergence.items():
        found, course = looks(
            strengths(2.0 if emerges is None else emerges), EPOCHS, concept=planted_labels(2, name=name)
        )
        findings["rnn", SITE, name], courses["rnn", SITE, name] = found[SITE], course[SITE]
    judged = dict(zip(findings, correct(list(findings.values())), strict=True))
    guard, steps = Guard("ProbeTracker", "probes/failed_looks", "raise"), {"rnn": np.array([0, 5, 11, 16, 22])}
    made = ProbeReport(
        guard, judged, courses, steps=steps, epoch=EPOCHS[-1], last=True, required={}, thresholds={}
    )  # fmt: skip
    return made.finished()


def test_table_lists_concepts_in_the_order_in_which_they_emerged():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = report({"a_late": 0.9, "b_never": None, "c_early": 0.3})
    rows = found.texts["probes/summary"].splitlines()[4:]
    assert [row.split("|")[1].strip() for row in rows] == ["c_early", "a_late", "b_never"]
    epochs = [found.scalars[f"probes/concepts/{name}/emergence_epoch"] for name in ("c_early", "a_late", "b_never")]
    # Half of the final gain is passed between the look before and the one at which it came.
    assert 0 < epochs[0] < 2
    assert 4 < epochs[1] < 6
    assert epochs[2] == -1
    ends = [row.split("|")[-2].strip() for row in rows]
    assert ends == ["between 0 and 2", "between 4 and 6", "-"]


def test_numbers_of_the_best_site_are_those_of_the_concept():
    found = report({"only": 0.3})
    for name in ("v_information", "gain"):
        assert found.scalars[f"probes/concepts/only/{name}"] == found.scalars[f"probes/rnn.{SITE}/only/{name}"]
    assert set(found.figures) == {"probes/rnn/only", "probes/rnn/units"}
