"""What a trained model is, in numbers (result.json) and in words (the card beside its weights)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor import objective
from extractor.errors import TaskNotExpressible
from extractor.specs import JobSpec
from tasks import task_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from extractor.corpus import Corpus

HELD_OUT_ROWS = 256
TASK_PAIRS = 256


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
    """Held-out task loss of the whole model on every task, nats per prompt; None where the tokenizer cannot ask it."""
    import torch

    losses: dict[str, float | None] = {}
    for name in task_names():
        try:
            expression = objective.express(objective.get_task(name), tokenizer)
            batch = objective.task_batch(expression, tokenizer, "held_out", TASK_PAIRS, 0, max_tokens).to(model.device)
        except TaskNotExpressible:
            losses[name] = None
            continue
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits
        last = logits[torch.arange(len(batch.ids), device=logits.device), batch.last]
        losses[name] = objective.task_loss(objective.answer_margin(last, batch), batch.sign).item()
    return losses


def train_result(spec: JobSpec, model: PreTrainedModel, corpus: Corpus, tokenizer: Tokenizer) -> dict:
    """result.json of a train job: sizes, held-out loss (nats per token), task losses (nats per prompt)."""
    assert spec.train is not None
    weights = [p for name, p in model.named_parameters() if p.dim() >= 2 and name != "bigram_table"]
    return {
        "model": spec.train.architecture,
        "seed": spec.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "nonzero_share": round(sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights), 5),
        "corpus_tokens": corpus.tokens,
        "trained_tokens": spec.train.optim.steps * spec.train.optim.batch * spec.train.optim.context,
        "held_out_loss": held_out_loss(model, corpus, spec.train.optim.context),
        "task_loss": task_losses(model, tokenizer, spec.train.model.n_ctx),
    }


def train_card(spec: JobSpec, result: dict) -> str:
    """The model card: what it is, how well it does, how to make it again."""
    assert spec.train is not None
    train, shape = spec.train, spec.train.model
    sparse = train.architecture == "sparse_gpt"
    kind = "weight-sparse GPT" if sparse else "GPT-2 (GPT2LMHeadModel)"
    loading = "import extractor.sparse  # registers the architecture\n" if sparse else ""
    rows = "\n".join(f"| {name} | {'-' if loss is None else format(loss, '.4f')} |" for name, loss in result["task_loss"].items())
    corpus = f"--corpus {' --corpus '.join(spec.corpus.sources)}"
    return f"""# {kind}, {result["parameters"]:,} parameters

A small {kind} that knows simple Python: {shape.n_layer} layers, width {shape.d_model}, {shape.d_model // shape.d_head} heads, \
vocabulary {train.vocab_size}, context {shape.n_ctx}.

```python
{loading}from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

Recipe: {train.optim.steps:,} steps of {train.optim.batch} x {train.optim.context} tokens \
({result["trained_tokens"] / 1e6:.1f} million) over a corpus of {result["corpus_tokens"] / 1e6:.1f} million tokens \
({", ".join(spec.corpus.sources)}); AdamW, peak learning rate {train.optim.lr}; seed {spec.seed}.
Nonzero share of the matrices: {result["nonzero_share"]}.

Held-out loss: {result["held_out_loss"]:.4f} nats per token. Held-out task loss (nats per prompt; chance is 0.6931):

| task | loss |
|---|---|
{rows}

Made, and made again, by

```
extract train --architecture {train.architecture} --preset {spec.preset} --seed {spec.seed} {corpus} --wait
```
"""
