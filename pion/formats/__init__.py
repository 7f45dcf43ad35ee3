"""The formats of models in files: read a folder, and write folders and GGUF files."""
