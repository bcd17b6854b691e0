"""Build step that setup.cfg cannot say: the recipes travel in the wheel, as `wagle_trainer/_recipes`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes, which are pages to read and to copy, beside the modules; `wagle recipes` finds them there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout has them already
            target = Path(self.build_lib) / "wagle_trainer" / "_recipes"
            shutil.copytree("recipes", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
