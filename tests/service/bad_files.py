"""Bad files and folders, each with what must come of it: {name: content} below a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping

from simulated_hub import GPT2, gpt2_files, weights

Tree = Mapping[str, bytes | None]  # None: left out of what would be there
DEEP = b"[" * 100_000
PAIR = {"positive": 'a("', "negative": "a('", "answers": ['")', "')"]}


def _pairs(number: int = 64) -> list[dict]:
    return [PAIR | {"positive": f'print("{n}', "negative": f"print('{n}"} for n in range(number)]


def _lines(*changed: object) -> bytes:
    """A file of good pairs, its first lines changed."""
    rows = [*changed, *_pairs()[len(changed) :]]
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


# files of pairs
TASKS: dict[str, bytes] = {
    "nothing": b"",
    "few": _lines()[:300].rpartition(b"\n")[0],
    "prose": _lines("not json"),
    "cut": _lines('{"positive": "a'),
    "list": _lines([]),
    "number": _lines(5),
    "deep": _lines("[" * 50_000),
    "digits": _lines("9" * 5000),
    "bytes": b"\xff\xfe\n" + _lines(),
    "field missing": _lines({"positive": "a"}),
    "field unknown": _lines(PAIR | {"x": 1}),
    "prompt number": _lines(PAIR | {"positive": 5}),
    "prompt empty": _lines(PAIR | {"positive": ""}),
    "prompt half": _lines('{"positive": "\\ud800", "negative": "b", "answers": ["a", "b"]}'),
    "answers text": _lines(PAIR | {"answers": "ab"}),
    "answers three": _lines(PAIR | {"answers": ["a", "b", "c"]}),
    "answers same": _lines(PAIR | {"answers": ["a", "a"]}),
    "answers numbers": _lines(PAIR | {"answers": [1, 2]}),
    "twice": _lines(_pairs()[5]),
    "unequal": _lines(PAIR | {"positive": "a much longer prompt than the other one is ("}),
}


def _config(**changes: object) -> bytes:
    return json.dumps(GPT2 | changes).encode()


def _header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


# model folders: changes to a good one -> exit code
MODELS: dict[str, tuple[Tree, int]] = {
    "nothing": (dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")), 2),
    "no config": ({"config.json": None}, 2),
    "config cut": ({"config.json": b'{"model_type": "gpt2",'}, 1),
    "config list": ({"config.json": b"[]"}, 1),
    "config number": ({"config.json": b"5"}, 1),
    "config deep": ({"config.json": DEEP}, 1),
    "config bytes": ({"config.json": b"\xff\xfe"}, 1),
    "config empty": ({"config.json": b""}, 1),
    "config bare": ({"config.json": b"{}"}, 2),
    "type number": ({"config.json": _config(model_type=5)}, 2),
    "type listed": ({"config.json": _config(model_type=["gpt2"])}, 2),
    "type path": ({"config.json": _config(model_type="../../x")}, 2),
    "type null": ({"config.json": _config(model_type=None)}, 2),
    "bert": ({"config.json": _config(model_type="bert")}, 2),
    "headless": ({"config.json": _config(architectures=["GPT2Model"])}, 2),
    "architectures number": ({"config.json": _config(architectures=5)}, 2),
    "code": ({"config.json": _config(auto_map={"AutoModel": "x.Y"})}, 2),
    "kernels": ({"config.json": _config(attn_implementation="a/b")}, 2),
    "quantized": ({"config.json": _config(quantization_config={"quant_method": "gptq"})}, 2),
    "quantized text": ({"config.json": _config(quantization_config="yes")}, 2),
    "pickled": ({"model.safetensors": None, "pytorch_model.bin": b"x"}, 2),
    "gguf": ({"model.safetensors": None, "model.gguf": b"x"}, 2),
    "no weights": ({"model.safetensors": None}, 2),
    "no tokenizer": ({"tokenizer.json": None}, 2),
    "tokenizer cut": ({"tokenizer.json": b'{"model":'}, 1),
    "tokenizer list": ({"tokenizer.json": b"[]"}, 1),
    "tokenizer bare": ({"tokenizer.json": b"{}"}, 1),
    "tokenizer deep": ({"tokenizer.json": DEEP}, 1),
    "tokenizer bytes": ({"tokenizer.json": b"\xff"}, 1),
    "tokenizer empty": ({"tokenizer.json": b""}, 1),
    "index list": ({"model.safetensors": None, "model.safetensors.index.json": b"[]"}, 1),
    "index deep": ({"model.safetensors": None, "model.safetensors.index.json": DEEP}, 1),
    "index outside": ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, 1),
    "index absolute": ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "/x.safetensors"}}'}, 1),
    "index missing": ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'}, 1),
    "index null": ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "\\u0000.safetensors"}}'}, 1),
    "adapter alone": ({"config.json": None, "model.safetensors": None, "adapter_config.json": b"{}"}, 2),
    "adapter too": ({"adapter_config.json": b"{}"}, 2),
}

ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "python-tiny"}


def _adapter(**changes: object) -> Tree:
    return {"adapter_config.json": json.dumps(ADAPTER | changes).encode(), "adapter_model.safetensors": weights("adapter")}


# adapter folders -> exit code
ADAPTERS: dict[str, tuple[Tree, int]] = {
    "nothing": ({}, 2),
    "config cut": ({"adapter_config.json": b"{"}, 1),
    "config list": ({"adapter_config.json": b"[]"}, 1),
    "config deep": ({"adapter_config.json": DEEP}, 1),
    "kind": (_adapter(peft_type="PREFIX_TUNING"), 2),
    "kind number": (_adapter(peft_type=5), 2),
    "purpose": (_adapter(task_type="SEQ_CLS"), 2),
    "purpose listed": (_adapter(task_type=["CAUSAL_LM"]), 2),
    "megatron": (_adapter(megatron_config={"a": 1}), 2),
    "pickled": ({**_adapter(), "adapter_model.safetensors": None, "adapter_model.bin": b"x"}, 2),
}

# safetensors that lie -> read by the engine
WEIGHTS: dict[str, bytes] = {
    "nothing": b"",
    "cut": b"\x08",
    "prose": b"not tensors at all",
    "header longer than the file": _header(b"{}", 1 << 40),
    "header of all": _header(b"{}", 2**64 - 1),
    "header list": _header(b"[]"),
    "header cut": _header(b'{"a":'),
    "header deep": _header(b'{"a":' + DEEP),
    "header bytes": _header(b"\xff\xff"),
    "data missing": _header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "data short": _header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}') + b"x" * 8,
    "shape huge": _header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}') + b"x" * 8,
    "shape negative": _header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}') + b"x" * 4,
    "type unknown": _header(b'{"a":{"dtype":"Q1","shape":[1],"data_offsets":[0,4]}}') + b"x" * 4,
    "offsets turned": _header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}') + b"x" * 4,
}

# published checkpoints to import -> exit code
CHECKPOINTS: dict[str, tuple[Tree, int]] = {
    "no weights": ({"beeg_config.json": b"{}"}, 2),
    "config list": ({"beeg_config.json": b"[]", "final_model.pt": b""}, 1),
    "config cut": ({"beeg_config.json": b"{", "final_model.pt": b""}, 1),
    "config deep": ({"beeg_config.json": DEEP, "final_model.pt": b""}, 1),
    "config bare": ({"beeg_config.json": b"{}", "final_model.pt": b""}, 2),
    "config text": ({"beeg_config.json": b'{"n_layer": "two", "d_model": "x"}', "final_model.pt": b""}, 2),
}

# manifests of a finished result
MANIFESTS: dict[str, object] = {
    "nothing": b"",
    "prose": b"not json",
    "list": [],
    "number": 5,
    "deep": DEEP,
    "bytes": b"\xff",
    "no files": {"version": 1},
    "files listed": {"files": ["result.json"]},
    "files null": {"files": None},
    "facts text": {"files": {"result.json": "x"}},
    "sum missing": {"files": {"result.json": {"bytes": 5}}},
    "sum wrong": {"files": {"result.json": {"sha256": "0" * 64, "bytes": 5}}},
    "sum number": {"files": {"result.json": {"sha256": 5}}},
    "missing": {"files": {"nothing.json": {"sha256": "0" * 64}}},
    "outside": {"files": {"../log.jsonl": {"sha256": "0" * 64}}},
    "far outside": {"files": {"../../../plan.json": {"sha256": "0" * 64}}},
    "absolute": {"files": {"/etc/passwd": {"sha256": "0" * 64}}},
    "folder": {"files": {"model": {"sha256": "0" * 64}}},
    "empty name": {"files": {"": {"sha256": "0" * 64}}},
    "dot": {"files": {".": {"sha256": "0" * 64}}},
    "null byte": {"files": {"a\0b": {"sha256": "0" * 64}}},
    "half a pair": b'{"files": {"\\ud800": {"sha256": "0"}}}',
    "long name": {"files": {"x" * 5000: {"sha256": "0" * 64}}},
    "long piece": {"files": {"x" * 300: {"sha256": "0" * 64}}},
    "itself": {"files": {"manifest.json": {"sha256": "0" * 64}}},
}

# result.json of a finished result whose manifest agrees with it
RESULTS: dict[str, bytes] = {
    "nothing": b"",
    "prose": b"not json",
    "list": b"[]",
    "number": b"5",
    "null": b"null",
    "deep": DEEP,
    "bytes": b"\xff",
    "texts": b'{"task": 5, "circuit": "x", "loss": [], "accuracy": null, "tasks": 7}',
    "half": b'{"task": "a", "circuit": {"nodes": "many"}, "loss": {"circuit": "low"}}',
    "paths": b'{"paths": 5}',
}

# plans of sweeps
PLANS: dict[str, bytes] = {
    "nothing": b"",
    "prose": b"not json",
    "list": b"[]",
    "null": b"null",
    "deep": DEEP,
    "bare": b"{}",
    "no points": b'{"points": []}',
    "points text": b'{"points": "x"}',
    "points numbers": b'{"points": [1]}',
    "axes number": b'{"points": [{"axes": 5, "spec": {"kind": "train", "train": {}}, "job": "a"}]}',
    "job outside": b'{"points": [{"axes": {}, "spec": {"kind": "train", "train": {}}, "job": "../x"}]}',
    "job number": b'{"points": [{"axes": {}, "spec": {"kind": "train", "train": {}}, "job": 5}]}',
    "spec bad": b'{"points": [{"axes": {}, "spec": {"kind": "train"}, "job": "a"}]}',
    "spec of a circuit": b'{"points": [{"axes": {}, "spec": {"kind": "circuit", "model": "m", "tasks": ["a"], "bridge": {}, "prune": {}},'
    b' "job": "a"}]}',
}


def good_model() -> dict[str, bytes]:
    return gpt2_files("good")
