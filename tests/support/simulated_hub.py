"""A hub of 200 models as hubs are: most of them cannot be worked on, for many reasons. Metadata is made up, files are tiny."""

from __future__ import annotations

import json
from dataclasses import dataclass

from local_hub import LocalHub, Repository

WEIGHT_BYTES = 40_000  # enough for the parameters of `GPT2`, also as a Llama
SHARDS = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
SHA = "0123456789abcdef0123456789abcdef01234567"
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 1024,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 64,
}


@dataclass(frozen=True)
class Kind:
    """So many models of a kind; `why` is part of the reason for which each is refused ('' where it is taken)."""

    name: str
    number: int
    why: str = ""


KINDS = (
    Kind("small", 12),
    Kind("neo", 4),
    Kind("llama", 4),
    Kind("sharded", 2),
    Kind("copy", 32, "is a duplicate of 'lab/small-"),
    Kind("gated", 14, "is gated: accept its terms"),
    Kind("closed", 6, "is gated: accept its terms"),
    Kind("huge", 22, "6,738,415,616 parameters, more than the 200,000,000 allowed"),
    Kind("uncounted", 6, "about 10,000,000,000 parameters, more than the 200,000,000 allowed"),
    Kind("bert", 14, "is of type 'bert'"),
    Kind("gptj", 8, "parallel residual"),
    Kind("headless", 4, "has no language-model head"),
    Kind("pickled", 16, "only pickled weights"),
    Kind("gguf", 10, "model.gguf"),
    Kind("quantized", 8, "is quantized (gptq)"),
    Kind("code", 8, "brings code of its own"),
    Kind("kernels", 2, "asks for kernels from the hub"),
    Kind("tokenizerless", 6, "has no tokenizer.json"),
    Kind("broken", 5, "is not readable JSON"),
    Kind("empty", 4, "has no config.json"),
    Kind("lora", 4, "is an adapter"),
    Kind("disabled", 3, "is disabled by the hub or its owner"),
    Kind("down", 2, "is out of order (503)"),
    Kind("hidden", 4, "not on the hub, or private"),
)


def simulated_hub() -> LocalHub:
    """The hub; a model of kind K is called 'lab/K-NUMBER'."""
    return LocalHub({f"lab/{kind.name}-{number}": _repository(kind.name, number) for kind in KINDS for number in range(kind.number)})


def expected() -> dict[str, str]:
    """Model -> part of the reason for which it is refused, '' where it is taken."""
    return {f"lab/{kind.name}-{number}": kind.why for kind in KINDS for number in range(kind.number)}


def weights(text: str) -> bytes:
    """A file that passes for safetensors, different for each text."""
    header = json.dumps({"__metadata__": {"made": text}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(WEIGHT_BYTES)


def index(*names: str) -> bytes:
    """An index that names these weight files."""
    return json.dumps({"weight_map": {f"tensor {number}": name for number, name in enumerate(names)}}).encode()


def gpt2_files(text: str, **changes: object) -> dict[str, bytes]:
    """A GPT-2's files; its weights are known by the text."""
    return {"config.json": json.dumps(GPT2 | changes).encode(), "model.safetensors": weights(text), "tokenizer.json": b"{}"}


CONFIGS: dict[str, dict[str, object]] = {
    "neo": {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"]},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
    "gptj": {"model_type": "gptj", "architectures": ["GPTJForCausalLM"]},
    "headless": {"architectures": ["GPT2Model"]},
    "quantized": {"quantization_config": {"quant_method": "gptq"}},
    "code": {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
    "kernels": {"attn_implementation": "lab/kernel"},
}


def _repository(kind: str, number: int) -> Repository:
    same = f"small-{number % 12}" if kind == "copy" else f"{kind}-{number}"
    files = gpt2_files(same, **CONFIGS.get(kind, {}))
    facts: dict = {"parameters": 1_000_000 + number, "tags": ("text-generation", kind)}
    if kind in ("pickled", "gguf", "sharded", "lora"):
        del files["model.safetensors"]
    if kind in ("gguf", "empty", "lora"):
        del files["config.json"]
    if kind == "tokenizerless":
        del files["tokenizer.json"]
    files |= {
        "pickled": {"pytorch_model.bin": b"x"},
        "gguf": {"model.gguf": b"x"},
        "sharded": {"model.safetensors.index.json": index(*SHARDS)} | {shard: weights(f"{same} {shard}") for shard in SHARDS},
        "lora": {"adapter_config.json": b"{}", "adapter_model.safetensors": weights(same)},
        "broken": {"config.json": b'{"model_type": "gpt2",'},
    }.get(kind, {})
    facts |= {
        "gated": {"gated": "manual"},
        "closed": {"gated": True},
        "huge": {"parameters": 6_738_415_616},
        "uncounted": {"parameters": None, "sizes": {"model.safetensors": 40_000_000_000}},
        "disabled": {"disabled": True},
        "down": {"status": 503},
        "hidden": {"private": True},
    }.get(kind, {})
    return Repository({SHA: files}, **facts)
