"""Everything a model reads, as batches of token ids.

sources.py       documents of a corpus;  programs.py, program_values.py: generated programs
streams.py       Hugging Face datasets, streamed;  shards.py: their tokens on disk
build_corpus.py  sources -> tokens -> shards in the cache
corpus.py        shards -> seeded batches and bigram counts
text_kind.py     whether a model predicts code or prose better
prompts.py       a task as token ids, its batches, the task loss
task_choice.py   the tasks that a user names, and those that a tokenizer can express

Doors: sources, streams, build_corpus, corpus, text_kind, prompts, task_choice.
"""
