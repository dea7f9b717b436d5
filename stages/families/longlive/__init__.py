"""Causal generation over a bounded cache, block by block (LongLive, arXiv:2509.22622), on Wan2.1's classes."""
