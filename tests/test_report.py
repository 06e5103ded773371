"""The report of a run: its summary, its terminal output, and a well-formed and safe HTML page."""

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_run import HOSTILE, write_run

from towpath.errors import DataError
from towpath.run.record import read_run
from towpath.view.charts import Chart, ReferenceLine, Series, draw, ticks
from towpath.view.format import duration, number, percent, percents, size
from towpath.view.report.frontier import best_of_n
from towpath.view.report.report import summarise, terminal, write

VOID = {"meta", "input", "br", "link", "img", "hr"}
GATE = {"verdict", "value", "interval", "threshold", "n", "note", "judge"}


class Page(HTMLParser):
    """The elements of a page with their attributes; a wrongly nested element is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def report(run: Path, last: str = "evaluate") -> str:
    return write(run, write_run(run, last)).read_text(encoding="utf-8")


def change(run: Path, stage: str, **result: object) -> None:
    path = next((run / "stages" / stage).glob("*/manifest.json"))
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"result": manifest["result"] | result}))


def test_summary_keys_and_values(tmp_path: Path) -> None:
    summary = summarise(tmp_path, write_run(tmp_path))
    assert list(summary["stages"]) == ["sft", "baseline", "sample", "label", "reward", "policy", "evaluate"]
    for name, stage in summary["stages"].items():
        gates = {"gate"} if name in ("sft", "reward", "policy") else {"gate", "safety"} if name == "evaluate" else set()
        assert set(stage) == {"seconds", "peak_memory_bytes", "fingerprint"} | gates
        assert all(set(stage[gate]) == GATE for gate in gates)
    assert summary["stages"]["reward"]["gate"] == {
        "verdict": "PASS",
        "value": 0.8854,
        "interval": [0.834, 0.922],
        "threshold": 0.85,
        "n": 192,
        "note": "",
        "judge": "",
    }
    assert summary["stages"]["evaluate"]["safety"]["verdict"] == "UNDECIDED"
    assert set(summary) == {
        "stages",
        "kl_per_prompt",
        "kl_interval",
        "win_rate_sft_over_base",
        "win_rate_policy_over_sft",
        "length_controlled_win_rate",
        "reward_accuracy",
        "length_only_accuracy",
        "agreement_ceiling",
        "simulated_labels",
        "skipped_rows",
        "seconds",
        "peak_memory_bytes",
        "outcome",
        "evaluation_judge",
    }
    assert summary["kl_per_prompt"] == 0.912
    assert set(summary["win_rate_policy_over_sft"]) == {"rate", "interval", "n", "wins", "ties", "losses", "rule"}
    assert summary["win_rate_policy_over_sft"]["rate"] == 0.8106 and summary["win_rate_sft_over_base"]["rate"] == 0.8068
    assert summary["length_controlled_win_rate"]["rate"] == 0.777 and set(summary["length_controlled_win_rate"]) == {
        "rate",
        "interval",
    }
    assert (summary["reward_accuracy"], summary["length_only_accuracy"]) == (0.8854, 0.604)
    assert summary["seconds"] == pytest.approx(3311.8) and summary["peak_memory_bytes"] == int(2.8 * 2**30)


def test_summary_of_an_unfinished_run(tmp_path: Path) -> None:
    summary = summarise(tmp_path, write_run(tmp_path, "reward"))
    assert list(summary["stages"]) == ["sft", "baseline", "sample", "label", "reward"]
    assert (
        summary["win_rate_policy_over_sft"] is summary["length_controlled_win_rate"] is summary["kl_per_prompt"] is None
    )
    assert summary["reward_accuracy"] == 0.8854


def test_summary_file_is_strict_json(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path)
    write(tmp_path, [replace(verdict, value=float("nan")) for verdict in verdicts])

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    summary = json.loads((tmp_path / "reports" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["stages"]["sft"]["gate"]["value"] is None


def test_rewriting_replaces_both_files(tmp_path: Path) -> None:
    first = report(tmp_path)
    change(tmp_path, "reward", accuracy=0.5)
    again = write(tmp_path, [], "Another <name>").read_text(encoding="utf-8")
    assert again != first and "Another &lt;name&gt;" in again
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["report.html", "summary.json"]
    assert json.loads((tmp_path / "reports" / "summary.json").read_text())["reward_accuracy"] == 0.5


def test_page_is_well_formed(tmp_path: Path) -> None:
    html = report(tmp_path)
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for attrs in page.all("a")} <= {f"#{name}" for name in ids}
    drawings = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(drawings) > 40
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in page.all("svg"))
    assert {attrs.get("scope") for attrs in page.all("th")} == {"col", "row"}
    assert "nan" not in " ".join(drawings).lower()


def test_page_loads_nothing_and_allows_only_its_own_script(tmp_path: Path) -> None:
    html = report(tmp_path)
    page = Page(html)
    loads = [
        value
        for _, attrs in page.elements
        for key, value in attrs.items()
        if key in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert not [value for value in loads if not str(value).startswith("#")]
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") or key == "style" for key in attrs)]
    assert "@import" not in html and "url(" not in html
    policy = next(
        str(attrs["content"]) for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        assert len(blocks) == 1
        assert f"{tag}-src 'sha256-{b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()}'" in policy


def test_answers_are_escaped(tmp_path: Path) -> None:
    html = report(tmp_path)
    assert "<script>alert" not in html and "<img" not in html and "{{ 7 * 7 }}" in html
    assert Page(html).text.count(HOSTILE) == 2  # among the samples and in the table


def test_lone_surrogate_in_an_answer_is_replaced(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path, answers=1)
    path = next(tmp_path.glob("stages/evaluate/*/answers.jsonl"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"policy": "before \ud800 after"}) + "\n")
    assert "before ? after" in write(tmp_path, verdicts).read_text(encoding="utf-8")


def test_outcome_sentence(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path)
    outcome = "The policy wins over SFT on 81 % of 264 held-out prompts (95 % interval 76–86 %), "
    outcome += "78 % at equal length, by the written rubric; KL 0.91 nats per prompt."
    assert summarise(tmp_path, verdicts)["outcome"].replace("\u00a0", " ") == outcome
    win = {"rate": 0.52, "interval": [0.46, 0.58], "n": 264}
    change(tmp_path, "evaluate", win=win)
    assert summarise(tmp_path, verdicts)["outcome"].startswith("No clear preference: the policy wins over SFT on 52")
    change(tmp_path, "evaluate", win=win | {"rate": 0.3, "interval": [0.25, 0.36]})
    assert summarise(tmp_path, verdicts)["outcome"].startswith("The policy is worse than SFT: it wins on only 30")
    longer = win | {
        "rate": 0.63,
        "interval": [0.58, 0.69],
        "length_controlled": {"rate": 0.54, "interval": [0.48, 0.6]},
    }
    change(tmp_path, "evaluate", win=longer)
    at_equal_length = "but 54 % (48–60 %) at equal length, which may be chance, by the written rubric;"
    assert at_equal_length in summarise(tmp_path, verdicts)["outcome"].replace("\u00a0", " ")


def test_simulated_labels_are_marked(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path)
    notice = "Labels by a simulated rater: the written rubric with 5\u00a0% noise."
    assert notice in write(tmp_path, verdicts).read_text(encoding="utf-8")
    change(tmp_path, "label", simulated=False, raters={"ada": "person"})
    assert "simulated rater" not in write(tmp_path, verdicts).read_text(encoding="utf-8")
    assert not summarise(tmp_path, verdicts)["simulated_labels"]


def test_failed_gate_is_stated_first(tmp_path: Path) -> None:
    verdicts = [
        replace(verdict, verdict="FAIL", value=0.61) if verdict.gate == "evaluate" else verdict
        for verdict in write_run(tmp_path)
    ]
    text = Page(write(tmp_path, verdicts).read_text(encoding="utf-8")).text
    assert text.count("✓ PASS") == 3 and text.count("✗ FAIL") == 1 and text.count("? UNDECIDED") == 1
    sentence = "The evaluate gate failed: 61.0\u00a0% (threshold 70\u00a0%)."
    assert sentence in text and text.index(sentence) < text.index("Stages and gates")


@pytest.mark.parametrize(("last", "missing"), [("", 7), ("baseline", 6), ("reward", 4), ("policy", 3)])
def test_stages_that_have_not_run(tmp_path: Path, last: str, missing: int) -> None:
    page = Page(report(tmp_path, last))
    assert page.text.count("has not run yet") == missing
    assert bool(page.all("figure")) == bool(last)


def test_unfinished_stage_shows_its_metrics(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path, "policy")
    next(tmp_path.glob("stages/policy/*/manifest.json")).unlink()
    text = Page(write(tmp_path, verdicts[:2]).read_text(encoding="utf-8")).text
    assert "Policy optimization is not finished" in text and "KL, nats per prompt" in text


def test_waiting_reason_and_findings_are_shown(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path, "sample")
    path = tmp_path / "current.json"
    findings = [
        {"code": f"f-{tone}", "severity": tone, "evidence": f"<{tone}> seen", "remedy": "fix it."}
        for tone in ("info", "warning")
    ]
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"waiting_for": "labels: 3 of 200 decided", "findings": findings})
    )
    text = Page(write(tmp_path, verdicts).read_text(encoding="utf-8")).text
    assert (
        "The run is waiting for: labels: 3 of 200 decided." in text
        and "<warning> seen. Fix it." in text
        and "<info> seen" not in text
    )


def test_terminal_summary(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path)
    assert "The policy wins over SFT on 81" in terminal(tmp_path)
    path = write(tmp_path, verdicts)
    lines = [" ".join(line.split()) for line in terminal(tmp_path, 130).replace("\u00a0", " ").splitlines()]
    reward = next(line for line in lines if line.startswith("reward"))
    assert "PASS 88.5 %" in reward and reward.endswith("more than 85 % of 192")
    assert any(line.startswith("safety UNDECIDED 3.0 %") and line.endswith("at most 5 % of 132") for line in lines)
    assert lines[-2:] == ["55 min 12 s, at most 2.8 GiB of memory", f"report: {path}"]
    assert "base SFT policy" in lines
    narrow = terminal(tmp_path, 40).splitlines()
    assert any(line.startswith("SFT: ") for line in narrow)


def test_later_metric_rows_of_a_resumed_stage_win(tmp_path: Path) -> None:
    write_run(tmp_path, "policy")
    path = next(tmp_path.glob("stages/policy/*/metrics.jsonl"))
    path.write_text(path.read_text() + '{"step": 15, "phase": "train", "kl": 0.25}\n{"step": 16, "phase": "tr')
    policy = read_run(tmp_path).stages["policy"]
    assert policy.curve("kl")[-1] == (16, 0.25) and len(policy.curve("kl")) == 16
    path.write_text('{"step": 0, "phase"\n{"step": 1, "phase": "train", "kl": 0.25}\n')
    with pytest.raises(DataError, match="line 1"):
        read_run(tmp_path)


def test_latest_round_is_reported(tmp_path: Path) -> None:
    verdicts = write_run(tmp_path)
    current = json.loads((tmp_path / "current.json").read_text())
    current["stages"] |= {"reward@2": current["stages"]["reward"]}
    (tmp_path / "current.json").write_text(json.dumps(current))
    assert "gate" in summarise(tmp_path, verdicts)["stages"]["reward"]  # the second round has not run
    shutil.copytree(tmp_path / "stages" / "reward", tmp_path / "stages" / "reward@2")
    change(tmp_path, "reward@2", accuracy=0.95)
    stages = summarise(tmp_path, verdicts)["stages"]
    assert "gate" in stages["reward@2"] and "gate" not in stages["reward"]
    assert summarise(tmp_path, verdicts)["reward_accuracy"] == 0.95
    assert "Reward model, round 2" in write(tmp_path, verdicts).read_text(encoding="utf-8")


def test_best_of_n_matches_theory() -> None:
    assert best_of_n(1) == (0.0, 0.5)
    assert best_of_n(4) == (pytest.approx(0.636294), 0.8)


def test_chart_coordinates() -> None:
    marks = (ReferenceLine("y", 2.0, "alarm"), ReferenceLine("x", 3.0, "kept"))
    drawing = str(draw(Chart("A & B", [Series("one", [(1, 0.0), (3, 1.0), (5, 2.0)])], marks, low=0.0, high=2.0)))
    assert 'd="M44.0 182.0L207.0 100.0L370.0 18.0"' in drawing
    assert 'y1="18.0" y2="18.0"' in drawing and 'x1="207.0" x2="207.0"' in drawing and "A &amp; B" in drawing
    assert draw(Chart("none", [Series("one", [])])) == ""
    stack = str(draw(Chart("s", [Series(name, [(1, 1.0), (2, 1.0)], "area") for name in "ab"], low=0.0, high=2.0)))
    assert "M44.0 18.0L370.0 18.0" in stack and "M44.0 100.0L370.0 100.0" in stack


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.02, 0.001), (0.913, 0.987), (0, 12345), (1e-6, 2e-5)])
def test_axis_ticks_are_few_and_inside_the_range(low: float, high: float) -> None:
    values = ticks(low, high, 4)
    assert 2 <= len(values) <= 6 and all(low - 1e-9 <= at <= high + 1e-9 for at in values)


def test_number_formats() -> None:
    assert [number(0.912), number(2), number(-0.5), number(1234.5), number(2e-5), number(None)] == [
        "0.912",
        "2",
        "−0.5",
        "1\u00a0234",
        "2e−5",
        "–",
    ]
    assert [percent(0.8106), percents([0.759, 0.853]), percents([-0.02, 0.08])] == [
        "81\u00a0%",
        "76–85\u00a0%",
        "−2–8\u00a0%",
    ]
    assert [duration(3.14), duration(192), duration(3191), duration(3191, brief=True)] == [
        "3.1\u00a0s",
        "3\u00a0min\u00a012\u00a0s",
        "53\u00a0min\u00a011\u00a0s",
        "53\u00a0min",
    ]
    assert size(2.6 * 2**30) == "2.6\u00a0GiB"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the chromium browser")
def test_report_script_runs_in_a_browser(tmp_path: Path) -> None:
    path = write(tmp_path / "run", write_run(tmp_path / "run"))
    quiet = [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        path.as_uri(),
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "12 of 264 shown" in page and page.count('class="tip"') == page.count("data-chart=")
