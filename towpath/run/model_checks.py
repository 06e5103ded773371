"""Checks of a model and its chat template: whether the model can be trained and sampled, what LoRA adapts, and whether
prompts are the template's own tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from towpath.algos import data_of
from towpath.data.chat import Chat
from towpath.data.checks import first_names
from towpath.data.corpus import Corpus
from towpath.data.demonstration_rows import demonstration_row, turn_findings
from towpath.data.template_renderer import TemplateRaised
from towpath.data.token_lengths import UNRENDERABLE, prompt_tokens
from towpath.errors import ModelError
from towpath.models.coverage import Coverage
from towpath.planning.sizes import Size, model_size
from towpath.recipe import Policy, Recipe, Reward, Sft
from towpath.records import Demonstration, Finding, Prompt, Severity
from towpath.rewards import sources

MAX_ROWS = 200
"""Rows whose tokens are compared with those of the template."""
GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
USE_CHATML = "use model.template = 'chatml', or fix the template"
Row = TypeVar("Row")


def check_model(recipe: Recipe, folder: Path) -> tuple[Size, list[Finding]]:
    """The model's size, and whether it can be trained and sampled, as measured on a small copy."""
    from towpath.models import files, shape

    try:
        files.require(folder)
        size = model_size(folder)
        attention = attention_of(recipe, folder)
        measured = shape.require(str(folder), attention)
        stages = [(name, stage) for name, stage in _stages(recipe) if stage.method == "lora"]
        targets = dict.fromkeys(tuple(stage.lora.targets) for _, stage in stages)
        described = shape.described(str(folder), attention)
        coverages = {chosen: shape.coverage(described, chosen) for chosen in targets}
    except ModelError as error:
        return Size(), [Finding("model", "error", error.value, error.rule, error.fix)]
    findings = []
    if not measured:
        evidence = "no small copy of this model could be measured: it is measured when it is loaded"
        findings.append(Finding("model", "info", evidence))
    for chosen, coverage in coverages.items():
        findings.append(_lora(coverage, [name for name, stage in stages if tuple(stage.lora.targets) == chosen]))
    sides = [coverage.sides for coverage in coverages.values()]
    return replace(size, lora_sides=max(sides, default=None)), [*findings, *check_settings(recipe)]


def attention_of(recipe: Recipe, folder: Path) -> str:
    """The attention that this machine gives the model of a folder."""
    from towpath.models.attention_choice import resolve
    from towpath.runtime.process import device_named, dtype_named

    device = device_named(recipe.model.device)
    return resolve(recipe.model.attention, str(folder), dtype_named(recipe.model.dtype, device), device)


def _stages(recipe: Recipe) -> tuple[tuple[str, Sft | Reward | Policy], ...]:
    return ("sft", recipe.sft), ("reward", recipe.reward), ("policy", recipe.policy)


def check_settings(recipe: Recipe) -> list[Finding]:
    """Settings of the model that do not go together."""
    findings = []
    policy = recipe.policy
    if policy.method == "lora" and policy.lora.dropout and data_of(policy.algo) == "rollouts":
        evidence = f"policy.lora.dropout = {policy.lora.dropout:g} with policy.algo = {policy.algo!r}"
        cause = "dropout changes the probability ratio that the update is weighted by"
        findings.append(Finding("lora", "error", evidence, cause, "set policy.lora.dropout to 0"))
    if recipe.model.quantize == "none":
        return findings
    full = [name for name, stage in _stages(recipe) if stage.method == "full"]
    if full:
        evidence = f"model.quantize = {recipe.model.quantize!r} with {full[0]}.method = 'full'"
        fix = f"set {full[0]}.method = 'lora', or remove model.quantize"
        findings.append(Finding("model", "error", evidence, "weights in four bits are frozen", fix))
    from towpath.models import quantized
    from towpath.runtime.process import device_named

    try:
        quantized.require(device_named(recipe.model.device))
    except ModelError as error:
        findings.append(Finding("model", "error", error.value, error.rule, error.fix))
    return findings


def check_classifiers(recipe: Recipe, run: Path) -> list[Finding]:
    """Whether reward models from elsewhere are there and what they must be."""
    from towpath.models import files, locate

    reward = recipe.reward
    findings = []
    if reward.base and reward.pretrained:
        evidence = f"reward.base = {reward.base!r} and reward.pretrained = {reward.pretrained!r}"
        cause = "a reward model begins with one model"
        findings.append(Finding("model", "error", evidence, cause, "remove one of them"))
    if reward.train and not reward.pretrained:
        evidence = "reward.train = true without reward.pretrained"
        findings.append(Finding("model", "error", evidence, "it trains a pretrained one further", "remove it"))
    named = [(source, "policy.rewards") for source in sources.classifiers(recipe.policy.rewards)]
    named += [(reward.pretrained, "reward.pretrained")] if reward.pretrained else []
    named += [(reward.base, "reward.base")] if reward.base else []
    for source, key in named:
        try:
            folder = Path(locate.find(sources.model_of(source), run, key))
            files.require(folder)
            if key != "reward.base":
                files.require_classifier(folder)
            elif files.is_classifier(folder):
                value = f"{key} = {source!r}: a sequence-classification model"
                raise ModelError(value, "reward.base is a language model", "name it in reward.pretrained")
        except ModelError as error:
            findings.append(Finding("model", "error", error.value, error.rule, error.fix))
    return findings


def classifier_sizes(recipe: Recipe, run: Path) -> tuple[Size | None, int]:
    """The size of the model that the reward model begins with, None if that is the tuned model, and the parameters of
    the reward models that the policy's rewards name. Missing ones count nothing: `check_classifiers` names them."""
    reward = _size_of(recipe.reward.source, run) if recipe.reward.source else None
    named = (_size_of(source, run).parameters or 0 for source in sources.classifiers(recipe.policy.rewards))
    return reward, sum(named)


def _size_of(source: str, run: Path) -> Size:
    from towpath.models import locate

    try:
        return model_size(Path(locate.find(sources.model_of(source), run)))
    except ModelError:
        return Size()


def check_experts(recipe: Recipe, folder: Path) -> list[Finding]:
    """A warning if the policy's LoRA does not adapt the experts of a mixture."""
    from towpath.models import shape

    if recipe.policy.method != "lora":
        return []
    described = shape.described(str(folder), attention_of(recipe, folder))
    finding = _lora(shape.coverage(described, recipe.policy.lora.targets), ["policy"])
    return [finding] if finding.severity == "warning" else []


def _lora(coverage: Coverage, stages: Sequence[str]) -> Finding:
    """Which weights LoRA adapts, and the experts that it does not."""
    if not coverage.adapted:
        evidence = f"lora.targets of {', '.join(stages)} name no layer of this model"
        fix = "name linear, attention, mlp, experts or all, or layers as docs/models.md lists them"
        return Finding("lora", "error", evidence, "an adapter changes some layers", fix)
    evidence = (
        f"LoRA ({', '.join(stages)}) adapts {', '.join(coverage.adapted)}: {coverage.share:.1%} of "
        f"{coverage.parameters / 1e6:,.1f} M parameters"
    )
    if not coverage.experts:
        return Finding("lora", "info", evidence, "as lora.targets says", "")
    experts = ", ".join(f"{name} ({share:.0%})" for name, share in coverage.experts.items())
    cause = "experts are stacked tensors in transformers, not linear layers; lora.targets does not name them"
    fix = "add 'experts' to lora.targets; it costs memory of the size of the experts' weights in every pass"
    return Finding("lora", "warning", f"{evidence}; not {experts}", cause, fix)


def check_template(chat: Chat, corpus: Corpus, size: Size | None = None) -> list[Finding]:
    """The contract of the template: EOS is not the pad token, prompts are the template's own tokens, and special tokens
    in a text stay text."""
    findings = _check_embeddings(chat, size or Size())
    tokenizer = chat.tokenizer
    if chat.answer("Six minutes.")[-1] != chat.eos:
        fix = "set eos_token in tokenizer_config.json"
        findings.append(_template("answers do not end in EOS", "an answer must learn to end", fix, "error"))
    if chat.pad == chat.eos:
        evidence = f"pad and EOS are the same token {chat.eos}"
        cause = "masking the padding would mask the end of answers"
        findings.append(_template(evidence, cause, "set another pad_token", "error"))
    if tokenizer.chat_template != chat.template:
        evidence = "the tokenizer's template was changed after it was read"
        cause = "every stage renders prompts the same way"
        findings.append(_template(evidence, cause, "set model.template instead", "error"))
    bos = tokenizer.bos_token_id
    if bos is not None and bos not in chat.prompt("x") and tokenizer("x")["input_ids"][:1] == [bos]:
        evidence = "the tokenizer begins texts with BOS, the template does not"
        findings.append(_template(evidence, "the model expects one BOS", "write bos_token in the template"))
    findings += _check_special_tokens(chat) + _check_rendering(chat, corpus) + _check_saving(chat)
    rows = [row.id for row in (*corpus.prompts, *corpus.demonstrations) if chat.holds_control(row.text)]
    if rows:
        evidence = (
            f"{len(rows)} rows hold special tokens such as {tokenizer.eos_token} in their text: {first_names(rows)}"
        )
        cause = "they are read as ordinary characters; perhaps a template was applied already"
        findings.append(_template(evidence, cause, "give the bare text"))
    return findings


def _template(evidence: str, cause: str, fix: str, severity: Severity = "warning") -> Finding:
    return Finding("template", severity, evidence, cause, fix)


def _check_embeddings(chat: Chat, size: Size) -> list[Finding]:
    """Tokens of the template that the model has no embedding for."""
    tokens = {chat.pad, *chat.stops, *chat.prompt("x"), *chat.answer("x")}
    outside = sorted(token for token in tokens if size.vocabulary and token >= size.vocabulary)
    if not outside:
        return []
    names = ", ".join(f"{chat.tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in outside)
    evidence = f"the model has {size.vocabulary} embeddings, and the template or the tokenizer uses {names}"
    fix = "use the model's own tokenizer and template, or resize the model's embeddings"
    return [Finding("model", "error", evidence, "every token has an embedding", fix)]


def _check_special_tokens(chat: Chat) -> list[Finding]:
    """Whether special tokens in a user's text become control tokens."""
    special = "".join(chat.tokenizer.all_special_tokens)
    control_ids = set(chat.tokenizer.all_special_ids)
    text = f"a {special} b"
    plain = [token for token in chat.prompt("a b") if token in control_ids]
    quoted = [token for token in chat.prompt(text) if token in control_ids]
    if quoted == plain and chat.answer(text).count(chat.eos) <= 1:
        return []
    evidence = "special tokens in a user's text act as special tokens"
    return [_template(evidence, "text could end a turn or begin another", "use a fast tokenizer", "error")]


def _check_rendering(chat: Chat, corpus: Corpus) -> list[Finding]:
    """Whether prompts of the data are the template's own tokens, and how it writes answers."""
    rows = _sample([p for p in (*corpus.prompts, *corpus.safety) if not chat.holds_control(p.text)])
    rows = [p for p in rows if _renders(chat, p)]
    different = [p.id for p in rows if chat.prompt(p.messages) != chat.template_tokens(p.messages)]
    if different:
        evidence = (
            f"{len(different)} of {len(rows)} prompts are other tokens here than by apply_chat_template: "
            f"{first_names(different)}"
        )
        cause = "a model is trained on the tokens it is later prompted with"
        fix = "use model.template = 'chatml', or a template that writes the user's text unchanged"
        return [_template(evidence, cause, fix, "error")]
    return _check_answer_format(chat) or _check_boundary(chat, corpus)


def _check_saving(chat: Chat) -> list[Finding]:
    """Whether a stage can save the tokenizer unchanged."""
    from towpath.models import base

    if type(chat.tokenizer).__name__ in GENERIC_TOKENIZERS:
        return []  # its tokenizer.json is read back unchanged; to save a large one takes seconds
    config = Path(chat.tokenizer.name_or_path) / "config.json"
    with TemporaryDirectory() as name:
        folder = Path(name)
        if config.is_file():
            (folder / "config.json").write_bytes(config.read_bytes())
        try:
            base.save_tokenizer(chat, folder)
        except ModelError as error:
            return [_template(error.value, error.rule, error.fix, "error")]
    return []


def _check_answer_format(chat: Chat) -> list[Finding]:
    """What the template writes around an answer."""
    prompt = "How do I boil an egg?"
    try:
        conversation = chat.render(prompt, "Six minutes.")
    except TemplateRaised as error:
        evidence = f"the template cannot write an answer: {error.value}"
        return [_template(evidence, "it writes prompts only", "fix the template")]
    if chat.drops_answers:
        cause = (
            "training uses the generation prompt and writes the answer after it; other programs would leave the answer "
            "out"
        )
        return [_template("the template drops the answer", cause, USE_CHATML)]
    if not conversation.startswith(chat.render(prompt)):
        cause = "prompt tokens must be a prefix of prompt and answer; training uses the generation prompt"
        return [_template("the template writes a prompt otherwise once it is answered", cause, USE_CHATML)]
    if chat.lead.strip():
        evidence = f"the template writes {chat.lead!r} between a prompt and its answer"
        return [_template(evidence, "answers begin right after the prompt here, in training and sampling alike", "")]
    if chat.end.strip() and not chat.ends_turns:
        evidence = (
            f"the template ends an answer with {chat.end!r}, which is no special token; answers end in "
            f"{chat.tokenizer.eos_token!r} here"
        )
        return [_template(evidence, "an answer ends in one token", "set eos_token to what ends a turn")]
    return []


def check_turns(chat: Chat, corpus: Corpus, cfg: Sft) -> list[Finding]:
    """Whether all answers of conversations can be trained on, by a sample of them."""
    if cfg.turns == "last":
        return []
    rows = _sample([d for d in corpus.demonstrations if any(m.role == "assistant" for m in d.history)])
    rows = [d for d in rows if _renders(chat, d)]
    return turn_findings([d.id for d in rows if demonstration_row(chat, d, cfg).problem], len(rows))


def _check_boundary(chat: Chat, corpus: Corpus) -> list[Finding]:
    """Whether tokens of whole conversations cross the boundary between prompt and answer."""
    rows = _sample([d for d in corpus.demonstrations if not chat.holds_control(d.text + d.response)])
    rows = [d for d in rows if _renders(chat, d)]
    different = []
    for row in rows:
        tokens = [*chat.prompt(row.messages), *chat.answer(row.response)]
        tokens = tokens if chat.ends_turns else tokens[:-1]
        if tokens != chat.template_tokens(row.messages, row.response)[: len(tokens)]:
            different.append(row.id)
    if not different:
        return []
    evidence = (
        f"{len(different)} of {len(rows)} conversations are other tokens as a whole than as prompt and answer: "
        f"{first_names(different)}"
    )
    cause = (
        "a token crosses the end of the prompt; in every stage the prompt keeps its own tokens and the answer follows "
        "them"
    )
    return [_template(evidence, cause, "let the template's prompt end where a token ends, not in a space")]


def _renders(chat: Chat, record: Prompt | Demonstration) -> bool:
    """Whether the template renders a conversation; rows that it does not render are listed with the lengths."""
    return prompt_tokens(chat, record.messages) != UNRENDERABLE


def _sample(rows: Sequence[Row]) -> list[Row]:
    """At most MAX_ROWS rows, evenly spaced."""
    count = min(len(rows), MAX_ROWS)
    return [rows[i * len(rows) // count] for i in range(count)]
