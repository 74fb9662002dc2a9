"""``archbench scale``: how loss falls with size and tokens, and how sure that is."""
