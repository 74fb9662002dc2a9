"""Reading and writing files: bounded, validated, and whole or not at all."""
