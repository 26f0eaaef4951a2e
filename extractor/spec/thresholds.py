"""Task losses near chance (ln 2 nats) and what each of them decides. No torch.

Calibrated: scale and shift of the logit differences are fitted, so that no network is much worse than chance.
"""

from __future__ import annotations

from extractor.spec.schema import CHANCE

# Validation, not calibrated: a full model with this loss or more does not do the task, and the result says so.
FULL_MODEL_FAILS_RAW = 0.80 * CHANCE
# Before pruning, not calibrated: a dense model with this loss or more, and right on fewer prompts than this, does not do the task.
# Report: a full model that is right on fewer shifted prompts fails on them.
DENSE_FAILS_RAW = FULL_MODEL_FAILS_RAW
RIGHT_ENOUGH = 0.9
# Before pruning: a sparse model that prefers another answer than its dense model on a larger share of the prompts speaks for itself only.
MOST_DISAGREEMENT = 0.05
# Validation: a node has another role in the circuit where more than this share of its variance in the full model is unexplained.
OTHER_ROLE = 0.5
# Report: a circuit holds on shifted prompts where it prefers the full model's answer on at least this fraction of them.
SAME_ANSWER = 0.95
# Search: a robust circuit of more edges is no small part of the model; the circuit of the paper's standard is shown in its place.
MOST_ROBUST_EDGES = 6000
# Report, calibrated: a model without its circuit is called "at chance" from here on.
AT_CHANCE = 0.90 * CHANCE
# Report: below this, "near chance" with the number in its place: 0.68 nats can be 57 % right.
THE_SAME_AS_CHANCE = 0.99 * CHANCE
# Pruning, calibrated: a full model with this loss or more does not do the task; nothing is pruned.
FULL_MODEL_FAILS = 0.95 * CHANCE
# Pruning, calibrated: the largest loss without the circuit that a circuit must cause. Chance itself is hardly ever reached.
MOST_DEMANDED_LOSS = 0.97 * CHANCE
# Validation, report: a node with at least this AUC, or at most 1 minus it, separates the two answers.
SEPARATES = 0.9
# Report: an edge whose removal raises the loss by less (nats) is not counted among those that do.
COUNTED_RISE = 0.001
