"""Look for the items of evaluation sets in the rows that a model was trained on.

The order of the work: `items` say what is looked for, `ngrams` and `index` turn them
into hashes, `search` reads the rows, and `found` keeps the hits.
The rule `overlap-1`: `items` has which words count, `ngrams` which runs, `found` how many.
"""
