"""Everything a model reads, as batches of token ids.

sources.py       documents of a corpus;  text_files.py: those of the user's files;  realistic.py, programs.py, program_values.py:
                 generated programs
streams.py       Hugging Face datasets, streamed;  shards.py: their tokens on disk
build_corpus.py  sources -> tokens -> shards in the cache
corpus.py        shards -> seeded batches and bigram counts
text_kind.py     whether a model knows code or prose better
encoding.py      a text as token ids, and tokens as shown texts
prompts.py       a task as token ids, its batches, logit difference and task loss
focus.py         the tasks' prompts of a bridging;  bootstrap.py: 95 % intervals over pairs of prompts
task_choice.py   the tasks that a user names, and which of them a tokenizer can express

Doors: sources, streams, build_corpus, corpus, text_kind, encoding, prompts, focus, task_choice, bootstrap.
"""
