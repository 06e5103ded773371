"""Example curves for the documentation: the metrics of a planted fault compared with those of a healthy run.

python -m benchmarks.planted.curves OUT_FOLDER [--cache .bench/planted] [--seed 20]
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.planted.faults import FAULTS, HEALTHY
from benchmarks.planted.running import CACHE, run_folder
from towpath.health.history import Curve, History, history_from_rows
from towpath.store import jsonl

SHOWN = {
    "learning-rate-high": ("kl", "clip_fraction"),
    "learning-rate-low": ("kl", "approx_kl"),
    "kl-penalty-too-strong": ("kl", "reward"),
    "no-kl-penalty": ("kl", "reward"),
    "length-hacking": ("length", "reward_length_corr"),
    "domain-forgotten": ("domain/food", "domain/people"),
    "missing-eos": ("finish_rate", "length"),
    "sampler-mismatch": ("sampler_error", "kl"),
    "critic-broken": ("explained_variance", "reward"),
    "repetition": ("repetition", "reward_repetition_corr"),
    "diversity-collapse": ("opening", "entropy"),
    "duplicate-prompts": ("prompts_distinct", "reward"),
    "safety-traded": ("harmful_refusal", "reward"),
    "reward-hacking": ("reward", "watched/"),
    "refusing": ("refusal", "harmless_refusal"),
}
FLOOR = {"explained_variance": -3.0}
"""Lower values are drawn at the edge: explained variance has no lower bound."""
WIDTH = 330
HEIGHT = 190
LEFT = 48
BOTTOM = 34
FAULTY = "#b4541a"
SOUND = "#0b6e99"


def svg(fault: History, sound: History, names: tuple[str, ...]) -> str:
    """One panel per metric, with the faulty and the healthy run."""
    whole = WIDTH * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {HEIGHT + 22}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{whole}" height="{HEIGHT + 22}" fill="white"/>',
    ]
    for panel, name in enumerate(names):
        parts.append(
            f'<g transform="translate({panel * WIDTH} 0)">{_panel(_named(fault, name), _named(sound, name), name)}</g>'
        )
    key = (
        f'<path d="M12 {HEIGHT + 11}h18" stroke="{FAULTY}" stroke-width="2.5"/><text x="36" y="{HEIGHT + 15}">with '
        "the fault</text>"
        f'<path d="M140 {HEIGHT + 11}h18" stroke="{SOUND}" stroke-width="2"/><text x="164" '
        f'y="{HEIGHT + 15}">healthy</text>'
    )
    return "\n".join([*parts, key, "</svg>"]) + "\n"


def _named(history: History, name: str) -> Curve:
    for curves in (history.train, history.validation):
        for known, curve in curves.items():
            if known == name or (name.endswith("/") and known.startswith(name)):
                return curve
    return history.curve(name)


def _panel(fault: Curve, sound: Curve, name: str) -> str:
    fault, sound = (Curve(curve.steps, np.maximum(curve.values, FLOOR.get(name, -np.inf))) for curve in (fault, sound))
    values = [np.where(np.isfinite(curve.values), curve.values, np.nan) for curve in (fault, sound) if len(curve)]
    low = float(np.nanmin(np.concatenate(values)))
    high = float(np.nanmax(np.concatenate(values)))
    low, high = (min(low, 0.0) if low < 0.3 * high else low, high if high > low else low + 1)
    last = max((int(curve.steps[-1]) for curve in (fault, sound) if len(curve)), default=1)

    def at(step: float, value: float) -> str:
        x = (step + 1) / (last + 1)
        y = (value - low) / (high - low)
        return f"{LEFT + x * (WIDTH - LEFT - 14):.1f} {HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - 28):.1f}"

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{name.rstrip("/")}</text>']
    for value in (low, (low + high) / 2, high):
        x, y = at(-1, value).split()
        parts.append(
            f'<path d="M{x} {y}H{WIDTH - 14}" stroke="#ddd"/><text x="{float(x) - 6:.0f}" y="{float(y) + 4:.1f}" '
            f'text-anchor="end">{value:.3g}</text>'
        )
    for step, anchor in ((0, "middle"), (last, "end")):
        parts.append(
            f'<text x="{at(step, low).split()[0]}" y="{HEIGHT - 14}" text-anchor="{anchor}">step {step + 1}</text>'
        )
    for curve, colour, width in ((sound, SOUND, 2), (fault, FAULTY, 2.5)):
        points = [at(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if np.isfinite(v)]
        if points:
            parts.append(
                f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="{width}" '
                'stroke-linejoin="round"/>'
            )
    return "".join(parts)


def main() -> None:
    """Write one file per finding code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def history(planted: object) -> History:
        return history_from_rows(
            jsonl.read(run_folder(planted, options.seed, options.cache) / "policy" / "metrics.jsonl")
        )  # pyright: ignore[reportArgumentType]

    sound = history(next(p for p in HEALTHY if p.watched and not p.labels))
    for code, names in SHOWN.items():
        fault = next(p for p in FAULTS if code in p.codes)
        (options.out / f"{code}.svg").write_text(svg(history(fault), sound, names))


if __name__ == "__main__":
    main()
