"""Messages about a run without an evaluation judge."""

NO_JUDGE = "no evaluation judge fits this data"
NO_JUDGE_CODE = "no-evaluation-judge"
RUBRIC_CAVEAT = "Win rates are judged by the written rubric of the bundled recipes, not by people."
NO_JUDGE_REASON = (
    "the written rubric was made for the bundled recipes' data alone: short, plain, English answers to household "
    "questions"
)
NO_JUDGE_FIX = (
    "set evaluate.judges: 'people', 'judge' with [judge], 'model', 'model:SOURCE', 'python:MODULE:FUNCTION' or an "
    "http(s) address (docs/gates.md)"
)
