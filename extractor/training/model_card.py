"""result.json and README.md (the model card) of a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor.data import prompts
from extractor.data.text_files import printable
from extractor.errors import TaskNotExpressible
from extractor.spec.schema import JobSpec, TrainSpec
from tasks import task_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

    from extractor.data.corpus import Corpus

HELD_OUT_ROWS = 256
INSIDE_ROWS = 64
TASK_PAIRS = 256
SCANNED_PAIRS = 8 * TASK_PAIRS  # a task of whose prompts fewer than an eighth fit is not measured: the others are not like them


def held_out_loss(model: PreTrainedModel, corpus: Corpus, context: int, rows: int = HELD_OUT_ROWS) -> float:
    """Mean next-token loss on a fixed held-out batch, nats per token."""
    import torch

    total = 0.0
    with torch.no_grad():
        for ids in corpus.held_out_batch(0, rows, context).split(64):
            ids = ids.to(model.device)
            total += model(input_ids=ids, labels=ids).loss.item() * len(ids)
    return total / rows


def task_losses(model: PreTrainedModel, tokenizer: Tokenizer, max_tokens: int) -> dict[str, float | None]:
    """Held-out task loss of the full model on every task, nats per prompt; None where the task cannot be asked, see `_answers`."""
    found = {name: _answers(model, tokenizer, max_tokens, name, False) for name in task_names()}
    return {name: None if some is None else prompts.task_loss(*some).item() for name, some in found.items()}


def shifted_accuracies(model: PreTrainedModel, tokenizer: Tokenizer, max_tokens: int) -> dict[str, float | None]:
    """The fraction of shifted held-out prompts of every task on which the full model is right; None where none fits."""
    found = {name: _answers(model, tokenizer, max_tokens, name, True) for name in task_names()}
    return {name: None if some is None else prompts.accuracy(*some) for name, some in found.items()}


def _answers(model: PreTrainedModel, tokenizer: Tokenizer, max_tokens: int, name: str, shifted: bool) -> tuple[Tensor, Tensor] | None:
    """(logit differences, signs), (B,) each, of a held-out split.

    None where the task cannot be asked: the tokenizer cannot express it, or too few of its prompts fit, of shifted ones none.
    """
    import torch

    task = prompts.get_task(name)
    if shifted and not task.shifted:
        return None
    try:
        expression = prompts.tokenize_task(task, tokenizer)
        batch = prompts.task_batch(
            expression, tokenizer, "held_out", TASK_PAIRS, 0, max_tokens, shifted=shifted, fewer=shifted, scanned=SCANNED_PAIRS
        )
    except TaskNotExpressible:
        return None
    batch = batch.to(model.device)
    with torch.no_grad():
        logits = model(input_ids=batch.ids).logits
    last = logits[torch.arange(len(batch.ids), device=logits.device), batch.last]
    return prompts.logit_diff(last, batch), batch.sign


def train_result(spec: JobSpec, model: PreTrainedModel, corpus: Corpus, tokenizer: Tokenizer) -> dict:
    """result.json of a train job: sizes, held-out loss (nats per token), task losses (nats per prompt), accuracies on shifted prompts."""
    assert spec.train is not None
    return {
        "model": spec.train.architecture,
        "seed": spec.seed,
        "vocab_size": tokenizer.get_vocab_size(),
        "parameters": sum(p.numel() for p in model.parameters()),
        **inside(spec.train, model, corpus),
        "corpus_tokens": corpus.tokens,
        "trained_tokens": spec.train.optim.steps * spec.train.optim.batch * spec.train.optim.context,
        "held_out_loss": held_out_loss(model, corpus, spec.train.optim.context),
        "task_loss": task_losses(model, tokenizer, spec.train.model.n_ctx),
        "shifted_accuracy": shifted_accuracies(model, tokenizer, spec.train.model.n_ctx),
    }


def inside(train: TrainSpec, model: PreTrainedModel, corpus: Corpus) -> dict:
    """Nonzero weights, and for a sparse_gpt the statistics of `extractor.training.statistics` on held-out text."""
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

    if not isinstance(model, SparseGPTForCausalLM):
        weights = list(model.parameters())
        kept = sum(int(p.count_nonzero()) for p in weights)
        return {"nonzeros": kept, "nonzero_share": kept / sum(p.numel() for p in weights)}
    from extractor.training.projection import constraints, nonzeros
    from extractor.training.statistics import activation_statistics, weight_statistics

    ids = corpus.held_out_batch(0, INSIDE_ROWS, train.optim.context).to(model.device)
    found = weight_statistics(model, constraints(model, train.sparsity)) | activation_statistics(model, ids)
    found["nonzeros"] = int(found["nonzeros"])
    return {name: round(value, 5) for name, value in found.items()} | {"l0": nonzeros(model, train.sparsity)}


def train_card(spec: JobSpec, result: dict) -> str:
    """The model card: shape, recipe, losses, and how to reproduce the model."""
    assert spec.train is not None
    train, shape = spec.train, spec.train.model
    sparse = train.architecture == "sparse_gpt"
    kind = "GPT-2 (GPT2LMHeadModel)" if not sparse else "dense baseline of a weight-sparse GPT" if train.is_dense else "weight-sparse GPT"
    loading = "import extractor.sparse  # registers the architecture\n" if sparse else ""
    sources = printable(", ".join([*spec.corpus.sources, *(d.name for d in spec.corpus.datasets)]))
    inner = _inside_table(result) if sparse else f"Nonzero weights: {result['nonzeros']:,}."
    rows = "\n".join(
        f"| {name} | {'not expressible in these tokens' if loss is None else format(loss, '.4f')} | {_percent(result, name)} |"
        for name, loss in result["task_loss"].items()
    )
    return f"""# {kind}, {result["parameters"]:,} parameters

A {kind}: {shape.n_layer} layers, width {shape.d_model}, {shape.n_head} heads, \
vocabulary {result["vocab_size"]:,}, context {shape.n_ctx}.

```python
{loading}from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

Recipe: {train.optim.steps:,} steps of {train.optim.batch} x {train.optim.context} tokens \
({result["trained_tokens"] / 1e6:.1f} million) over a corpus of {result["corpus_tokens"] / 1e6:.1f} million tokens \
({sources}); AdamW, peak learning rate {train.optim.lr:g}; seed {spec.seed}.

{inner}

Held-out loss: {result["held_out_loss"]:.4f} nats per token. Held-out task loss (nats per prompt; chance is 0.6931), and how many of the \
shifted prompts, which are longer code in other templates, the model answers rightly (chance is 50%):

| task | loss | right on shifted prompts |
|---|---|---|
{rows}

Made again, with every number that shaped it, by `extract run spec.json --out DIR`: spec.json lies beside the folder of this card.
"""


def _percent(result: dict, name: str) -> str:
    share = result.get("shifted_accuracy", {}).get(name)
    return "none fits" if share is None else format(share, ".0%")


def _inside_table(result: dict) -> str:
    """The sparsity of the model as a Markdown table."""
    rows = [
        ("nonzero weights", f"{result['nonzeros']:,} ({result['nonzero_share']:.2%} of matrices, embeddings and biases)"),
        ("dead neurons and value channels (no weight in, or none out)", f"{result['dead_neurons']:.2%}"),
        ("neurons silent on held-out text", f"{result['silent_neurons']:.2%}"),
        ("node values that are zero", f"{result['activation_sparsity']:.2%}"),
        ("kurtosis of the final residual (Gaussian: 3)", f"{result['residual_kurtosis']:.1f}"),
    ]
    rows += [(f"L0 of `{name}`", f"{count:,}") for name, count in result["l0"].items() if not name.endswith(".bias")]
    return "\n".join(["| inside | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
