"""What the numbers of a run mean: their names in words, which way is better, what unlike networks have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from .resumption import NOT_METRICS, NOUNS
from .runs import Run
from .series import Series

Better = Literal["high", "low", ""]
COMMON = "recurrent"  # the name of a layer that is called differently in every run
METRICS = "metrics"
COST = "cost"  # what differs between two runs of one seed too
SECTIONS = {
    METRICS: "Metrics",
    "gates": "Gates and timescales",
    "gradient_flow": "Gradient flow",
    "fixed_points": "Fixed points",
    "probes": "Probes",
    "representation": "Representation",
    "weight_trajectory": "Path of the weights",
    COST: "What watching cost",
}
# Parts of a name (`val_R2`, `trainAcc`): whole words where they are short, as `iou` is also in "previous".
_BAD = re.compile(
    r"loss|error|perplex|incorrect|inaccura|deviance|divergence"
    r"|(?:^|_)(?:err|ppl|nll|ce|bce|mse|mae|rmse|mape|cost|bpc|bpb|cer|wer|per|eer|fpr|fnr|fid|brier|regret|negative"
    r"|neg)(?:_|$)"
)
_GOOD = re.compile(
    r"accura|precision|auroc|reward"
    r"|(?:^|_)(?:(?:train|val|valid|test)?acc|acc\d+|top\d+|f1|f\d+score|auc|auprc|r2|score|recall|sensitivity|specificity"
    r"|bleu|rouge|return|returns|iou|miou|dice|correct|success|elbo|likelihood|ll|kappa|mcc)(?:_|$)"
)
_CELL = re.compile(r"(?P<module>.+)\.(?P<cell>l\d+(?:_reverse)?|cell)")


@final
@dataclass(frozen=True)
class Quantity:
    """One number that runs are compared by."""

    tag: str
    section: str  # a key of SECTIONS
    label: str  # in words
    unit: str = ""
    logarithmic: bool = False  # whether ratios, not differences, are what counts
    better: Better = ""
    whole: bool = False  # counts and flags
    total: bool = False  # events of all looks so far, not the state at one
    headline: bool = True  # among what differences are claimed of; the others are details
    missing: float | None = None  # a value that stands for "there is none"
    rank: tuple[int, int] = (0, 0)  # its place in tables: section, then order of the rules; flags and details last

    @property
    def is_flag(self) -> bool:
        """Whether it is 1 or 0."""
        return "/flags/" in self.tag

    @property
    def is_diagnostic(self) -> bool:
        """Whether it is about a look, and not about the network."""
        return self.section == COST or self.tag.endswith(("/rebuild_error", "/gradient_error"))


@dataclass(frozen=True)
class _Rule:
    pattern: str  # of the tag after its noun; {cell} and the like stand for any place
    label: str  # may name what the pattern's groups found
    unit: str = ""
    logarithmic: bool = False
    better: Better = ""
    whole: bool = False
    total: bool = False
    missing: float | None = None


_PLACE, _PART = r"(?P<place>[^/]+)", r"(?P<part>[^/]+)"
_CONCEPT = r"(?P<concept>[^/]+)"
_CONTEXT = r"(?P<place>[^/]+/[^/]+)"
_RULES: dict[str, tuple[_Rule, ...]] = {
    "gates": (
        _Rule(f"{_PLACE}/retention/mean", "{place}: share of the state kept per step"),
        _Rule(f"{_PLACE}/timescale/q50", "{place}: memory of the median unit", "steps", True),
        _Rule(f"{_PLACE}/timescale/q90", "{place}: memory of slow units (90th percentile)", "steps", True),
        _Rule(f"{_PLACE}/{_PART}/mean", "{place}: {part} gate, mean opening"),
        _Rule(f"{_PLACE}/{_PART}/closed", "{place}: {part} gate, share closed"),
        _Rule(f"{_PLACE}/{_PART}/open", "{place}: {part} gate, share wide open"),
        _Rule(f"{_PLACE}/{_PART}/saturated", "{place}: {part}, share saturated"),
        _Rule(f"{_PLACE}/{_PART}/ablation", "{place}: loss when the {part} gate is held"),
    ),
    "gradient_flow": (
        _Rule(f"{_PLACE}/horizon", "{place}: gradient horizon (at most ten times the sequence)", "steps", True),
        _Rule(f"{_PLACE}/gain", "{place}: gradient gain per step", "", True),
        _Rule(f"{_PLACE}/early_contribution", "{place}: share of the gradient from the first half"),
        _Rule(f"{_PLACE}/lyapunov", "{place}: Lyapunov exponent", "nats per step"),
        _Rule("total/norm", "gradient norm", "", True),
        _Rule("total/clipped", "share of steps clipped"),
    ),
    "fixed_points": (
        _Rule(f"{_CONTEXT}/attractors", "{place}: attractors", whole=True),
        _Rule(f"{_CONTEXT}/saddles", "{place}: saddles", whole=True),
        _Rule(f"{_CONTEXT}/repellers", "{place}: repellers", whole=True),
        _Rule(f"{_CONTEXT}/slowest_timescale", "{place}: slowest mode of an attractor", "steps", True, missing=0.0),
        _Rule(f"{_CONTEXT}/end_distance", "{place}: distance of last states from an attractor", "spreads", missing=0.0),
        _Rule(f"{_CONTEXT}/continuum_dimension", "{place}: dimension of a continuous attractor", whole=True),
        _Rule(f"{_CONTEXT}/births", "{place}: points that appeared, in all", whole=True, total=True),
        _Rule(f"{_CONTEXT}/deaths", "{place}: points that vanished, in all", whole=True, total=True),
        _Rule(f"{_CONTEXT}/stability_changes", "{place}: changes of stability, in all", whole=True, total=True),
    ),
    "probes": (
        _Rule(f"concepts/{_PART}/share", "{part}: share that a linear probe reads", better="high"),
        _Rule(f"concepts/{_PART}/gain", "{part}: score over the best control", better="high"),
        _Rule(f"concepts/{_PART}/v_information", "{part}: information", "bits", better="high"),
        _Rule(f"concepts/{_PART}/emergence_epoch", "{part}: epoch of emergence, at the latest", "epochs", missing=-1.0),
    ),
    "representation": (
        _Rule(f"{_PLACE}/{_PART}/cka_untrained", "{place}: CKA with the untrained network ({part})"),
        _Rule(f"{_PLACE}/{_PART}/participation_ratio", "{place}: dimensions used ({part})", "", True),
        _Rule(f"{_PLACE}/{_PART}/clusters", "{place}: groups in which sequences end ({part})", whole=True),
        _Rule(
            f"{_PLACE}/{_PART}/{_CONCEPT}/separation",
            "{place}: share of variance between classes of {concept} ({part})",
        ),
        _Rule(f"{_PLACE}/{_PART}/{_CONCEPT}/commitment", "{place}: steps until {concept} is settled ({part})"),
    ),
    "weight_trajectory": (
        _Rule("total/relative_distance", "distance of the weights from their start", "sizes", True),
        _Rule("total/straightness", "straightness of the path"),
        _Rule("total/dimension", "dimensions of the path"),
        _Rule("total/turning", "turning (cosine of successive steps)"),
        _Rule(f"{_PLACE}/{_PART}/spectral_radius", "{place}: spectral radius of {part}"),
    ),
}
_SECTION_RANK = {section: rank for rank, section in enumerate(SECTIONS)}
_COST = {"overhead": "share of the training time", "seconds": "seconds of a look", "failed_looks": "failed looks"}
_ANY_RULES = {noun: [(re.compile(rule.pattern), rule) for rule in rules] for noun, rules in _RULES.items()}


def quantity_of(tag: str) -> Quantity:
    """What a tag measures; a tag without a rule of its own is a detail with its own name."""
    noun, _, rest = tag.partition("/")
    section = _SECTION_RANK.get(noun, 0)
    if noun not in NOUNS:
        detail = tag.startswith("lr-") or tag.endswith("_step") or tag in NOT_METRICS
        return Quantity(tag, METRICS, tag, better=direction(tag), headline=not detail, rank=(section, 99 * detail))
    if rest in _COST:
        rank = _SECTION_RANK[COST], list(_COST).index(rest)
        return Quantity(tag, COST, f"{noun}: {_COST[rest]}", better="low", headline=False, rank=rank)
    place, is_flag, flag = rest.rpartition("/flags/")
    if is_flag:
        return Quantity(tag, noun, f"{place}: flag {flag}", whole=True, rank=(section, 98))
    for order, (pattern, rule) in enumerate(_ANY_RULES[noun]):
        if found := pattern.fullmatch(rest):
            shared = {name: value for name, value in vars(rule).items() if name not in ("pattern", "label")}
            return Quantity(tag, noun, rule.label.format(**found.groupdict()), rank=(section, order), **shared)
    return Quantity(tag, noun, rest, headline=False, rank=(section, 99))


def direction(metric: str) -> Better:
    """Which way a metric is better, by its name; empty where that does not tell."""
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric).lower())
    if _BAD.search(words):
        return "low"
    return "high" if _GOOD.search(words) else ""


def common_names(runs: Sequence[Run]) -> list[Mapping[str, str]]:
    """Of each run its layers that go by another name in a comparison, and that name.

    A layer that every run calls differently (``lstm`` here, ``gru`` there) becomes ``recurrent`` where each run has
    only one such.
    """
    return _common_modules([set(_modules(run.series)) for run in runs])


def common_series(runs: Sequence[Run], names: Sequence[Mapping[str, str]]) -> list[dict[str, Series]]:
    """Series of each run under the names that all have in common.

    What LSTM and GRU have in common, the share of the state that is kept (forget gate; 1 - update), becomes
    ``retention``.
    """
    found = []
    for run, own in zip(runs, names, strict=True):
        series = {renamed(tag, own): values for tag, values in run.series.items()}
        found.append(series | _retention(series))
    return found


def _modules(tags: Iterable[str]) -> Iterable[str]:
    for tag in tags:
        noun, _, rest = tag.partition("/")
        if noun in NOUNS and (matched := _CELL.fullmatch(rest.partition("/")[0])):
            yield matched["module"]


def _common_modules(modules: Sequence[set[str]]) -> list[Mapping[str, str]]:
    """Of each run the modules that get another name."""
    watched = [found for found in modules if found]
    everywhere = set.intersection(*watched) if watched else set()
    own = [found - everywhere for found in modules]
    alone = all(len(left) == 1 for left, found in zip(own, modules, strict=True) if found)
    if len(watched) < 2 or not alone or COMMON in everywhere:
        return [{} for _ in modules]
    return [dict.fromkeys(left, COMMON) for left in own]


def renamed(tag: str, names: Mapping[str, str]) -> str:
    """A tag of a run as the comparison calls it."""
    noun, _, rest = tag.partition("/")
    if not names or noun not in NOUNS:
        return tag
    place, slash, after = rest.partition("/")
    matched = _CELL.fullmatch(place)
    if matched and matched["module"] in names:
        place = f"{names[matched['module']]}.{matched['cell']}"
    return f"{noun}/{names.get(place, place)}{slash}{after}"


def _retention(series: Mapping[str, Series]) -> dict[str, Series]:
    found = {}
    for tag, values in series.items():
        noun, _, rest = tag.partition("/")
        place, _, last = rest.partition("/")
        if noun == "gates" and last == "forget/mean":
            found[f"gates/{place}/retention/mean"] = values
        elif noun == "gates" and last == "update/mean":
            found[f"gates/{place}/retention/mean"] = replace(values, values=1 - values.values)
    return found
