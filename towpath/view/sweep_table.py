"""A sweep in the terminal: trials with values, intervals and findings, importance of the keys, verdict."""

from collections.abc import Sequence
from typing import Any

from towpath.sweep.record import SweepRecord
from towpath.sweep.trial_record import TrialRecord
from towpath.sweep.verdict import ConfirmedTrial, breaks
from towpath.view.format import duration, number, percent, percents

MAX_REASON = 72


def sweep_lines(record: SweepRecord, sweep: Any) -> list[str]:
    """The lines that `towpath sweep RUN` prints; `sweep` is the section of the recipe."""
    what = "win rate over SFT" if record.objective == "win_rate" else "mean win rate over SFT"
    where = f"at KL {number(record.target)}" if record.objective == "win_rate" else f"up to KL {number(record.target)}"
    cost = f", ${record.dollars:.2f}" if record.dollars else ""
    lines = [
        f"study {record.study}: {len(record.trials)} of {record.limit} trials, {record.algorithm}; {what} {where}, "
        f"judged by {record.judge}; {duration(record.seconds)} of training{cost}",
        "",
        *_table(_head(record), [_row(record, trial, sweep) for trial in record.ranking()]),
    ]
    for trial in record.open_trials:
        lines.append(f"trial {trial.number} is not finished: {trial.validations} validations")
    shares = record.importance()
    if shares:
        text = ", ".join(f"{key} {percent(share)}" for key, share in shares.items())
        lines += ["", f"importance (variance explained by a key alone): {text}"]
    if record.verdict:
        lines += ["", *_verdict_lines(record)]
    elif record.trials:
        lines += ["", "no verdict yet: `towpath sweep` runs the trials and their confirmation that are missing"]
    return lines


def _head(record: SweepRecord) -> list[str]:
    return ["trial", "value", "95 %", "KL", "equal length", *(_short(key) for key in record.space), "note"]


def _short(key: str) -> str:
    return key.removeprefix("policy.")


def _row(record: SweepRecord, trial: TrialRecord, sweep: Any) -> list[str]:
    own = " (recipe)" if trial.number == 0 else ""
    value = trial.value
    if trial.status == "failed":
        cells = ["failed", "", "", ""]
    else:
        reached = "" if value.reached else " *"
        cells = [percent(value.value, 1) + reached, percents(value.interval), number(value.kl, 2)]
        cells.append(percent(value.length_controlled, 1))
    settings = [_cell(trial.settings.get(key)) for key in record.space]
    return [f"{trial.number}{own}", *cells, *settings, _note(trial, sweep)]


def _cell(item: Any) -> str:
    return number(item) if isinstance(item, int | float) and not isinstance(item, bool) else str(item)


def _note(trial: TrialRecord, sweep: Any) -> str:
    parts = [trial.reason] if trial.reason else [", ".join(trial.codes)]
    parts.append(breaks(trial, sweep))
    return shorten("; ".join(part for part in parts if part))


def shorten(text: str) -> str:
    """A note that fits into a table; the whole of it is in the trial's result.json."""
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; the last one is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, *rows):
        padded = [cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=False)]
        lines.append("  ".join([*padded, cells[-1]]).rstrip())
    if any("*" in row[1] for row in rows):
        lines.append("* did not reach the target KL: its win rate at its last KL")
    return lines


def _verdict_lines(record: SweepRecord) -> list[str]:
    verdict = record.verdict
    assert verdict is not None
    lines = []
    if verdict.trials:
        seeds = sorted({trial.seed for trial in record.confirmations}) or range(verdict.seeds)
        head = ["confirmed", "mean", *(f"seed {seed}" for seed in seeds), "to the recipe's own", "note"]
        lines += [*_table(head, [_confirmed(trial, verdict.seeds) for trial in verdict.trials]), ""]
    lines.append(verdict.text)
    winner = record.winner()
    if winner:
        lines += [f"  {key} = {_cell(item)}" for key, item in winner.settings.items()]
        lines.append(f"`towpath sweep {record.folder.parent.parent} --apply` writes these into recipe.toml")
    return lines


def _confirmed(trial: ConfirmedTrial, seeds: int) -> list[str]:
    own = " (recipe)" if trial.number == 0 else ""
    values = [percent(value, 1) for value in trial.values]
    low, high = trial.interval
    gap = "" if trial.number == 0 else f"{100 * trial.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return [f"{trial.number}{own}", percent(trial.mean, 1), *values, *[""] * (seeds - len(values)), gap, trial.note]
