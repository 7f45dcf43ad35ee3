"""GGUF files of exported models, for llama.cpp and the programs that are built on it."""
