"""Checks before a run of who judges win rates and refusals."""

from collections.abc import Iterator
from pathlib import Path

from towpath.data.bundled import is_bundled
from towpath.data.corpus import Corpus
from towpath.errors import TowpathError
from towpath.evals.no_judge import NO_JUDGE, NO_JUDGE_CODE, NO_JUDGE_FIX, NO_JUDGE_REASON
from towpath.feedback import judge_prompt, judge_runner, refusal_patterns
from towpath.judges.function import load_judge
from towpath.judges.selection import select_judges
from towpath.recipe import Recipe
from towpath.records import Finding
from towpath.rewards import sources
from towpath.run.fingerprint import needs_labels

CODE = "evaluation-judge"
MEANINGS = {
    "rubric": "the written rubric of the bundled recipes",
    "judge": "an AI judge in both orders",
    "people": "people in a blind arena; the run waits for them",
    "model": "a held-out reward model, trained on {share} of the prompts' labels, which train nothing else",
}


def check_judges(recipe: Recipe, run: Path, corpus: Corpus) -> Iterator[Finding]:
    """Whether evaluation judges fit the data and can be called, and who decides the gates."""
    specs = select_judges(recipe.evaluate, recipe.preferences.raters, corpus)
    if not specs:
        evidence = f"{NO_JUDGE}: the gates sft and evaluate will be UNDECIDED, and stop nothing"
        yield Finding(NO_JUDGE_CODE, "warning", evidence, NO_JUDGE_REASON, NO_JUDGE_FIX)
    elif "rubric" in recipe.evaluate.judges and "rubric" not in specs:
        evidence = "evaluate.judges: the written rubric is left out"
        yield Finding(CODE, "warning", evidence, NO_JUDGE_REASON, "remove 'rubric' from evaluate.judges")
    if recipe.preferences.raters == "simulated" and needs_labels(recipe) and not is_bundled(corpus):
        evidence = "preferences.raters = 'simulated' labels this data by the bundled recipes' rubric"
        cause = "such labels say nothing about what people prefer here"
        fix = "set preferences.raters to people, judge, blend or recorded"
        yield Finding("simulated-labels", "warning", evidence, cause, fix)
    for spec in specs:
        yield from _check_judge(recipe, run, corpus, spec)
    if specs:
        yield _describe(recipe, specs)
    yield from _check_languages(recipe, corpus)


def _check_judge(recipe: Recipe, run: Path, corpus: Corpus, spec: str) -> Iterator[Finding]:
    """Whether a judge can be called."""
    from towpath.models import files, locate

    try:
        if spec == "judge":
            judge_prompt.read_rubric(judge_runner.judge_settings(recipe.evaluate.judge, run).rubric)
        elif spec.startswith("model:"):
            files.require_classifier(Path(locate.find(sources.model_of(spec), run, "evaluate.judges")))
            yield from _check_independence(recipe, spec)
        elif spec not in MEANINGS:
            load_judge(spec, run, recipe.evaluate.tie_margin, sorted(corpus.column_names), lambda _pairs: {})
    except TowpathError as error:
        yield Finding(CODE, "error", f"evaluate.judges: {spec}: {error.value}", error.rule, error.fix)


def _check_languages(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    """Safety prompts in languages whose refusals no judge knows."""
    judge = recipe.evaluate.judge
    if recipe.evaluate.ask_judge and judge.base_url and judge.model:
        return
    named = [str(corpus.columns.get(p.id, {}).get("language") or "") for p in corpus.safety]
    languages = refusal_patterns.prompt_languages([p.text for p in corpus.safety], named)
    counts = refusal_patterns.uncovered(languages)
    if sum(counts.values()) > recipe.evaluate.max_unjudged * len(corpus.safety):
        groups = ", ".join(f"{n} in {name}" for name, n in counts.items())
        evidence = f"{groups} of {len(corpus.safety)} safety prompts: the gate safety will be UNDECIDED"
        cause = f"without an AI judge refusals are known by {refusal_patterns.NAME} only"
        yield Finding("safety-language", "warning", evidence, cause, "set base_url and model of [evaluate.judge]")


def _check_independence(recipe: Recipe, spec: str) -> Iterator[Finding]:
    """A judge must not be what the policy is rewarded by."""
    rewards = {source.source for source in recipe.policy.rewards.sources}
    if spec not in rewards and spec != f"model:{recipe.reward.pretrained}":
        return
    cause = "a policy that exploits its reward wins by it, whatever people prefer"
    fix = "name a reward model in evaluate.judges that does not reward the policy"
    yield Finding(CODE, "warning", f"evaluate.judges: {spec} is also the reward", cause, fix)


def _describe(recipe: Recipe, specs: tuple[str, ...]) -> Finding:
    """Who decides the gates, who is compared, and for an AI judge that people can audit it."""
    share = recipe.evaluate.reserved_labels
    first, *others = [MEANINGS.get(spec, spec).format(share=f"{share:.0%}") for spec in specs]
    evidence = f"the gates sft and evaluate are decided by {first}"
    if others:
        evidence += f"; compared with {', '.join(others)}"
    cause = f"evaluate.judges = {list(recipe.evaluate.judges)}"
    if not recipe.evaluate.judges:
        cause = f"the default with preferences.raters = {recipe.preferences.raters!r}"
    if (
        specs[0] == "judge"
        and recipe.preferences.raters in ("judge", "blend")
        and recipe.evaluate.judge == recipe.judge
    ):
        cause += "; the same judge makes the labels: another model in [evaluate.judge] shares fewer of its mistakes"
    fix = ""
    if specs == ("judge",):
        fix = "to let people audit it: evaluate.judges = ['judge', 'people'], or `towpath arena start RUN`"
    return Finding(CODE, "info", evidence, cause, fix)
