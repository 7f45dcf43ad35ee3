"""The tokenizer: from a text to ids, and back."""
