"""`[preferences]`, `[judge]`, `[budget]`: completions to compare, who labels them, and what labels may cost."""

from typing import Literal

from towpath.recipe.reader import Section, value


class Decoding(Section):
    """How one completion is sampled."""

    temperature: float = value(1.0, "divides the logits", "0.6-1.2", gt=0)
    top_p: float = value(1.0, "nucleus sampling: smallest set of tokens with this mass", "0.9-1", gt=0, le=1)
    top_k: int = value(0, "keep the k likeliest tokens; 0 for all", "0-100", ge=0)
    min_p: float = value(0.0, "keep tokens with at least this fraction of the likeliest one", "0-0.1", ge=0, lt=1)


class Preferences(Section):
    """Completions and labels."""

    raters: Literal["simulated", "people", "judge", "blend", "recorded"] = value(
        "simulated",
        "who labels: a simulated rater (a rubric with noise), people, an AI judge, a judge with people for the "
        "doubtful pairs, or recorded preferences from files",
    )
    rules: dict[str, str] = value(
        {}, "rules that label too, by name: an expression over a and b, or python:MODULE:FUNCTION"
    )
    audit_share: float = value(
        0.12, "share of pairs that people label regardless of the judge", "0.1-0.2", "measures the judge", ge=0, le=1
    )
    human_share: float = value(0.35, "largest share of pairs that people label beside a judge", "0.3-0.4", ge=0, le=1)
    aggregate: Literal["dawid_skene", "majority"] = value(
        "majority",
        "how judgements of several raters become one label",
        why="dawid_skene weights raters by estimated reliability and needs overlap",
    )
    prompts: int = value(0, "training prompts to sample completions for; 0 for all", ge=0)
    completions: int = value(2, "completions of the tuned model per prompt", "2-8", ge=2)
    base_share: float = value(0.2, "share of prompts with one more completion, of the base model", "0-0.5", ge=0, le=1)
    max_new_tokens: int = value(80, "longest answer in tokens", ge=1)
    decodings: list[Decoding] = value(
        [Decoding(temperature=0.8), Decoding(temperature=1.0, top_p=0.95), Decoding(temperature=0.9, min_p=0.05)],
        "sampling settings, used in turn and recorded with each completion",
    )
    noise: float = value(0.05, "probability that the simulated rater flips its choice", "0-0.3", ge=0, lt=0.5)
    tie_margin: float = value(0.1, "score difference below which the simulated rater calls a tie", ge=0)
    both_bad: float = value(
        0.3, "score below which the simulated rater calls an answer bad; both_bad if both are", ge=0, le=1
    )
    overlap: float = value(
        0.15, "share of comparisons labelled by a second rater", "0.1-0.3", "measures rater agreement", ge=0, le=1
    )
    min_labels: int = value(200, "decided labels needed before the reward model is trained", ge=1)


class Judge(Section):
    """An AI judge behind an OpenAI-compatible server."""

    base_url: str = value("", "address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    model: str = value("", "model name on that server")
    api_key: str = value("", "API key as env:NAME or file:PATH; empty if the server needs none")
    rubric: str = value("", "path of a rubric; empty for the bundled one")
    samples: int = value(1, "replies requested in each order of the answers", "1-5", "cost grows with it", ge=1)
    temperature: float = value(0.0, "sampling temperature; above 0 if `samples` is more than 1", "0-1", ge=0)
    max_tokens: int = value(400, "longest reply in tokens", "200-800", ge=16)
    concurrency: int = value(4, "calls in flight at once", "1-64", ge=1)
    timeout: float = value(60.0, "seconds that one call may take", gt=0)
    retries: int = value(5, "retries of a failed call", "3-8", "a pair whose calls all fail stays unlabelled", ge=0)
    price_in: float = value(0.0, "dollars per million input tokens", "0-15", ge=0)
    price_out: float = value(0.0, "dollars per million output tokens", "0-75", ge=0)
    ceiling: float = value(
        0.0, "spending limit in dollars; 0 for none", why="a call that might exceed it is not made", ge=0
    )
    on_position_flip: Literal["tie", "people"] = value(
        "tie",
        "label of a pair whose verdict flips with the order of the answers: a tie, or left to people",
        why="16 % of a strong judge's verdicts flip",
    )


class LabelBudget(Section):
    """What labels may cost."""

    pairs: int = value(0, "comparisons wanted; 0 for all that are sampled", ge=0)
    seconds: float = value(60.0, "rater seconds per pair, until measured", "36-480", gt=0)
    wage: float = value(20.0, "dollars per rater hour", "10-60", ge=0)
    raters: int = value(2, "number of raters", ge=1)
    hours_a_day: float = value(
        4.0, "hours per day that one of them rates", "2-6", "attention does not last longer", gt=0
    )
    hours: float = value(0.0, "limit of rater hours; 0 for none", ge=0)
    dollars: float = value(0.0, "limit of dollars for people and judge together; 0 for none", ge=0)
    device_hour: float = value(
        0.0, "dollars of an hour of one GPU, for `towpath plan`; 0: as its table of devices says", "1-5", ge=0
    )
