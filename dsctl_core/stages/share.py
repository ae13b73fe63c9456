"""Stage one by several commands at once, on one machine or many: each takes shards that nobody has, until none is left.

There is no coordinator. All workers plan the same shards; a lease in the folder of the cache says that one is being
made, and the shard itself says that it is made. What a worker that died had begun is taken by another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.cache.manifest import Recipe
from dsctl_core.cache.output import CacheOutput, CacheWorker
from dsctl_core.data.problems import DataError, Kind, kind_of_problem
from dsctl_core.files.digest import digest
from dsctl_core.files.json import checked, parse_json
from dsctl_core.progress import Progress
from dsctl_core.stages.plan_rows import Job, Plan
from dsctl_core.stages.read_ahead import Work, passes_of

JOINING, LOOKING = 30.0, 1.0  # seconds: for joining while others do, and between two looks at what they have made
FINISH = "f"  # the lease on writing the manifest


class BadRow(TypedDict):
    """A row that cannot be encoded."""

    row: Annotated[int, Field(ge=0)]
    problem: str
    hint: str | None
    kind: Kind


class BadFile(TypedDict):
    """What a worker could not encode of a claim: the keys of the jobs, and the rows that have them."""

    keys: list[str]
    rows: list[BadRow]


@dataclass(frozen=True)
class Claim:
    """The part of a pass that one worker takes at once: a shard of each of its works."""

    name: str
    works: tuple[Work, ...]

    def without(self, done: set[str]) -> list[Work]:
        """Return the works with the jobs that are not `done`."""
        left = [(work.group, [job for job in work.shards[0] if job.key not in done]) for work in self.works]
        return [Work(group, [jobs]) for group, jobs in left if jobs]


def claims_of(together: Sequence[Work]) -> list[Claim]:
    """Return the claims of one pass: claim k has the shard k of each of its works, which read mostly the same rows."""
    claims = []
    for number in range(max((len(work.shards) for work in together), default=0)):
        works = tuple(Work(work.group, [work.shards[number]]) for work in together if number < len(work.shards))
        claims.append(Claim(digest([job.key for job in _jobs(works)])[:24], works))
    return claims


def _jobs(works: Sequence[Work]) -> Iterator[Job]:
    return (job for work in works for shard in work.shards for job in shard)


def joined(output: CacheOutput, plan: Plan, recipe: Recipe) -> AbstractContextManager[CacheWorker]:
    """Be one of the workers that encode `plan` into `output`.

    Raises a DsctlError where a command writes there that does not share its work, or workers of another plan.
    """
    what = [recipe.family, recipe.task, [entry.key for entry in plan.entries], [[*jobs] for jobs in plan.jobs.values()]]
    return output.joined(digest(what)[:16], JOINING)


class Share:
    """The work on a cache as one worker sees it: what is done, by whomever, and what it takes itself.

    Args:
        output: Where the cache is written.
        worker: This worker.
        plan: The plan; rows that any worker finds to be bad are added to it.
        works: All shards of all groups, done or not.
        present: The keys of the parts that are there.
        progress: Is told of what all workers do.
        is_late: Returns whether the time of this worker is up.
    """

    def __init__(
        self,
        output: CacheOutput,
        worker: CacheWorker,
        plan: Plan,
        works: Sequence[Work],
        present: set[str],
        progress: Progress,
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        self.is_late = is_late
        self.output, self.worker, self.plan, self.progress = output, worker, plan, progress
        self.passes = [claims_of(together) for together in passes_of([work for work in works if work.shards])]
        self.done = set(present)
        self._seen: set[Hashable] = {*output.versions()}  # a damaged shard is written again by its name

    def open_claims(self, claims: Sequence[Claim]) -> list[Claim]:
        """Return those of `claims` that are not done, as far as this worker knows."""
        return [claim for claim in claims if claim.without(self.done)]

    def is_done(self) -> bool:
        """Return whether all is done, by whomever."""
        return not any(self.open_claims(claims) for claims in self.passes)

    def run(self, load: Callable[[Sequence[Work]], Any], encode: Callable[[Any, Sequence[Work]], int]) -> int:
        """Take part until all is done or the time is up, and return how many jobs this worker did.

        `load` returns what the works of a pass need; `encode` writes their shards with it, and returns how many jobs it
        did, which are fewer where the time is up.
        """
        self._look()
        missing = sum(1 for claims in self.passes for claim in claims for _ in _jobs(claim.without(self.done)))
        if not missing:
            return 0
        self.progress.start("Encoding", missing, unit="input")
        own, told = 0, False
        while not self.is_done() and not (own and self.is_late()):
            before = own
            for claims in self.passes:
                own += self._take_what_is_free(claims, load, encode, own)
            if own == before and not self.is_done():
                if self.is_late():
                    break
                if not told:
                    self.progress.note("nothing is left to take: waiting for what other workers are encoding")
                    told = True
                time.sleep(LOOKING * self.output.far)
                self.progress.advance(len(self._look()))
        self.progress.finish()
        return own

    def _take_what_is_free(
        self,
        claims: Sequence[Claim],
        load: Callable[[Sequence[Work]], Any],
        encode: Callable[[Any, Sequence[Work]], int],
        before: int,
    ) -> int:
        """Take and do the claims of one pass, each that nobody has; return how many jobs that were.

        `before` is how many this worker has done: a worker that is late does some, so that repeating it ends.
        """
        loaded, own = None, 0
        start = int(self.worker.name, 16) % max(len(claims), 1)  # workers begin at different places, and rarely meet
        for claim in (*claims[start:], *claims[:start]):
            if before + own and self.is_late():
                break
            if not claim.without(self.done) or not self.worker.take(claim.name):
                continue
            try:
                self.progress.advance(len(self._look()))  # it may have been done before the lease was free
                works = claim.without(self.done)
                if works:
                    loaded = load([work for each in claims for work in each.works]) if loaded is None else loaded
                    own += self._do(claim, works, partial(encode, loaded))
            finally:
                self.worker.release(claim.name)
        return own

    def _do(self, claim: Claim, works: Sequence[Work], encode: Callable[[Sequence[Work]], int]) -> int:
        known = set(self.plan.bad)
        done = encode(works)
        keys = {job.key for job in _jobs(works)}
        if done < sum(1 for _ in _jobs(works)):  # the time is up: what is left, and what is bad, another finds out
            self._look()
            return done
        others = self._look() - keys
        bad = {
            "keys": sorted(keys - self.done),
            "rows": [
                {"row": row, "problem": error.problem, "hint": error.hint, "kind": kind_of_problem(error)}
                for row, error in self.plan.bad.items()
                if row not in known
            ],
        }
        if bad["keys"]:
            self.worker.note(claim.name, json.dumps(bad))
        self.done |= keys
        self.progress.advance(len(others))
        return len(keys)

    def _look(self) -> set[str]:
        """Add to what is done what has come since the last look, and return it."""
        new: set[str] = set()
        versions = self.output.versions() - self._seen
        self._seen |= versions
        for _, keys in self.output.keys(sorted({name for name, _ in versions})):
            new.update(keys)
        for version, text in self.worker.notes(self._seen):
            self._seen.add(version)
            told = checked(parse_json(text, "a note of a worker"), BadFile, "a note of a worker")
            new.update(told["keys"])
            for bad in told["rows"]:
                self.plan.drop(bad["row"], DataError(bad["problem"], hint=bad["hint"], kind=bad["kind"]))
        new -= self.done
        self.done |= new
        return new


@contextmanager
def finishing(output: CacheOutput, worker: CacheWorker) -> Iterator[None]:
    """Wait until no other worker writes the manifest, and keep the others from it inside the context."""
    while not worker.take(FINISH):
        time.sleep(LOOKING * output.far / 4)
    try:
        yield
    finally:
        worker.release(FINISH)
