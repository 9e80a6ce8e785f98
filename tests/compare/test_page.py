"""The page says what the comparison says, opens without a network, and nothing that runs are called can act in it."""

import base64
import hashlib
import itertools
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from rnn_callbacks.compare.cast import choose_cast
from rnn_callbacks.compare.page import page, write_page
from rnn_callbacks.compare.runs import Run
from rnn_callbacks.compare.words import headline

from .page_runs import HOSTILE, PLACE, add_looks, comparison_of, embedding_of, run, runs_of, series

VOID = {"meta", "input", "br", "img", "link"}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "a", "div", "section", "nav", "main", "h1", "h2", "h3", "p"),
    *("ul", "li", "label", "input", "span", "bdi", "small", "details", "summary", "table", "caption", "thead", "tbody"),
    *("tr", "th", "td", "br", "figure", "figcaption", "button", "output", "script"),
    *("svg", "g", "path", "defs", "use", "text", "clippath", "rect"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "href", "aria-labelledby", "aria-label", "id"),
    *("tabindex", "role", "scope", "title", "type", "checked", "data-key", "data-all", "data-value", "data-first"),
    *("data-last", "viewbox", "aria-hidden", "d", "stroke", "stroke-width", "stroke-dasharray", "style", "x", "y"),
    *("width", "height", "transform", "clip-path", "for", "min", "max", "step", "value", "data-unit", "data-places"),
    *("data-labels", "aria-valuetext", "points"),
}


class Reader(HTMLParser):
    """Everything on a page, as a browser would find it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.words, self.headings, self.cells = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def all(self, tag, **wanted):
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    runs = [add_looks(found, folder, [1, 3, 5], shift=0.01 * number) for number, found in enumerate(runs_of())]
    comparison = comparison_of(runs)
    return comparison, page(comparison, embeddings=[embedding_of(6)], headline=headline(comparison), made="now")


def read(comparison, **options):
    return Reader(page(comparison, made="now", **options))


def check(text):
    """What holds for every page."""
    found = Reader(text)
    assert found.open == []
    assert {tag for tag, _ in found.elements} <= TAGS
    assert {name for _, attributes in found.elements for name in attributes} <= ATTRIBUTES
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    for tag, attributes in found.elements:
        assert attributes.get("href", "#").startswith("#"), tag
        target = attributes.get("href", "#")[1:] or attributes.get("for") or attributes.get("aria-labelledby")
        assert target is None or target in ids
        clip = re.findall(r"url\(#?([^)]*)\)", str(attributes.get("clip-path", "")) + str(attributes.get("style", "")))
        assert set(clip) <= set(ids)
    assert len(found.all("script")) == 1
    levels = [int(tag[1]) for tag, _ in found.elements if tag in ("h1", "h2", "h3")]
    in_main = levels[levels.index(1) :]
    assert Counter(levels)[1] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(in_main))
    return found


# ---- what it says --------------------------------------------------------------------------------------------------


def test_every_page_is_sound(known):
    found = check(known[1])
    assert found.all("html", lang="en")
    pictures = [svg for svg in found.all("svg") if svg.get("role") == "img"]
    assert len(pictures) == len(found.all("figure")) > 10
    assert all(svg["aria-label"] for svg in pictures)


def test_it_stands_alone(known):
    text = known[1]
    assert not re.search(
        r"https?:|//[a-z]|@import|javascript:|\bon[a-z]+\s*=\s*[\"']", text.replace("'none'", ""), re.I
    )
    (policy,) = Reader(text).all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(None, 1) for rule in policy["content"].split("; "))
    assert rules["default-src"] == "'none'"
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"


def test_it_holds_headline_runs_and_numbers(known):
    comparison, text = known
    found = Reader(text)
    for line in headline(comparison):
        assert " ".join(line.removeprefix("- ").split()) in found.text
    values = {float(cell["data-value"]) for cell in found.all("td") if "data-value" in cell}
    for moment in ("final", "matched", "best"):
        rows = [r for r, q in enumerate(comparison.quantities) if q.headline and not q.is_flag]
        assert set(comparison.values[moment][rows].ravel().tolist()) <= values
    assert set(comparison.places["best"].tolist()) <= values
    for difference in comparison.claimed:
        assert difference.adjusted in values
    assert len(comparison.claimed) > 0


def test_settings_and_flags_are_named(known):
    cells = Reader(known[1]).cells
    assert "gru (3 runs); lstm (3 runs)" in cells
    place = cells.index("frozen")
    assert cells[place + 1 : place + 3] == [PLACE, "all runs"]
    assert "gru_0: 4, 5" in cells[place + 3]
    assert "blown_up" not in cells


def test_curves_are_where_the_numbers_are(known):
    comparison, text = known
    panel = re.search(r"<figcaption><bdi>val_loss</bdi>.*?</figure>", text, re.S)[0]
    drawn = re.search(r'data-key="run0"><title>gru_0</title><path d="([^"]+)"', panel)[1]
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", drawn), float).T
    values = (
        np.log(comparison.series[0]["val_loss"].values) if "log" in panel else comparison.series[0]["val_loss"].values
    )
    assert np.corrcoef(x, np.arange(6))[0, 1] > 0.99999
    assert abs(np.corrcoef(y, values)[0, 1]) > 0.9999 or abs(np.corrcoef(y, np.log(values))[0, 1]) > 0.9999


def test_a_run_has_one_colour_on_the_whole_page(known):
    comparison, text = known
    cast = choose_cast(comparison)
    for key, number in (("run0", 0), ("run1", 1), ("run5", 5)):
        groups = re.findall(rf'data-key="{key}"[^>]*><title>.*?</g>', text, re.S)
        assert len(groups) >= 8
        colours = {c.lower() for group in groups for c in re.findall(r"stroke:(#\w{6})", group)} - {"#ffffff"}
        assert colours == {cast.run_styles[number][0].lower()}


def test_every_run_can_be_chosen(known):
    found = Reader(known[1])
    keys = {box["data-key"] for box in found.all("input", type="checkbox")}
    assert keys == {f"run{n}" for n in range(6)} | {"group0", "group1"}
    classes = {name for _, attributes in found.elements for name in (attributes.get("class") or "").split()}
    assert keys <= classes


def test_the_slider_has_a_position_for_every_epoch_and_frames_fill_them(known):
    found = Reader(known[1])
    (slider,) = found.all("input", type="range")
    labels = slider["data-labels"].split("|")
    assert labels == ["before training", "epoch 0", "epoch 1", "epoch 2", "epoch 3", "epoch 5"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "5", "5")
    assert slider["data-places"] == "-1|0|1|2|3|5"
    frames = [found for _, found in found.elements if "data-first" in found]
    for frame in frames:
        first, last = int(frame["data-first"]), int(frame["data-last"])
        assert 0 <= first <= last <= 5
        assert ("end" in frame["class"].split()) == (last == 5) == ("off" not in frame["class"].split())
    looks = {(frame["data-first"], frame["data-last"]) for frame in frames}
    assert {("2", "3"), ("4", "4"), ("5", "5")} <= looks


def test_the_same_comparison_makes_the_same_page(known):
    comparison, text = known
    again = page(comparison, embeddings=[embedding_of(6)], headline=headline(comparison), made="now")
    assert again == text


def test_it_is_small(known):
    assert len(known[1].encode()) < 500_000
    drawn = re.findall(r' (?:d|x|y|transform)="([^"]*)"', known[1])
    assert not re.search(r"\d\.\d\d", " ".join(drawn))  # a tenth of a point is less than anybody sees


# ---- what may not happen -------------------------------------------------------------------------------------------


def test_hostile_names_are_only_words(tmp_path):
    runs = runs_of(3)
    for number, (found, bad) in enumerate(zip(runs, HOSTILE, strict=True)):
        found.name, found.folder = bad, bad[:60]  # no longer one could be read
        found.hyperparameters = {bad: f"{bad} {number % 2}", "cell": bad}
        found.series[f"{bad}loss"] = series(np.arange(6) + number)
        found.series[f"gates/{bad.replace('/', '')}.l0/flags/{bad.replace('/', '')}"] = series(np.ones(6))
        found.problems.append(bad)
    add_looks(runs[1], tmp_path, [1, 2], place=HOSTILE[1].replace("/", ""))
    joint = embedding_of(6, phate=False)
    joint.left_out[3] = HOSTILE[0]
    words = [*HOSTILE, *(f"- {bad}" for bad in HOSTILE)]
    comparison = comparison_of(runs)
    path = write_page(comparison, tmp_path / "page.html", embeddings=[joint], headline=words, title=HOSTILE[0])
    text = path.read_text("utf-8")
    found = check(text)
    assert len(text) < 1_000_000
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u200f\ud800]", text)
    for bad in HOSTILE[:3]:
        assert found.text.count(bad) >= 6
    assert found.all("img") == []


def test_slots_in_names_are_not_filled():
    assert "$content" in read(comparison_of([run("$content ${title}")])).text


def test_one_run_is_enough():
    text = page(comparison_of([run("alone")]), made="now")
    found = check(text)
    assert "Nothing can be told from chance" in found.text
    assert "There is one run only." in found.text
    assert found.all("input", type="range") == []


def test_a_single_look_needs_no_slider(tmp_path):
    found = check(page(comparison_of([add_looks(run("alone"), tmp_path, [2])]), made="now"))
    assert found.all("input", type="range") == []
    assert len([svg for svg in found.all("svg") if "fixed points" in svg.get("aria-label", "").lower()]) == 2


def test_runs_without_anything_in_common_or_anything_at_all():
    other = Run("other", "/elsewhere", {"reward": series([1, 2, 3])})
    for runs in ([run("a"), other], [Run("empty", "/a")], [Run("empty", "/a"), Run("void", "/b"), other]):
        check(page(comparison_of(runs), made="now"))


def test_what_is_not_finite_does_not_reach_the_page():
    runs = [run(name, seed=n, cell=name, bad_loss=series([1, np.nan, np.inf, -np.inf, 2, np.nan]),
                void_loss=series(np.full(6, np.nan)), end_loss=series([1, 2, 3, 4, 5, np.inf]))
            for n, name in enumerate("ab")]  # fmt: skip
    runs[0].hyperparameters["clip"] = np.inf
    text = page(comparison_of(runs), made="now")
    found = check(text)
    values = [float(cell["data-value"]) for cell in found.all("td") if "data-value" in cell]
    assert np.isfinite(values).all()
    assert not re.search(r'\bd="[^"]*(nan|inf)', text)


@pytest.mark.parametrize("axis", ["step", "time"])
def test_other_axes(axis, tmp_path):
    runs = [add_looks(found, tmp_path, [1, 4], shift=n) for n, found in enumerate(runs_of(2, ("gru",)))]
    found = check(page(comparison_of(runs, axis=axis), embeddings=[embedding_of(2)], made="now"))
    assert found.all("input", type="range", **{"data-unit": "step" if axis == "step" else "epoch"})


@pytest.mark.parametrize("cells", [2, 200], ids=["two configurations", "each its own"])
def test_two_hundred_runs(cells, tmp_path):
    runs = [run(f"r{n}", seed=n, cell=f"c{n % cells}", level=0.1 * (n % 7)) for n in range(200)]
    for found in runs[:60]:
        add_looks(found, tmp_path, [1, 3], shift=0.001 * len(tmp_path.name))
    text = page(comparison_of(runs), made="now")
    found = check(text)
    assert len(text) < 1_500_000
    assert re.search(r"\d+ of 60 runs are drawn", found.text)
    assert ("lowest to their highest run" in found.text) == (cells < 200) or "grey" in found.text
    lines = re.findall(r'data-key="run\d+"[^>]*>', re.search(r"val_loss</bdi>.*?</figure>", text, re.S)[0])
    assert lines == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_a_browser_runs_the_script(known, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(known[1], encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    try:
        done = subprocess.run(
            ["chromium", *options.split(), f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=2000",
             "--dump-dom", f"{path.as_uri()}#epoch=3"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("the browser did not answer")
    if "</html>" not in done.stdout:
        pytest.skip("the browser does not run here")
    assert re.search(r"<output[^>]*>epoch 3</output>", done.stdout)
    frames = re.findall(
        r'class="([^"]*\bframe\b[^"]*)" data-key="\w+" data-first="(\d+)" data-last="(\d+)"', done.stdout
    )
    assert frames
    for classes, first, last in frames:
        assert ("off" in classes.split()) == (not int(first) <= 4 <= int(last))
    assert '<th scope="col"><button type="button">' in done.stdout
