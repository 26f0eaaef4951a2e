"""Constants of the cost model of a bridging, each with its origin as far as the code shows it.

counted   read off the code of a training step
derived   from a formula
estimated a rough value; only the sum is checked: `tests/jobs/test_cost.py` holds the predicted peak of memory within -10 % and +35 % of
          the measured one (fp32, CPU)
chosen    a margin or a list of trial values
"""

from __future__ import annotations

# Bytes of a number in fp32. Counted.
FLOAT_BYTES = 4

# Numbers in one chunk of logits; equals `bridges.chunked_loss.LOGITS_AT_ONCE`, which imports torch (a test compares them). Counted.
LOGITS_AT_ONCE = 1 << 24

# Copies of one chunk of logits that are alive at once: target, logits, their difference, and the inputs of these. Counted.
LOGITS_COPIES = 6

# Copies of the unembedding's gradient: of the model's own predictions, of the hybrid passes, of a chunk; the last stays. Counted.
HEAD_GRADIENTS = 3

# The same of prompts of tasks, of both kinds of predictions. Counted.
PROMPT_GRADIENTS = 2

# Numbers per neuron of the dense model's MLP that autograd keeps, by activation function. Counted.
ACTIVATIONS_PER_NEURON = {"gelu_new": 4, "gelu_pytorch_tanh": 4, "gelu_fast": 4, "silu": 3}
DEFAULT_ACTIVATIONS_PER_NEURON = 4

# A crossing sequence runs through a uniformly distributed share of the layers: two standard deviations, 2 / sqrt(12). Derived.
CROSSING_SPREAD = 0.58

# Memory that malloc holds over memory in use, with many buffers of different sizes. Estimated.
FRAGMENTATION = 1.25

# Bytes of modules that a bridging imports late, and of the corpus's tokens in memory. Estimated.
PROCESS_BYTES = 60 << 20

# Bytes moved for each byte of activations that is kept. Estimated.
TRAFFIC_PER_BYTE = 6.0

# Share of the available memory that a bridging may use. Chosen.
USABLE_SHARE = 0.9

# Factors by which width and context are reduced when a smaller bridging that fits is searched for. Chosen.
SMALLER = (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
PROMPT_LENGTH = 0.5  # mean tokens of a task's prompt over the training's context
FOLLOWING_TOKENS = 4  # mean tokens of a program after a shifted prompt, of the built-in tasks
