"""The stock architectures of transformers that compute a decoder exactly."""
