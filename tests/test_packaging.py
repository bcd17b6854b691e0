"""The distributions: what they hold, and that the wheel works where there is no checkout."""

import configparser
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The files that git knows, in a folder of their own, so that a build leaves nothing in the repository."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    names = [name for name in names if name and (REPOSITORY / name).is_file()]
    if not names:
        pytest.skip("this is no git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    return folder, names


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory):
    """Paths of the source distribution and of the wheel, built without a network."""
    folder, _ = checkout
    out = tmp_path_factory.mktemp("dist")
    code = (
        "import setuptools.build_meta as backend, sys\n"
        "out = sys.argv[1]  # setuptools changes the arguments\n"
        "names = [build(out) for build in (backend.build_sdist, backend.build_wheel)]\nprint(*names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sdist, wheel = done.stdout.split()[-2:]
    return out / sdist, out / wheel


def test_the_sdist_is_the_repository(checkout, built):
    with tarfile.open(built[0]) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = set(checkout[1]) - found
    assert not missing
    assert all(name == "PKG-INFO" or ".egg-info/" in name for name in found - set(checkout[1]))


def test_the_wheel_has_package_and_recipes_only(checkout, built):
    with zipfile.ZipFile(built[1]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in wheel.namelist() if name.endswith("METADATA")]
        about = Parser().parsestr(wheel.read(metadata).decode())
    expected = {name for name in checkout[1] if name.startswith("wagle_trainer/")}
    expected |= {f"wagle_trainer/_{name}" for name in checkout[1] if name.startswith("recipes/")}
    assert found == expected
    assert about["Author"] == "wagle-trainer contributors"
    assert {"3.11", "3.12", "3.13"} <= {line.rpartition(" ")[2] for line in about.get_all("Classifier")}
    assert any("arxiv.org/abs/2410.17509" in url for url in about.get_all("Project-URL"))


def test_the_wheel_works_away_from_the_checkout(built, tmp_path):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(installed)
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = """
import json, sys
from pathlib import Path
import wagle_trainer
from wagle_trainer.cli import main
assert Path(wagle_trainer.__file__).is_relative_to(sys.argv[1]), wagle_trainer.__file__
assert main(["recipes", "copy", "mine"]) == 0
assert Path("mine/tofu_npo.py").is_file() and Path("mine/configs/fictional_npo.yaml").is_file()
Path("results.json").write_text(json.dumps({"before": {"model_utility": 0.5}, "after": {"model_utility": 0.4}}))
assert main(["report", "results.json"]) == 0
assert "<style>" in Path("report/report.html").read_text()
sys.path.insert(0, "mine")
import tofu_npo
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(installed)],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_lowest_versions_that_are_tested_are_those_admitted():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needed = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    bounds = {
        requirement.name: Version(bound.version)
        for requirement in map(Requirement, needed)
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    pins = [line for line in (REPOSITORY / ".ci" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {name: Version(version) for name, version in (line.split("==") for line in pins)}
    assert {"torch", "transformers", "accelerate", "peft"} <= set(tested)
    for name, version in tested.items():
        # That file says why trl's is higher.
        admitted = version >= bounds[name] if name == "trl" else version == bounds[name]
        assert admitted, f"setup.cfg admits {name} {bounds[name]}, .ci/lowest.txt has {version}"
