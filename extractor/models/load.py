"""Load models in fp32 from local safetensors files, and merge LoRA adapters into them.

`DenseModel.facts` holds digests of the loaded files, under which results for a model can be cached.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from extractor import files
from extractor.errors import BrokenArtifact, UnsupportedModel, first_line, printable
from extractor.models.checks import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, FolderFiles, weights_of
from extractor.models.lora import check_patterns, check_ranks
from extractor.models.quiet import quiet_transformers
from extractor.models.reference import AdapterFolder, ModelFolder, model_digest, open_adapter, open_model
from extractor.models.tensors import integers_in, shapes_in

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel


PROBED_TOKENS = 16
MERGE_ERROR = 1e-3  # of the largest logit; merging in fp32 costs about 1e-6
ATTENTION = (None, "eager", "sdpa")  # implementations that every machine has; None: transformers chooses between these two
Shapes = dict[str, tuple[int, ...]]  # of tensors, by name
log = logging.getLogger("extract")
_BLOCK = re.compile(r"\.(?:h|layers)\.(\d+)\.")
_PART = re.compile(r"(?:^|\.)(?:h|layers)\.\d+\.|^lm_head\.|^(?:transformer|model)\.")  # of a language model
_BUFFER = re.compile(r"\.attn(?:\.attention)?\.bias$|\.masked_bias$|\.inv_freq$")  # masks and angles that older releases saved


@dataclass(frozen=True)
class DenseModel:
    """A frozen dense model.

    name   the name of the model in reports and circuits
    facts  {model, adapter: references, sha256, adapter_sha256: digests of their configs and weights, merged}; None where it has no adapter
    """

    model: PreTrainedModel
    name: str
    facts: dict[str, Any]


def load_model(source: ModelFolder) -> PreTrainedModel:
    """A dense or sparse model in fp32, on the CPU.

    Attention is computed by 'eager' or 'sdpa', whatever else the config asks for: others give the same values on some machines only.

    Raises BrokenArtifact when files do not parse or weights are not finite, UnsupportedModel when weights are missing or do not fit the
    config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if source.is_sparse:
        import extractor.sparse  # noqa: F401 - registers the architecture

    try:
        config: Any = AutoConfig.from_pretrained(source.path, local_files_only=True)
        if config._attn_implementation not in ATTENTION:
            config._attn_implementation = None
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except Exception as error:  # transformers raises many kinds; each means that these files are not a usable model
        raise BrokenArtifact(f"model in {source.path} cannot be loaded: {_in_a_line(error)}; correct its files") from None
    model, info = loaded
    if info["mismatched_keys"]:
        name, found, needed = min((str(name), tuple(found), tuple(needed)) for name, found, needed in info["mismatched_keys"])
        raise UnsupportedModel(
            f"model in {source.path}: {name} has shape {found} in its weights, {needed} by its {CONFIG} "
            f"({len(info['mismatched_keys'])} such tensors); correct the config"
        )
    if info["missing_keys"]:
        absent = sorted(map(str, info["missing_keys"]))
        raise UnsupportedModel(f"model in {source.path} is incomplete: {len(absent)} tensors are missing, first {absent[0]}")
    _refuse_left_out(source.path, map(str, info["unexpected_keys"]), model.config.num_hidden_layers)
    _refuse_integers(source.path)
    check_finite(model, f"model in {source.path}")
    _check_predictions(model, f"model in {source.path}")
    return model


def _in_a_line(error: Exception) -> str:
    """All lines of a message in one, without repeated spaces, at most 300 characters: the first may name a field only."""
    text = printable(" ".join(str(error).split()))[:300]
    return f"{type(error).__name__}: {text}" if " " not in text else text


@torch.no_grad()
def _check_predictions(model: PreTrainedModel, label: str) -> None:
    """Raise BrokenArtifact where finite weights predict no numbers: they are too large, or the config has a number that spoils them."""
    size, positions = model.config.vocab_size, getattr(model.config, "max_position_embeddings", None) or PROBED_TOKENS
    logits = model(input_ids=torch.arange(min(size, positions, PROBED_TOKENS))[None]).logits
    if not logits.isfinite().all():
        raise BrokenArtifact(f"{label} predicts no numbers, though its weights are finite: correct them, or the numbers in its {CONFIG}")


def _refuse_integers(folder: Path) -> None:
    """Raise UnsupportedModel for weights in whole numbers, which stand for others."""
    found = [name for file in weights_of(FolderFiles(folder)) for name in integers_in(folder / file) if not _BUFFER.search(name)]
    if found:
        raise UnsupportedModel(
            f"model in {folder} has weights in whole numbers, first {min(found)}: it was quantized; choose its original in 16 or 32 bits"
        )


def _refuse_left_out(folder: Path, names: Iterable[str], layers: int) -> None:
    """Raise UnsupportedModel where weights that the config has no place for belong to the language model, not to a further head."""
    unused = sorted(name for name in names if not _BUFFER.search(name))
    left_out = [name for name in unused if _PART.search(name)]
    further = [name for name in left_out if (block := _BLOCK.search(name)) and int(block[1]) >= layers]
    if further:
        problem = f"has weights of more than the {layers} layers of its {CONFIG}, first {further[0]}; they"
    elif left_out:
        problem = f"has weights that its {CONFIG} has no place for, first {left_out[0]}; {len(left_out)} in total"
    else:
        if unused:
            shown = printable(", ".join(unused[:3]))
            log.warning("model in %s: not used, since a language model has no place for them: %d tensors (%s)", folder, len(unused), shown)
        return
    raise UnsupportedModel(f"model in {folder} {problem} would be left out: correct the config")


def check_finite(model: nn.Module, label: str) -> None:
    """Raise BrokenArtifact where a weight is NaN or infinite; the message names the first such tensor. `label`: how it names the model."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float64).isfinite():
            wrong = int((~tensor.isfinite()).sum())
            raise BrokenArtifact(f"{label} has weights that are no numbers: {wrong} of {tensor.numel():,} in {name} are NaN or infinite")


def load_dense(source: ModelFolder, adapter: AdapterFolder | None = None) -> DenseModel:
    """The dense model of a folder with the adapter merged into it: fp32, frozen, on the CPU, in eval mode.

    Raises BrokenArtifact, and UnsupportedModel when the model is sparse or the adapter does not fit it.
    """
    if source.is_sparse:
        raise UnsupportedModel(f"model in {source.path} is a sparse model, where a dense one is needed")
    model = load_model(source)
    name = source.reference or str(source.path)
    facts: dict[str, Any] = {"model": name, "sha256": model_digest(source.path)}
    facts |= {"adapter": None, "adapter_sha256": None, "merged": False}
    if adapter is not None:
        model = merge_adapter(model, adapter)
        facts["adapter"] = adapter.reference or str(adapter.path)
        facts |= {"adapter_sha256": files.digest(adapter.path, ADAPTER_CONFIG, ADAPTER_WEIGHTS), "merged": True}
        name = f"{name} with {facts['adapter']}"
    return DenseModel(model.eval().requires_grad_(False), name, facts)


def merge_adapter(model: PreTrainedModel, adapter: AdapterFolder) -> PreTrainedModel:
    """Merge the adapter into the weights of `model`, which is changed; returns the merged model.

    Raises UnsupportedModel when the adapter does not fit or changes nothing, or when merging changes the logits by more than MERGE_ERROR of
    the largest; BrokenArtifact when its files do not parse.
    """
    before = _sums(model)
    tuned = _with_adapter(model, adapter)
    tokens = min(PROBED_TOKENS, model.config.max_position_embeddings)
    ids = torch.arange(tokens).unsqueeze(0) % model.config.vocab_size
    with torch.no_grad():
        try:
            beside = tuned.eval()(input_ids=ids).logits
            merged: Any = tuned.merge_and_unload(safe_merge=True)
        except Exception as error:  # peft raises several kinds, safe_merge a ValueError for NaN
            raise UnsupportedModel(f"adapter in {adapter.path} cannot be merged: {first_line(error)}") from None
        within = merged.eval()(input_ids=ids).logits
    gap = (beside - within).abs().max() / beside.abs().max()
    if not gap < MERGE_ERROR:
        raise UnsupportedModel(
            f"adapter in {adapter.path} cannot be merged: the logits change by {gap:.2g} of the largest; "
            "an adapter on tied embeddings, or one that acts on some tokens only, does not merge"
        )
    after = _sums(merged)
    if after.keys() != before.keys():
        raise UnsupportedModel(f"adapter in {adapter.path} changes which tensors the model has, first {min(after.keys() ^ before.keys())}")
    if after == before:
        raise UnsupportedModel(f"adapter in {adapter.path} changes no weight of the model; it was never trained")
    return merged


def _with_adapter(model: PreTrainedModel, adapter: AdapterFolder) -> PeftModel:
    """The model with the adapter as separate weights, after a check that every tensor of the adapter fits.

    Embeddings that the adapter brings replace the model's, as PEFT does it.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    label, asked = f"in {adapter.path}", files.read_json(adapter.path / ADAPTER_CONFIG)
    given = shapes_in(adapter.path / ADAPTER_WEIGHTS)
    check_ranks(asked, given, label)
    check_patterns(asked, [name for name, _ in model.named_modules()], label)
    try:
        config = LoraConfig.from_pretrained(str(adapter.path), local_files_only=True)
    except Exception as error:
        raise BrokenArtifact(f"{adapter.path / ADAPTER_CONFIG} is not a LoRA's config: {first_line(error)}") from None
    config.inference_mode = True
    config.base_model_name_or_path = model.name_or_path  # the base that the job names, not the adapter's
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # peft then sets it as GPT-2's Conv1D needs
        try:
            tuned: Any = get_peft_model(model, config)
        except Exception as error:
            raise UnsupportedModel(
                f"adapter in {adapter.path} does not fit the {type(model).__name__}, first tensor {min(given)}: {first_line(error)}"
            ) from None
    places = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    embeddings = get_peft_model_state_dict(tuned, save_embedding_layers=True)
    brought = {name: tensor for name, tensor in embeddings.items() if name in given and name not in places}
    _check_vocabulary(model, adapter, given, brought)
    _check_places(model, adapter, given, places | brought)
    tuned.load_adapter(str(adapter.path), "default", torch_device="cpu", local_files_only=True)
    check_finite(tuned, f"adapter in {adapter.path}")
    return tuned


def _check_vocabulary(
    model: PreTrainedModel, adapter: AdapterFolder, given: dict[str, tuple[int, ...]], brought: dict[str, Tensor]
) -> None:
    """Raise UnsupportedModel where the adapter brings embeddings of another vocabulary than the model's."""
    for name, tensor in brought.items():
        if given[name] != tuple(tensor.shape) and given[name][1:] == tuple(tensor.shape[1:]):
            raise UnsupportedModel(
                f"adapter in {adapter.path} brings embeddings for a vocabulary of {given[name][0]:,}, the {type(model).__name__} has "
                f"{tensor.shape[0]:,}; merge the two with PEFT, and give the merged folder with its tokenizer as the model"
            )


def _check_places(model: PreTrainedModel, adapter: AdapterFolder, given: Shapes, places: dict[str, Tensor]) -> None:
    """Raise UnsupportedModel unless the adapter has exactly the tensors of `places`, in their shapes."""
    for name in sorted(given.keys() | places.keys()):
        if name not in places:
            problem = "has no place in the model"
        elif name not in given:
            problem = f"is missing from {ADAPTER_WEIGHTS}"
        elif given[name] != tuple(places[name].shape):
            problem = f"has shape {given[name]}, where the model needs {tuple(places[name].shape)}"
        else:
            continue
        raise UnsupportedModel(f"adapter in {adapter.path} does not fit the {type(model).__name__}: {name} {problem}")


def _sums(model: PreTrainedModel) -> dict[str, tuple[float, float]]:
    """Two sums of every tensor, which show whether it changed without a copy of the model."""

    def sums(tensor: Tensor) -> tuple[float, float]:
        return tensor.sum(dtype=torch.float64).item(), tensor.abs().sum(dtype=torch.float64).item()

    return {name: sums(tensor) for name, tensor in model.state_dict().items()}


def open_dense(reference: str, adapter: str | None, digest: str | None = None) -> DenseModel:
    """The dense model of a JobSpec's references with the adapter merged. Raises what `open_model` and `load_dense` raise.

    digest: of the model that is meant, where an update of this package may have replaced a bundled one
    """
    return load_dense(open_model(reference, digest), open_adapter(adapter) if adapter else None)
