"""The settings form of the owner's page."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from towpath.errors import DataError
from towpath.store.rating_settings import RatingSettings


class SettingsForm(BaseModel):
    """The form's fields: percentages and minutes as typed, empty where a number is optional."""

    gold_share: Annotated[float, Field(ge=0, le=100)]
    lease_minutes: Annotated[float, Field(ge=1, le=1440)]
    overlap: Annotated[str, Field(max_length=10)] = ""
    hours: Annotated[str, Field(max_length=10)] = ""
    switches: list[Literal["paused", "show_gold", "safety"]] = []
    min_view: Annotated[float, Field(ge=0, le=60)] = 1.0
    goal: Annotated[str, Field(max_length=10)] = ""
    break_minutes: Annotated[str, Field(max_length=10)] = "50"
    reasons: Annotated[str, Field(max_length=2000)] = ""
    criteria: Annotated[str, Field(max_length=1000)] = ""
    trial_pairs: Annotated[int, Field(ge=0, le=100)] = 0
    trial_threshold: Annotated[float, Field(ge=0, le=100)] = 70

    def settings(self) -> RatingSettings:
        """Convert the fields to settings."""
        overlap = _number("overlap", self.overlap, 100)
        goal = _number("goal", self.goal, 100_000)
        return RatingSettings(
            paused="paused" in self.switches,
            overlap=None if overlap is None else overlap / 100,
            gold_share=self.gold_share / 100,
            show_gold="show_gold" in self.switches,
            hours=_number("hours", self.hours, 1e6),
            safety="safety" in self.switches,
            lease=self.lease_minutes * 60,
            min_view=self.min_view,
            goal=round(goal) if goal else None,
            break_minutes=_number("break_minutes", self.break_minutes, 1440) or None,
            reasons=_labels("reasons", self.reasons, 12),
            criteria=_labels("criteria", self.criteria, 3),
            trial_pairs=self.trial_pairs,
            trial_threshold=self.trial_threshold / 100,
        )


def _number(name: str, typed: str, most: float) -> float | None:
    """Parse a number; None for an empty field."""
    if not typed.strip():
        return None
    try:
        value = float(typed)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise DataError(f"{name}: {typed!r}", f"a number from 0 to {most:g}, or empty", "go back and correct it")
    return value


def _labels(name: str, typed: str, most: int) -> tuple[str, ...]:
    """Parse labels, one per line."""
    labels = tuple(
        dict.fromkeys(" ".join(line.split()) for line in typed.replace("\x00", "").splitlines() if line.strip())
    )
    if len(labels) > most or any(len(label) > 40 for label in labels):
        raise DataError(
            f"{name}: {len(labels)} lines",
            f"at most {most} labels of at most 40 characters, one per line",
            "go back and shorten it",
        )
    return labels
