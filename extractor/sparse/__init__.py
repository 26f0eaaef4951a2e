"""The weight-sparse GPT, an ordinary transformers model (Sec. 2.1, App. A.1).

Importing this package registers it, so that AutoModelForCausalLM loads its folders. The first seven files are copied into saved models:

configuration_sparse_gpt.py   shape and options
modeling_sparse_gpt.py        the model: read this first
abs_topk.py                   AbsTopK;  abs_topk_triton.py: its GPU kernel
sink_attention.py             attention with a learned sink
bigram.py                     bigram logits: dense table, sparse counts, low rank
observing.py                  read and replace any value by name
kernels.py                    sparse matrix products for trained models
"""

from transformers import AutoConfig, AutoModelForCausalLM

from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

AutoConfig.register(SparseGPTConfig.model_type, SparseGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(SparseGPTConfig, SparseGPTForCausalLM, exist_ok=True)
SparseGPTConfig.register_for_auto_class()
SparseGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["SparseGPTConfig", "SparseGPTForCausalLM"]
