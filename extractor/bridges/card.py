"""The card beside a saved adapter: what it is and how it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def bridge_card(name: str, facts: dict, sparse: PreTrainedConfig) -> str:
    """Markdown with the front matter that PEFT and the hub read; `facts` are digests of the dense model's files."""
    base, _, revision = name.partition("@")
    digests = "\n".join(f"- {key}: `{value}`" for key, value in facts.items() if value is not None)
    at = f', revision="{revision}"' if revision else ""
    return f"""---
base_model: {base}
library_name: peft
---

# Bridges between {base} and a weight-sparse GPT

At every norm that reads the residual stream, a linear encoder (dense residual to sparse, then AbsTopK) and a linear decoder (back).
{base} itself is not changed: with these bridges it gives the logits it always gave, bit for bit. The sparse model, of width
{sparse.hidden_size} and {sparse.num_hidden_layers} layers, lies in the folder above.

```python
import extractor.bridges  # registers the adapter type with PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM

dense = AutoModelForCausalLM.from_pretrained("{base}"{at})
bridged = PeftModel.from_pretrained(dense, FOLDER, subfolder="bridges")
sites = extractor.bridges.bridge_sites(bridged)  # sites[i].encode(h), sites[i].decode(s), sites[i].steered(change)
sparse = AutoModelForCausalLM.from_pretrained(FOLDER)
```

{digests}
"""
