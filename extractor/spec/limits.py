"""The largest values that a job may ask for: far beyond every sensible job, and small enough that a wrong digit is refused at once.

It imports no pydantic, which takes the command line a tenth of a second.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

MAX_THREADS = 1024  # of torch on a CPU; with many more OpenMP ends the process
MAX_STEP_TOKENS = 1 << 28  # of one optimiser step, whose ids are drawn at once

Count = Annotated[int, Interval(ge=1, le=10**12)]
Layers = Annotated[int, Interval(ge=1, le=1000)]
Width = Annotated[int, Interval(ge=1, le=1 << 17)]  # channels
Ratio = Annotated[int, Interval(ge=1, le=256)]
Tokens = Annotated[int, Interval(ge=1, le=1 << 20)]  # of a sequence
Rows = Annotated[int, Interval(ge=1, le=1 << 20)]  # sequences, or pairs of prompts, of one batch
Vocabulary = Annotated[int, Interval(ge=1, le=1 << 22)]  # tokens
PerToken = Annotated[int, Interval(ge=1, le=1 << 16)]  # entries of a table for each token
MeasuredTokens = Annotated[int, Interval(ge=1, le=1 << 27)]
Population = Annotated[int, Interval(ge=1, le=1024)]  # mask sets in memory at once
Trials = Annotated[int, Interval(ge=1, le=10**6)]
