"""The monitor in a real browser: live curves, zoom, keyboard, reconnection, samples, run comparison, phone and dark
layout, axe."""

import json
import shutil

import pytest
from conftest import serious
from watched_run import append, folder_of, policy_rows, samples, serving_run, short_run, write_run, write_workers

from towpath.run.new_run import create_run
from towpath.store.publish import lock_folder
from towpath.store.store import Store

DRAWN = "last => document.body.dataset.drawn === String(last)"


SHORT = pytest.mark.parametrize("run", [short_run], indirect=True, ids=["short"])


@pytest.fixture
def run(tmp_path, request):
    return getattr(request, "param", write_run)(tmp_path / "runs" / "canal")


@pytest.fixture
def server(run):
    with Store.open(run / "towpath.db") as store, serving_run(run, store) as (url, auth):
        yield url, auth


@pytest.fixture
def visit(browser, server):
    """Opens pages for the owner; a console error or a request to another server fails the test."""
    url, auth = server
    contexts = []
    errors = []
    foreign = []

    def opened(path="/monitor", **options):
        context = browser.new_context(base_url=url, **{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else foreign.append(request.url))
        page.goto(f"/enter?token={auth.link_token()}")
        page.goto(path)
        page.wait_for_function("() => document.body.dataset.drawn !== undefined")
        return page

    opened.errors = errors
    yield opened
    for context in contexts:
        context.close()
    assert not errors
    assert not foreign


def chart(page, title):
    return page.locator("figure.chart").filter(has=page.get_by_role("heading", name=title, exact=True))


def axis_of(page, title) -> tuple[str, str]:
    """The numbers at both ends of a chart's axis; no line may begin to the left of it."""
    chart(page, title).locator(".line path").first.wait_for(state="attached")
    assert page.evaluate(
        "[...axis.charts].every(chart => chart.visibleLines().every(line => chart.x(line.steps[0]) >= chart.left))"
    )
    ends = [
        chart(page, title).locator(f'text.tick[text-anchor="{anchor}"]').last.text_content()
        for anchor in ("start", "end")
    ]
    return ends[0], ends[1]


def tip(page) -> str:
    return page.locator(".tip").first.inner_text()


def test_new_step_is_drawn(visit, run):
    page = visit()
    before = chart(page, "Reward").locator(".line.c0 path").first.get_attribute("d")
    assert "40 of 60" in page.inner_text("#headline")
    page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
    append(folder_of(run) / "metrics.jsonl", list(policy_rows(41, 60))[-1:])
    page.wait_for_function(DRAWN, arg=41)
    page.wait_for_function("() => document.getElementById('headline').innerText.includes('41 of 60')")
    page.wait_for_function(
        """([title, before]) => [...document.querySelectorAll("figure.chart")]
        .find(one => one.querySelector("h3").textContent === title)
        .querySelector(".line.c0 path").getAttribute("d") !== before""",
        arg=["Reward", before],
    )
    assert page.locator("figure.chart").count() > 25


def test_charts_show_their_metrics(visit):
    page = visit()
    for title, words in (
        ("Reward", "score without penalties"),
        ("Reward by domain", "cooking"),
        ("Reward by source", "rule:ends"),
        ("KL, nats per prompt", "k3"),
    ):
        assert words in chart(page, title).locator(".legend").inner_text()
    kl = chart(page, "KL, nats per prompt")
    assert kl.locator(".band.good").count() == 1
    assert kl.locator("text.guide.good").text_content() == "target 0.5"
    assert kl.locator(".line.validation circle").count() == 20
    assert chart(page, "Reward").locator(".mark.intervention").count() == 2


@SHORT
def test_axis_range_and_step_counts(visit):
    page = visit()
    assert "3 of 3" in page.inner_text("#headline")
    assert "at step 3" in page.inner_text("#headline")
    assert axis_of(page, "Reward") == ("0", "3")
    assert "before training" in page.inner_text("#findings")
    assert "from step 3" in page.inner_text("#findings")
    chart(page, "Reward").locator(".plot").focus()
    page.keyboard.press("Home")
    assert tip(page).startswith("step 0")
    page.keyboard.press("ArrowRight")
    assert tip(page).startswith("step 1")
    assert "(step 0)" in tip(page)  # the held-out value is of the validation at step 0
    page.goto("/monitor?stage=sft")
    assert axis_of(page, "Loss") == ("1", "50")
    page.goto("/monitor/compare?names=reward&names=kl")
    assert axis_of(page, "reward") == axis_of(page, "kl") == ("0", "3")
    page.goto("/monitor/compare?names=entropy")
    assert axis_of(page, "entropy") == ("1", "3")
    page.goto("/monitor/samples")
    assert axis_of(page, "Reward of this prompt") == ("0", "3")
    assert page.locator("#right option").all_inner_texts() == ["base model", "tuned model", "step 3"]
    assert (page.input_value("#left"), page.input_value("#right")) == ("0", "3")


@SHORT
@pytest.mark.parametrize("width", [1280, 375])
def test_long_legend_scrolls_without_gaps(visit, axe, width):
    page = visit(viewport={"width": width, "height": 900})
    figure = chart(page, "Reward by domain")
    legend = figure.locator(".legend")
    entries = figure.locator(".legend button")
    assert entries.count() == 14
    assert entries.first.locator("b").count() == 2
    assert figure.get_by_role("button", name="held out").count() == 14
    assert legend.evaluate("it => it.clientHeight < 120 && it.scrollHeight > it.clientHeight")
    gaps = page.evaluate(
        """() => [...axis.charts].flatMap(({ figure, legend, plot }) => {
        const [around, names, picture] = [figure, legend, plot].map((one) => one.getBoundingClientRect());
        return [picture.top - names.bottom, around.bottom - picture.bottom];
        })"""
    )
    assert 0 <= min(gaps) <= max(gaps) < 12
    entries.last.focus()
    box = entries.last.bounding_box()
    around = legend.bounding_box()
    assert around["y"] <= box["y"] < box["y"] + box["height"] <= around["y"] + around["height"] + 1
    page.keyboard.press("Enter")
    assert entries.last.get_attribute("aria-pressed") == "false"
    assert figure.locator(".line").count() == 26  # the line and its validation markers are hidden
    assert not serious(page, axe)
    figure.get_by_role("button", name="Larger").click()
    assert legend.evaluate("it => it.scrollHeight === it.clientHeight")


def test_resumed_run_is_redrawn(visit, run):
    page = visit()
    page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
    rows = [json.dumps(row) for row in policy_rows(24, 60)]
    (folder_of(run) / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    page.wait_for_function(DRAWN, arg=24)
    append(folder_of(run) / "metrics.jsonl", list(policy_rows(25, 60))[-1:])
    page.wait_for_function(DRAWN, arg=25)


def test_chart_tooltip_by_pointer_and_keyboard(visit):
    page = visit()
    plot = chart(page, "Reward").locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.wait_for_function("() => !document.querySelector('.tip').hidden")
    assert "step" in tip(page)
    assert "score without penalties" in tip(page)
    page.mouse.move(0, 0)
    plot.focus()
    page.keyboard.press("Home")
    assert tip(page).startswith("step 1")
    page.keyboard.press("ArrowRight")
    assert tip(page).startswith("step 2")
    for _ in range(2):
        page.keyboard.press("m")
    assert "kl_coef: 0.05 → 0.1" in tip(page)
    assert "KL rose past the alarm" in tip(page)
    assert page.locator("p.unseen[aria-live]").first.inner_text().startswith("step 12; reward")
    page.keyboard.press("+")
    page.wait_for_function("() => document.getElementById('range').textContent.startsWith('steps')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#everything[open]")
    assert "explained_variance" in page.inner_text("#everything-rows")
    page.keyboard.press("Escape")
    plot.focus()
    page.keyboard.press("0")
    page.wait_for_function("() => document.getElementById('range').textContent === ''")


def test_drag_zoom_requests_the_range(visit, run):
    append(folder_of(run) / "metrics.jsonl", list(policy_rows(3000, 3000))[50:])
    page = visit()
    chart(page, "Reward").locator(".plot").scroll_into_view_if_needed()
    box = chart(page, "Reward").locator(".plot").bounding_box()
    with page.expect_request(lambda request: "low=" in request.url and "high=" in request.url):
        page.mouse.move(box["x"] + 150, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 220, box["y"] + 60, steps=4)
        page.mouse.up()
    page.wait_for_function("() => document.getElementById('range').textContent.startsWith('steps')")
    low, high = (
        int(word.replace("\u00a0", "")) for word in page.inner_text("#range").removeprefix("steps ").split(" to ")
    )
    assert 300 < low < high < 2700
    page.wait_for_function(
        "range => { const steps = [...axis.charts][0].data.lines[0].steps; "
        "return steps[0] === range[0] && steps.at(-1) === range[1] }",
        arg=[low, high],
    )
    page.click("#all")
    page.wait_for_function("() => [...axis.charts][0].data.lines[0].steps[0] === 1")


def test_intervention_marks_by_keyboard(visit):
    page = visit()
    page.focus("#strip button >> nth=1")
    assert "KL rose past the alarm in three steps." in tip(page)
    assert page.locator("#findings > li").count() == 2
    assert "double policy.kl.coef" in page.inner_text("#findings")
    assert "Entropy fell by a third." in page.inner_text("#interventions")
    page.click("#interventions button >> nth=0")
    page.wait_for_function("() => document.getElementById('range').textContent.startsWith('steps')")


def test_smoothing_log_scale_search_and_tables(visit):
    page = visit("/monitor?stage=sft")
    page.click("#smooth")
    page.wait_for_function("() => document.body.dataset.drawn")
    page.click("#log")
    page.wait_for_function("() => [...axis.charts].find(chart => chart.data.title === 'Loss').log === true")
    page.keyboard.press("/")
    page.keyboard.type("gradient")
    assert page.locator("figure.chart:visible h3").all_inner_texts() == ["Gradient norm"]
    page.fill("#find", "")
    chart(page, "Loss").get_by_role("button", name="Table").click()
    assert chart(page, "Loss").locator("tbody tr").count() > 10
    chart(page, "Loss").get_by_role("button", name="Larger").click()
    assert chart(page, "Loss").bounding_box()["width"] > 1000


def test_smoothed_lines_are_drawn_over_the_raw_ones(visit, run):
    append(folder_of(run) / "metrics.jsonl", list(policy_rows(400, 400))[50:])
    page = visit()
    page.click("#smooth")
    page.wait_for_selector(".line .smooth")
    assert page.locator(".line .faint").count() > 0
    page.reload()
    page.wait_for_selector(".line .smooth")  # the setting survives a reload


def test_lost_connection_is_shown_and_restored(visit, run):
    page = visit()
    page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
    page.context.set_offline(True)
    page.evaluate("source.close(); heard = 1")  # offline mode keeps open streams alive
    page.wait_for_function(
        "() => document.getElementById('link').innerText.includes('Connection lost')", timeout=15_000
    )
    append(folder_of(run) / "metrics.jsonl", list(policy_rows(43, 60))[-3:])
    page.context.set_offline(False)
    page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'", timeout=25_000)
    page.wait_for_function(DRAWN, arg=43)
    visit.errors.clear()  # the browser reports the lost connection


def test_page_reconnects_to_a_restarted_server(browser, run):
    with Store.open(run / "towpath.db") as store:
        with serving_run(run, store) as (url, auth):
            port = int(url.rpartition(":")[2])
            page = browser.new_context(base_url=url).new_page()
            page.goto(f"/enter?token={auth.link_token()}")
            page.goto("/monitor")
            page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
        page.wait_for_function("() => document.getElementById('link').dataset.state === 'lost'")
        append(folder_of(run) / "metrics.jsonl", list(policy_rows(41, 60))[-1:])
        with serving_run(run, store, port=port):
            page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
            page.wait_for_function(DRAWN, arg=41)
        page.context.close()


def test_run_without_metrics_appears_by_itself(visit, run):
    shutil.rmtree(folder_of(run))
    page = visit("/monitor?stage=policy")
    assert page.is_visible("#nothing")
    append(folder_of(run) / "metrics.jsonl", policy_rows(2, 60))
    page.wait_for_function(DRAWN, arg=2)
    page.wait_for_selector("figure.chart")
    assert not page.is_visible("#nothing")


def test_hundred_thousand_steps_are_downsampled(browser, tmp_path):
    run = write_run(tmp_path / "runs" / "long", 4, 200_000)
    names = [name for name in next(policy_rows(1)) if name not in ("step", "phase")]
    with (folder_of(run) / "metrics.jsonl").open("w") as file:
        for step in range(100_000):
            value = 50.0 if step == 61_803 else round(1 + step % 977 / 1000, 4)
            file.write(
                f'{{"step": {step}, "phase": "train", ' + ", ".join(f'"{name}": {value}' for name in names) + "}\n"
            )
    with Store.open(run / "towpath.db") as store, serving_run(run, store) as (url, auth):
        context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(f"/enter?token={auth.link_token()}")
        page.goto("/monitor")
        page.wait_for_function(DRAWN, arg=100_000)
        page.wait_for_selector(".line path")
        page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
        counts = page.evaluate("[...axis.charts].flatMap(chart => chart.data.lines.map(line => line.steps.length))")
        assert 100 < max(counts) <= 2000
        assert page.evaluate("Math.max(...[...axis.charts][0].data.lines[0].values)") == 50, "the spike is kept"

        requests = []
        page.on("request", lambda request: requests.append(request.url))
        append(folder_of(run) / "metrics.jsonl", [{"step": 100_000, "phase": "train", "reward": 3.0}])
        page.wait_for_function(DRAWN, arg=100_001)
        assert requests == [], "a new step arrives on the open stream"
        context.close()


def test_samples_by_keyboard(visit, run):
    page = visit("/monitor/samples")
    assert page.inner_text("#prompt") == "How long do I boil an egg? (0)"
    assert (page.input_value("#left"), page.input_value("#right")) == ("0", "40")
    page.keyboard.press("ArrowLeft")
    assert page.input_value("#right") == "36"
    page.keyboard.press("d")
    page.wait_for_selector("#right-text mark")
    assert page.locator("#left-text b").count() == 0  # model output is not markup
    page.keyboard.press("j")
    page.wait_for_function("() => document.getElementById('prompt').textContent.includes('(1)')")
    assert page.input_value("#right") == "36"
    page.select_option("#sort", "fall")
    page.wait_for_function("() => document.querySelector('#prompts button').textContent.includes('(7)')")
    page.select_option("#domain", "travel")
    page.wait_for_function("() => document.querySelectorAll('#prompts li').length === 3")
    append(folder_of(run) / "samples.jsonl", [row for row in samples(44) if row["step"] == 43])
    page.wait_for_function("() => [...document.getElementById('right').options].some(one => one.value === '44')")


def test_runs_are_compared(visit, run):
    write_run(run.parent / "wide", 60, 60, "learning_rate = 5e-5\n", evaluated=True)
    page = visit("/monitor/compare")
    assert page.locator('input[name="runs"]:checked').count() == 2
    assert chart(page, "reward").get_by_role("button", name="held out").count() == 2
    diff = page.locator("[aria-label='Recipe diff']")
    assert "[policy]" in diff.inner_text()
    assert [line.split("= ")[1] for line in diff.locator("del, ins").all_inner_texts() if "learning_rate" in line] == [
        "2e-05",
        "5e-05",
    ]
    page.wait_for_function("() => document.querySelectorAll('#points tr').length === 26")
    assert page.locator("#plane .best").count() == 1
    assert page.locator("#plane .dot").count() == 1
    page.focus("#plane")
    page.keyboard.press("ArrowLeft")
    assert "evaluated" in page.locator(".tip:visible").inner_text()
    assert "78 %" in page.locator(".tip:visible").inner_text()
    page.click("#by-reward")
    page.wait_for_function("() => document.querySelectorAll('#plane .best').length === 0")
    write_run(run.parent / "third", 3, 3, "learning_rate = 2e-5\n")
    page.goto("/monitor/compare?runs=canal&runs=wide&runs=third")
    row = page.get_by_role("row").filter(has_text="policy.learning_rate")
    assert row.locator("mark").all_inner_texts() == ["5e-05"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_axe_and_no_horizontal_overflow(visit, run, axe, scheme, width):
    write_run(run.parent / "wide", 60, 60, "learning_rate = 5e-5\n", evaluated=True)
    write_workers(folder_of(run), late=1)
    page = visit("/monitor", color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_function("() => document.getElementById('link').dataset.state === 'live'")
    violations = []
    for path in ("/monitor", "/monitor?stage=sft", "/monitor/samples", "/monitor/compare"):
        page.goto(path)
        page.wait_for_function("() => document.body.dataset.drawn !== undefined")
        page.wait_for_timeout(300)
        if path == "/monitor":
            chart(page, "Reward").get_by_role("button", name="Table").click()
        if path.endswith("samples"):
            page.keyboard.press("d")
            page.wait_for_selector("mark")
        violations += serious(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert not violations, "\n".join(violations)
    page.goto("/monitor")
    page.wait_for_function("() => document.body.dataset.drawn !== undefined")
    page.keyboard.press("?")
    assert page.is_visible("#keys-dialog")
    assert not serious(page, axe)


@pytest.mark.parametrize("run", [lambda folder: create_run(folder, "tiny") or folder], indirect=True, ids=["tiny"])
def test_plan_page_is_accessible_and_fits_a_phone(browser, server, axe):
    url, auth = server
    for scheme, width in (("light", 1280), ("dark", 375)):
        context = browser.new_context(base_url=url, color_scheme=scheme, viewport={"width": width, "height": 800})
        page = context.new_page()
        page.goto(f"/enter?token={auth.link_token()}")
        page.goto("/monitor/plan")
        page.get_by_label("GPUs").fill("8xH100")
        page.get_by_label("Model size").fill("7B")
        page.get_by_role("button", name="Plan").click()
        assert "on 8 × H100" in page.inner_text("h1")
        assert page.get_by_role("img", name="Critical path").is_visible()
        assert not serious(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto("/monitor/plan?on=" + 50 * "x")
        assert "no such device in the table" in page.inner_text("main")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        context.close()


def test_workers_are_shown_while_they_work(visit, run):
    page = visit()
    assert not page.is_visible("#workers")
    with lock_folder(run):
        write_workers(folder_of(run), late=1)
        rows = page.locator("#workers-rows tr")
        rows.nth(3).wait_for()
        assert "forward_backward" in rows.nth(0).inner_text() and "idle" in rows.nth(2).inner_text()
        late = rows.nth(1).locator("td.bad")
        assert late.inner_text().replace("\u00a0", " ") == "31 s, limit 1 min 0 s"
        assert "training 1 min 6 s" in rows.nth(0).get_by_role("img").get_attribute("aria-label").replace("\u00a0", " ")
        widths = rows.nth(0).locator("rect").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
        assert len(widths) == 6 and widths[2] > widths[0] > widths[3] > 0
        assert page.locator("#workers-phases li").count() == 6


def test_findings_below_the_tiles_and_constant_charts_are_folded(visit, run):
    path = folder_of(run) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(row | ({"always": 3.0} if row["phase"] == "train" else {})) + "\n" for row in rows)
    )
    page = visit()
    below = [page.locator(where).first.bounding_box()["y"] for where in ("#headline", "#findings-title", "#charts")]
    assert below == sorted(below)
    tiles = page.locator("#headline").bounding_box()
    findings = page.locator("#findings-title").bounding_box()
    assert findings["y"] - tiles["y"] - tiles["height"] < 60
    folded = page.locator("details.folded")
    assert not chart(page, "Always").is_visible()
    assert "Always" in folded.locator("summary").inner_text()
    assert page.locator(".wall:not(.folded)").get_by_role("heading", name="Always").count() == 0
    folded.locator("summary").click()
    page.wait_for_function("() => document.querySelector('.folded .line path')?.getBBox().width > 50")
    folded.locator("summary").click()
    page.fill("#find", "always")
    assert chart(page, "Always").is_visible()
