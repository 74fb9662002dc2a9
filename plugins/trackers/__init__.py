"""Built-in experiment trackers; ``docs/how-to/trackers.md`` says how to use them and how to write another."""
