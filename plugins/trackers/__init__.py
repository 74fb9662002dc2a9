"""Built-in experiment trackers; ``docs/trackers.md`` says how to use them and how to write another."""
