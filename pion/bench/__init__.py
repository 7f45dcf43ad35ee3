"""`python -m pion.bench`: check that a card computes right, then measure how fast it is.

This package needs torch, numpy, safetensors and tokenizers, and nothing else.
"""
