"""Speed and memory beside peers, run by `make bench`: ratios within one run, never a test."""
