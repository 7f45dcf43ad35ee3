"""Which documents of a corpus to leave out: copies of others, and texts that break a rule.

The order of the work: `measure` turns documents into numbers, `rules` judges each document alone,
`signature` makes near-copies comparable, and `copies` compares all documents.
"""
