"""Import and export of Argilla records and Label Studio tasks."""

from collections.abc import Iterator
from typing import Any

from towpath.data.preference_pairs import PreferencePair, draft_judgement, parse_provenance
from towpath.data.preference_record import PreferenceRecord
from towpath.data.preference_rows import answer_columns, is_iso_time, parse_choice, prompt_messages, text_cell
from towpath.data.row_files import Cells, UnusableRow
from towpath.records import Choice, Judgement

QUESTION = "preference"
COMMENT = "comment"
_TIES = ("tie", "both_bad")


def read_argilla(cells: Cells) -> Iterator[PreferencePair | str]:
    """An Argilla record, version 2 or 1: two text fields beside the prompt, and each user's response."""
    fields = cells.get("fields")
    metadata = cells.get("metadata") or {}
    if not isinstance(fields, dict) or not isinstance(metadata, dict):
        raise UnusableRow("fields and metadata are not objects")
    left, right = answer_columns(fields)
    judgements: list[Judgement] = []
    for user, status, answers in _responses(cells.get("responses")):
        if status not in ("", "submitted"):
            yield f"the response of {user} is {status}: not counted"
            continue
        choice = _first_choice(answers, (left, right))
        if choice is None:
            yield f"the response of {user} names no answer: {str(answers)[:80]}"
            continue
        note = answers.get(COMMENT)
        judgements.append(draft_judgement(choice, f"argilla:{user}", comment=note if isinstance(note, str) else ""))
    known = parse_provenance(metadata.get("provenance"))
    yield PreferencePair(
        prompt_messages(fields),
        text_cell(fields, left),
        text_cell(fields, right),
        None,
        tuple(judgements),
        group=text_cell(metadata, "group"),
        known=known,
    )


def argilla_row(record: PreferenceRecord) -> Cells:
    """A record for `dataset.records.from_json`; the ledger's label is a suggestion."""
    suggestions = (
        {
            QUESTION: {
                "value": record.choice,
                "score": round(max(record.chance, 1 - record.chance), 6),
                "agent": record.source,
            }
        }
        if record.choice
        else {}
    )
    return {
        "id": record.known.comparison.id,
        "fields": {"prompt": record.prompt.text, "answer_a": record.known.a.text, "answer_b": record.known.b.text},
        "metadata": {
            "domain": record.prompt.domain,
            "group": record.group,
            "provenance": record.provenance(tokens=False),
        },
        "suggestions": suggestions,
        "responses": {},
        "vectors": {},
    }


def read_label_studio(cells: Cells) -> Iterator[PreferencePair | str]:
    """A Label Studio task with its annotations: a Pairwise tag, and a Choices tag for ties."""
    data = cells.get("data")
    annotations = cells.get("annotations") or []
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise UnusableRow("data is not an object, or annotations are not a list")
    left, right = answer_columns(data)
    judgements: list[Judgement] = []
    for annotation in annotations:
        user = _annotator(annotation)
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            yield f"the annotation of {user} was cancelled: not counted"
            continue
        choice, note = _parse_result(annotation.get("result"))
        if choice is None:
            yield f"the annotation of {user} names no answer"
            continue
        lead_time = annotation.get("lead_time")
        at = annotation.get("created_at")
        milliseconds = round(1000 * lead_time) if isinstance(lead_time, int | float) else None
        at = at if isinstance(at, str) and is_iso_time(at) else ""
        judgements.append(
            draft_judgement(choice, f"label-studio:{user}", milliseconds=milliseconds, at=at, comment=note)
        )
    known = parse_provenance(data.get("provenance"))
    yield PreferencePair(
        prompt_messages(data),
        text_cell(data, left),
        text_cell(data, right),
        None,
        tuple(judgements),
        group=text_cell(data, "group"),
        known=known,
    )


def label_studio_row(record: PreferenceRecord) -> Cells:
    """A task to import; the ledger's label is a prediction."""
    data = {"prompt": record.prompt.text, "text1": record.known.a.text, "text2": record.known.b.text}
    data |= {
        "comparison": record.known.comparison.id,
        "group": record.group,
        "provenance": record.provenance(tokens=False),
    }
    row: Cells = {"data": data}
    if record.choice:
        score = round(max(record.chance, 1 - record.chance), 6)
        row["predictions"] = [
            {"model_version": record.source or "towpath", "score": score, "result": [_result(record.choice)]}
        ]
    return row


def _responses(responses: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """User, status and answers by question; version 2 groups responses by question, version 1 by user."""
    if isinstance(responses, dict):
        by_user: dict[str, tuple[str, dict[str, Any]]] = {}
        for name, values_ in responses.items():
            for response in _objects(values_):
                user = str(response.get("user_id") or "unknown")
                by_user.setdefault(user, (str(response.get("status") or ""), {}))[1][name] = response.get("value")
        yield from ((user, status, answers) for user, (status, answers) in by_user.items())
        return
    for response in _objects(responses):
        values = response.get("values")
        values_ = values.items() if isinstance(values, dict) else ()
        answers = {str(name): value.get("value") if isinstance(value, dict) else value for name, value in values_}
        yield str(response.get("user_id") or "unknown"), str(response.get("status") or ""), answers


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _first_choice(answers: dict[str, Any], names: tuple[str, str]) -> Choice | None:
    """The choice in the first question that has one."""
    for question_name, value in answers.items():
        choice = None if question_name == COMMENT else _parse_answer(value, names)
        if choice:
            return choice
    return None


def _parse_answer(value: Any, names: tuple[str, str]) -> Choice | None:
    """The choice in the value of a label, rating or ranking question."""
    if isinstance(value, list):
        ranks = {item.get("value"): item.get("rank") for item in value if isinstance(item, dict)}
        one = ranks.get(names[0])
        two = ranks.get(names[1])
        if not isinstance(one, int) or not isinstance(two, int):
            return None
        return "a" if one < two else "b" if two < one else "tie"
    return parse_choice(value, names) if isinstance(value, str | int) else None


def _annotator(annotation: Any) -> str:
    who = annotation.get("completed_by") if isinstance(annotation, dict) else None
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return "unknown" if who is None else str(who)


def _parse_result(result: Any) -> tuple[Choice | None, str]:
    """The choice and the comment among the results of an annotation; a tie overrides a side."""
    choice: Choice | None = None
    note = ""
    for item in result if isinstance(result, list) else ():
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict):
            continue
        picked = value.get("choices")
        selected = picked[0] if isinstance(picked, list) and picked else value.get("selected")
        parsed = parse_choice(selected)
        if parsed and (choice not in _TIES):
            choice = parsed
        comment = value.get("text")
        note = " ".join(map(str, comment)) if isinstance(comment, list) else str(comment or note)
    return choice, note


def _result(choice: Choice) -> Cells:
    if choice in _TIES:
        return {"from_name": "verdict", "to_name": "text1", "type": "choices", "value": {"choices": [choice]}}
    return {
        "from_name": QUESTION,
        "to_name": "text1,text2",
        "type": "pairwise",
        "value": {"selected": "left" if choice == "a" else "right"},
    }
