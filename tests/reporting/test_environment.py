"""What a report and a card say of versions."""

from importlib import metadata

from wagle_trainer import __version__
from wagle_trainer.reporting import environment


def test_a_checkout_that_is_not_installed_knows_its_version(monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(environment, "version", missing)
    assert environment.installed_versions(["wagle-trainer", "torch"]) == {"wagle-trainer": __version__}


def test_installed_packages_have_their_versions():
    found = environment.installed_versions(["wagle-trainer", "torch", "no-such-package"])
    assert found == {"wagle-trainer": __version__, "torch": metadata.version("torch")}
