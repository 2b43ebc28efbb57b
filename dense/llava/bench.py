"""LLaVA-Bench as files: questions in, answers out, and scores by exact match, ROUGE and a judge.

Questions and answers are lines of JSON, as in LLaVA-Bench: {"question_id", "image", "text", "category"} in, and
{"question_id", "category", "prompt", "text", "model_id"} out. Right answers are lines {"question_id", "text"} of
another file, or the entry "answer" of the question.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dense.llava.data import picture_of


class Question(NamedTuple):
    """A question about a picture, without `<image>`; `answer` is the right one, None where it is not known."""

    id: Any
    image: Path
    text: str
    category: str
    answer: str | None


def read_questions(file: str | Path, images: str | Path, references: str | Path = "") -> list[Question]:
    """Questions of a file of JSON lines, with the right answers of another file if one is given.

    Raises:
        FileNotFoundError: a file or picture is missing.
        ValueError: a line is incomplete, or an id is there twice; names the line.
    """
    right = {name: row["text"] for name, row, _ in _rows(references)} if references else {}
    return [
        Question(
            name,
            picture_of(row, place, Path(images)),
            row["text"],
            str(row.get("category", "all")),
            right.get(name, row.get("answer")),
        )
        for name, row, place in _rows(file)
    ]


def _rows(file: str | Path) -> list[tuple[Any, dict[str, Any], str]]:
    """Id, content and place of every line of a file with question_id and text."""
    found: dict[Any, tuple[Any, dict[str, Any], str]] = {}
    for number, line in enumerate(Path(file).expanduser().read_text(encoding="utf-8").splitlines(), start=1):
        place = f"line {number} of {file}"
        try:
            row = json.loads(line)
        except ValueError as err:
            raise ValueError(f"{place} is no JSON ({err}), expected an object per line") from err
        if not isinstance(row, dict) or "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(f"{place} is {line[:80]!r}, expected an object with question_id and text")
        name = row["question_id"]
        if name in found:
            raise ValueError(f"{place} repeats question_id {name!r} of {found[name][2]}, expected every id once")
        found[name] = name, row, place
    if not found:
        raise ValueError(f"{file} is empty, expected a line of JSON per question")
    return list(found.values())


def write_answers(file: str | Path, questions: Sequence[Question], answers: Sequence[str], model: str) -> None:
    """Answers as JSON lines, in the order of the questions."""
    rows = (
        {"question_id": one.id, "category": one.category, "prompt": one.text, "text": answer, "model_id": model}
        for one, answer in zip(questions, answers, strict=True)
    )
    Path(file).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def score(questions: Sequence[Question], answers: Sequence[str], judge: str = "") -> dict[str, Any]:
    """Figures in percent, of all questions and by category.

    Args:
        judge: command, see `judged`; its marks are averaged as they are.

    Returns:
        accuracy, share of questions with the words of the right answer, and rouge_l, mean F1 of the longest common
        subsequence of words (both None where no answer is known); judge, mean mark, if there is a judge; by_category.
    """
    rows: list[dict[str, Any]] = [{"category": one.category} for one in questions]
    for row, one, answer in zip(rows, questions, answers, strict=True):
        if one.answer is not None:
            row["accuracy"] = 100.0 * (words(one.answer) == words(answer))
            row["rouge_l"] = rouge_l(answer, one.answer)
    if judge:
        for row, mark in zip(rows, judged(judge, questions, answers), strict=True):
            row["judge"] = mark
    groups = defaultdict(list)
    for row in rows:
        groups[row["category"]].append(row)
    return {**_means(rows), "by_category": {name: _means(groups[name]) for name in sorted(groups)}}


def _means(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    figures = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name != "category":
                figures[name].append(value)
    means = {name: math.fsum(values) / len(values) for name, values in figures.items()}
    return {"accuracy": None, "rouge_l": None, **means}


def rouge_l(answer: str, right: str) -> float:
    """ROUGE-L F1 (Lin 2004) in percent."""
    from torchmetrics.functional.text import rouge_score

    return 100 * float(rouge_score(answer, right, rouge_keys="rougeL")["rougeL_fmeasure"])


def judged(command: str, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """Marks that a command gives.

    It gets a line of JSON per question on its standard input, {"question_id", "category", "image", "question",
    "answer", "reference"}, and writes {"question_id", "score"} per question, in any order, to its standard output.

    Raises:
        ValueError: the command cannot be run or fails, or its output is no mark for every question.
    """
    lines = [
        {
            "question_id": one.id,
            "category": one.category,
            "image": str(one.image),
            "question": one.text,
            "answer": answer,
            "reference": one.answer,
        }
        for one, answer in zip(questions, answers, strict=True)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    try:
        done = subprocess.run(shlex.split(command), input=text, capture_output=True, text=True, check=False)
    except OSError as err:
        raise ValueError(f"the judge (TRAINER.LLAVA.JUDGE) {command!r} cannot be run: {err}") from err
    if done.returncode:
        raise ValueError(f"the judge {command!r} ended with code {done.returncode}: {done.stderr.strip()[-200:]}")
    try:
        found = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        marks = {row["question_id"]: float(row["score"]) for row in found}
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"the judge {command!r} wrote {done.stdout[:80]!r}, expected question_id and score") from err
    missing = [one.id for one in questions if not math.isfinite(marks.get(one.id, math.nan))]
    if missing:
        raise ValueError(f"the judge {command!r} gave no score for {len(missing)} questions, {missing[0]!r} first")
    return [marks[one.id] for one in questions]
