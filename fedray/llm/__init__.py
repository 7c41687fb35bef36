"""One LLM and its tokenizer: loading, caches, alignment, decoding. Knows torch and transformers, never Ray."""
