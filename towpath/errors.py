"""What can go wrong, told as value, rule, fix."""


class TowpathError(Exception):
    """An error the user can act on: which value, which rule it breaks, how to fix it."""

    exit_code = 1

    def __init__(self, value: str, rule: str = "", fix: str = "") -> None:
        self.value = value
        self.rule = rule
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.value]
        if self.rule:
            lines.append(f"  rule: {self.rule}")
        if self.fix:
            lines.append(f"  fix:  {self.fix}")
        return "\n".join(lines)


class RecipeError(TowpathError):
    """The recipe does not say what it must."""


class DataError(TowpathError):
    """A row, a file or a split is not usable."""


class RowRefused(DataError):
    """The ledger does not take a row. `value` names the database, which a page must not show."""


class ModelError(TowpathError):
    """The model or its tokenizer cannot be used."""


class ResourceError(TowpathError):
    """Disk, memory or a device is missing or full."""


class WorkerLost(ResourceError):
    """A worker ended, hangs, or answers nonsense: the whole group is ended, and the stage resumes with a new one."""


class TrainingError(TowpathError):
    """Training cannot go on: a loss that is not a number, a KL beyond the stop."""


class RewardError(TowpathError):
    """A source of rewards gave no usable score."""


class GateClosed(TowpathError):
    """A gate between two stages did not open."""

    exit_code = 3


class Waiting(TowpathError):
    """The run waits for people; not a failure."""

    exit_code = 0
    stage = ""
    """The kind of stage that waits."""
