"""Trace the memory of a training step on fake tensors: no card, no memory, no formula of a part."""
