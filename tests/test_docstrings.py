"""What a user imports says what its arguments are."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "wagle_trainer"
# Hooks of the Trainer and methods of a protocol: their arguments are those of the overridden method.
OVERRIDES = ("on_", "forward")


def exported() -> dict[str, set[str]]:
    """Name that a package exports -> names of packages; read from the sources, without importing anything."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            value = node.value
            if "_HOMES" in names and isinstance(value, ast.Dict):
                listed = [key.value for key in value.keys if isinstance(key, ast.Constant)]
            elif "__all__" in names and isinstance(value, ast.List):
                listed = [item.value for item in value.elts if isinstance(item, ast.Constant)]
            else:
                continue
            for name in listed:
                found.setdefault(name, set()).add(str(path.parent.relative_to(PACKAGE.parent)))
    return found


def functions() -> dict[str, ast.FunctionDef]:
    """Exported functions, and public methods of exported classes, by place."""
    names, found = exported(), {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if getattr(node, "name", None) not in names or str(path.parent.relative_to(PACKAGE.parent)).split("/")[
                :2
            ] not in [home.split("/")[:2] for home in names[node.name]] + [
                ["wagle_trainer", *path.relative_to(PACKAGE).parts[:1]]
            ]:
                continue
            where = f"{path.relative_to(PACKAGE)}: {node.name}"
            if isinstance(node, ast.FunctionDef):
                found[where] = node
            elif isinstance(node, ast.ClassDef):
                found |= {
                    f"{where}.{part.name}": part
                    for part in node.body
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith(("_", *OVERRIDES))
                }
    return found


def arguments(node: ast.FunctionDef) -> list[str]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


FUNCTIONS = functions()


def test_there_are_many():
    assert len(FUNCTIONS) > 100
    assert any(where.endswith("write_report") for where in FUNCTIONS)


@pytest.mark.parametrize("where", FUNCTIONS)
def test_arguments_are_documented(where):
    node = FUNCTIONS[where]
    text = ast.get_docstring(node) or ""
    assert text, "no docstring"
    first = text.split("\n")[0]
    if not arguments(node) or first.startswith(("See `", "As `")):  # documented where it overrides
        return
    assert "Args:" in text, f"{first}: no Args"
    section = text.partition("Args:")[2]
    missing = [name for name in arguments(node) if f"{name}:" not in section and f"{name}," not in section]
    assert not missing, f"not in Args: {', '.join(missing)}"
