"""Built-in launchers; ``docs/how-to/cluster.md`` says how to use them and how to write another."""
