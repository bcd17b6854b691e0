"""`wagle recipes`: the recipes and their configurations, listed and copied, also without a checkout."""

from __future__ import annotations

import argparse
import ast
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wagle_trainer
from wagle_trainer.cli.parsing import add_command, make_parser

DESCRIPTION = """Recipes are short scripts to read, run and change: a whole run from the data to the table. `wagle recipes copy` puts
them and their configurations into a folder of yours."""
EXAMPLES = """
  wagle recipes list
  wagle recipes copy my-recipes
  python my-recipes/tofu_npo.py"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser("wagle recipes", DESCRIPTION, EXAMPLES)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_command(
        commands, "list", _list, "name the recipes and their configurations", "wagle recipes list --json", _show_list
    )
    copy = add_command(
        commands,
        "copy",
        _copy,
        "copy all recipes and configurations into a folder",
        "wagle recipes copy my-recipes",
        _show_copy,
    )
    copy.add_argument("destination", help="folder to make; must not exist, or be empty")
    return parser.parse_args(arguments)


def recipes_folder() -> Path:
    """The folder of the recipes: in the package if it was installed, beside it in a checkout.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(wagle_trainer.__file__).parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if (folder / "recipe.py").is_file():
            return folder
    raise FileNotFoundError("The recipes were not installed with this package: install it again, or take a checkout.")


def _list(options: argparse.Namespace) -> dict[str, Any]:
    folder = recipes_folder()
    # The others are parts of recipes.
    scripts = [path for path in sorted(folder.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
    return {
        "recipes": {path.name: _first_line(path) for path in scripts},
        "configs": [str(path.relative_to(folder)) for path in sorted(folder.glob("*/*.yaml"))],
    }


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _copy(options: argparse.Namespace) -> dict[str, Any]:
    destination = Path(options.destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty folder: name another one.")
    shutil.copytree(
        recipes_folder(), destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    return {"destination": str(destination), "files": sum(path.is_file() for path in destination.rglob("*"))}


def _show_list(result: dict[str, Any]) -> str:
    width = max(map(len, result["recipes"]))
    lines = ["recipes:", *(f"  {name:<{width}}  {text}" for name, text in result["recipes"].items())]
    return "\n".join([*lines, "", "configurations, for --config:", *(f"  {name}" for name in result["configs"])])


def _show_copy(result: dict[str, Any]) -> str:
    folder = result["destination"]
    return f"Copied {result['files']} files to {folder}. Try: accelerate launch {folder}/tofu_npo.py"
