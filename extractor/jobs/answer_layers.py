"""In which layers the answer to a task reaches the last token of its prompts, for a model's reference; `extract tasks layers`."""

from __future__ import annotations

from typing import Any

from extractor.data.prompts import task_batch, task_loss
from extractor.data.task_choice import check_expressible
from extractor.files import rounded
from extractor.jobs.check_tasks import last_logit_diff
from extractor.models.dense.start import obstacle
from extractor.models.reference import open_model
from extractor.models.tokenizer import load_tokenizer
from tasks import Task


def measure_layers(reference: str, adapter: str | None, task: Task, pairs: int, seed: int = 0) -> dict[str, Any]:
    """{model, adapter, task, pairs, loss, layers: [{layer, last, others}], span: 'A-B' or None, obstacle}, see `bridges.answer_layers`.

    On select pairs. loss   the model's own, nats, not calibrated;  obstacle   why --layers does not go with this model; None where it does

    Raises TaskNotExpressible, UnsupportedModel for a sparse model or an architecture that cannot be bridged, and what `open_dense` raises.
    """
    from extractor.bridges.answer_layers import answer_layers, span
    from extractor.models.dense.base import wrap_dense
    from extractor.models.load import open_dense
    from extractor.training.compute import pick_device

    dense = open_dense(reference, adapter)
    model: Any = dense.model.to(pick_device())  # type: ignore[arg-type]
    config, tokenizer = model.config, load_tokenizer(open_model(reference).path)
    longest = config.max_position_embeddings
    tokenized = check_expressible(task, tokenizer, longest, config.vocab_size)
    available = task.available("select")
    batch = task_batch(tokenized, tokenizer, "select", min(pairs, available or pairs), seed, longest).to(model.device)
    found = list(answer_layers(wrap_dense(model), config.num_hidden_layers, batch))
    loss = task_loss(last_logit_diff(model, batch), batch.sign.cpu()).item()
    facts = {"model": reference, "adapter": adapter, "task": task.name, "pairs": batch.pairs, "loss": round(loss, 6)}
    place = span(found)
    facts |= {"layers": rounded([one._asdict() for one in found]), "span": place and f"{place[0]}-{place[1]}"}
    return facts | {"obstacle": obstacle(config.to_dict(), min(longest, batch.ids.shape[1]))}
