"""Measure models on text, conversations and questions."""
