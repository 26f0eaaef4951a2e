"""Everything that changes weights. Paper: Sec. 2.1, App. A.2.

loop.py          run_loop: steps, checkpoints, progress;  checkpoints.py: the state on disk
compute.py       device, precision, micro-batches
projection.py    the L0 budget of every tensor;  schedule.py: its annealing and the learning rate
statistics.py    nonzero weights, dead neurons, kurtosis of the residual
optimizer.py     AdamW and projection, also used by bridge training
train_sparse.py  trains a weight-sparse GPT from scratch;  train_gpt2.py: a dense one
distributed.py   one training in several processes
width_search.py  the smallest width that reaches a loss
model_card.py    result.json and README.md of a trained model

Doors: loop, checkpoints, compute, optimizer, train_sparse, distributed, width_search, model_card.
"""
