"""The monitor's sample browser: answers to one prompt, checkpoint by checkpoint."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from towpath.errors import DataError
from towpath.run.live_record import LiveRun
from towpath.run.samples import PromptSamples, Sort
from towpath.web import pages, safe_html
from towpath.web.auth import StatsViewer
from towpath.web.monitor import CurrentRun, Name, json_response, require_stage

router = APIRouter(prefix="/monitor/samples")

PromptId = Annotated[str, Query(max_length=2000)]


@router.get("")
def samples_page(request: Request, account: StatsViewer, run: CurrentRun, stage: Name = "") -> HTMLResponse:
    """Show the sample browser."""
    with run.lock:
        name = _policy_stage(run, stage)
        samples = run.stages[name].samples if name else None
        return pages.render_page(
            request,
            "samples.html",
            account,
            stage=name,
            stages=[one for one in run.stages if one.startswith("policy")],
            domains=samples.domains if samples else [],
            count=len(samples.prompts) if samples else 0,
        )


def _policy_stage(run: LiveRun, stage: str) -> str:
    """Return `stage` if it is a policy stage, else the last one with samples."""
    names = [name for name in run.stages if name.startswith("policy")]
    if stage in names:
        return stage
    with_samples = [name for name in names if run.stages[name].samples.prompts]
    return (with_samples or names or [""])[-1]


@router.get("/list")
def list_prompts(
    request: Request, account: StatsViewer, run: CurrentRun, stage: Name, domain: Name = "", sort: Sort = "order"
) -> Response:
    """Return the prompts with the change of their reward."""
    with run.lock:
        prompts = require_stage(run, stage).samples.sorted_prompts(domain, sort)
        return json_response(request, [_summary(prompt) for prompt in prompts])


def _summary(prompt: PromptSamples) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "prompt": " ".join(prompt.prompt.split())[:160],
        "domain": prompt.domain,
        "change": prompt.change,
        "answers": len(prompt.answers),
    }


@router.get("/prompt")
def prompt_answers(request: Request, account: StatsViewer, run: CurrentRun, stage: Name, id: PromptId) -> Response:
    """Return one prompt with all its answers."""
    with run.lock:
        prompt = _require_prompt(run, stage, id)
        versions = [
            {"key": v.key, "label": v.label, "text": v.text, "scores": v.scores, "reward": v.reward}
            for v in prompt.answers
        ]
        content = {
            "id": prompt.id,
            "prompt": prompt.prompt,
            "history": prompt.history,
            "domain": prompt.domain,
            "change": prompt.change,
            "versions": versions,
        }
        return json_response(request, content)


@router.get("/differences")
def answer_differences(
    request: Request, account: StatsViewer, run: CurrentRun, stage: Name, id: PromptId, left: Name, right: Name
) -> Response:
    """Return two answers with differing words marked."""
    with run.lock:
        texts = {version.key: version.text for version in _require_prompt(run, stage, id).answers}
    if left not in texts or right not in texts:
        raise DataError(f"{left}, {right}: no such answers", "two answers to this prompt", "choose two from the list")
    one, two = safe_html.text_diff(texts[left], texts[right])
    return json_response(request, {"left": one, "right": two})


def _require_prompt(run: LiveRun, stage: str, name: str) -> PromptSamples:
    prompt = require_stage(run, stage).samples.prompts.get(name)
    if prompt is None:
        raise DataError(f"{name!r}: no such prompt", "a prompt with answers", "choose one from the list")
    return prompt
