"""Loading models and tokenizers by name, with errors that say which one it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Have errors of loading say what was to be loaded: Transformers tells of the Hub's address alone."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path!r} could not be loaded, as a local folder or from the Hub: {error}") from error


def load_model(path: str, dtype: str = "auto", device: Any = None) -> tuple[Any, Any]:
    """A model, or an adapter (a sparse one or any of PEFT's) on its base, and its tokenizer, or else that of the base.

    Raises:
        OSError: there is no such model; names it.
        ValueError: the configuration of an adapter is damaged.
    """
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import find_adapter_config_file

    with naming(path):
        is_adapter = find_adapter_config_file(path) is not None
        loader = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
        try:
            model = loader.from_pretrained(path, dtype=dtype).to(device)
        except KeyError as error:
            if not is_adapter:
                raise
            raise ValueError(
                f"The adapter_config.json of {path!r} names a PEFT method that is not known: {error}."
            ) from error
        try:
            return model, AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError):
            if not is_adapter:
                raise
    base = model.active_peft_config.base_model_name_or_path
    with naming(base):
        return model, AutoTokenizer.from_pretrained(base)
