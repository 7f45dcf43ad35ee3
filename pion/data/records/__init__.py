"""Records of conversations and preferences in the layouts of others, read into one form."""
