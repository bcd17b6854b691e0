"""`SparseAdapter`: what unlearning changed in a model, as a small file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from wagle_trainer.adapters.sparse import SparseValues, positions_layout, take, tensor_digest
from wagle_trainer.engines.sharding import named_parameters
from wagle_trainer.masking import WeightMask
from wagle_trainer.masking.bits import as_integers
from wagle_trainer.masking.mask_files import POSITIONS_KEY
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.hub import Shareable, find_file

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

FORMAT_VERSION = 1
PEFT_TYPE = "WAGLE"
WEIGHTS_NAME = "adapter_model.safetensors"  # these two names are PEFT's
CONFIG_NAME = "adapter_config.json"
KEY_PREFIX = "base_model.model."  # as in every PEFT adapter file
IGNORE = (
    "Load the base model that it was trained on, in the same dtype. To go on regardless, pass ignore_base_mismatch=True: "
    "then no one knows what the model remembers."
)


class AdapterMismatchError(ValueError):
    """An adapter does not fit the base model, another adapter, or the file that it is used with."""


@dataclass(frozen=True)
class AdapterInfo:
    """Where an adapter comes from. Every field may be None.

    Attributes:
        base_model: name or path of the base model.
        task_type: PEFT's name of what the base model does; "CAUSAL_LM" for models that generate.
        mask: how the mask that chose the positions came about (`WeightMask.describe`).
        training: how the values were trained: objective, sizes and digests of the sets; never their text.
    """

    base_model: str | None = None
    task_type: str | None = None
    mask: dict[str, Any] | None = None
    training: dict[str, Any] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, mask: dict[str, Any] | None = None, training: dict[str, Any] | None = None
    ) -> AdapterInfo:
        """What the base model's configuration tells.

        Args:
            model: the base model.
            mask: what `WeightMask.describe` says of the mask.
            training: how the values were trained; see `SparseAdapter`.
        """
        config = getattr(model, "config", None)
        task = "SEQ_2_SEQ_LM" if getattr(config, "is_encoder_decoder", False) else "CAUSAL_LM"
        generates = hasattr(model, "prepare_inputs_for_generation")
        return cls(getattr(config, "name_or_path", None) or None, task if generates else None, mask, training)


class SparseAdapter(Shareable, Mapping[str, SparseValues]):
    """A mapping from parameter name to the new values at the positions that unlearning was free to change.

    Base model + adapter is the trained model, bitwise identical; the base model's own values are not in the adapter, but the
    digests of the tensors that it touches are, so that it cannot be applied to another base unnoticed.

    Values can be float32 over a base in 16 bits: the masters of compact training. They are saved as they are, and rounded
    to the base's format where they are applied.

    Example:
        >>> base, tuned = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> adapter = diff(base, tuned)
        >>> adapter.save_pretrained("forgotten"); adapter.digest
        >>> merge(base, SparseAdapter.from_pretrained("forgotten"))
    """

    commit_message: ClassVar[str] = "Upload unlearning adapter"

    def __init__(
        self,
        values: Mapping[str, SparseValues],
        base_digests: Mapping[str, str],
        info: AdapterInfo | None = None,
        base_dtypes: Mapping[str, torch.dtype] | None = None,
    ):
        """Wrap values that are sparse already; `from_mask` and `diff` make them.

        Args:
            base_digests: `tensor_digest` of the base model's tensors, for each name in `values`.
            base_dtypes: of the base model's tensors, where the values are more exact.
        """
        self._values = dict(values)
        self.base_digests = {name: base_digests[name] for name in self._values}
        self.base_dtypes = {n: (base_dtypes or {}).get(n, sparse.values.dtype) for n, sparse in self._values.items()}
        self.info = info or AdapterInfo()

    @classmethod
    def from_mask(
        cls,
        model: nn.Module,
        mask: WeightMask,
        base_digests: Mapping[str, str],
        info: AdapterInfo | None = None,
        masters: Mapping[str, Tensor] | None = None,
    ) -> SparseAdapter:
        """The values that a trained model has where the mask selects weights.

        Args:
            model: the trained model.
            mask: the selected weights, whose values are taken.
            info: where the values come from.
            base_digests: of the tensors that the mask selects from, taken before training (see `base_digests`).
            masters: name -> float32 (selected weights,), whose rounding the model holds; kept where that is in 16 bits.
        """
        parameters = named_parameters(model)
        values = {n: _on_cpu(SparseValues.from_mask(parameters[n], mask.packed(n))) for n in touched(mask)}
        for name in masters or {}:
            if name in values and holds_masters(torch.float32, parameters[name].dtype):
                values[name] = replace(values[name], values=masters[name].cpu())  # type: ignore[index]
        return cls(values, base_digests, info, {name: parameters[name].dtype for name in values})

    def __getitem__(self, name: str) -> SparseValues:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SparseAdapter) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"SparseAdapter({len(self)} tensors, {self.num_values:,} values, base model {self.info.base_model!r})"

    @property
    def num_values(self) -> int:
        """Number of weights that the adapter sets."""
        return sum(len(sparse.values) for sparse in self._values.values())

    @property
    def nbytes(self) -> int:
        """Bytes that positions and values take in memory, and on disk but for the names."""
        return sum(sparse.nbytes for sparse in self._values.values())

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes, positions, values and the base model's digests, in whatever order."""
        sha = hashlib.sha256()
        for name in sorted(self._values):
            sha.update(f"{name}:{self._values[name].digest()}:{self.base_digests[name]}:".encode())
        return sha.hexdigest()

    @property
    def base_digest(self) -> str:
        """SHA-256 over the digests of the base model's tensors that the adapter touches."""
        return hashlib.sha256(json.dumps(self.base_digests, sort_keys=True).encode()).hexdigest()

    @property
    def mask(self) -> WeightMask:
        """The weights that the adapter sets, as a mask over the tensors that it touches."""
        return WeightMask(
            {name: sparse.packed for name, sparse in self._values.items()},
            {name: sparse.shape for name, sparse in self._values.items()},
        )

    def describe(self) -> dict[str, Any]:
        """Sizes, digest and origin, as JSON can hold them."""
        return {
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
            "base_digest": self.base_digest,
            "num_tensors": len(self),
            "num_values": self.num_values,
            "nbytes": self.nbytes,
            **asdict(self.info),
        }

    def check(self, model: nn.Module, *, ignore_base_mismatch: bool = False) -> None:
        """Raise unless `model` is the base model that the adapter was made for, in the tensors that it touches.

        Args:
            model: the base model, or one that may be.
            ignore_base_mismatch: names and shapes have to fit, values and dtypes may differ.

        Raises:
            AdapterMismatchError: a tensor is missing or differs in shape, dtype or content (says which), or the adapter
                is merged into the model already.
        """
        tensors = {name: (sparse.shape, self.base_dtypes[name]) for name, sparse in self._values.items()}
        parameters = named_parameters(model)
        check_layout(parameters, tensors, self.info.base_model, any_dtype=ignore_base_mismatch)
        if all(self._is_in_place(name, parameters[name]) for name in self) and differing(
            parameters, self.base_digests
        ):
            raise AdapterMismatchError(
                "The adapter is merged into this model already: all of its values are in place. Merge it once, into the "
                "base model."
            )
        if not ignore_base_mismatch:
            raise_for_base(differing(parameters, self.base_digests), self.info.base_model)

    def _is_in_place(self, name: str, parameter: Tensor) -> bool:
        sparse = self._values[name]
        there = take(parameter, sparse.positions.to(parameter.device)).cpu()
        if there.dtype != self.base_dtypes[name]:
            return False
        values = sparse.values.cpu().to(there.dtype)
        return torch.equal(as_integers(there), as_integers(values))

    def config(self) -> dict[str, Any]:
        """The content of `adapter_config.json`: what PEFT needs to find the method, and what loading checks."""
        config = {
            "peft_type": PEFT_TYPE,
            "task_type": self.info.task_type,
            "base_model_name_or_path": self.info.base_model,
            "inference_mode": True,
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
            "mask": self.info.mask,
            "training": self.info.training,
            "tensors": {
                name: {
                    "shape": list(sparse.shape),
                    "dtype": str(sparse.values.dtype).removeprefix("torch."),
                    "num_values": len(sparse.values),
                    "base_digest": self.base_digests[name],
                }
                | self._base_dtype_entry(name)
                for name, sparse in self._values.items()
            },
        }
        return config | {"metadata_digest": metadata_digest(config)}

    def _base_dtype_entry(self, name: str) -> dict[str, str]:
        dtype = self.base_dtypes[name]
        return {} if dtype == self[name].values.dtype else {"base_dtype": str(dtype).removeprefix("torch.")}

    def state_dict(self) -> dict[str, Tensor]:
        """The content of `adapter_model.safetensors`: positions and values of each tensor."""
        return {
            key: tensor.contiguous()
            for name, sparse in self._values.items()
            for key, tensor in zip(keys_of(name), (sparse.positions, sparse.values), strict=True)
        }

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` into `save_directory`, each at once.

        Args:
            save_directory: the folder; made if missing.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS_NAME, save(self.state_dict(), metadata={"format": "pt"}))
        write_atomically(folder / CONFIG_NAME, json.dumps(self.config(), indent=2).encode())

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        revision: str | None = None,
    ) -> SparseAdapter:
        """Read an adapter from a folder or from the Hub, and check it.

        Args:
            path_or_repo_id: a folder that `save_pretrained` wrote, or a model repository on the Hub.
            model: if given, the adapter is checked against it (see `check`).
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is truncated, of another PEFT method or not of a known format version.
            AdapterMismatchError: the digest does not belong to the values (the file was altered), or the model differs.
        """
        weights, config_file = (
            find_file(path_or_repo_id, name, revision, "adapter") for name in (WEIGHTS_NAME, CONFIG_NAME)
        )
        config = read_config(config_file)
        check_readable(weights)
        adapter = cls.from_state_dict(load_file(weights), config, str(weights))
        if model is not None:
            adapter.check(model)
        return adapter

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> SparseAdapter:
        """Put together what the two files hold, and check it.

        Args:
            state: see `state_dict`.
            config: see `config`.
            where: what to call the file in error messages.

        Raises:
            AdapterMismatchError: the digest does not belong to the values, or names and sizes differ.
        """
        tensors = config["tensors"]
        expected = {key for name in tensors for key in keys_of(name)}
        # PeftModel.save_pretrained adds embeddings to the file where the base model's tokenizer has got new tokens.
        ours = {key for key in state if key in expected or key.endswith((".positions", ".values"))}
        if ours != expected:
            odd = sorted(ours ^ expected)[0]
            raise AdapterMismatchError(
                f"{where} and its {CONFIG_NAME} differ in {_short(odd)}: one of them was replaced. Fetch both again."
            )
        if more := sorted(state.keys() - ours):
            warnings.warn(
                f"{where} also holds weights of the base model ({more[0]!r}), which PEFT saves where tokens were added. They "
                "are not loaded: save the base model with its added tokens, and load the adapter on it.",
                stacklevel=2,
            )
        values = {}
        for name, entry in tensors.items():
            positions, new = (state[key] for key in keys_of(name))
            shape = tuple(entry["shape"])
            dtype, size = positions_layout(math.prod(shape), entry["num_values"])
            expected_layout = ((dtype, (size,)), (getattr(torch, entry["dtype"]), (entry["num_values"],)))
            if tuple((tensor.dtype, tuple(tensor.shape)) for tensor in (positions, new)) != expected_layout:
                raise AdapterMismatchError(
                    f"{where} and its {CONFIG_NAME} differ in size or dtype of {name!r}: one of them was replaced. Fetch "
                    "both again."
                )
            values[name] = SparseValues(shape, positions, new)
        info = AdapterInfo(
            config.get("base_model_name_or_path"),
            config.get("task_type"),
            config.get("mask"),
            config.get("training"),
        )
        base_dtypes = {name: base_dtype(entry) for name, entry in tensors.items()}
        adapter = cls(values, {name: entry["base_digest"] for name, entry in tensors.items()}, info, base_dtypes)
        if adapter.digest != config["digest"]:
            raise AdapterMismatchError(
                f"The digest in {CONFIG_NAME} is {config['digest'][:12]}..., that of the values in {where} is "
                f"{adapter.digest[:12]}...: a file was altered or replaced. Fetch it again."
            )
        # A digest is easily computed again.
        if wrong := [name for name, sparse in values.items() if not sparse.is_valid()]:
            raise AdapterMismatchError(
                f"{where} holds invalid positions of {wrong[0]!r}: outside the tensor, not in order, or more or fewer than "
                "there are values. Fetch it again."
            )
        return adapter

    def card(self, repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None) -> ModelCard:
        """See `Shareable.card`."""
        from wagle_trainer.adapters.adapter_card import adapter_card

        return adapter_card(self.describe(), repo_id, evaluation)


def keys_of(name: str) -> tuple[str, str]:
    """Under what keys positions and values of one parameter are saved."""
    return POSITIONS_KEY.format(name), f"{KEY_PREFIX}{name}.values"


def holds_masters(values: torch.dtype, base: torch.dtype) -> bool:
    """Whether values of this format are the float32 masters of a base model's tensor in 16 bits."""
    return values == torch.float32 and base in (torch.bfloat16, torch.float16)


def base_dtype(entry: Mapping[str, Any]) -> torch.dtype:
    """The format of the base model's tensor, from its entry in `SparseAdapter.config`."""
    found: torch.dtype = getattr(torch, entry.get("base_dtype", entry["dtype"]))
    return found


def touched(mask: WeightMask) -> list[str]:
    """Names of the parameters with selected weights."""
    return [name for name in mask if mask.num_selected_in(name) > 0]


def base_digests(model: nn.Module, mask: WeightMask) -> dict[str, str]:
    """Digests of the tensors with selected weights; to be taken before training."""
    parameters = named_parameters(model)
    return {name: tensor_digest(parameters[name]) for name in touched(mask)}


def read_config(config_file: Path) -> dict[str, Any]:
    """`adapter_config.json` of a WAGLE adapter.

    Raises:
        ValueError: it is not one, or of a format version that is not known.
    """
    try:
        config = json.loads(config_file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise unreadable_config(config_file, error) from error
    if not isinstance(config, dict) or config.get("peft_type") != PEFT_TYPE:
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{config_file} is of a {_short(kind)} adapter, not of a {PEFT_TYPE!r} one.")
    check_version(config.get("format_version"), str(config_file))
    check_content(config, str(config_file))
    return config


def unreadable_config(config_file: str | os.PathLike[str], error: Exception) -> ValueError:
    """The error for a configuration that is not JSON, or is nested too deeply."""
    reason = str(error)[:200] or type(error).__name__
    return ValueError(f"{os.fspath(config_file)} is not a readable adapter configuration: {reason}. Fetch it again.")


def _short(value: Any) -> str:
    """A value as errors show it: damaged files hold long ones."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_readable(weights: Path) -> None:
    """Raise ValueError if a file is truncated or not a safetensors file; reads its header only."""
    try:
        with safe_open(weights, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                file.get_slice(key).get_shape()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{weights} is truncated or not a safetensors file: {error}. Fetch it again.") from error


def check_content(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless a configuration describes an adapter.

    Args:
        config: see `SparseAdapter.config`.
        where: what to call it in errors.

    Raises:
        AdapterMismatchError: the configuration is not the one whose digest it holds.
    """
    unreadable = f"{where} is not a readable adapter configuration"
    if missing := [key for key in ("digest", "tensors") if not config.get(key)]:
        raise ValueError(f"{unreadable}: it has no {missing[0]!r}. Fetch it again.")
    kinds = {"digest": str, "tensors": dict, "mask": dict, "training": dict, "base_model_name_or_path": str}
    for key, kind in kinds.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise ValueError(f"{unreadable}: {key!r} is {_short(config[key])}. Fetch it again.")
    for name, entry in config["tensors"].items():
        if not _is_tensor_entry(entry):
            raise ValueError(f"{unreadable}: 'tensors' has {_short(entry)} for {_short(name)}. Fetch it again.")
    if config.get("metadata_digest") not in (None, metadata_digest(config)):
        raise AdapterMismatchError(
            f"The content of {where} does not have the digest that it names: it was altered. Fetch it again."
        )


def _is_tensor_entry(entry: Any) -> bool:
    """Whether an entry of "tensors" has shape, dtype, number of values and digest of a tensor."""
    if not isinstance(entry, dict):
        return False
    shape, number, dtype = (entry.get(key) for key in ("shape", "num_values", "dtype"))
    return (
        isinstance(shape, list | tuple)
        and all(isinstance(size, int) and size >= 0 for size in shape)
        and isinstance(number, int)
        and 0 <= number <= math.prod(shape)
        and isinstance(dtype, str)
        and isinstance(getattr(torch, dtype, None), torch.dtype)
        and ("base_dtype" not in entry or (dtype == "float32" and entry["base_dtype"] in ("bfloat16", "float16")))
        and isinstance(entry.get("base_digest"), str)
    )


def metadata_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 over what an adapter's configuration tells, whichever keys PEFT adds to it."""
    keys = ("format_version", "digest", "tensors", "mask", "training", "base_model_name_or_path")
    content = json.dumps({key: config.get(key) for key in keys}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_adapter(config_file: Path) -> bool:
    """Whether this is the configuration of a WAGLE adapter."""
    try:
        return json.loads(config_file.read_text()).get("peft_type") == PEFT_TYPE
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def check_version(version: Any, where: str) -> None:
    """Raise ValueError for a format version that is not known."""
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{where} has adapter format version {version!r}; this wagle_trainer reads {FORMAT_VERSION}. Update "
            "wagle-trainer."
        )


def check_layout(
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    base_model: str | None,
    *,
    any_dtype: bool = False,
) -> None:
    """Raise AdapterMismatchError unless the parameters have the names, shapes and dtypes that the adapter touches, and
    ValueError if they are not in memory."""
    found = []
    for name, (shape, dtype) in tensors.items():
        if name not in parameters:
            found.append(f"{name!r} is not in the model")
        elif tuple(parameters[name].shape) != shape:
            found.append(f"{name!r} has shape {shape} in the adapter and {tuple(parameters[name].shape)} in the model")
        elif parameters[name].dtype != dtype and not any_dtype:
            found.append(f"{name!r} is {dtype} in the adapter and {parameters[name].dtype} in the model")
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise AdapterMismatchError(
            f"The adapter was made for another base model ({base_model!r}): {'; '.join(found[:3])}{more}. "
            + ("" if any_dtype else IGNORE)
        )
    if away := [name for name in tensors if parameters[name].is_meta]:
        raise ValueError(
            f"{away[0]!r} is not in memory (offloaded?), but an adapter needs the base model's weights: load the model "
            "without offloading, merge the adapter (wagle_trainer.adapters.merge), and offload the result."
        )


def differing(parameters: Mapping[str, Tensor], digests: Mapping[str, str]) -> list[str]:
    """The names of the parameters whose content is not that of the digest."""
    return [name for name, digest in digests.items() if tensor_digest(parameters[name]) != digest]


def raise_for_base(different: list[str], base_model: str | None) -> None:
    """Raise AdapterMismatchError if tensors of the base model differ."""
    if different:
        raise AdapterMismatchError(
            f"The adapter was made for another base model ({base_model!r}): {len(different)} of the tensors that it "
            f"touches differ, first {different[0]!r}. {IGNORE}"
        )


def _on_cpu(sparse: SparseValues) -> SparseValues:
    return SparseValues(sparse.shape, sparse.positions.cpu(), sparse.values.cpu())
