"""Checks of the files of a model or a LoRA adapter, in a folder or in a hub repository that is not downloaded yet. No torch.

Weights must be safetensors. Models that bring their own code are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from extractor.errors import BrokenArtifact, UnsupportedModel
from extractor.files import read_json
from extractor.models.dense.base import dense_types, unsupported
from extractor.models.dense.start import refused
from extractor.models.lora import check_lora_config
from extractor.models.shape import DenseShape, sparse_parameters
from extractor.models.tokenizer_files import MAX_BYTES, TOKENIZER_FILES, too_large

SPARSE_TYPE = "sparse_gpt"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FOREIGN = (".h5", ".msgpack", ".gguf", ".onnx", ".ot", ".npz")
HEADS = ("LMHeadModel", "ForCausalLM")
MAX_CONFIG_BYTES = 1 << 26  # of a JSON file that describes a model; typical ones have a few kilobytes
ACTIVATIONS = (  # of transformers.activations, which imports torch
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh"),
    *("hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu"),
    *("sqrtsoftplus", "swish", "tanh", "xielu"),
)
HALF = ("float16", "bfloat16")
LEAST_BYTES = 2  # of a parameter in a weight file
MOST_BYTES = 5  # of a parameter in a download: fp32, and buffers that older checkpoints hold
OTHER_BYTES = 200_000_000  # of all files of a download but the weights; the largest tokenizers have a fifth of that


class Files(Protocol):
    """The files at the top of a folder or repository; see `FolderFiles` and `extractor.models.hub.HubFiles`."""

    @property
    def label(self) -> str:
        """Their location, for messages."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Name -> bytes."""

    @property
    def parameters(self) -> int | None:
        """Number of parameters, None where unknown."""

    @property
    def folder(self) -> Path | None:
        """Their folder on this machine, None without one."""

    def json(self, file: str) -> Any:
        """The content of a JSON file. Raises BrokenArtifact."""


@dataclass(frozen=True)
class FolderFiles:
    """The files of a local folder."""

    path: Path
    parameters: int | None = None

    @property
    def label(self) -> str:
        return f"in {self.path}"

    @property
    def folder(self) -> Path:
        return self.path

    @property
    def sizes(self) -> Mapping[str, int]:
        return {file.name: file.stat().st_size for file in self.path.iterdir() if file.is_file()}

    def json(self, file: str) -> Any:
        return read_json(self.path / file, MAX_CONFIG_BYTES)


def is_adapter(files: Files) -> bool:
    """Whether this is an adapter, not a model. Some adapters hold a copy of their base's config.json."""
    found = files.sizes
    return ADAPTER_CONFIG in found and not (CONFIG in found and {WEIGHTS, INDEX} & found.keys())


def check_model(files: Files) -> str:
    """The model_type of a supported model whose config.json gives possible sizes. Raises UnsupportedModel, BrokenArtifact."""
    model_type = check_kind(files)
    claimed_parameters(files)
    return model_type


def claimed_parameters(files: Files) -> int:
    """The number of parameters that a model's config.json implies. Raises UnsupportedModel, BrokenArtifact."""
    config = _object(files, CONFIG, "model")
    if config.get("model_type") == SPARSE_TYPE:
        return sparse_parameters(config, f"model {files.label}")
    return DenseShape.of(config, f"model {files.label}").parameters


def check_kind(files: Files) -> str:
    """The model_type of a supported model, as far as its listing on the hub shows it. Raises UnsupportedModel, BrokenArtifact."""
    found = files.sizes
    if is_adapter(files):
        raise UnsupportedModel(f"model {files.label} is an adapter ({ADAPTER_CONFIG}); give its base as the model, and this as the adapter")
    if CONFIG not in found:
        raise UnsupportedModel(f"model {files.label} has no {CONFIG}; {_listed(found)}")
    if ADAPTER_CONFIG in found:
        raise UnsupportedModel(f"model {files.label} also holds an adapter ({ADAPTER_CONFIG}); give them as two: a model and its adapter")
    config = _object(files, CONFIG, "model")
    model_type = str(config.get("model_type"))
    if model_type == SPARSE_TYPE:
        config.pop("auto_map", None)  # our models carry their code for users without this package
    elif model_type not in dense_types():
        raise UnsupportedModel(f"model {files.label} is of type {model_type!r}: {unsupported(model_type, config)}, or a {SPARSE_TYPE}")
    if why := refused(model_type, config):
        raise UnsupportedModel(f"model {files.label} cannot be bridged: {why}; choose another model of its family")
    _check_architecture(files.label, config)
    _check_code(files.label, config)
    _check_activation(files.label, config)
    _check_weights(files)
    return model_type


def _check_architecture(label: str, config: Mapping[str, Any]) -> None:
    named = config.get("architectures") or []
    names = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if names and not any(name.endswith(HEADS) for name in names):
        raise UnsupportedModel(
            f"model {label} is a {names[0]}: it has no language-model head; choose a {' or '.join('...' + h for h in HEADS)}"
        )


def _check_code(label: str, config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise UnsupportedModel(f"model {label} brings code of its own (auto_map in {CONFIG}), which is never run; choose one without")
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        if "/" in json.dumps(config.get(key)):  # transformers would fetch such kernels from the hub and run them
            raise UnsupportedModel(
                f"model {label} asks for kernels from the hub ({key} in {CONFIG}), which are never run; remove that line"
            )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "unnamed") if isinstance(method, dict) else "unnamed"
        raise UnsupportedModel(f"model {label} is quantized ({method}); choose its original in 16 or 32 bits")


def _check_activation(label: str, config: Mapping[str, Any]) -> None:
    named = [config[key] for key in ("activation_function", "hidden_act", "hidden_activation") if config.get(key) is not None]
    unknown = [name for name in named if name not in ACTIVATIONS]
    if unknown:
        raise UnsupportedModel(
            f"model {label} has the activation {str(unknown[0])[:40]!r} in {CONFIG}, which transformers does not have; correct the config"
        )


def _check_weights(files: Files) -> None:
    found = files.sizes
    if WEIGHTS not in found and INDEX not in found:
        raise UnsupportedModel(f"model {files.label} has {_instead(found)}; save it with safetensors, as {WEIGHTS}")


def weights_of(files: Files) -> list[str]:
    """The names of the files that hold a model's weights: one, or those that the index names. Raises BrokenArtifact."""
    if WEIGHTS in files.sizes:
        return [WEIGHTS]
    found = indexed_weights(files)
    for name in found:
        if name not in files.sizes:
            raise BrokenArtifact(f"model {files.label}: {name} is missing, which {INDEX} names; copy or download the model again")
    return found


def indexed_weights(files: Files) -> list[str]:
    """The names of the weight files that the index names. Raises BrokenArtifact."""
    index = files.json(INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise BrokenArtifact(f"{INDEX} of model {files.label} has no weight_map; save the model again")
    found = sorted(set(map(str, names.values())))
    for name in found:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BrokenArtifact(
                f"{INDEX} of model {files.label} names {name[:80]!r}, which is no safetensors file of its folder; save the model again"
            )
    return found


def check_weights(files: Files) -> None:
    """Check that all weight files of a local model are there, and hold as many bytes as its config.json needs at least.

    A model that its weights cannot fill would be built in memory before they are read. Raises BrokenArtifact, UnsupportedModel.
    """
    claimed, size = claimed_parameters(files), sum(files.sizes[name] for name in weights_of(files))
    if LEAST_BYTES * claimed > size:
        raise BrokenArtifact(
            f"model {files.label} has {size:,} bytes of weights, its {CONFIG} describes {claimed:,} parameters; one of the two is another "
            "model's, or the weights are cut: copy or download the model again"
        )


def own_file(folder: Path, path: Path) -> Path:
    """The path, unless it is a link that leaves its folder: to a place other than the blobs of the hub's cache. Raises BrokenArtifact.

    Results hold copies of such files, and a folder may come from a stranger.
    """
    real = Path(os.path.realpath(path))
    is_blob = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    if (path.is_symlink() or path.parent.is_symlink()) and not (real.is_relative_to(os.path.realpath(folder)) or is_blob):
        raise BrokenArtifact(f"model in {folder}: {path.relative_to(folder)} is a link out of this folder; copy the file itself there")
    return path


def check_tokenizer(files: Files) -> None:
    """Check that there is a fast tokenizer, in files of at most MAX_BYTES that lie in the folder.

    Raises UnsupportedModel, BrokenArtifact.
    """
    found, folder = files.sizes, files.folder
    for name in TOKENIZER_FILES:
        if folder is not None:
            own_file(folder, folder / name)
        if found.get(name, 0) > MAX_BYTES:
            raise UnsupportedModel(f"model {files.label}: {too_large(name, found[name])}")
    if "tokenizer.json" not in found and not {"vocab.json", "merges.txt"} <= found.keys():
        slow = sorted(name for name in found if name.startswith(("tokenizer", "spiece", "vocab", "sentencepiece")))
        raise UnsupportedModel(
            f"model {files.label} has no tokenizer.json ({_listed(slow)}); a fast tokenizer is needed: "
            "save one with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def vocab_size_of(folder: Path) -> int | None:
    """The number of tokens that the model in a folder has embeddings for; None if its config does not say.

    With an adapter it is the same: one that brings more embeddings is refused.
    """
    size = FolderFiles(folder).json(CONFIG).get("vocab_size") if (folder / CONFIG).is_file() else None
    return size if type(size) is int else None


def check_size(files: Files, limit: int, setting: str) -> int:
    """The number of a model's parameters. Raises UnsupportedModel where it exceeds `limit`, which the environment variable `setting` sets.

    Where `files` does not know it, it is estimated from the bytes of the weights, at 2 or 4 bytes each.
    """
    count, about = files.parameters, ""
    if count is None:
        config = _object(files, CONFIG, "model")
        width = 2 if str(config.get("dtype") or config.get("torch_dtype")) in HALF else 4
        count, about = sum(files.sizes[name] for name in weights_of(files)) // width, "about "
    if count > limit:
        raise UnsupportedModel(
            f"model {files.label} has {about}{count:,} parameters, more than the {limit:,} allowed; where the worker has the memory, "
            f"set {setting} higher"
        )
    return count


def check_bytes(files: Files, patterns: Iterable[str], limit: int, setting: str) -> None:
    """Check the bytes of everything that a job downloads of a model: its weights, and the files whose names match `patterns`.

    limit, setting: as of `check_size`, which counts parameters by what the hub says of them. Raises UnsupportedModel, BrokenArtifact.
    """
    weights = weights_of(files)
    _check_weight_bytes("model", files, weights, limit, setting)
    others = {name: size for name, size in files.sizes.items() if name not in weights and any(fnmatch(name, p) for p in patterns)}
    if sum(others.values()) > OTHER_BYTES:
        largest = max(others, key=lambda name: others[name])
        raise UnsupportedModel(
            f"model {files.label} has {sum(others.values()):,} bytes of files beside its weights, more than the {OTHER_BYTES:,} allowed; "
            f"the largest is {largest}"
        )


def check_adapter_bytes(files: Files, limit: int, setting: str) -> None:
    """The same for an adapter, of which two files are downloaded. Raises UnsupportedModel."""
    _check_weight_bytes("adapter", files, [ADAPTER_CONFIG, ADAPTER_WEIGHTS], limit, setting)


def _check_weight_bytes(kind: str, files: Files, names: Iterable[str], limit: int, setting: str) -> None:
    size, most = sum(files.sizes[name] for name in names), MOST_BYTES * limit
    if size > most:
        raise UnsupportedModel(
            f"{kind} {files.label} has {size:,} bytes of weights, more than the {most:,} of {limit:,} parameters; where the worker has the "
            f"memory, set {setting} higher"
        )


def check_adapter(files: Files) -> dict[str, Any]:
    """The content of a LoRA's adapter_config.json. Raises UnsupportedModel where it cannot be merged, BrokenArtifact."""
    found = files.sizes
    if ADAPTER_CONFIG not in found:
        raise UnsupportedModel(f"adapter {files.label} has no {ADAPTER_CONFIG}; {_listed(found)}; save it with PEFT's save_pretrained")
    config = _object(files, ADAPTER_CONFIG, "adapter")
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise UnsupportedModel(f"adapter {files.label} is of type {kind}; only LORA is supported")
    purpose = config.get("task_type")
    if purpose not in (None, "CAUSAL_LM"):
        raise UnsupportedModel(f"adapter {files.label} is for {purpose}; only CAUSAL_LM is supported")
    if config.get("megatron_config"):  # PEFT would import the module that megatron_core names
        raise UnsupportedModel(
            f"adapter {files.label} is for Megatron layers (megatron_config); only plain transformers models are supported"
        )
    check_lora_config(config, files.label)
    if ADAPTER_WEIGHTS not in found:
        raise UnsupportedModel(f"adapter {files.label} has {_instead(found)}; save it with safetensors, as {ADAPTER_WEIGHTS}")
    return config


def _object(files: Files, file: str, kind: str) -> dict[str, Any]:
    content = files.json(file)
    if not isinstance(content, dict):
        raise BrokenArtifact(f"{kind} {files.label}: its {file} is no config: expected a JSON object")
    return content


_NAMED = ("config", "model", "tokenizer", "adapter", "vocab", "merges", "special_tokens", "generation_config", "pytorch_model", "README")


def _instead(found: Iterable[str]) -> str:
    pickled = sorted(name for name in found if name.endswith(PICKLED))
    if pickled:
        return f"only pickled weights ({_few(pickled)}), which can run code when loaded"
    foreign = sorted(name for name in found if name.endswith((".safetensors", *FOREIGN)))
    return f"no weights that can be used ({_few(foreign)})" if foreign else "no weights"


def _listed(found: Iterable[str]) -> str:
    """What a folder has: files of models by name, others only counted, since an error may be read by people who may not read the folder."""
    known = sorted(name for name in found if name.startswith(_NAMED) or name.endswith((".safetensors", *PICKLED, *FOREIGN)))
    others = len(set(found)) - len(known)
    counted = [f"{others} other file{'s' * (others != 1)}"] if others else []
    return f"found {' and '.join(([_few(known)] if known else []) + counted)}" if found else "found nothing"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
