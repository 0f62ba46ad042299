"""Benchmarks: lbkit next to its peers, as ratios. `scripts/bench` lists and runs them."""
