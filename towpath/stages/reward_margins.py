"""Score margins of the previous round's reward model, by which comparisons are routed to people."""

from collections.abc import Sequence

from towpath.data.batch import Batch
from towpath.data.file_cache import cache_file, read_cache, write_cache
from towpath.recipe.stage_configs import LabelConfig
from towpath.records import Comparison
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import completion_row
from towpath.stages.reward_scorer import answer_of, open_reward_model
from towpath.store import manifest


def reward_margins(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Score of a minus score of b in log odds, by comparison; empty in the first round.

    Margins are cached, because the stage runs again whenever people have judged.
    """
    reward = next((folder for stage, folder in job.inputs.items() if stage.startswith("reward")), None)
    if reward is None:
        return {}
    cache = cache_file(job.run, "reward_margins")
    cached = read_cache(cache)
    margins = cached.get("margins", {}) if cached.get("reward") == reward.name else {}
    missing = [c for c in comparisons if c.id not in margins]
    if missing:
        models = open_reward_model(job, job.launch(training=False), reward)
        pairs = job.store.answers_of(missing, tokens=True)
        answers = [(prompt, side) for _, prompt, *sides in pairs for side in sides]
        rows = [completion_row(job, prompt, completion) for prompt, completion in answers]
        texts = [answer_of(prompt, completion) for prompt, completion in answers]
        score_B = models.score(Batch(rows), texts, job.config.policy.rewards).score_B
        # scores are normalised: times their standard deviation the difference [C] is in log odds
        margin_C = (score_B[0::2] - score_B[1::2]) * manifest.read(reward)["result"]["std"]
        margins |= dict(zip([c.id for c in missing], margin_C.tolist(), strict=True))
        write_cache(cache, {"reward": reward.name, "margins": margins})
    return {c.id: margins[c.id] for c in comparisons}
