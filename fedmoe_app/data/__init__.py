"""Text sources, the embedded corpus, tokenizers and partitions."""
