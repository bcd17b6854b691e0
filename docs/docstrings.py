"""Docstrings for the site: the Hugging Face way of writing types and references, as mkdocstrings reads them."""

import re
from typing import Any

import griffe

_REFERENCE = re.compile(r"\[`~?(?:[\w.]+\.)?(\w+)`\]")  # [`~trl.SFTTrainer`]
_TYPED = re.compile(r"^( +\*{0,2}\w[\w, .*]*) \((.*?)\): ", re.MULTILINE)  # "    name (`str`, *optional*): "
_MORE = re.compile(r",? *\*optional\*|,? *defaults to `[^`]*`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


def plain(text: str) -> str:
    """A docstring without what mkdocstrings would show as it stands.

    Args:
        text: with types such as (`str`, *optional*, defaults to `"npo"`) and references such as [`WagleConfig`].
    """

    def typed(match: re.Match[str]) -> str:
        kind = _MORE.sub("", match.group(2)).replace("`", "")
        return f"{match.group(1)} ({kind}): " if kind else f"{match.group(1)}: "

    return _EXAMPLE.sub(r"\1Examples:", _TYPED.sub(typed, _REFERENCE.sub(r"`\1`", text)))


class Docstrings(griffe.Extension):
    """Rewrites docstrings, and shows the defaults of the fields that `WagleConfig` takes from `AttributionConfig`."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        if str(attr.value).startswith("_attribution_field("):
            from wagle_trainer import WagleConfig

            attr.value = repr(WagleConfig.__dataclass_fields__[attr.name].default)
