"""The recipes of docs/cases.md: they are created from the user's own files, and their checks find no error."""

from pathlib import Path

import pytest
from foreign import SHARED, real_rows

from towpath import recipe
from towpath.errors import RecipeError
from towpath.run import loading, pipeline
from towpath.run.new_run import create_run

TINY = ["model.source=tiny", "model.template=model", "data.max_prompt_tokens=900"]
CASES = {
    "harmless-dialogue": "hh_harmless_open.jsonl",
    "assistant-oasst": "oasst1_en_validation_open.jsonl",
    "checkable-arithmetic": "",
}


@real_rows
@pytest.mark.parametrize("case", CASES)
def test_recipe_is_created_and_checked(tmp_path: Path, case: str) -> None:
    data = str(SHARED / CASES[case]) if CASES[case] else ""
    create_run(tmp_path / "run", case, data)
    settings = recipe.load(tmp_path / "run", TINY)
    corpus = loading.load_corpus(settings, tmp_path / "run")
    findings = pipeline.examine(settings, tmp_path / "run", corpus)
    assert [f.evidence for f in findings if f.severity == "error"] == []
    assert len(corpus.train) > 400 and len(corpus.heldout) > 80
    if data:
        assert not (tmp_path / "run" / "data").exists(), "the data is read where it is"


def test_recipe_that_reads_own_data_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="without --data"):
        create_run(tmp_path / "run", "harmless-dialogue")
    with pytest.raises(RecipeError, match="with --data"):
        create_run(tmp_path / "run", "quickstart", "mine.jsonl")
    assert not (tmp_path / "run").exists()
    create_run(tmp_path / "run", "harmless-dialogue", "~/hh/*.jsonl")
    assert recipe.load(tmp_path / "run").data.preferences == str(Path("~/hh/*.jsonl").expanduser())
