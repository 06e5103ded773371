"""The breakages of tests/strength.py still apply to the code; `make strength` tests whether they are detected."""

from pathlib import Path

import pytest
from strength import BREAKAGES, ROOT, applied


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_breakage_applies_once_and_its_test_files_exist(breakage):
    assert applied(ROOT, breakage) != (ROOT / breakage.file).read_text(encoding="utf-8")
    files = [Path(ROOT / word) for word in breakage.tests.split() if word.startswith("tests/")]
    assert files
    assert all(file.is_file() for file in files)


def test_at_least_sixty_breakages_over_all_packages():
    assert len(BREAKAGES) >= 60
    packages = {breakage.file.split("/")[1] for breakage in BREAKAGES if breakage.file.count("/") > 1}
    assert packages >= {
        "algos",
        "data",
        "models",
        "rollout",
        "runtime",
        "feedback",
        "evals",
        "health",
        "rewards",
        "store",
        "web",
        "view",
    }
