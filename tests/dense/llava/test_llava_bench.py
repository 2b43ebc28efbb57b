"""Questions in, answers out, scores."""

import json
import sys

import pytest
from PIL import Image

from dense.llava.bench import Question, judged, read_questions, rouge_l, score, write_answers

JUDGE = """
import json, sys
for line in reversed(sys.stdin.readlines()):
    row = json.loads(line)
    print(json.dumps({"question_id": row["question_id"], "score": len(row["answer"]) + (row["reference"] == "two")}))
"""


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {"question_id": 0, "image": "a.png", "text": "what?", "category": "conv"},
        {"question_id": 1, "image": "a.png", "text": "how many?", "category": "count"},
        {"question_id": 2, "image": "a.png", "text": "left?", "category": "conv"},
    ]
    right = [{"question_id": 1, "text": "two"}, {"question_id": 0, "text": "A cat, and a dog."}]
    file = lines(tmp_path / "questions.jsonl", *rows)
    return read_questions(file, tmp_path, lines(tmp_path / "right.jsonl", *right))


def test_files_in_and_out(questions, tmp_path):
    assert [one.answer for one in questions] == ["A cat, and a dog.", "two", None]
    write_answers(tmp_path / "answers.jsonl", questions, ["a cat and a dog", "three", "é"], "llava")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert rows[2] == {"question_id": 2, "category": "conv", "prompt": "left?", "text": "é", "model_id": "llava"}


def test_scores(questions):
    found = score(questions, ["a cat and a dog", "three", "yes"])
    assert found["accuracy"] == 50
    assert found["by_category"]["conv"] == {"accuracy": 100, "rouge_l": pytest.approx(100)}
    assert found["by_category"]["count"] == {"accuracy": 0, "rouge_l": 0}
    assert score(questions[2:], ["yes"])["accuracy"] is None


def longest_common(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


@pytest.mark.parametrize(("answer", "right"), [("a red cat sits", "the cat sits down here"), ("no", "yes"), ("", "a")])
def test_rouge_is_the_f1_of_the_longest_common_subsequence(answer, right):
    a, b = answer.split(), right.split()
    common = longest_common(a, b)
    expected = 200 * common / (len(a) + len(b))
    assert rouge_l(answer, right) == pytest.approx(expected, rel=1e-5)


def test_judge_is_a_command(questions, tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    command = f"{sys.executable} {tmp_path / 'judge.py'}"
    assert judged(command, questions, ["a", "bb", "ccc"]) == [1, 3, 3]
    found = score(questions, ["a", "bb", "ccc"], command)
    assert found["judge"] == pytest.approx(7 / 3)
    assert found["by_category"]["conv"]["judge"] == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nowhere/judge", "cannot be run"),
        ("false", "ended with code 1"),
        ("echo no", r"wrote 'no\\n', expected question_id and score"),
        ('echo \'{"question_id": 0, "score": 1}\'', "no score for 2 questions, 1 first"),
    ],
)
def test_judges_that_fail_say_so(questions, command, message):
    with pytest.raises(ValueError, match=message):
        judged(command, questions, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("x\n", "line 1 of .* is no JSON"),
        ('{"question_id": 1}\n', "expected an object with question_id and text"),
        ('{"question_id": 1, "text": "a", "image": "b.png"}\n', r"b\.png of line 1 of .* is missing"),
        ('{"question_id": 1, "text": "a"}\n' * 2, "line 2 of .* repeats question_id 1 of line 1"),
    ],
)
def test_bad_questions_give_one_clear_error(tmp_path, text, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_questions(tmp_path / "q.jsonl", tmp_path)


def test_questions_carry_their_answer(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {"question_id": "x", "image": "a.png", "text": "what?", "answer": "a cat"}
    (found,) = read_questions(lines(tmp_path / "q.jsonl", row), tmp_path)
    assert found == Question("x", tmp_path / "a.png", "what?", "all", "a cat")
