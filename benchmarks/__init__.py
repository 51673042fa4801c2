"""One script a claim; ``python -m benchmarks list`` shows them."""
