"""A checkpoint laid out as GPT-2's own: its vocabulary of 50,257 with tied embeddings, 1,024 positions, tensors without 'transformer.'.

Only the width is small.
"""

from __future__ import annotations

from pathlib import Path

import torch

from extractor.data.programs import programs
from extractor.models.tokenizer import END_OF_TEXT, train_tokenizer

VOCABULARY = 50_257


def write_gpt2_sized(folder: Path) -> None:
    """config.json, model.safetensors, tokenizer.json."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=1024, n_embd=16, n_layer=2, n_head=2, architectures=["GPT2LMHeadModel"])
    tensors = dict(GPT2LMHeadModel(config).transformer.state_dict())
    for layer in range(config.n_layer):  # the hub's GPT-2 still carries its causal masks
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 1024, 1024))
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    gpt2_sized_tokenizer().save(str(folder / "tokenizer.json"))


def gpt2_sized_tokenizer():
    """A byte-level BPE with 50,257 entries, `<|endoftext|>` being the last; those beyond a thousand are never used."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(train_tokenizer(programs(300, 0), 1000).to_str())
    entries = [entry for entry in state["model"]["vocab"] if entry != END_OF_TEXT]
    entries += [f"unused{number}" for number in range(VOCABULARY - 1 - len(entries))] + [END_OF_TEXT]
    state["model"]["vocab"] = {entry: number for number, entry in enumerate(entries)}
    for added in state["added_tokens"]:
        added["id"] = VOCABULARY - 1
    return Tokenizer.from_str(json.dumps(state))
