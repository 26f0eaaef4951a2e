"""Text -> tokens -> batches: sources, streams, shards, tokenizers."""
