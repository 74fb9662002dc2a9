"""What ``benchmarks/peers.py`` compares, one file for each published implementation."""
