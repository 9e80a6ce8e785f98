"""What a look at representations reports: scalars, files, pictures and flags in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.cka import similarities
from ..analysis.concepts import Concept
from ..analysis.representation_findings import SiteFindings
from ..analysis.representation_flags import Shape, find_flags
from ..analysis.state_embedding import Method, StateEmbedding, embed_states
from ..analysis.state_samples import StateSamples
from ..figures.attention import draw_attention
from ..figures.representation import draw_representation
from ..figures.state_embedding import Colouring, draw_embedding
from ..report import Report
from .attention_ear import AttentionEar
from .guard import Guard
from .representation_history import SiteHistory
from .site_look import CURVES

WARNED = ("lazy", "collapsed")  # dead units are how many relu networks are


@final
class RepresentationReport:
    """One look, as it is put together.

    Args:
        guard: says what a person should know, once.
        epoch: from 0.
        loss: of training, in units of that of the first epoch; None where it is not known.
        thresholds: of the flags.
        seed: of PHATE.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        epoch: int,
        loss: float | None,
        thresholds: Mapping[str, float | None],
        seed: int,
    ) -> None:
        self._guard = guard
        self._epoch = epoch
        self._loss = loss
        self._thresholds = thresholds
        self._seed = seed
        self._scalars: dict[str, float] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, str] = {}
        self._figures: dict[str, Callable[[], Any]] = {}

    def finished(self) -> Report:
        """Everything in tags."""
        return Report(self._scalars, self._arrays, {}, self._texts, self._figures)

    def rebuild_error(self, where: str, error: float) -> None:
        """How far rebuilt states are from the module's own."""
        self._scalars[f"representation/{where}/rebuild_error"] = error

    def heard(self, sequences: int, audience: str) -> None:
        """How many sequences were looked at, and the digest that tells whether other runs heard the same."""
        self._arrays["representation/audience"] = np.array(audience)
        self._scalars["representation/sequences"] = max(
            self._scalars.get("representation/sequences", 0.0), float(sequences)
        )

    def describe(
        self,
        module: str,
        samples: StateSamples,
        found: Mapping[str, SiteFindings],
        histories: Mapping[str, SiteHistory],
    ) -> None:
        """All sites of one module."""
        self._arrays[f"representation/{module}/steps"] = samples.steps
        prints = [histories[site].now for site in found]
        layers = np.zeros((0, 0))
        if len({len(print_) for print_ in prints}) == 1 and len(prints[0]):
            layers = np.clip(similarities(prints), -1.0, 1.0)
            self._arrays[f"representation/{module}/cka_layers"] = np.nan_to_num(layers)
        for place, (site, findings) in enumerate(found.items()):
            tag = f"representation/{module}.{site}"
            scalars = findings.scalars()
            below = _below(site)
            if below in found and len(layers):
                likeness = float(layers[place, list(found).index(below)])
                scalars |= {"cka_below": likeness} if np.isfinite(likeness) else {}
            self._scalars |= {f"{tag}/{name}": value for name, value in scalars.items()}
            self._arrays |= {f"{tag}/{name}": array for name, array in findings.arrays().items()}
            if len(findings.epochs):
                self._arrays[f"{tag}/fingerprint"] = histories[site].folds[-1]
            self._flag(tag, findings, scalars)
        drawn = {
            site: replace(one, curves={name: histories[site].curve(name) for name in CURVES})
            for site, one in found.items()
        }
        self._figures[f"representation/{module}"] = partial(
            draw_representation, module, drawn, layers, steps=samples.steps, title=f"epoch {self._epoch}"
        )

    def _flag(self, tag: str, found: SiteFindings, scalars: Mapping[str, float]) -> None:
        shape = Shape(
            untrained=scalars.get("cka_untrained"),
            random=None if found.random is None else found.random[1],
            loss=self._loss,
            epochs=self._epoch + 1,
            between=scalars.get("between_sequences"),
            dead=scalars["dead_units"],
        )
        place = tag.removeprefix("representation/")
        for flag in find_flags(shape, self._thresholds):
            self._scalars[f"{tag}/flags/{flag.name}"] = float(flag.raised)
            if flag.raised:
                self._texts[f"{tag}/flags/{flag.name}"] = f"**{flag.name}** in `{place}`: {flag.meaning}"
                if flag.name in WARNED:
                    self._guard.say(f"{tag} {flag.name}", f"{place}, flag {flag.name}: {flag.meaning}")

    def embed(
        self,
        module: str,
        samples: StateSamples,
        histories: Mapping[str, SiteHistory],
        concepts: Sequence[Concept],
        *,
        rows: Sequence[int],
        method: Method,
        done: Callable[[], None],
    ) -> None:
        """Pictures of trajectories, a picture for each cell; laid out only if they are drawn."""
        colourings = [_colouring(concept, samples, rows) for concept in concepts]
        cells: dict[str, list[str]] = {}
        for site, history in histories.items():
            if history.scenes:
                cells.setdefault(site.partition("/")[0], []).append(site)
        for cell, sites in cells.items():
            draw = partial(
                self._draw_embedding, f"{module}.{cell}", {site: histories[site] for site in sites}, colourings, method,
                steps=samples.steps, done=done,
            )  # fmt: skip
            self._figures[f"representation/{module}.{cell}/trajectories"] = draw

    def _draw_embedding(
        self,
        place: str,
        histories: Mapping[str, SiteHistory],
        colourings: Sequence[Colouring],
        method: Method,
        *,
        steps: NDArray[np.int64],
        done: Callable[[], None],
    ) -> Any:
        done()
        laid: dict[str, list[StateEmbedding]] = {}
        for site, history in histories.items():
            looks = [(epoch, history.scenes[epoch]) for epoch in _shown(list(history.scenes))]
            embedded = [embed_states(looks, "pca", known=history.drawn.get("pca"))]
            if method == "phate":
                first = embed_states(looks, "phate", known=history.drawn.get("phate"), seed=self._seed)
                # Where PCA stands in for PHATE it says why, and there is one picture.
                embedded = (
                    [first, *embedded] if first.method == "phate" else [replace(embedded[0], remark=first.remark)]
                )
            for one in embedded:
                history.drawn[one.method] = dict(zip(one.epochs, one.points, strict=True))
            laid[site.partition("/")[2]] = embedded
        return draw_embedding(place, laid, colourings, steps=steps, title=f"epoch {self._epoch}")

    def attention(self, ear: AttentionEar) -> None:
        """Maps of every attention module that was heard, and why others were not."""
        for name, fault in ear.faults.items():
            with self._guard:
                raise RuntimeError(f"listening to {name} failed") from fault
        for name, reason in ear.silent.items():
            self._guard.say(
                f"silent {name}",
                f"RepresentationTracker: the attention of {name} cannot be shown: {reason}. Where the model itself "
                "calls nn.MultiheadAttention, write need_weights=True, average_attn_weights=False.",
            )
        for name, sums in ear.sums.items():
            maps = sums.result()
            if maps is None:
                continue
            heads = [f"head{head}" for head in range(len(maps.entropy))] if maps.by_head else ["mean"]
            tag = f"representation/{name}"
            self._scalars |= {
                f"{tag}/{head}/entropy": float(bits) for head, bits in zip(heads, maps.entropy, strict=True)
            }
            self._arrays[f"{tag}/attention"] = maps.mean.astype(np.float32)
            self._figures[tag] = partial(draw_attention, name, maps, title=f"epoch {self._epoch}")


def _below(site: str) -> str:
    """The same kind of state one layer further down; nothing for the lowest."""
    cell, _, state = site.partition("/")
    layer, _, way = cell.partition("_")
    if layer == "cell" or layer == "l0":
        return ""
    return f"l{int(layer[1:]) - 1}" + (f"_{way}" if way else "") + f"/{state}"


def _shown(epochs: Sequence[int]) -> list[int]:
    """The first, the middle one and the latest of the kept looks."""
    ordered = sorted(epochs)
    middle = (ordered[0] + ordered[-1]) / 2
    inner = sorted(ordered[1:-1], key=lambda epoch: abs(epoch - middle))[:1]
    return sorted({ordered[0], *inner, ordered[-1]})


def _colouring(concept: Concept, samples: StateSamples, rows: Sequence[int]) -> Colouring:
    """Labels of the sequences in the picture, at each step."""
    labels = concept.at(samples, reverse=False)[list(rows), :-1]
    names = tuple(str(name) for name in concept.classes)
    return Colouring(concept.name, labels, names)
