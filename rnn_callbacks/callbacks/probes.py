"""ProbeTracker: what is encoded in the states of a recurrent network, where, since when, and whether to believe it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import nn

from ..analysis.concepts import IGNORED, Concept, check_steps, read_concepts, read_labels, split_sequences
from ..analysis.description_length import description_length
from ..analysis.probe_findings import Baseline, Course, Finding, correct, judge
from ..analysis.probe_fits import Engine, ProbeSettings
from ..analysis.probe_flags import RULES
from ..analysis.probes import Probed, headline_samples, probe
from ..analysis.state_samples import StateSamples, is_reversed
from ..analysis.unit_information import as_classes, unit_information
from ..cells import cells
from ..report import Report
from ..sinks import Layout
from ..tape import Tape
from .base import EpochCallback, Observe
from .concept_removal import remove_concepts
from .concepts import ConceptLabels, NoLabelsError, read_source, read_sources
from .look import Look
from .probe_report import ProbeReport
from .probe_settings import TYPES, check_settings
from .rehearsed_loss import HeardBatch, HeardBatches
from .state_taking import ALONE, StateTaking
from .summary import MOST_CELLS
from .untrained import Place, UntrainedNetwork, place_of

FIT = 2 / 3  # of the sequences
PER_UNIT = 10  # sequences for each unit, below which probes read less than there is
CAUSAL_SEQUENCES = 256  # on which the loss is computed where something is taken out


@final
class ProbeTracker(EpochCallback):
    """Reads concepts from the states of every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` with linear probes as it trains.

    At every look each concept is read at every layer, in hidden and cell states, at every probed time step, on
    sequences that the probe was not fitted to, beside what an untrained network, the input alone, shuffled labels and a
    task of random labels give. A label for the sequence is judged at the step that a cell reads last, a label for each
    step by one probe of all steps together.

    Args:
        module: dotted name, or names, of the modules to probe; all recurrent modules by default.
        concepts: by name a function of the batch, its import path, a key of the batch or a place in it. It gives labels
            ``(B,)`` or ``(B, T)``: whole numbers are classes (-1: no label), other numbers a quantity (NaN: none). By
            default the target of an ``(input, target)`` batch.
        required: a score (balanced accuracy, or R^2 of a quantity) by concept that must be reached; a flag says so if
            it is not.
        steps: how many time steps to probe, evenly spread; or which, from 0, negative ones from the end.
        engine: ``discriminant`` (closed form) or ``logistic`` (ten times as dear, up to a few points better).
        shuffles: label shuffles for each concept and layer.
        control_types: types of input for the control task, given as concepts are, ``(B,)`` or ``(B, T)``; by default 64
            cells of the layer's input.
        description_length: also the online code of the labels, which still moves where accuracy has saturated.
        causal: also take each concept out of what the module returns and report what the validation loss does; runs
            ``validation_step`` of a copy of the model five times per concept and top layer.
        flags: thresholds of the flags; null switches one off.
        seed: of split, shuffles and bootstrap.
        max_megabytes: of states kept for a look, per module; fewer sequences are used where that is reached.
        observe: ``validation`` or ``train``.
        every_n_epochs: period of looks; by default as often as `max_overhead` allows.
        figure_every_n_epochs: period of pictures; by default as often as `max_overhead` allows.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        max_sequences: how many sequences, the same first ones at every look; two thirds to fit, one third held out.
        on_error: ``warn`` or ``raise``.
        summary: say at the run's end what was seen.

    Logged, with ``{module}`` the module's name, ``{cell}`` one of ``l0``, ``l0_reverse``, ``l1``, ... or ``cell``,
    ``{state}`` ``hidden`` or ``memory`` (an LSTM's cell state); what cannot be measured is left out:

    - `probes/{module}.{cell}/{state}/{concept}/v_information`: bits that a linear reader gains on held-out sequences.
    - `probes/{module}.{cell}/{state}/{concept}/balanced_accuracy`: share recognised, mean over classes, in [0, 1].
    - `probes/{module}.{cell}/{state}/{concept}/r2`: of a quantity, share of its variance that is read, up to 1.
    - `probes/{module}.{cell}/{state}/{concept}/accuracy`: share of samples recognised, in [0, 1].
    - `probes/{module}.{cell}/{state}/{concept}/gain`: balanced accuracy or R^2 minus that of the best control.
    - `probes/{module}.{cell}/{state}/{concept}/over_untrained`: minus that of the network before training.
    - `probes/{module}.{cell}/{state}/{concept}/over_shuffled`: minus the mean over shuffled labels.
    - `probes/{module}.{cell}/{state}/{concept}/over_input`: minus that of the layer's input at the same step.
    - `probes/{module}.{cell}/{state}/{concept}/control_task`: score for random labels of input types.
    - `probes/{module}.{cell}/{state}/{concept}/selectivity`: score minus the control task's; misleads as a headline.
    - `probes/{module}.{cell}/{state}/{concept}/unit_information`: bits that the best single unit tells; noise: 0.
    - `probes/{module}.{cell}/{state}/{concept}/compression`: how much shorter the labels are to tell to who has the
      states; 1: no shorter; with `description_length`.
    - `probes/{module}.{cell}/{state}/{concept}/removal`: change of the validation loss without the concept's
      directions; with `causal`.
    - `probes/{module}.{cell}/{state}/{concept}/removal_random`: the same without as many random directions.
    - `probes/concepts/{concept}/v_information`: bits where it is read best in the model.
    - `probes/concepts/{concept}/share`: those bits as a share of the concept's entropy (R^2 of a quantity).
    - `probes/concepts/{concept}/gain`: score over the best control there.
    - `probes/concepts/{concept}/emergence_epoch`: epoch at which half of today's gain in bits was passed; -1: none yet.
    - `probes/concepts/{concept}/emergence_gain`: bits there over the untrained network's.
    - `probes/concepts/{concept}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `probes/{module}.{cell}/rebuild_error`: difference of rebuilt and real hidden states, relative; about 1e-6.
    - `probes/sequences`: sequences probed, fitted and held out together.
    - `probes/failed_looks`: looks whose analysis raised or that could not all be handed over, so far.
    - `probes/seconds`: what listening and the numbers of this look took.
    - `probes/overhead`: seconds spent looking per second of training, so far.
    """

    noun: ClassVar[str] = "probes"
    takes_batches: ClassVar[bool] = True

    def __init__(
        self,
        module: str | list[str] | None = None,
        concepts: dict[str, Any] | None = None,
        *,
        required: dict[str, float] | None = None,
        steps: int | list[int] = 16,
        engine: Engine = "discriminant",
        shuffles: int = 10,
        control_types: Any = None,
        description_length: bool = False,
        causal: bool = False,
        flags: dict[str, float | None] | None = None,
        seed: int = 0,
        max_megabytes: float = 256.0,
        observe: Observe = "validation",
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        max_sequences: int = 3000,
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
        self.required = required
        self.engine = engine
        self.shuffles = shuffles
        self.control_types = control_types
        self.description_length = description_length
        self.causal = causal
        self.flags = flags
        self.seed = seed

    # ---- what is remembered ----------------------------------------------------------------------------------------

    def distinction(self) -> dict[str, Any]:
        return {"concepts": sorted(map(str, self.concepts))} if isinstance(self.concepts, dict) else {}

    def remember(self, memory: dict[str, Any]) -> None:
        self._courses: dict[Place, Course] = {
            place_of(key): Course(list(kept["epochs"]), [list(row) for row in kept["rows"]])
            for key, kept in memory.get("courses", {}).items()
        }
        self._untrained = UntrainedNetwork(memory.get("untrained", {}))
        self._taking = StateTaking(
            self.steps, max_megabytes=self.max_megabytes, chosen=memory.get("steps", {}), untrained=self._untrained
        )
        self._classes = {name: np.array(known, dtype=np.int64) for name, known in memory.get("classes", {}).items()}
        self._labels = ConceptLabels({})
        self._inputs: dict[str, tuple[bytes, list[Probed]]] = {}
        self._batches = HeardBatches()
        self._told_by_another: tuple[str, ...] = ()

    def memory(self) -> dict[str, Any]:
        return {
            "courses": {"|".join(p): {"epochs": c.epochs, "rows": c.rows} for p, c in self._courses.items()},
            "untrained": self._untrained.memory(),
            "classes": {name: known.tolist() for name, known in self._classes.items()},
            "steps": dict(self._taking.chosen),
        }

    # ---- before training -------------------------------------------------------------------------------------------

    def check(self, modules: dict[str, nn.Module]) -> None:
        check_settings(self)

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sources = read_sources(self.concepts)
        if self.control_types is not None:
            sources[TYPES] = read_source(TYPES, self.control_types)
        self._labels = ConceptLabels(sources)
        self._told_by_another = self._find_told(trainer)
        if trainer.ckpt_path is None:
            self._untrained.begin(self.watched)
        elif not self._untrained.baselines:
            self._guard.say(
                "no untrained",
                "ProbeTracker: this run goes on from a checkpoint in which no ProbeTracker has kept what the untrained "
                "network reads, so `over_untrained` is left out.",
            )

    def _find_told(self, trainer: pl.Trainer) -> tuple[str, ...]:
        """Concepts of which another tracker says where in the model they are read best; logged twice is averaged."""
        trackers = [c for c in trainer.callbacks if isinstance(c, ProbeTracker)]  # type: ignore[attr-defined]
        earlier = trackers[: trackers.index(self)]
        told = [name for name in self._labels.sources if any(name in other._labels.sources for other in earlier)]
        for name in told:
            self._guard.say(
                f"told {name}",
                f"ProbeTracker: another one reads {name} too, and probes/concepts/{name} is what that one finds; list "
                "all modules in one ProbeTracker, or give the concept another name here.",
            )
        return tuple(f"probes/concepts/{name}" for name in told)

    # ---- listening -------------------------------------------------------------------------------------------------

    def begin_hearing(self) -> None:
        self._batches.clear()
        self._labels.begin()
        self._taking.begin()

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self._labels.hear(number, batch)
        if self.causal and self._taking.count < CAUSAL_SEQUENCES:
            self._batches.list.append(HeardBatch(batch, batch_idx, dataloader_idx))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        with self._guard:
            self._batches.keep_model(trainer, pl_module)

    def on_taken_batch(self, tapes: dict[str, Tape], *, untrained: bool) -> None:
        if untrained:
            self._batches.clear()  # the loss is computed with trained weights only
            self._untrained.labels = self._labels.labels
        self._taking.take(tapes, self._share, untrained=untrained)

    def heard(self) -> Any:
        told = self._taking.heard(), self._labels.heard, self._untrained.labels
        self._forget_states()
        return told

    def join(self, heard: Sequence[Any]) -> None:
        if not self._taking.join([states for states, _, _ in heard], self._processes):
            self._guard.say("alone", f"ProbeTracker: {ALONE}")
            return
        for _, (labels, faults), untrained in heard:
            self._labels.join(labels, faults)
            self._untrained.join_labels(untrained)

    def _forget_states(self) -> None:
        self._untrained.forget_states()
        self._taking.forget()
        self._batches.clear()

    # ---- looking ---------------------------------------------------------------------------------------------------

    def analyse(self, look: Look) -> Report:
        self._taking.check()
        for name, fault in self._labels.faults.items():
            with self._guard:
                told = isinstance(fault, NoLabelsError)  # says all there is to say
                cause = None if told else fault
                raise ValueError(f"labels of {name} could not be read from a batch: {fault}") from cause
        found: dict[Place, Finding] = {}
        heard: dict[str, StateSamples] = {}
        scalars: dict[str, float] = {}
        for name in self.watched:
            samples = self._taking.of(name)
            if samples is None:
                continue
            trusted = True
            for cell, error in samples.rebuild_error.items():
                scalars[f"probes/{name}.{cell}/rebuild_error"] = error
                trusted &= self._guard.believes(name, f"cell {cell}", error, samples.tolerance)
            scalars["probes/sequences"] = max(scalars.get("probes/sequences", 0.0), float(len(samples.lengths)))
            if trusted:
                heard[name] = samples
                found |= self._probe(look, name, samples)
        self._forget_states()
        judged = dict(zip(found, correct(list(found.values())), strict=True))
        read = list(dict.fromkeys(concept for _, _, concept in judged))
        unread = [name for name in self.required or {} if name not in read]
        if read and unread:
            self._guard.say(
                f"unread {unread}",
                f"ProbeTracker: required names {', '.join(unread)}, which no probe reads; there are {', '.join(read)}.",
            )
        for place, finding in judged.items():
            self._courses.setdefault(place, Course()).add(look.epoch, finding)
        report = ProbeReport(
            self._guard,
            judged,
            {place: self._courses[place] for place in judged},
            steps={name: samples.steps for name, samples in heard.items()},
            epoch=look.epoch,
            last=self._is_last(look.trainer),
            required=self.required or {},
            thresholds=self.flags or {},
        ).finished()
        own = {
            tag: value
            for tag, value in report.scalars.items()
            if not any(tag.startswith((f"{told}/", f"{told}_")) for told in self._told_by_another)
        }
        return replace(report, scalars=scalars | own)

    def _probe(self, look: Look, name: str, samples: StateSamples) -> dict[Place, Finding]:
        """Every concept at every site of one module, against its controls."""
        concepts = self._concepts(name, samples)
        if not concepts:
            return {}
        fitted = split_sequences(concepts, FIT, seed=self.seed)
        self._say_numbers(name, samples, fitted)
        settings = ProbeSettings(self.engine, self.shuffles, seed=self.seed)
        sites = [site for site in samples.states if not site.startswith("input")]
        probed = probe(samples, concepts, fitted, settings, sites=sites, types=self._types(samples))
        alone = replace(settings, shuffles=0)
        self._read_untrained(name, samples, concepts, fitted, alone)
        of_input = self._read_input(name, samples, concepts, fitted, alone)
        found: dict[Place, Finding] = {}
        for one in probed:
            place = (name, one.site, one.concept.name)
            source = of_input.get(("input_reverse" if is_reversed(one.site) else "input", one.concept.name))
            finding = judge(one, self._untrained.baselines.get(place), source, seed=self.seed)
            found[place] = self._look_closer(finding, samples)
        if self.causal:
            with self._guard:
                cells_of = cells(self.watched[name])
                found |= remove_concepts(
                    self._batches.of(look), name, cells_of, samples, found, self._batches.list, seed=self.seed
                )
        return found

    def _concepts(self, name: str, samples: StateSamples) -> list[Concept]:
        found: list[Concept] = []
        for source, labels in self._labels.labels.items():
            if source == TYPES or source in self._labels.faults:
                continue
            try:
                concepts = read_concepts(source, labels, samples.rows, self._classes)
                for concept in concepts:
                    check_steps(concept, samples)
            except ValueError as error:
                self._guard.say(f"concept {name} {source}", f"ProbeTracker: in {name}, {error}.")
                continue
            if any(_doubtful(array) for array in labels.values()):
                self._guard.say(
                    f"negative {source}",
                    f"ProbeTracker: {source} has whole-number labels of -1 beside other negative ones; -1 is taken to "
                    "say that there is no label. If it is a value, give floating-point numbers, or classes from 0 on.",
                )
            self._classes |= {concept.name: concept.classes for concept in concepts}
            found += concepts
        return found

    def _types(self, samples: StateSamples) -> list[NDArray[np.int64]] | None:
        """Types of input at every column, for cells of both directions, where the user gives them."""
        if self.control_types is None or TYPES in self._labels.faults:
            return None
        labels = self._labels.labels[TYPES]
        ranks = {array.ndim for array in labels.values()}
        try:
            if ranks not in ({1}, {2}):
                raise ValueError(f"{TYPES}: types must be (B,) or (B, T), got {[a.shape for a in labels.values()]}")
            types = Concept(TYPES, np.empty(0, np.int64), ranks == {2}, read_labels(TYPES, labels, samples.rows))
            check_steps(types, samples)
        except ValueError as error:
            self._guard.say(TYPES, f"ProbeTracker: {error}; the input's own types are taken instead.")
            return None
        return [np.nan_to_num(types.at(samples, reverse=reverse), nan=-1).astype(np.int64) for reverse in (False, True)]

    def _read_untrained(
        self,
        name: str,
        samples: StateSamples,
        concepts: Sequence[Concept],
        fitted: NDArray[np.bool_],
        settings: ProbeSettings,
    ) -> None:
        """Once in a run: the same probes on the network before training."""
        labels = self._labels.labels
        states = self._untrained.states(name, samples, labels)
        if states is None:
            return
        whole = self._untrained.is_whole(name, samples, labels)
        if not whole:
            rank_zero_info(
                f"ProbeTracker: untrained, for {name}, are its untrained layers on the inputs of this look. "
                "If something in front of them learns (an embedding, an encoder), that has learned by now, and these "
                "scores may be too high or too low; Trainer(num_sanity_val_steps=-1) makes them the whole network's."
            )
        none = [np.full(samples.present.shape, -1)] * 2
        sites = [site for site in states.states if not site.startswith("input")]
        for one in probe(states, concepts, fitted, settings, sites=sites, types=none):
            self._untrained.baselines[name, one.site, one.concept.name] = Baseline.of(one, whole=whole)

    def _read_input(
        self,
        name: str,
        samples: StateSamples,
        concepts: Sequence[Concept],
        fitted: NDArray[np.bool_],
        settings: ProbeSettings,
    ) -> dict[tuple[str, str], Baseline]:
        """The same probes on the input of the module; not again where nothing in it has changed."""
        sites = [site for site in samples.states if site.startswith("input")]
        digest = hashlib.blake2b(digest_size=16)
        for array in [samples.states[site] for site in sites] + [concept.labels for concept in concepts]:
            digest.update(np.ascontiguousarray(array).data)
        if name not in self._inputs or self._inputs[name][0] != digest.digest():
            none = [np.full(samples.present.shape, -1)] * 2
            self._inputs[name] = digest.digest(), probe(samples, concepts, fitted, settings, sites=sites, types=none)
        return {(one.site, one.concept.name): Baseline.of(one) for one in self._inputs[name][1]}

    def _look_closer(self, finding: Finding, samples: StateSamples) -> Finding:
        """Information of single units, and description length where it was asked for."""
        probed = finding.probed
        if probed.headline.why_not:
            return finding
        chosen = headline_samples(samples, probed.site, probed.concept, seed=self.seed)
        codes = chosen.labels.astype(np.int64) if len(probed.concept.classes) else as_classes(chosen.labels)
        compression = np.nan
        if self.description_length:
            compression = description_length(chosen.states, codes, seed=self.seed, groups=chosen.sequences).compression
        information = unit_information(chosen.states, codes, seed=self.seed)
        return replace(finding, information=information, compression=compression)

    def _say_numbers(self, name: str, samples: StateSamples, fitted: NDArray[np.bool_]) -> None:
        if f"numbers {name}" in self._guard.said:
            return
        self._guard.said.add(f"numbers {name}")
        count, sampler = len(fitted), self._taking.now[name]
        few = (
            f"; {self.max_sequences} were wanted, and max_megabytes={self.max_megabytes:g} were reached"
            if sampler.full and count < self.max_sequences
            else ""
        )
        units = max(states.shape[2] for site, states in samples.states.items() if not site.startswith("input"))
        if fitted.sum() < PER_UNIT * units:
            few += f"; few for {units} units, so mind the intervals"
        rank_zero_info(
            f"ProbeTracker fits probes of {name} to {fitted.sum()} sequences and holds {count - fitted.sum()} out{few}."
        )
        last = int(samples.steps.max())
        if last >= sampler.longest:
            self._guard.say(
                f"steps {name}",
                f"ProbeTracker: no sequence of {name} that was heard reaches step {last} (they have up to "
                f"{sampler.longest}, counted from 0); nothing is probed there.",
            )
        if isinstance(self.steps, int) and sampler.longest > 1.25 * (last + 1):
            self._guard.say(
                f"steps {name}",
                f"ProbeTracker: sequences of {name} are up to {sampler.longest} steps long, and the probed steps, "
                f"chosen by the first batch, end at {last + 1}; write steps=[...] to choose them.",
            )

    def headlines(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in list(read_sources(self.concepts))[:MOST_CELLS]:
            found[f"probes/concepts/{name}/gain"] = f"{name}: score {{value:+.2f}} over controls"
            found[f"probes/concepts/{name}/share"] = f"{name}: {{value:.0%}} readable"
        return found

    def layout(self) -> Layout:
        def chart(pattern: str) -> list[Any]:
            return ["Multiline", [pattern]]

        return {
            "Probes": {
                "V-information, in bits, where each concept is read best": chart(
                    r"^probes/concepts/[^/]*/v_information$"
                ),
                "score over the best control": chart(r"^probes/concepts/[^/]*/gain$"),
                "balanced accuracy": chart(r"^probes/.*/balanced_accuracy$"),
                "R2 of quantities": chart(r"^probes/.*/r2$"),
                "score over the untrained network": chart(r"^probes/.*/over_untrained$"),
                "epoch at which half of the gain was there": chart(r"^probes/concepts/[^/]*/emergence_epoch$"),
                "flags raised": chart(r"^probes/.*/flags/(" + "|".join(RULES) + r")$"),
                "time spent looking, share of training": chart(r"^probes/overhead$"),
            }
        }


def _doubtful(labels: NDArray[Any]) -> bool:
    """Whether -1 may have been meant as a value."""
    return labels.dtype.kind == "i" and bool((labels == -1).any() and ((labels < -1) & (labels != IGNORED)).any())
