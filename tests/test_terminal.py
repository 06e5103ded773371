"""Printed text cannot control the terminal."""

import json
import re
import subprocess
import sys
from pathlib import Path

from towpath import terminal

ESC = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b5A\r\b\u202e"


def test_control_characters_are_removed():
    assert terminal.strip_control(f"a{ESC}\tb\nc é 漢 👍") == "a]0;owned[2J[31m5A\tb\nc é 漢 👍"


def test_recipe_and_row_text_is_printed_without_control_characters(tmp_path):
    run = tmp_path / "run"
    (run / "data" / "prompts").mkdir(parents=True)
    (run / "data" / "prompts" / "rows.jsonl").write_text(json.dumps({"prompt": "a", "split": f"x{ESC}"}) + "\n")
    (run / "recipe.toml").write_text(
        'name = "x"\n[data]\ndemonstrations = ""\nsafety = ""\n[model]\nsource = "tiny\\u001b[2J"\n'
    )
    for command in (
        ["check", run],
        ["status", run],
        ["explain", f"key{ESC}"],
        ["label", "export", run, tmp_path / f"p{ESC}.txt"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "towpath", *map(str, command)], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0, command
        printed = done.stdout + done.stderr
        assert printed
        assert not [character for character in printed if character in "\x1b\x07\x9b\r\b\u202e"], (command, printed)


def test_all_printing_goes_through_terminal():
    """Every line goes through `terminal`; texts in rich displays are cleaned when they are added."""
    root = Path(terminal.__file__).parent
    past = [
        path.name
        for path in root.rglob("*.py")
        if re.search(r"(?<![\w.])print\(|sys\.std(out|err)\.write", path.read_text())
    ]
    assert sorted(past) == ["terminal.py"]
