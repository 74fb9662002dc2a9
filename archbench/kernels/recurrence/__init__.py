"""Linear recurrences of language models, in chunks for training and step by step as their reference and in decoding."""
