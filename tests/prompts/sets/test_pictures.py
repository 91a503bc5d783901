"""MathVista's records and R1-Onevision's questions, with pictures in every layout."""

import base64
import io

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lenvm_rl.prompts.sets import TEMPLATES, load_prompt_set
from lenvm_rl.prompts.sets.pictures import onevision_question
from reward_fns.graders import get_grader
from tests.prompts.sets.files import lines, without

MATH, OPEN = (TEMPLATES[name].removesuffix("{prompt}") for name in ("math", "open"))


def png():
    file = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(file, format="PNG")
    return file.getvalue()


PNG = png()
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
CHOICE = {
    "pid": "1",
    "query": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, "
    "C, D, at the end.\nQuestion: Which?\nChoices:\n(A) 145°\n(B) 35°",
    "question_type": "multi_choice",
    "answer_type": "text",
    "choices": ["145°", "35°"],
    "precision": None,
    "answer": "35°",
    "unit": None,
    "image": "images/1.png",
}
FREE = {
    **CHOICE,
    "pid": "2",
    "query": "Hint: Please answer the question requiring a floating-point number with one decimal "
    "place and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How far?",
    "question_type": "free_form",
    "answer_type": "float",
    "precision": 1.0,
    "choices": None,
    "answer": "1.2",
    "unit": "m",
}


@pytest.fixture
def mathvista(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(PNG)

    def load(*rows):
        return load_prompt_set("mathvista", source=lines(tmp_path / "x.jsonl", rows)).prompts

    return load


def test_choices_are_answered_by_letter(mathvista):
    prompt = mathvista(CHOICE)[0]
    assert prompt.messages[0]["content"] == (
        f"<image>\n{MATH}Question: Which?\n\nAnswer with the option letter, e.g., A, B, C, D.\n"
        "Choices:\n(A) 145°\n(B) 35°"
    )
    assert (prompt.ground_truth, prompt.data_source) == ("B", "multiple_choice/mathvista")
    assert prompt.images == [URI]
    needed = {key: CHOICE[key] for key in ("question_type", "answer_type", "choices", "answer")}
    assert prompt.extra == {"pid": "1", **needed}
    grade = get_grader("multiple_choice")
    assert [grade(f"\\boxed{{{x}}}", prompt.ground_truth) for x in "AB"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "precision", "words"),
    [
        ("float", 1.0, "a number with one decimal place"),
        ("float", 2.0, "a number with two decimal places"),
        ("float", 3.0, "a number with 3 decimal places"),
        ("integer", None, "an integer"),
        ("list", None, "a Python list"),
    ],
)
def test_free_questions_say_what_they_want(mathvista, kind, precision, words):
    prompt = mathvista({**FREE, "answer_type": kind, "precision": precision})[0]
    assert (
        prompt.messages[0]["content"] == f"<image>\n{MATH}Question: How far?\nAnswer with {words}."
    )
    assert (prompt.ground_truth, prompt.data_source) == ("1.2", "math/mathvista")
    assert prompt.extra["unit"] == "m" and prompt.extra.get("precision") == precision


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (without(CHOICE, "question_type"), "no column 'question_type' .which the grader needs"),
        (without(CHOICE, "answer_type"), "no column 'answer_type'"),
        ({**CHOICE, "answer": ""}, "nothing in column 'answer'"),
        ({**CHOICE, "choices": None}, "nothing in column 'choices'"),
        ({**CHOICE, "answer": "B"}, "answer 'B' is none of the choices"),
        ({**FREE, "precision": None}, "'precision' .to which the grader rounds"),
        ({**FREE, "image": "images/2.png"}, "its picture .*images/2.png is not there"),
        ({**FREE, "image": "no base64!"}, "the picture is no base64"),
        ({**FREE, "image": base64.b64encode(b"text").decode()}, "is no PNG, JPEG"),
        (without(FREE, "image"), "no column 'decoded_image' or 'image'"),
    ],
)
def test_records_that_could_not_be_graded(mathvista, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        mathvista(row)


def test_pictures_as_parquet_and_datasets_have_them(tmp_path):
    row = {**CHOICE, "decoded_image": {"bytes": PNG, "path": None}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    assert load_prompt_set("mathvista", source=tmp_path / "x.parquet").prompts[0].images == [URI]
    decoded = datasets.Dataset.from_list([row]).cast_column("decoded_image", datasets.Image())
    datasets.DatasetDict({"testmini": decoded}).save_to_disk(str(tmp_path / "saved"))
    image = load_prompt_set("mathvista", source=tmp_path / "saved").prompts[0].images[0]
    reread = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2])))
    assert reread.getpixel((0, 0)) == (255, 0, 0)


def test_one_question_about_two_pictures_is_two_prompts(mathvista):
    other = io.BytesIO()
    Image.new("RGB", (2, 2), "blue").save(other, format="JPEG")
    second = base64.b64encode(other.getvalue()).decode()
    first, again = mathvista(CHOICE, {**CHOICE, "pid": "3", "image": second})
    assert first.images != again.images
    assert again.images[0].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("text", "question", "choosing"),
    [
        ("<image>\nHow many?", "How many?", False),
        ("<image>How many? ", "How many?", False),
        (
            "<image>\nHint: Please answer the question and provide the correct option letter, "
            "e.g., A, B, C, D, at the end.\nQuestion: Which?\nChoices: ...",
            "Question: Which?\nChoices: ...",
            True,
        ),
        (
            "Hint: Please answer the question and provide the final answer at the end.\nHow far?",
            "How far?",
            False,
        ),
        (
            "Based on the image, directly select the correct answer for the following question:"
            "\nA?",
            "A?",
            True,
        ),
        (
            "First perform reasoning, then finally select the question from the choices in the "
            "following format: Answer: xxx.\nA?",
            "A?",
            True,
        ),
        ("Is it?\nAnswer the question with Yes or No.", "Is it?", True),
        ("What?\nAnswer the question using a single word or phrase.", "What?", True),
        ("What?\nAnswer the question with a short phrase.", "What?", True),
        ("What?\nAnswer with the given options directly.", "What?", True),
        (
            "What?\nAnswer with the option's letter from the given choices directly.",
            "What?",
            True,
        ),
        (
            "What?\nAnswer the question by selecting only one option from the given options.",
            "What?",
            True,
        ),
        ("Graph.\nPlease clarify the meaning conveyed by this graph.", "Graph.", False),
        (
            "Graph.\nCould you shed some light on the insights conveyed by this graph?",
            "Graph.",
            False,
        ),
        (
            "Please clarify the meaning conveyed by this graph.",
            "Please clarify the meaning conveyed by this graph.",
            False,
        ),
        # a marker inside the text makes a choice of it, and is left where it stands
        (
            "Answer the question with Yes or No. Is it?",
            "Answer the question with Yes or No. Is it?",
            True,
        ),
    ],
)
def test_onevisions_questions_lose_their_hints(text, question, choosing):
    assert onevision_question(text) == (question, choosing)


def test_onevision_asks_choices_and_open_questions_in_two_ways(tmp_path):
    def row(text):
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "..."}]
        return {"id": text[:2], "conversations": turns, "image": URI.partition(",")[2]}

    rows = [row("Is it?\nAnswer the question with Yes or No."), row("How?")]
    path = lines(tmp_path / "x.jsonl", rows)
    first, second = load_prompt_set("onevision", source=path).prompts
    assert first.messages[0]["content"] == f"<image>\n{MATH}Is it?"
    assert second.messages[0]["content"] == f"<image>\n{OPEN}How?"
    assert first.images == [URI]
    bad = {**rows[0], "conversations": [{"from": "gpt", "value": "..."}]}
    with pytest.raises(ValueError, match="begins with 'gpt'"):
        load_prompt_set("onevision", source=lines(tmp_path / "y.jsonl", [bad]))
