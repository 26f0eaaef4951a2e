"""Every model that users name: references, checks, tokenizers, dense architectures, published checkpoints.

reference.py       bundled names, folders, hub ids, jobs -> a local folder. No torch
checks.py          which checkpoints are accepted, and why others are refused. No torch
shape.py           sizes and number of parameters from a config.json. No torch
lora.py            ranks and patterns of a LoRA's config;  tensors.py: shapes in a safetensors file. No torch
sparse_folder.py   folders of sparse models: checks, and the files that a job copies. No torch
hub.py             metadata, pins and downloads of the hub, and its errors. No torch
tokenizer_files.py the files of a tokenizer, read within bounds. No torch;  tokenizer.py: load, train, save tokenizers
load.py            a local folder -> a torch model, LoRA adapters merged;  quiet.py: transformers without its output
dense/             dense models as sublayers: base.py, then one file per architecture
openai_format.py   configs and tensors of the published circuit-sparsity checkpoints;  openai_import.py: `extract import`

Doors: reference, checks, shape, tensors, sparse_folder, hub, tokenizer_files, tokenizer, load, dense.base, dense.start, openai_import.
"""
