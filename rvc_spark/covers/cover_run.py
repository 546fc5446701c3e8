"""Drives the stages of a cover: each is found or made once, by one process at a time, and told in a row of a table."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvc_spark.covers.artefacts import Artefact, ArtefactStore
from rvc_spark.covers.cover_chain import PENDING, Chain, Skip, Step, TrackPart
from rvc_spark.covers.recipe import Recipe, differences
from rvc_spark.infer.pipeline import Progress


@dataclass(frozen=True)
class StageRow:
    """One stage of a cover. state: "made", "kept" (from an earlier run), "skipped", or "to be made" where only asked.

    seconds: of work, when it was made.
    """

    name: str
    state: str
    reason: str
    seconds: float = 0.0


@dataclass
class CoverRun:
    """Finds or makes stages in order. expected: weights of all that will have to be made."""

    store: ArtefactStore
    name: str
    expected: float
    rows: list[StageRow] = field(default_factory=list)
    done: float = 0.0

    def through(self, stages: Chain) -> Generator[Progress, None, list[TrackPart]]:
        """Every stage of a chain; returns its tracks."""
        sent: Artefact | None = PENDING
        try:
            while True:
                try:
                    stage = stages.send(sent)
                except StopIteration as end:
                    return end.value
                if isinstance(stage, Skip):
                    self.rows.append(told(stage))
                    sent = None
                else:
                    sent = yield from self.step(stage)
        finally:
            stages.close()

    def step(self, step: Step) -> Generator[Progress, None, Artefact]:
        """One stage: found, or made by this process alone."""
        found = self.store.find(step.recipe)
        if found is None:
            maker = self.store.only_maker(step.recipe)
            lock = yield from self._told_while_waiting(maker, step)
            try:
                found = self.store.find(step.recipe)  # whoever had the lock may have made it
                if found is None:
                    return (yield from self._made(step))
            finally:
                lock.release()
        self.rows.append(StageRow(step.name, "kept", _kept(found)))
        return found

    def _told_while_waiting(self, maker: Generator[None, None, Any], step: Step) -> Generator[Progress, None, Any]:
        while True:
            try:
                next(maker)
            except StopIteration as end:
                return end.value
            yield Progress(self._fraction(step, 0.0), f"waiting for another run that makes: {step.name}")

    def _made(self, step: Step) -> Generator[Progress, None, Artefact]:
        started = time.perf_counter()
        with self.store.draft(self.name) as draft:
            work = step.work(draft)
            try:
                for progress in work:
                    yield Progress(self._fraction(step, progress.fraction), progress.message)
            finally:
                work.close()
            seconds = time.perf_counter() - started
            artefact = self.store.keep(step.recipe, draft, seconds)
        self.done += step.weight
        self.rows.append(StageRow(step.name, "made", draft.facts.get("reason", ""), seconds))
        return artefact

    def _fraction(self, step: Step, fraction: float) -> float:
        return min(1.0, (self.done + fraction * step.weight) / max(self.expected, self.done + step.weight))


def told(skip: Skip) -> StageRow:
    """A stage that does not take place."""
    return StageRow(skip.name, "skipped", skip.reason)


def _kept(found: Artefact) -> str:
    return f"made before, in {found.seconds:.1f} s"


def foretold(store: ArtefactStore, name: str, recipe: Recipe) -> tuple[StageRow, Artefact | None]:
    """What would become of a stage, and its artefact if it is there."""
    found = store.find(recipe)
    if found is not None:
        return StageRow(name, "kept", _kept(found)), found
    if recipe.key is None:
        unknown = [name for name, digest in recipe.inputs.items() if digest is None]
        words = f"depends on the {' and the '.join(unknown)}, which is to be made"
        return StageRow(name, "to be made", words), None
    nearest = store.nearest(recipe)
    changed = [] if nearest is None else differences(nearest, recipe.plain())
    return StageRow(name, "to be made", "; ".join(changed[:4]) or "never made"), None


def rows_as_words(rows: Sequence[StageRow]) -> list[str]:
    """One line per stage, for terminals and text."""
    width = max(len(row.name) for row in rows)
    return [f"{row.name:<{width}}  {row.state:<10}  {_behind(row)}".rstrip() for row in rows]


def _behind(row: StageRow) -> str:
    return row.reason if row.state != "made" else f"{row.seconds:.2f} s"
