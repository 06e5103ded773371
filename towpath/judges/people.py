"""People as evaluation judge: a blind arena in the run's ledger, which a sequential test ends as soon as it can."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from towpath.arena.leaderboard_row import leaderboard_row, measured_pairs
from towpath.arena.matches import ArenaSpec, close_decided, create_arena
from towpath.errors import Waiting
from towpath.evals import leaderboard as evals
from towpath.evals.judges import AnswerPair, JudgeOutcomes, PairOutcome
from towpath.store import arenas, rater_stats
from towpath.store.arenas import Arena
from towpath.store.store import Store


@dataclass(frozen=True)
class PeopleJudge:
    """Opens the arena of a stage, raises Waiting while people judge, then reads their verdict."""

    store: Store
    run: Path
    spec: ArenaSpec
    key: str
    """The stage and its fingerprint, which identify its arena when the run resumes."""
    seed: int

    def compare(self, pairs: Sequence[AnswerPair], title: str) -> JudgeOutcomes:
        """The outcomes of the arena; Waiting until it is decided, stopped by its owner, or judged to the end."""
        close_decided(self.store)
        arena = self._arena() or self._open(pairs)
        matches = self.store.read(arenas.list_matches, arena.number)
        judgements = [j for j in self.store.read(arenas.list_judgements, arena.number) if j.kind == "person"]
        finished = evals.finished_outcomes(measured_pairs(matches), judgements)
        ended = arena.state != "open"
        if not ended:
            arena = self._require_end(arena, {pair.comparison for pair, _ in finished})
        prompt_of = {match.comparison: match.prompt_id for match in matches}
        values = {prompt_of[pair.comparison]: value for pair, value in finished}
        record = leaderboard_row(self.store, arena.number).people
        raters = len({j.rater for j in judgements})
        unneeded = PairOutcome(None, "not needed: the arena had ended")
        unfit = ""
        if ended and arena.verdict == "UNDECIDED":
            unfit = f"arena {arena.number} was stopped after {len(finished)} of {len(matches)} prompts, undecided"
        return JudgeOutcomes(
            f"people ({raters} rater{'' if raters == 1 else 's'}, arena {arena.number})",
            tuple(PairOutcome(values[pair.prompt.id]) if pair.prompt.id in values else unneeded for pair in pairs),
            len(judgements),
            interval=record.anytime,
            unfit=unfit,
        )

    def _arena(self) -> Arena | None:
        """The arena that this stage opened."""
        return next((arena for arena in self.store.read(arenas.list_arenas) if arena.by == self.key), None)

    def _open(self, pairs: Sequence[AnswerPair]) -> Arena:
        ours = {pair.prompt.id: (pair.prompt, pair.ours.text) for pair in pairs}
        others = {pair.prompt.id: (pair.prompt, pair.other.text) for pair in pairs}
        return create_arena(self.store, self.spec, ours, others, self.key, self.seed)

    def _require_end(self, arena: Arena, finished: set[str]) -> Arena:
        """Close an arena whose comparisons are all judged, or flagged; else raise Waiting."""
        flagged = {row["comparison"] for row in self.store.read(rater_stats.flagged_pairs)}
        matches = self.store.read(arenas.list_matches, arena.number)
        todo = [match for match in matches if not match.same]
        waiting = [match for match in todo if match.comparison not in finished | flagged]
        if waiting:
            raise Waiting(
                f"people: {len(todo) - len(waiting)} of {len(todo)} comparisons judged, arena {arena.number}, "
                f"{arena.one} against {arena.other}",
                f"evaluate.judges: people decide whether more than {arena.threshold:.0%} is reached; fewer comparisons "
                "may suffice",
                f"`towpath serve {self.run}` shows them; then `towpath run {self.run}`",
            )
        return self.store.submit_write(arenas.close, arena.number, "stopped", "UNDECIDED").result()
