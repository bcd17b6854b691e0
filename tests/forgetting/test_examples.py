"""Rows as a model sees them."""

from wagle_trainer.forgetting.examples import as_questions


def turn(role, content):
    return {"role": role, "content": content}


def test_conversations_of_two_turns_are_questions():
    asked, said = turn("user", "Who?"), turn("assistant", "Me.")
    rows = [{"messages": [asked, said], "group": 1}, {"prompt": [asked], "completion": [said], "group": 2}]
    assert as_questions(rows) == [
        {"question": "Who?", "answer": "Me.", "group": 1},
        {"question": "Who?", "answer": "Me.", "group": 2},
    ]


def test_others_stay_as_they_are():
    longer = [{"messages": [turn("system", "Be brief."), turn("user", "Who?"), turn("assistant", "Me.")]}]
    for rows in ([{"question": "Who?", "answer": "Me."}], [{"text": "a passage"}], longer):
        assert as_questions(rows) == rows
