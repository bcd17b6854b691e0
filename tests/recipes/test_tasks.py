"""Arguments and tasks of the recipes."""

import pytest
from tasks import RecipeArguments, get_task


@pytest.mark.parametrize(("given", "limit"), [("all", None), (None, None), ("7", 7), (7, 7)])
def test_rows_of_the_evaluation_sets(given, limit):
    assert get_task("tofu", RecipeArguments(evaluation_samples=given)).limit == limit


def test_rows_of_the_evaluation_sets_by_default():
    assert get_task("tofu", RecipeArguments()).limit == 20


@pytest.mark.parametrize("given", [0, "0", -1, "few", 1.5])
def test_no_number_of_rows(given):
    with pytest.raises(ValueError, match="at least 1, or 'all'"):
        RecipeArguments(evaluation_samples=given)


def test_unknown_task():
    with pytest.raises(ValueError, match="Unknown task 'tofoo'. Known: tofu"):
        get_task("tofoo", RecipeArguments())


def test_files_of_ones_own_have_no_questions():
    task = get_task("tofu", RecipeArguments(forget_file="f.jsonl", retain_file="r.jsonl"))
    with pytest.raises(ValueError, match="wagle evaluate"):
        task.evaluation_sets(None)
