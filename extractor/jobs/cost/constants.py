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

# Residuals of the dense model from which a basis is chosen: tokens of a site, numbers of all; equal to those of `bridges.initialisation`,
# which imports torch (a test compares them). Counted.
SAMPLED_TOKENS, SAMPLED_NUMBERS = 4096, 1 << 25

# Copies of them: as they are measured, joined, centred. Counted.
SAMPLE_COPIES = 3

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

# Below: seconds of a job's parts on the reference machine, two quiet threads of an AMD EPYC, with the bundled python-tiny and preset
# 'tiny'; only the time left of a running job depends on them. Measured: events of main jobs, and CPU seconds of one thread of a job of
# three tasks (quote_close, bracket_counting, if_equals) and of a training, divided by 1.46, the ratio of both in a step of bridging.
# Rounded means.

# Operations and bytes per second with which `BridgingCost.seconds` gives the 0.168 s of a step of bridging. Measured.
REFERENCE_FLOPS = 1.2e11
REFERENCE_BYTES = 1.6e10

# Of a step of training that operations and bytes leave out. Measured: 0.066 s in all, preset 'tiny'.
STEP_SECONDS = 0.02

# What is measured of a model when it is trained, by stage: the phase, its seconds. Measured.
MEASURES = {"train": ("numbers", 23.0), "bridge": ("faithfulness", 6.5)}

# Entries of the matrices of the blocks of the model that was pruned, and pairs of its select, held-out and trial batches. The search takes
# time in proportion to both, at least SMALLEST_SHARE of the table; beyond LARGE times the entries, matrix products run at higher rates, and
# it grows with a power of the entries. Counted; chosen; the power measured with SmolLM2-135M.
REFERENCE_ENTRIES = 393_216
REFERENCE_PAIRS = 1_280
SMALLEST_SHARE = 0.25
LARGE, LARGE_POWER = 16.0, 0.75

# Text and tokens that are in no cache. Measured.
CORPUS_SECONDS = 10.0

# A step of learning mask sets, by standard: 8 sets on 64 pairs; by the robust one 4 sets on 16 pairs in five conditions. Measured.
MASK_SECONDS = {"paper": 0.09, "robust": 0.35}

# Phases of a search after the ranking, by standard. Robust circuits are eliminated in few tasks, and then for minutes. Measured.
PRUNE_SECONDS = {
    "paper": {"cut": 4.0, "nodes": 6.0, "edges": 20.0, "choose": 4.0},
    "robust": {"cut": 22.0, "first edges": 8.0, "nodes": 5.0, "edges": 15.0, "choose": 15.0},
}

# The same of a search in which rankings race. By the paper's standard few tasks need a second one; by the robust one most do.
RACE_SECONDS = {
    "paper": {"first edges": 3.0, "nodes": 3.0, "edges": 4.0, "choose": 2.0},
    "robust": {"first edges": 20.0, "rank": 40.0, "cut": 10.0, "nodes": 5.0, "edges": 15.0, "choose": 14.0},
}

# All checks, by the last standard and whether the spec asks for controls. Measured with controls, else estimated.
VALIDATE_SECONDS = {("paper", True): 30.0, ("robust", True): 50.0, ("paper", False): 10.0, ("robust", False): 12.0}

# Files and page, by whether a dense model stands beside the sparse one, whose steering takes most. Measured.
REPORT_SECONDS = {True: 38.0, False: 8.0}
