"""Tokens, passwords and URLs with credentials, taken out of what is recorded and shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "(not shown)"
_NAME = re.compile(
    r"(token|passw(or)?d|passphrase|secret|api_?key|access_?key|private_?key|credentials?|authorization)$", re.I
)
# Names that end in "token" and hold none.
_HARMLESS = re.compile(
    r"(eos|bos|pad|unk|sep|cls|mask|masked|image|audio|video|additional_special|per|new)_token$", re.I
)
# What tokens of hubs, trackers and clouds look like, wherever they stand.
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|api_org_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{16,}|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,})"
)
_URL_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.I)
_QUERY = re.compile(r"([?&][^=&\s]*(?:token|key|secret|password|signature|sig)=)[^&\s\"']+", re.I)


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret."""
    words = str(name).replace("-", "_")
    return bool(_NAME.search(words)) and not _HARMLESS.search(words)


def redacted(value: Any, name: str = "") -> Any:
    """A copy of nested settings without secrets: values whose name or form is that of one are replaced.

    Args:
        value: settings as JSON can hold them; other objects stay as they are.
        name: what the value is called.

    Example:
        >>> redacted({"hub_token": "hf_abc", "data": "https://me:pw@host/x", "eos_token": "</s>"})
        {'hub_token': '(not shown)', 'data': 'https://(not shown)@host/x', 'eos_token': '</s>'}
    """
    if name and is_secret(name) and value is not None and not isinstance(value, bool):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: redacted(part, str(key)) for key, part in value.items()}
    if isinstance(value, str):
        return _redacted_text(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        if value and all(isinstance(part, str) for part in value):
            return redacted_arguments(value)
        return [redacted(part) for part in value]
    return value


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for use, not for show: what has the name of a secret is None, texts and nested settings are redacted.

    Example:
        >>> without_secrets({"hub_token": "hf_abc", "seed": 3})
        {'hub_token': None, 'seed': 3}
    """
    found = {}
    for name, value in settings.items():
        secret = is_secret(name) and type(value) is str
        found[name] = None if secret else redacted(value, name) if type(value) in (str, dict) else value
    return found


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: `--hub_token X`, `--hub_token=X` and `options.api_key=X` lose their X."""
    found: list[str] = []
    hide = False
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        if hide and not argument.startswith("--"):
            found.append(HIDDEN)
            hide = False
        elif separator and is_secret(name.lstrip("-")):
            found.append(f"{name}={HIDDEN}")
            hide = False
        else:
            found.append(_redacted_text(argument))
            hide = argument.startswith("-") and not separator and is_secret(argument.lstrip("-"))
    return found


def _redacted_text(text: str) -> str:
    text = _URL_CREDENTIALS.sub(rf"\1{HIDDEN}@", text)
    return _TOKEN.sub(HIDDEN, _QUERY.sub(rf"\1{HIDDEN}", text))
