"""Conformance of model families: log-probabilities, greedy answers, gradients and exports are those of plain
transformers; what is refused says why. tests/families.py has the checks."""

import families
import pytest
import transformers
from families import REFUSED, SUPPORTED, Family

from towpath.errors import ModelError
from towpath.models import base
from towpath.recipe import Lora

ROWS: dict[str, str] = {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.name)
def test_family_conforms_to_plain_transformers(family: Family, tmp_path) -> None:
    folder = families.make(family, tmp_path / "model")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    families.check_logprobs(family, folder, plain)
    families.check_greedy(family, folder, plain)
    families.check_full_gradient(family, folder, plain)
    lora = Lora(rank=4, alpha=8.0, targets=["all"] if family.has_experts else ["linear"])
    families.check_lora_gradient(family, folder, lora)
    families.check_export(family, folder, tmp_path, lora)
    assert families.row_of(family, folder) in families.PAGE.read_text(encoding="utf-8"), "python -m tests.families"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "words"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_refused_family_says_why(family: Family, words: str, tmp_path) -> None:
    folder = families.make(family, tmp_path / "model")
    with pytest.raises(ModelError, match=words) as refusal:
        base.load(folder, families.torch.float32, family.attention)
    assert "docs/models.md" in refusal.value.fix
    assert families.refused_row(family, folder) in families.PAGE.read_text(encoding="utf-8")


def test_every_row_of_the_table_is_a_family_that_is_tested() -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    part = page.split(families.BEGIN)[1].split(families.END)[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == len(SUPPORTED) + len(REFUSED)
