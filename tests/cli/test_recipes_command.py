"""`wagle recipes` shows what there is, and copies what runs."""

import ast
import json
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def test_list(wagle):
    code, out, _ = wagle("recipes", "list", "--json")
    assert code == 0
    found = json.loads(out)
    assert "tofu_npo.py" in found["recipes"] and "recipe.py" not in found["recipes"]
    assert all(found["recipes"].values()), "each has a docstring"
    assert set(found["configs"]) == {str(path.relative_to(RECIPES)) for path in RECIPES.glob("*/*.yaml")}
    assert "  tofu_npo.py " in wagle("recipes", "list")[1]


def test_copy(wagle, tmp_path):
    code, out, _ = wagle("recipes", "copy", tmp_path / "mine")
    assert code == 0
    assert f"{tmp_path / 'mine'}/tofu_npo.py" in out
    for path in (path for path in RECIPES.rglob("*") if path.suffix in (".py", ".yaml")):
        copied = tmp_path / "mine" / path.relative_to(RECIPES)
        assert copied.read_bytes() == path.read_bytes()
        if path.suffix == ".py":
            ast.parse(copied.read_text())
    code, _, err = wagle("recipes", "copy", tmp_path / "mine")
    assert code == 1
    assert "exists and is not an empty folder" in err
