"""Bytes in a Hugging Face Hub repository."""

# Where a person makes a token for the Hub.
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
