"""What the marks are held against, and the share of the device's operations that they reach."""

from dataclasses import dataclass, replace
from typing import Any

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """A figure that is to be reached; `value` is None where it was not measured, `reason` says why."""

    name: str
    unit: str
    value: float | None
    bound: float
    at_most: bool = False
    reason: str = ""

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {**self.__dict__, "met": self.is_met}

    def line(self) -> str:
        """One line of the report."""
        bound = f"{'at most' if self.at_most else 'at least'} {self.bound:,g} {self.unit}"
        if self.value is None:
            return f"  {self.name:<58} not measured ({self.reason}); {bound}"
        return f"  {self.name:<58} {self.value:,.2f} {self.unit}; {bound}: {'met' if self.is_met else 'MISSED'}"


def targets(results: Results, peak: float | None) -> list[Target]:
    """All targets, from the results of the marks; `peak` is the device's rate in bfloat16."""
    speeds = (
        ("SFT, all weights, Qwen3-0.6B shape", "sft_06b", 26_000.0),
        ("policy, LoRA, Qwen3-0.6B shape", "policy_06b", 15_000.0),
        ("policy, LoRA, Qwen3-4B shape", "policy_4b", 7_000.0),
    )
    rows = [_target(results, job, name, "tokens/s", bound, "tokens_per_second") for name, job, bound in speeds]
    for name, job, _ in speeds:
        share = _target(results, job, f"model FLOP utilisation of an update, {name}", "%", 30.0, "flops")
        reached = None if share.value is None or not peak else 100 * share.value / peak
        rows.append(Target(share.name, "%", reached, 30.0, reason=share.reason))
    rows.append(
        _target(results, "ppo_iteration", "PPO 1.3B + 350M, 131,900 prompts", "h", 1.2, "projected_hours", True)
    )
    ratio = _ratio(results)
    rows.append(
        Target("memory of PPO with four roles over SFT, LoRA", "times", ratio, 1.3, True, "a part of it failed")
    )
    rows.append(Target("weight sync of 2B", "s", None, 0.5, True, "needs vLLM"))
    return rows


def unmeasured(reason: str) -> list[Target]:
    """All targets, none of them measured."""
    return [replace(target, value=None, reason=reason) for target in targets({}, None)]


def _target(
    results: Results, job: str, name: str, unit: str, bound: float, figure: str, at_most: bool = False
) -> Target:
    result = results.get(job, {})
    value = (result.get("figures") or {}).get(figure)
    return Target(name, unit, value, bound, at_most, str(result.get("reason", "not run")))


def _ratio(results: Results) -> float | None:
    peaks = [
        (results.get(job, {}).get("figures") or {}).get("peak_bytes") for job in ("memory_of_ppo", "memory_of_sft")
    ]
    return peaks[0] / peaks[1] if all(peaks) else None
