"""A dense and a sparse model with their bridges: created, saved, loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from extractor import files
from extractor.bridges.as_sparse import blocks_like, first_token
from extractor.bridges.tuner import BridgeSite, SparseBridgeConfig, bridge_sites
from extractor.errors import BrokenArtifact, NotFound, first_line, printable
from extractor.models.dense.base import DenseSublayers, wrap_dense
from extractor.models.load import check_finite, open_dense
from extractor.models.shape import DenseShape
from extractor.models.sparse_folder import BRIDGES, DENSE_JSON, dense_of
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.spec.beside import shape_beside
from extractor.spec.schema import BridgeSpec
from extractor.training.compute import pick_device
from extractor.training.train_sparse import new_sparse_gpt

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedConfig

    from extractor.models.load import DenseModel


@dataclass(frozen=True)
class BridgedPair:
    """A frozen dense model, a sparse model with the same number of layers, and the 2L + 1 bridge sites between them.

    adapter   the dense model with its bridges as a PEFT model
    name      the dense model's reference
    facts     its references and the digests of its files, see `DenseModel`
    """

    dense: DenseSublayers
    sparse: SparseGPTForCausalLM
    sites: list[BridgeSite]
    adapter: PeftModel
    name: str
    facts: dict

    @property
    def crossed(self) -> range:
        """The sites at which passes cross from one model to the other, see `crossed_sites`."""
        return crossed_sites(self.sparse)

    def by_site(self, found: Any) -> Any:
        """The same JSON, whose lists are one number for each of the `crossed` sites, with one for each site: None where none cross."""
        if isinstance(found, dict):
            return {key: self.by_site(value) for key, value in found.items()}
        if not isinstance(found, list):
            return found
        after = len(self.sites) - self.crossed.stop
        return [None] * self.crossed.start + found + [None] * after

    def later_tokens(self, residuals: Sequence[Tensor]) -> list[Tensor]:
        """Residuals (B, T, width) without the first token, whose activations are far larger than all others in pretrained models.

        The scaling of sites and the bridges' errors are those of the other tokens; ours. Beside models with a table of positions all
        tokens count, as in earlier versions.
        """
        return list(residuals) if self.dense.has_positions else [h[:, 1:] for h in residuals]

    def save(self, folder: Path) -> None:
        """Write the sparse model to `folder`, and the PEFT adapter with its card to `folder`/bridges."""
        self.sparse.save_pretrained(folder)
        # 'auto' would query the hub for the base model's embeddings.
        self.adapter.save_pretrained(str(folder / BRIDGES), save_embedding_layers=False)
        # PEFT holds the target modules in a set, whose order differs between processes.
        config = files.read_json(folder / BRIDGES / "adapter_config.json")
        config["target_modules"] = sorted(config["target_modules"])
        files.write_json(folder / BRIDGES / "adapter_config.json", config)
        files.write_text(folder / BRIDGES / "README.md", bridge_card(self.name, self.facts, self.sparse.config))


def crossed_sites(sparse: SparseGPTForCausalLM) -> range:
    """The sites from the first sparse layer's to the one behind the last: all where every layer is sparse. Elsewhere bridges are exact."""
    of_layer, (first, last) = sparse.n_sublayers // sparse.config.n_layer, sparse.config.sparse_layers or (0, sparse.config.n_layer - 1)
    return range(of_layer * first, of_layer * (last + 1) + 1)


def new_pair(dense: DenseModel, spec: BridgeSpec, seed: int, device: torch.device | None = None) -> BridgedPair:
    """A new sparse model with the dense model's layers and vocabulary, and untrained bridges between the two, on `device`."""
    from peft import PeftModelForCausalLM

    device = device or pick_device()
    sublayers = wrap_dense(dense.model.to(device))  # type: ignore[arg-type]
    sizes = DenseShape.of(dense.model.config.to_dict(), dense.name)
    shape = shape_beside(spec, sizes)
    weights = sublayers.weights(max(spec.optim.context, shape.n_ctx)) if spec.init == "dense" else None
    further = {} if weights is None else blocks_like(weights, shape.d_model)
    further |= {name: first_token(getattr(dense.model.config, name, None)) for name in ("bos_token_id", "eos_token_id")}
    further["parallel"] = sublayers.n_sublayers == sizes.layers
    if weights is not None and spec.sparse_layers is not None:  # the other layers are exact: with the dense model's own activation
        further |= {"sparse_layers": list(spec.sparse_layers), "activation": weights.activation}
    has_bias = spec.init == "dense"
    sparse = new_sparse_gpt(shape, sizes.layers, sizes.vocabulary, seed, logits_bias=has_bias, **further).to(device)  # type: ignore[arg-type]
    base, revision = _base_and_revision(str(dense.facts.get("model", dense.name)))
    config = SparseBridgeConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision or None,
        d_sparse=shape.d_model,
        encoder_frac=spec.encoder_frac,
        crossed=None if spec.sparse_layers is None else [crossed_sites(sparse)[0], crossed_sites(sparse)[-1]],
        target_modules=set(sublayers.norms),
        sparse_model_name_or_path="..",
    )
    torch.manual_seed(seed + 1)
    adapter = PeftModelForCausalLM(dense.model, config)
    return BridgedPair(sublayers, sparse, bridge_sites(adapter), adapter, dense.name, dense.facts)


def load_pair(folder: Path, dense: DenseModel, sparse: SparseGPTForCausalLM | None = None) -> BridgedPair:
    """Load what `BridgedPair.save` wrote to `folder`, frozen, on the device.

    sparse   the sparse model of that folder, if it is loaded already

    Raises NotFound where the folder has no bridges, BrokenArtifact where they do not fit the dense model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    from extractor.models.load import load_model
    from extractor.models.reference import inspect_folder

    if not (folder / BRIDGES / "adapter_config.json").is_file():
        raise NotFound(f"model {folder} has no bridges: it was not made from a dense model")
    device = pick_device()
    if sparse is None:
        sparse = load_model(inspect_folder(folder)).to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    try:
        adapter = PeftModel.from_pretrained(dense.model.to(device), str(folder), subfolder=BRIDGES)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise BrokenArtifact(f"bridges in {folder} do not fit {dense.name}: {first_line(error)}") from None
    sites = bridge_sites(adapter)
    check_finite(torch.nn.ModuleList(sites), f"bridges in {folder}")
    adapter.eval().requires_grad_(False)
    return BridgedPair(wrap_dense(dense.model), sparse, sites, adapter, dense.name, dense.facts)


def bridge_card(name: str, facts: dict, sparse: PreTrainedConfig) -> str:
    """The model card in Markdown, with the front matter that PEFT and the hub read; `facts` as in `BridgedPair`."""
    from huggingface_hub import ModelCardData

    named, revision = _base_and_revision(name)
    base, literal = _in_markdown(named), json.dumps(named, ensure_ascii=False)  # such a JSON text is also Python's
    digests = "\n".join(f"- {key}: `{printable(str(value)).replace('`', '?')}`" for key, value in facts.items() if value is not None)
    at = f", revision={json.dumps(revision, ensure_ascii=False)}" if revision else ""
    return f"""---
{ModelCardData(base_model=named, library_name="peft").to_yaml()}
---

# Bridges between {base} and a weight-sparse GPT

At every norm that reads the residual stream, a linear encoder (dense residual to sparse, then AbsTopK) and a linear decoder (back).
{base} itself is not changed: with these bridges it gives the logits it always gave, bit for bit. The sparse model, of width
{sparse.hidden_size} and {sparse.num_hidden_layers} layers, lies in the folder above.

```python
import extractor.bridges  # registers the adapter type with PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM

dense = AutoModelForCausalLM.from_pretrained({literal}{at})
bridged = PeftModel.from_pretrained(dense, FOLDER, subfolder="bridges")
sites = extractor.bridges.bridge_sites(bridged)  # sites[i].encode(h), sites[i].decode(s), sites[i].steered(change)
sparse = AutoModelForCausalLM.from_pretrained(FOLDER)
```

{digests}
"""


def _base_and_revision(name: str) -> tuple[str, str]:
    """The hub id and the commit of 'ID@SHA'; a folder, which may have an @ in its name, has no commit: ''."""
    base, _, revision = (name, "", "") if Path(name).is_absolute() else name.partition("@")
    return base, revision


def _in_markdown(name: str) -> str:
    """A model's name as one line of text: nothing in it starts a tag, a link or a code span."""
    return re.sub(r"[\[<`]", r"\\\g<0>", printable(name))


def open_pair(folder: Path, dense: DenseModel | None = None, sparse: SparseGPTForCausalLM | None = None) -> BridgedPair:
    """Load the pair whose sparse model is in `folder`, and its dense model.

    dense, sparse   the two models, if they are loaded already

    Raises NotFound where the folder has no bridges or the dense model is no longer available, BrokenArtifact where dense.json names none,
    and what `load_pair` raises.
    """
    if dense is None:
        if not (folder / DENSE_JSON).is_file():
            raise NotFound(f"model {folder} has no bridges: it was not made from a dense model")
        dense = open_dense(*dense_of(folder))
    return load_pair(folder, dense, sparse)
