"""RepresentationTracker: what shape do the states of a recurrent network have, and how does it change?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import nn

from ..analysis.concepts import Concept, check_steps, read_concepts
from ..analysis.representation_findings import SiteFindings
from ..analysis.representation_flags import RULES
from ..analysis.state_embedding import Method
from ..analysis.state_samples import StateSamples
from ..cells import cells
from ..report import Report
from ..sinks import Layout
from ..tape import Tape
from .attention_ear import AttentionEar
from .audience import Audience
from .base import EpochCallback, Observe
from .concepts import ConceptLabels, NoLabelsError, read_sources
from .look import Look
from .random_twins import random_twin
from .representation_history import SiteHistory
from .representation_report import RepresentationReport
from .representation_settings import check_settings
from .site_look import Others, SiteLook, shown_rows
from .state_taking import ALONE, StateTaking
from .summary import headline_cells
from .training_loss import TrainingLoss
from .untrained import UntrainedNetwork

Site = tuple[str, str]  # module, and what the states belong to
TWINS = 3  # random networks, of which each is compared with each
SHOWN = 3  # looks in a picture of trajectories


@final
class RepresentationTracker(EpochCallback):
    """Follows the geometry of the states of every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as it trains.

    Is it still the random network (CKA with the untrained one, beside that of two random ones), when does it settle
    (CKA with the look before, and of all looks with each other), how many dimensions does it use, into how many groups
    do sequences split as they are read, and when is their class settled? CKA is linear and unbiased, of sequences with
    each other at the same step, averaged over steps.

    Args:
        module: dotted name, or names, of the modules to watch; all recurrent modules by default.
        concepts: what colours the pictures and, where it is classes, is measured: by name a function of the batch, its
            import path, a key of the batch or a place in it, giving labels ``(B,)`` or ``(B, T)``. By default the
            target of an ``(input, target)`` batch, if there is one.
        steps: how many time steps to look at, evenly spread; or which, from 0, negative ones from the end.
        embedding: how trajectories are laid out in the plane: ``phate``, ``pca``, or null for no such picture.
        embed_every_n_epochs: at most so often; by default whenever pictures are drawn.
        embed_states: states in one such picture, of three looks together; up to 1000.
        flags: thresholds of the flags; null switches one off.
        seed: of random networks and of PHATE.
        max_megabytes: of states kept for a look, per module; fewer sequences are used where that is reached.
        observe: ``validation`` or ``train``.
        every_n_epochs: period of looks; by default as often as `max_overhead` allows.
        figure_every_n_epochs: period of pictures; by default as often as `max_overhead` allows.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        max_sequences: how many sequences, the same first ones at every look.
        on_error: ``warn`` or ``raise``.
        summary: say at the run's end what was seen.

    Logged, with ``{module}`` the module's name, ``{cell}`` one of ``l0``, ``l0_reverse``, ``l1``, ... or ``cell``,
    ``{state}`` ``hidden`` or ``memory`` (an LSTM's cell state); what cannot be measured is left out:

    - `representation/{module}.{cell}/{state}/cka_untrained`: likeness to the untrained network, up to 1.
    - `representation/{module}.{cell}/{state}/cka_untrained_end`: the same where each sequence ends.
    - `representation/{module}.{cell}/{state}/cka_random`: likeness of two random networks, for comparison.
    - `representation/{module}.{cell}/{state}/cka_previous`: likeness to the look before (at first: to the untrained).
    - `representation/{module}.{cell}/{state}/cka_below`: likeness to the layer below; not of the lowest one.
    - `representation/{module}.{cell}/{state}/settled_epoch`: epoch from which on each look's CKA with the latest is at
      least 0.95; -1: before training, or not known yet.
    - `representation/{module}.{cell}/{state}/participation_ratio`: dimensions used, from 1 to the number of units.
    - `representation/{module}.{cell}/{state}/components`: principal components that hold nine tenths of the variance.
    - `representation/{module}.{cell}/{state}/variance`: of the states about their mean, per unit.
    - `representation/{module}.{cell}/{state}/dead_units`: share of units that hardly vary, in [0, 1].
    - `representation/{module}.{cell}/{state}/between_sequences`: share of the mean square of the states that lies
      between sequences at the same step, in [0, 1].
    - `representation/{module}.{cell}/{state}/clusters`: groups in which sequences end, from 1 to 12; of the top layer.
    - `representation/{module}.{cell}/{state}/silhouette`: how well apart these are, up to 1.
    - `representation/{module}.{cell}/{state}/{concept}/separation`: share of the variance at the end that lies between
      classes, less what chance gives; up to 1.
    - `representation/{module}.{cell}/{state}/{concept}/nearest_mean`: share of sequences that end nearest to the mean
      of their own class, in [0, 1].
    - `representation/{module}.{cell}/{state}/{concept}/commitment`: steps that the median sequence has read when the
      class whose mean is nearest to it does not change any more.
    - `representation/{module}.{cell}/{state}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `representation/{attention}/{head}/entropy`: of an ``nn.MultiheadAttention``, bits by which a head spreads over
      the keys; ``mean`` where only the mean over heads is computed.
    - `representation/{module}.{cell}/rebuild_error`: difference of rebuilt and real hidden states, relative.
    - `representation/sequences`: sequences that were looked at.
    - `representation/failed_looks`: looks whose analysis raised or that could not all be handed over, so far.
    - `representation/seconds`: what listening and the numbers of this look took.
    - `representation/overhead`: seconds spent looking per second of training, so far.
    """

    noun: ClassVar[str] = "representation"
    takes_batches: ClassVar[bool] = True

    def __init__(
        self,
        module: str | list[str] | None = None,
        concepts: dict[str, Any] | None = None,
        *,
        steps: int | list[int] = 16,
        embedding: Method | None = "phate",
        embed_every_n_epochs: int | None = None,
        embed_states: int = 480,
        flags: dict[str, float | None] | None = None,
        seed: int = 0,
        max_megabytes: float = 64.0,
        observe: Observe = "validation",
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        max_sequences: int = 256,
        on_error: Literal["warn", "raise"] = "warn",
        summary: bool = True,
    ) -> None:
        self.steps = steps
        self.max_megabytes = max_megabytes
        super().__init__(
            module=module,
            observe=observe,
            every_n_epochs=every_n_epochs,
            figure_every_n_epochs=figure_every_n_epochs,
            max_overhead=max_overhead,
            max_sequences=max_sequences,
            on_error=on_error,
            summary=summary,
        )
        self.concepts = concepts
        self.embedding = embedding
        self.embed_every_n_epochs = embed_every_n_epochs
        self.embed_states = embed_states
        self.flags = flags
        self.seed = seed

    # ---- what is remembered ----------------------------------------------------------------------------------------

    def distinction(self) -> dict[str, Any]:
        return {"concepts": sorted(map(str, self.concepts))} if isinstance(self.concepts, dict) else {}

    def remember(self, memory: dict[str, Any]) -> None:
        self._histories: dict[Site, SiteHistory] = {}
        for key, kept in memory.get("sites", {}).items():
            module, _, site = key.rpartition("|")
            self._histories[module, site] = SiteHistory(kept)
        self._rows: dict[str, list[int]] = {name: list(rows) for name, rows in memory.get("rows", {}).items()}
        self._classes = {name: np.array(known, dtype=np.int64) for name, known in memory.get("classes", {}).items()}
        self._heard_first: str | None = memory.get("audience")
        self._first_loss: float | None = memory.get("first_loss")
        self._embedded_at: int | None = memory.get("embedded_at")
        self._untrained = UntrainedNetwork({})
        self._taking = StateTaking(
            self.steps, max_megabytes=self.max_megabytes, chosen=memory.get("steps", {}), untrained=self._untrained
        )
        self._labels = ConceptLabels({})
        self._audience = Audience()
        self._attention: AttentionEar | None = None
        self._loss = TrainingLoss()
        self._loss_of = -1  # epoch

    def memory(self) -> dict[str, Any]:
        return {
            "sites": {f"{module}|{site}": history.memory() for (module, site), history in self._histories.items()},
            "steps": dict(self._taking.chosen),
            "rows": dict(self._rows),
            "classes": {name: known.tolist() for name, known in self._classes.items()},
            "audience": self._heard_first,
            "first_loss": self._first_loss,
            "embedded_at": self._embedded_at,
        }

    # ---- before training -------------------------------------------------------------------------------------------

    def check(self, modules: dict[str, nn.Module]) -> None:
        check_settings(self)

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._labels = ConceptLabels(read_sources(self.concepts))
        if trainer.is_global_zero:
            self._attention = AttentionEar(pl_module, self.max_sequences)
        if trainer.ckpt_path is None:
            self._untrained.begin(self.watched)
            for name, module in self.watched.items():
                twins = [random_twin(module, seed=self.seed + twin) for twin in range(TWINS)]
                self._taking.twin_cells[name] = [twin for twin in twins if twin is not None]
        elif not self._histories:
            self._guard.say(
                "no untrained",
                "RepresentationTracker: this run goes on from a checkpoint in which no RepresentationTracker has kept "
                "the untrained network, so nothing is compared with it.",
            )

    # ---- listening -------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._attention is None:  # not the rank that looks
            return
        if self._loss_of != trainer.current_epoch:
            self._loss.clear()
            self._loss_of = trainer.current_epoch
        self._loss.add(outputs)
        self._stop_attending()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._stop_attending()

    def finish(self, trainer: pl.Trainer) -> None:
        self._stop_attending()

    def _stop_attending(self) -> None:
        if self._attention is not None:
            self._attention.close()

    def begin_hearing(self) -> None:
        self._labels.begin()
        self._audience.begin()
        self._taking.begin()
        if self._attention is not None:
            self._attention.begin()

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self._labels.hear(number, batch)
        self._audience.hear(number, batch)
        if self._attention is not None:
            self._attention.open()

    def on_taken_batch(self, tapes: dict[str, Tape], *, untrained: bool) -> None:
        if untrained:
            self._untrained.labels = self._everything()
        self._taking.take(tapes, self._share, untrained=untrained)

    def heard(self) -> Any:
        told = self._taking.heard(), self._labels.heard, self._audience, self._untrained.labels
        self._forget_states()
        return told

    def join(self, heard: Sequence[Any]) -> None:
        if not self._taking.join([states for states, _, _, _ in heard], self._processes):
            self._guard.say("alone", f"RepresentationTracker: {ALONE}")
            return
        for _, (labels, faults), audience, untrained in heard:
            self._labels.join(labels, faults)
            self._audience.join(audience)
            self._untrained.join_labels(untrained)

    def _forget_states(self) -> None:
        self._untrained.forget_states()
        self._taking.forget()
        self._taking.twin_cells = {}
        self._labels.begin()

    def _everything(self) -> dict[str, dict[int, NDArray[Any]]]:
        """Labels, and of each batch its digest, which tell whether two looks were at the same sequences."""
        return {**self._labels.labels, "batch": self._audience.batches}

    # ---- looking ---------------------------------------------------------------------------------------------------

    def analyse(self, look: Look) -> Report:
        self._taking.check()
        self._say_labels()
        same = self._is_same_audience()
        report = RepresentationReport(
            self._guard,
            epoch=look.epoch,
            loss=self._loss_so_far(),
            thresholds=self.flags or {},
            seed=self.seed,
        )
        for name in self.watched:
            samples = self._taking.of(name)
            if samples is None:
                continue
            trusted = True
            for cell, error in samples.rebuild_error.items():
                report.rebuild_error(f"{name}.{cell}", error)
                trusted &= self._guard.believes(name, f"cell {cell}", error, samples.tolerance)
            report.heard(len(samples.lengths), self._audience.digest)
            if trusted:
                concepts = self._concepts(name, samples)
                found = self._measure(look.epoch, name, samples, concepts, same=same)
                histories = {site: self._histories[name, site] for site in found}
                report.describe(name, samples, found, histories)
                if same and self.embedding is not None and self._embedding_is_due(look):
                    report.embed(
                        name, samples, histories, concepts, rows=self._rows[name], method=self.embedding,
                        done=partial(self._embedded, look.epoch),
                    )  # fmt: skip
        if self._attention is not None:
            report.attention(self._attention)
        self._forget_states()
        return report.finished()

    def _say_labels(self) -> None:
        if self.concepts is None:
            return  # none was asked for
        for name, fault in self._labels.faults.items():
            with self._guard:
                cause = None if isinstance(fault, NoLabelsError) else fault
                raise ValueError(f"labels of {name} could not be read from a batch: {fault}") from cause

    def _is_same_audience(self) -> bool:
        """Whether the sequences are those of the first look, without which looks say nothing of each other."""
        now = self._audience.digest
        if self._heard_first is None:
            self._heard_first = now
        if now != self._heard_first:
            words = (
                f"RepresentationTracker: the first {self.observe} batches hold other sequences than at the first look, "
                "so looks are not compared with each other, nor with the untrained network."
            )
            if self.observe == "validation":
                words += " The validation loader should not shuffle, nor change its items at random."
                self._guard.say("audience", words)
            elif "audience" not in self._guard.said:  # what training batches are like, and no fault
                self._guard.said.add("audience")
                rank_zero_info(words)
        return now == self._heard_first

    def _loss_so_far(self) -> float | None:
        """Of the training loss of the first epoch with a look; None where losses are unknown or not positive."""
        loss = self._loss.mean
        if loss is None or not math.isfinite(loss):
            return None
        if self._first_loss is None:
            self._first_loss = loss
        return loss / self._first_loss if self._first_loss > 0 else None

    def _embedding_is_due(self, look: Look) -> bool:
        every, last = self.embed_every_n_epochs, self._embedded_at
        return every is None or last is None or look.epoch - last >= every or self._is_last(look.trainer)

    def _embedded(self, epoch: int) -> None:
        self._embedded_at = epoch

    def _concepts(self, name: str, samples: StateSamples) -> list[Concept]:
        found: list[Concept] = []
        for source, labels in self._labels.labels.items():
            if source in self._labels.faults or not labels:
                continue
            try:
                concepts = read_concepts(source, labels, samples.rows, self._classes)
                for concept in concepts:
                    check_steps(concept, samples)
            except ValueError as error:
                if self.concepts is not None:  # else the target was tried, and is nothing that can be shown
                    self._guard.say(f"concept {name} {source}", f"RepresentationTracker: in {name}, {error}.")
                continue
            self._classes |= {concept.name: concept.classes for concept in concepts}
            found += concepts
        return found

    def _measure(
        self, epoch: int, name: str, samples: StateSamples, concepts: Sequence[Concept], *, same: bool
    ) -> dict[str, SiteFindings]:
        """Everything about every site of one module."""
        everything = self._everything()
        untrained = self._untrained.states(name, samples, everything) if same else None
        if untrained is not None and not self._untrained.is_whole(name, samples, everything):
            rank_zero_info(
                f"RepresentationTracker: untrained, for {name}, are its untrained layers on the inputs of this look. "
                "If something in front of them learns (an embedding, an encoder), that has learned by now; "
                "Trainer(num_sanity_val_steps=-1) makes it the whole network."
            )
        twins = [result for sampler in self._taking.twins.get(name, []) if (result := sampler.result()) is not None]
        if name not in self._rows:
            self._rows[name] = shown_rows(samples, concepts, self.embed_states // SHOWN)
        cells_of = cells(self.watched[name])
        top = {cell.name for cell in cells_of if cell.place.layer == max(c.place.layer for c in cells_of)}
        found: dict[str, SiteFindings] = {}
        for site in samples.states:
            if site.startswith("input") or not np.isfinite(samples.states[site][samples.present]).all(-1).any():
                continue
            history = self._histories.setdefault((name, site), SiteHistory({}))
            others = Others(
                None if untrained is None else untrained.states[site], [twin.states[site] for twin in twins], same
            )
            look = SiteLook(samples, site, epoch, self._rows[name])
            found[site] = look.at(history, others, concepts, clustered=site.partition("/")[0] in top)
        sites = [site for site in samples.states if not site.startswith("input")]
        if any(site not in found or not self._histories[name, site].now.size for site in sites):
            self._guard.say(
                f"nonfinite {name}",
                f"RepresentationTracker: states of {name} hold NaN or infinity, or there are fewer than four "
                "sequences, so they are not compared with those of other looks.",
            )
        return found

    def headlines(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for place, (called, cell) in headline_cells(self.watched).items():
            where, units = f"representation/{place}/hidden", cell.output_size
            words = f"{called}: likeness to the untrained network {{value:.2f}} (1: the same)"
            found[f"{where}/cka_untrained"] = words
            found[f"{where}/participation_ratio"] = f"{called}: {{value:.3g}} of {units} dimensions used"
        return found

    def layout(self) -> Layout:
        def chart(pattern: str) -> list[Any]:
            return ["Multiline", [pattern]]

        heard = self._attention is not None and self._attention.modules
        attention = {"entropy of attention, in bits": chart(r"^representation/.*/entropy$")} if heard else {}
        return {
            "Representation": {
                "likeness to the untrained network (CKA)": chart(r"^representation/.*/cka_(untrained|random)$"),
                "likeness to the look before (CKA)": chart(r"^representation/.*/cka_previous$"),
                "dimensions used (participation ratio)": chart(r"^representation/.*/participation_ratio$"),
                "groups in which sequences end": chart(r"^representation/.*/clusters$"),
                "share of the variance between classes": chart(r"^representation/.*/separation$"),
                "steps read until the class is settled": chart(r"^representation/.*/commitment$"),
                **attention,
                "flags raised": chart(r"^representation/.*/flags/(" + "|".join(RULES) + r")$"),
                "time spent looking, share of training": chart(r"^representation/overhead$"),
            }
        }
