"""``hf:PLACE``: any causal language model of transformers, from its ``config.json``, as one architecture."""
