"""The weight-sparse GPT. Importing this package registers it with transformers, so that AutoModelForCausalLM loads its folders."""

from transformers import AutoConfig, AutoModelForCausalLM

from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

AutoConfig.register(SparseGPTConfig.model_type, SparseGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(SparseGPTConfig, SparseGPTForCausalLM, exist_ok=True)
SparseGPTConfig.register_for_auto_class()
SparseGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["SparseGPTConfig", "SparseGPTForCausalLM"]
