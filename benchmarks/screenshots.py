"""Pictures of the documentation: `python -m benchmarks.screenshots [--only NAME] [--run FOLDER]`.

Renders docs/images/*.png from the real pages in Chromium, at fixed sizes, with made-up runs and judgements. `--only`
(may be repeated) renders only these: monitor-light, monitor-dark, samples, compare, plan, rate-light, phone-dark,
ranking, statistics, pairs, conversation, conversation-phone, arena, arena-phone. `--run` renders docs/report.png from
the finished run in FOLDER instead, with this version's report.
Requires playwright and Chromium (`pip install playwright`, `apt install chromium`).
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import sleep, time
from typing import Any

from towpath import recipe
from towpath.records import Comparison, Completion, Judgement, Message, Prompt, Role
from towpath.run.status import run_verdicts
from towpath.store import arenas, people, rater_stats, rating_settings, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.sides import Side
from towpath.store.store import Store
from towpath.store.task_queue import RankingGroup, Task
from towpath.view.report import report
from towpath.web.server import create_server, open_socket

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tests"))

from watched_run import folder_of, policy_rows, write_run  # noqa: E402

PASSWORD = "correct horse battery"
ANSWERS = json.loads(Path(__file__).with_name("screenshots.json").read_text(encoding="utf-8"))
"""Prompts with their domain and answers, the worst first."""
CONVERSATION = ANSWERS.pop()
"""A conversation of eight turns with its system prompt; the first answer has reasoning."""
PAIRS = [row for row in ANSWERS if len(row["answers"]) == 3]
CODE = next(row for row in ANSWERS if len(row["answers"]) == 2)
WRITTEN = {
    "Can I freeze cooked rice?": "Yes: cool it within an hour, freeze portions of 200 g, and use them within a month.",
    "What can I use instead of buttermilk in pancakes?": "Half a cup of yogurt with half a cup of milk.",
}
RANKED = next(row for row in ANSWERS if len(row["answers"]) == 5)

FINDINGS = [
    {
        "code": "length-hacking",
        "severity": "critical",
        "evidence": "length 36 → 46 tokens, correlation of score and length 0.11 → 0.23",
        "cause": "the reward model prefers longer answers",
        "remedy": "set rewards.length_penalty, or add pairs of equal length",
        "first_step": 20,
        "ruled_out": ["truncation: finish rate 0.92", "a broken sampler: sampler_error 2e-06"],
    },
    {
        "code": "kl-rising",
        "severity": "warning",
        "evidence": "kl 0.12 → 0.31 in steps 9 to 20",
        "cause": "policy.kl.coef is low for this learning rate",
        "remedy": "double policy.kl.coef",
        "first_step": 8,
        "ruled_out": [],
    },
]
INTERVENTIONS = [
    {
        "step": 19,
        "knob": "kl_coef",
        "from": 0.05,
        "to": 0.1,
        "reason": "KL rose in twelve steps.",
        "finding": "kl-rising",
    },
    {
        "step": 29,
        "knob": "learning_rate_scale",
        "from": 1.0,
        "to": 0.5,
        "reason": "KL continued to rise.",
        "finding": "kl-rising",
    },
]


def policy_metrics(steps: int, seed: int, gain: float, kl: float) -> Iterator[dict[str, Any]]:
    """Rows of a policy run whose reward and KL differ by these factors from those of the tests' run."""
    draw = random.Random(seed)
    for row in policy_rows(steps, 60):
        if row["phase"] == "validation":  # a copy of values of the training row
            yield row
            continue
        for name in row:
            if name.startswith(("reward", "score", "watched")) and not name.endswith(("corr", "std")):
                row[name] = gain * row[name] + draw.gauss(0, 0.06)
            elif name.startswith("kl"):
                row[name] *= kl
        row["kl_coef"] = 0.05 if row["step"] < 20 else 0.1
        row["learning_rate_scale"] = 1.0 if row["step"] < 30 else 0.5
        yield row


def validation_samples(steps: int, seed: int, gain: float, prompts: int, noise: float) -> Iterator[dict[str, Any]]:
    """Answers that improve from validation to validation; prompts repeat if there are more than the list has."""
    draw = random.Random(seed)
    offsets = [draw.gauss(0, 0.5) for _ in range(prompts)]
    for step in [-1, *range(3, steps, 4)]:
        for number in range(prompts):
            row = PAIRS[number % len(PAIRS)]
            progress = (step + 1) / 60
            quality = min(int(3 * progress + 0.4 * (number % 3)), 2) if step >= 0 else 0
            reward = offsets[number] + gain * 1.6 * progress * (1.2 - progress / 2) + draw.gauss(0, noise)
            yield {
                "step": step,
                "prompt_id": f"p{number}",
                "prompt": row["prompt"],
                "domain": row["domain"],
                "text": row["answers"][quality],
                "score": round(reward + 0.1, 3),
                "reward": round(reward, 3),
            }


def write_policy_run(
    run: Path,
    steps: int,
    gain: float,
    kl: float,
    settings: str = "",
    win: float | None = None,
    prompts: int = 128,
    noise: float = 1.0,
) -> Path:
    """A run of the tests' shape with these metrics, samples, findings and interventions."""
    seed = sum(run.name.encode())
    write_run(run, steps, recipe=settings, evaluated=win is not None)
    folder = folder_of(run)
    contents = {
        "metrics.jsonl": list(policy_metrics(steps, seed, gain, kl)),
        "samples.jsonl": list(validation_samples(steps, seed, gain, prompts, noise)),
        "interventions.jsonl": INTERVENTIONS,
    }
    for name, rows in contents.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "findings.json").write_text(json.dumps(FINDINGS), encoding="utf-8")
    if win is not None:
        manifest = folder_of(run, "evaluate") / "manifest.json"
        final = contents["metrics.jsonl"][-1]["kl"]
        result = {"win": {"rate": win, "interval": [win - 0.05, win + 0.05], "n": 306}, "kl_per_prompt": final}
        manifest.write_text(json.dumps({"status": "done", "result": result}), encoding="utf-8")
        (folder_of(run, "evaluate") / "answers.jsonl").unlink()
    return run


def fill_ledger(store: Store) -> None:
    """Queue every pair of answers for three raters and judge most of them; carl is fast and always chooses left."""
    for row_number, row in enumerate(ANSWERS):
        store.add_prompts([Prompt(f"p{row_number}", row["prompt"], domain=row["domain"])])
        store.add_completions(
            Completion(f"s1.p{row_number}.{k}", f"p{row_number}", "sft", text, (1,), (-0.1,), "stop")
            for k, text in enumerate(row["answers"])
        )
    for row_number, row in enumerate(ANSWERS):
        if row in PAIRS:
            pairs = [(0, 1), (0, 2), (1, 2)]
            names = [f"k{row_number}{a}{b}" for a, b in pairs]
            store.add_comparisons(
                Comparison(name, f"p{row_number}", f"s1.p{row_number}.{a}", f"s1.p{row_number}.{b}")
                for name, (a, b) in zip(names, pairs, strict=True)
            )
            store.add_tasks([Task(name, row["domain"], seats=3) for name in names])
    settings = RatingSettings(
        gold_share=0.0,
        min_view=0.0,
        criteria=("helpful", "correct", "style"),
        reasons=("wrong fact", "too long", "off topic", "unsafe"),
    )
    store.submit_write(rating_settings.save, settings).result()
    for rater, count in (("ann", 18), ("bob", 16), ("carl", 20)):
        for number in range(count):
            judge_next(store, rater, number, time() - 60 * (count - number))


def add_conversation(store: Store) -> None:
    """Queue a pair whose prompt has a system prompt and six earlier turns."""
    turns: list[str] = CONVERSATION["turns"]
    roles: list[Role] = ["user", "assistant"]
    earlier = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns[:-1]))
    history = (Message("system", CONVERSATION["system"]), *earlier)
    store.add_prompts([Prompt("talk", turns[-1], CONVERSATION["domain"], history=history)])
    names = ["talk.a", "talk.b"]
    store.add_completions(
        Completion(name, "talk", "sft", text, (1,), (-0.1,), "stop")
        for name, text in zip(names, CONVERSATION["answers"], strict=True)
    )
    store.add_comparisons([Comparison("talk", "talk", *names)])
    store.add_tasks([Task("talk", CONVERSATION["domain"], seats=2, priority=15)])


def add_arena(store: Store) -> int:
    """A closed arena of conversations, judged by three people; returns its number."""
    turns: list[str] = CONVERSATION["turns"]
    roles: list[Role] = ["user", "assistant"]
    earlier = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns[:-1]))
    history = (Message("system", CONVERSATION["system"]), *earlier)
    ours, other = CONVERSATION["answers"]
    inputs = [
        arenas.MatchInput(Prompt(f"talk{i}", turns[-1], CONVERSATION["domain"], history=history), ours, other, "a")
        for i in range(40)
    ]
    number = store.submit_write(arenas.create, "policy", "sft", 0.5, "olga", inputs).result().number
    draw = random.Random("arena")
    matches = store.read(arenas.list_matches, number)
    store.add_judgements(
        Judgement(f"{m.comparison}/{rater}", m.comparison, rater, "person", "a" if draw.random() < 0.8 else "b")
        for m, rater in zip(matches, ["ann", "bob", "carl"] * 14, strict=False)
    )
    store.submit_write(arenas.close, number, "decided", "PASS").result()
    return number


def judge_next(store: Store, rater: str, number: int, at: float) -> None:
    """Judge a rater's next pair: by the known order of the answers with some errors, or always left for carl."""
    draw = random.Random(f"{rater}/{number}")
    seconds = 1.2 + draw.random() if rater == "carl" else draw.uniform(14, 34)
    task = store.submit_write(rater_stats.rating_page, rater, at - seconds).result().task
    assert task is not None
    answers = next(row["answers"] for row in PAIRS if row["prompt"] == task.prompt)
    left, right = (answers.index(text) for text in task.answers)
    side: Side = "left" if (left > right) == (draw.random() < 0.85) else "right"
    if rater == "carl":
        side = "left"
    written = WRITTEN.get(task.prompt) if rater == "bob" and abs(left - right) == 2 else None
    submission = verdicts.Submission(
        f"{rater}-{number}",
        task.comparison,
        rater,
        verdicts.StoredVerdict(side, 3 if abs(left - right) == 2 else 1),
        round(1000 * seconds),
        comment="Could be more specific." if written else "",
        reasons=("too long",) if rater == "ann" and number % 6 == 0 else (),
        criteria={"helpful": side},
    )
    store.submit_write(verdicts.judge, submission, at).result()
    if written:
        key = f"written-{number}"
        store.submit_write(verdicts.save_written_answer, key, task.comparison, rater, written).result()


@contextmanager
def serving(store: Store, team: bool, run: Path | None = None) -> Iterator[tuple[str, Any]]:
    """The server in a thread: its address and its authenticator."""
    server, auth = create_server(store, team, run=run)
    with open_socket("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", auth
        server.should_exit = True
        thread.join()


class Camera:
    """Opens pages in Chromium and writes their pictures."""

    def __init__(self, browser: Any, names: list[str]) -> None:
        self.browser = browser
        self.names = names

    def wants(self, *names: str) -> bool:
        """Whether any of these pictures was requested."""
        return not self.names or any(name in self.names for name in names)

    def open(self, url: str, **options: Any) -> Any:
        """A page of a new browser context."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 960}} | options)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.goto(url)
        return page

    def save(self, page: Any, path: Path, full_page: bool = False) -> None:
        """Write the picture, and close the page."""
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(400)  # transitions
        page.screenshot(path=path, full_page=full_page)
        page.context.close()
        print(path.relative_to(ROOT))


@contextmanager
def monitor(camera: Camera, run: Path) -> Iterator[Callable[..., Any]]:
    """The server of a run: a function that opens a page of its monitor and waits for the charts."""
    with Store.open(run / "towpath.db") as store, serving(store, team=False, run=run) as (url, auth):

        def visit(path: str, **options: Any) -> Any:
            page = camera.open(f"{url}/enter?token={auth.link_token()}", **options)
            page.goto(url + path)
            page.wait_for_function("() => document.body.dataset.drawn !== undefined")
            return page

        yield visit


def picture_monitor(camera: Camera, folder: Path) -> None:
    """The pictures of one run."""
    with monitor(camera, write_policy_run(folder / "ppo", 40, 1.0, 1.0, prompts=len(PAIRS), noise=0.3)) as visit:
        if camera.wants("monitor-light"):
            camera.save(visit("/monitor"), DOCS / "images" / "monitor-light.png")
        if camera.wants("monitor-dark"):
            page = visit("/monitor", color_scheme="dark")
            page.keyboard.press("s")
            page.evaluate("scrollTo(0, document.querySelector('.setting').offsetTop - 8)")
            camera.save(page, DOCS / "images" / "monitor-dark.png")
        if camera.wants("samples"):
            page = visit("/monitor/samples")
            page.click("#differences")
            page.wait_for_selector(".answer-text mark")
            camera.save(page, DOCS / "images" / "samples.png")


def picture_compare(camera: Camera, folder: Path) -> None:
    """The comparison of a running and two finished runs."""
    run = write_policy_run(folder / "ppo", 40, 1.0, 1.0)
    write_policy_run(folder / "ppo-high-lr", 60, 0.85, 2.0, "learning_rate = 1e-4\n", win=0.66)
    write_policy_run(folder / "ppo-low-kl", 60, 1.2, 1.5, "[policy.kl]\ncoef = 0.02\n", win=0.78)
    with monitor(camera, run) as visit:
        page = visit("/monitor/compare?names=reward&names=kl&runs=ppo&runs=ppo-high-lr&runs=ppo-low-kl")
        page.wait_for_selector("#plane .dot")
        camera.save(page, DOCS / "images" / "compare.png", full_page=True)


def picture_rating(camera: Camera, folder: Path) -> None:
    """The pictures of the rating page and of the owner's pages."""
    with Store.open(folder / "towpath.db") as store, serving(store, team=True) as (url, auth):
        fill_ledger(store)
        roles: dict[str, people.Role] = {"olga": "owner", "ann": "rater", "bob": "rater", "carl": "rater"}
        for name, role in roles.items():
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()

        def visit(name: str, path: str, width: int = 1280, height: int = 640, **options: Any) -> Any:
            page = camera.open(f"{url}/sign-in", viewport={"width": width, "height": height}, **options)
            page.fill("#name", name)
            page.fill("#password", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url(lambda address: "sign-in" not in address)
            page.goto(url + path)
            return page

        if camera.wants("statistics"):
            camera.save(visit("olga", "/owner"), DOCS / "images" / "statistics.png", full_page=True)
        if camera.wants("pairs"):
            page = visit("olga", "/owner/pairs?having=written", height=900)
            page.locator("main summary").first.click()
            camera.save(page, DOCS / "images" / "pairs.png")
        code = ANSWERS.index(CODE)
        store.add_comparisons([Comparison("code", f"p{code}", f"s1.p{code}.0", f"s1.p{code}.1")])
        store.add_tasks([Task("code", CODE["domain"], priority=10)])
        if camera.wants("rate-light"):
            camera.save(visit("ann", "/rate"), DOCS / "images" / "rate-light.png")
        if camera.wants("phone-dark"):
            phone = {"is_mobile": True, "has_touch": True, "color_scheme": "dark", "device_scale_factor": 4 / 3}
            camera.save(visit("ann", "/rate", 390, 844, **phone), DOCS / "images" / "phone-dark.png")
        if camera.wants("conversation", "conversation-phone"):
            add_conversation(store)
        if camera.wants("conversation"):
            page = visit("bob", "/rate", height=760)
            page.keyboard.press("e")
            camera.save(page, DOCS / "images" / "conversation.png")
        if camera.wants("conversation-phone"):
            phone = {"is_mobile": True, "has_touch": True, "device_scale_factor": 4 / 3}
            page = visit("ann", "/rate", 390, 844, **phone)
            page.locator(".reasoning summary").click()
            camera.save(page, DOCS / "images" / "conversation-phone.png")
        if camera.wants("arena", "arena-phone"):
            number = add_arena(store)
            for name, width, height in (("arena", 1280, 1500), ("arena-phone", 390, 1600)):
                page = visit("olga", f"/arena/{number}", width, height)
                page.locator("#pairs details > summary").first.click()
                page.get_by_text("6 earlier turns").first.click()
                if camera.wants(name):
                    camera.save(page, DOCS / "images" / f"{name}.png")
        if camera.wants("ranking"):
            ranked = ANSWERS.index(RANKED)
            members = tuple(f"s1.p{ranked}.{k}" for k in range(5))
            store.add_groups([RankingGroup("ranking", f"p{ranked}", members, RANKED["domain"], priority=20)])
            page = visit("bob", "/rate", height=700)
            for text in (RANKED["answers"][0], RANKED["answers"][2]):
                page.locator("article", has_text=text).get_by_role("button").click()
            camera.save(page, DOCS / "images" / "ranking.png")


def picture_report(camera: Camera, run: Path) -> None:
    """The top of the report of a finished run; the report itself is written into a copy of the run."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / run.resolve().name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("weights", "checkpoints", ".cache"))
        page = report.write(copy, run_verdicts(recipe.load(copy), copy))
        viewport = {"width": 1200, "height": 1500}
        camera.save(camera.open(page.as_uri(), viewport=viewport), DOCS / "report.png")


PLANNED = (
    "--on 8xA100-80GB --model-size 7B --pairs 50000 --completions 1500000 --set preferences.raters=blend "
    "--set preferences.human_share=0.35 --set preferences.overlap=0.1 --set budget.raters=3 --set policy.rollout=512 "
    "--set judge.base_url=http://localhost:8000/v1 --set judge.model=judge-70b --set judge.price_out=10"
)
"""The options of the worked example in docs/plan.md."""


def picture_plan(camera: Camera, folder: Path) -> None:
    """The plan of the worked example, as a page."""
    run = folder / "assistant"
    page = folder / "plan.html"
    for words in (["new", run], ["plan", run, *PLANNED.split(), "--html", page]):
        subprocess.run([sys.executable, "-m", "towpath", *map(str, words)], check=True, capture_output=True)
    camera.save(camera.open(page.as_uri(), viewport={"width": 1200, "height": 1450}), DOCS / "images" / "plan.png")


GROUPS: dict[Callable[[Camera, Path], None], tuple[str, ...]] = {
    picture_monitor: ("monitor-light", "monitor-dark", "samples"),
    picture_compare: ("compare",),
    picture_plan: ("plan",),
    picture_rating: (
        *("rate-light", "phone-dark", "ranking", "statistics", "pairs"),
        *("conversation", "conversation-phone", "arena", "arena-phone"),
    ),
}


def main() -> None:
    """Render the requested pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], choices=[name for names in GROUPS.values() for name in names]
    )
    parser.add_argument("--run", type=Path, help="a finished run, for docs/report.png")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with ExitStack() as stack:
        driver = stack.enter_context(sync_playwright())
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stack.callback(browser.close)
        camera = Camera(browser, options.only)
        for picture, names in GROUPS.items():
            if camera.wants(*names) and not (options.run and not options.only):
                picture(camera, Path(stack.enter_context(TemporaryDirectory())))
        if options.run:
            picture_report(camera, options.run)


if __name__ == "__main__":
    main()
