"""Prompts whose answers are sampled while a model is trained."""
