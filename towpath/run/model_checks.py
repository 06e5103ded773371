"""What a check says of a model and its chat template: whether it can be trained and drawn from, what LoRA adapts,
whose tokens prompts are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from towpath.data.chat import Chat
from towpath.data.checks import first_names
from towpath.data.corpus import Corpus
from towpath.data.template_renderer import TemplateRaised
from towpath.errors import ModelError
from towpath.models.coverage import Coverage
from towpath.recipe import Recipe
from towpath.records import Finding
from towpath.run.sizes import Size, model_size

SAMPLED = 200
"""Rows on which this program's tokens are compared with the template's own."""
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
Row = TypeVar("Row")


def of_model(recipe: Recipe, folder: Path) -> tuple[Size, list[Finding]]:
    """The model's size, and whether it can be trained and drawn from: the measurement that loading makes, on a small
    copy."""
    from towpath.models import files, shape

    try:
        files.require(folder)
        size = model_size(folder)
        measured = shape.require(str(folder), recipe.model.attention)
        covered = shape.coverage(shape.described(str(folder), recipe.model.attention))
    except ModelError as error:
        return Size(), [Finding("model", "error", error.value, error.rule, error.fix)]
    findings = (
        []
        if measured
        else [
            Finding("model", "info", "no small copy of this model could be measured: it is measured when it is loaded")
        ]
    )
    stages = [
        name
        for name, stage in (("sft", recipe.sft), ("reward", recipe.reward), ("policy", recipe.policy))
        if stage.method == "lora"
    ]
    return replace(size, sides=covered.sides), findings + (_lora(covered, stages) if stages else [])


def of_experts(recipe: Recipe, folder: Path) -> list[Finding]:
    """That the policy's LoRA leaves experts as they are."""
    from towpath.models import shape

    if recipe.policy.method != "lora":
        return []
    findings = _lora(shape.coverage(shape.described(str(folder), recipe.model.attention)), ["policy"])
    return [finding for finding in findings if finding.severity == "warning"]


def _beyond(chat: Chat, size: Size) -> list[Finding]:
    """Tokens of the template that the model has no embedding for."""
    used = {chat.pad, *chat.stops, *chat.prompt("x"), *chat.answer("x")}
    beyond = sorted(token for token in used if size.vocabulary and token >= size.vocabulary)
    if not beyond:
        return []
    names = ", ".join(f"{chat.tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in beyond)
    evidence = f"the model has {size.vocabulary} embeddings, and the template or the tokenizer uses {names}"
    fix = "use the model's own tokenizer and template, or resize the model's embeddings"
    return [Finding("model", "error", evidence, "every token has an embedding", fix)]


def _lora(covered: Coverage, stages: Sequence[str]) -> list[Finding]:
    """Which weights LoRA adapts, and the experts that it leaves as they are."""
    evidence = (
        f"LoRA ({', '.join(stages)}) adapts {', '.join(covered.adapted)}: {covered.share:.1%} of "
        f"{covered.parameters / 1e6:,.1f} M parameters"
    )
    if not covered.experts:
        return [Finding("lora", "info", evidence, "every linear layer but the head", "")]
    left = ", ".join(f"{name} ({share:.0%})" for name, share in covered.experts.items())
    cause = "experts are stacked tensors in transformers, not linear layers; LoRA leaves them as they are"
    return [
        Finding(
            "lora",
            "warning",
            f"{evidence}; not {left}",
            cause,
            "set method = 'full' where it fits, or train a dense model",
        )
    ]


def of_template(chat: Chat, corpus: Corpus, size: Size | None = None) -> list[Finding]:
    """The contract of the template: an EOS that is not the pad, prompts that are the template's own, text that stays
    text."""
    findings = _beyond(chat, size or Size())
    tokenizer = chat.tokenizer

    def broken(evidence: str, cause: str, remedy: str, warn: bool = False) -> None:
        findings.append(Finding("template", "warning" if warn else "error", evidence, cause, remedy))

    if chat.answer("Six minutes.")[-1] != chat.eos:
        broken("answers do not end in EOS", "an answer must learn to end", "set eos_token in tokenizer_config.json")
    if chat.pad == chat.eos:
        broken(
            f"pad and EOS are the same token {chat.eos}",
            "masking the padding would mask the end of answers",
            "set another pad_token",
        )
    if tokenizer.chat_template != chat.template:
        broken(
            "the tokenizer's template was changed after it was read",
            "every stage renders prompts the same way",
            "set model.template instead",
        )
    bos = tokenizer.bos_token_id
    if bos is not None and bos not in chat.prompt("x") and tokenizer("x")["input_ids"][:1] == [bos]:
        broken(
            "the tokenizer begins texts with BOS, the template does not",
            "the model expects one BOS",
            "write bos_token in the template",
            warn=True,
        )
    special = "".join(tokenizer.all_special_tokens)
    controls = set(tokenizer.all_special_ids)
    plain, quoted = ([token for token in chat.prompt(text) if token in controls] for text in ("a b", f"a {special} b"))
    if quoted != plain or chat.answer(f"a {special} b").count(chat.eos) > 1:
        broken(
            "special tokens in a user's text act as special tokens",
            "text could end a turn or begin another",
            "use a fast tokenizer",
        )
    findings += _rendering(chat, corpus) + _saved(chat)
    marked = [x.id for x in (*corpus.prompts, *corpus.demonstrations) if chat.holds_control(x.prompt)]
    if marked:
        token = chat.tokenizer.eos_token
        evidence = f"{len(marked)} rows hold special tokens such as {token} in their text: {first_names(marked)}"
        broken(
            evidence,
            "they are read as ordinary characters; perhaps a template was applied already",
            "give the bare text",
            warn=True,
        )
    return findings


def _rendering(chat: Chat, corpus: Corpus) -> list[Finding]:
    """Whether prompts are the template's own tokens, and answers follow them as in the whole conversation, on rows
    of the data."""
    plain = [p for p in (*corpus.prompts, *corpus.safety) if not chat.holds_control(p.prompt)]
    other = [p.id for p in _spread(plain) if chat.prompt(p.prompt) != chat.template_tokens(p.prompt)]
    if other:
        evidence = (
            f"{len(other)} of {len(_spread(plain))} prompts are other tokens here than by apply_chat_template: "
            f"{first_names(other)}"
        )
        fix = "use model.template = 'chatml', or a template that writes the user's text unchanged"
        return [
            Finding("template", "error", evidence, "a model is trained on the tokens it is later prompted with", fix)
        ]
    return _of_the_frame(chat) or _of_the_seam(chat, corpus)


def _saved(chat: Chat) -> list[Finding]:
    """Whether a stage can write the tokenizer as it is."""
    from towpath.models import base

    if type(chat.tokenizer).__name__ in GENERIC:
        return []  # its tokenizer.json is read back as it is; large ones take seconds
    config = Path(chat.tokenizer.name_or_path) / "config.json"
    with TemporaryDirectory() as folder:
        place = Path(folder)
        if config.is_file():
            (place / "config.json").write_bytes(config.read_bytes())
        try:
            base.save_tokenizer(chat, place)
        except ModelError as error:
            return [Finding("template", "error", error.value, error.rule, error.fix)]
    return []


def _of_the_frame(chat: Chat) -> list[Finding]:
    """What the template writes around an answer."""
    prompt = "How do I boil an egg?"
    answer = "Six minutes."
    try:
        whole = chat.render(prompt, answer)
    except TemplateRaised as error:
        return [
            Finding(
                "template",
                "warning",
                f"the template cannot write an answer: {error.value}",
                "it writes prompts only",
                "fix the template",
            )
        ]
    if chat.drops_answers:
        cause = (
            "training uses the form that awaits an answer, and writes the answer after it; other programs would "
            "leave it out"
        )
        return [
            Finding(
                "template",
                "warning",
                "the template drops the answer",
                cause,
                "use model.template = 'chatml', or fix the template",
            )
        ]
    if not whole.startswith(chat.render(prompt)):
        cause = "prompt tokens must be a prefix of prompt and answer; training uses the form that awaits an answer"
        fix = "use model.template = 'chatml', or fix the template"
        return [
            Finding("template", "warning", "the template writes a prompt otherwise once it is answered", cause, fix)
        ]
    if chat.lead.strip():
        evidence = f"the template writes {chat.lead!r} between a prompt and its answer"
        return [
            Finding(
                "template",
                "warning",
                evidence,
                "answers begin right after the prompt here, in training and drawing alike",
                "",
            )
        ]
    if chat.end.strip() and not chat.ends_turns:
        evidence = (
            f"the template ends an answer with {chat.end!r}, which is no special token; answers end in "
            f"{chat.tokenizer.eos_token!r} here"
        )
        return [
            Finding("template", "warning", evidence, "an answer ends in one token", "set eos_token to what ends a turn")
        ]
    return []


def _of_the_seam(chat: Chat, corpus: Corpus) -> list[Finding]:
    """Whether tokens of the whole conversation reach across the seam between prompt and answer."""
    rows = [d for d in corpus.demonstrations if not chat.holds_control(d.prompt + d.response)]
    apart = []
    for d in _spread(rows):
        ours = [*chat.prompt(d.prompt), *chat.answer(d.response)]
        ours = ours if chat.ends_turns else ours[:-1]
        if ours != chat.template_tokens(d.prompt, d.response)[: len(ours)]:
            apart.append(d.id)
    if not apart:
        return []
    evidence = (
        f"{len(apart)} of {len(_spread(rows))} conversations are other tokens as a whole than as prompt and answer: "
        f"{first_names(apart)}"
    )
    cause = (
        "a token reaches across the end of the prompt; in every stage the prompt keeps its own tokens and the answer "
        "follows them"
    )
    return [
        Finding(
            "template", "warning", evidence, cause, "let the template's prompt end where a token ends, not in a space"
        )
    ]


def _spread(rows: Sequence[Row]) -> list[Row]:
    """At most so many rows, from the first to the last."""
    count = min(len(rows), SAMPLED)
    return [rows[i * len(rows) // count] for i in range(count)]
