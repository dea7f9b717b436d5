import pytest

from stages.families.vlm.prompt import clean, prompt_from


@pytest.mark.parametrize(
    "raw, prompt",
    [
        ("A red bird flies.", "A red bird flies."),
        ("The video shows a red bird.\n\nIt lands.", "A red bird. It lands."),
        ("This short video clip depicts two dogs", "Two dogs"),
        ("In the video, we can see a lake.", "A lake."),
        ("In this clip there is a lake.", "A lake."),
        ("The video begins with a close-up of a cup.", "A close-up of a cup."),
        ("Here is a detailed description of the video: A man runs.", "A man runs."),
        ("Sure! The footage features a man.", "A man."),
        (
            "# Scene\n\n- **Bird**: small, blue\n- lake\n1. it *flaps* its wings.",
            "Scene. Bird: small, blue. lake. it flaps its wings.",
        ),
        ("```text\nA `red` [square](http://x.y/z)\n```", "A red square"),
        ("<think>what is it?</think>A  square\tmoves", "A square moves"),
        ("snake_case stays, _emphasis_ goes", "Snake_case stays, emphasis goes"),
        ("In the video, a man runs.", "A man runs."),
        ("In the video game store a man runs.", "In the video game store a man runs."),
        ("The video game on the desk is old.", "The video game on the desk is old."),
        ("一只鸟\n飞走了。", "一只鸟. 飞走了。"),
        ("---\n> quoted\n***", "Quoted"),
        ("", ""),
        ("<think>never ends", ""),
    ],
)
def test_clean_removes_markup_and_framing_phrases(raw, prompt):
    assert clean(raw) == prompt
    assert clean(prompt) == prompt


def test_prefix_is_put_in_front_of_the_prompt():
    assert prompt_from("The video shows a lake.", "continue video") == "continue video A lake."
    assert prompt_from("A lake.", "") == "A lake."
    assert prompt_from(" \n", "continue video") == ""
