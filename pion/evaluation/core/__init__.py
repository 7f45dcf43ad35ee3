"""The CORE benchmark by nanochat's rules, on a bundle of questions that the user has."""
