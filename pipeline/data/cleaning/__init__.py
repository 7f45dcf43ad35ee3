"""`data.clean`: leave out copies and bad documents before anything is learned from them.

`sets` reads the evaluation sets, `judged` judges each document alone and keeps its numbers on the
disk, `decided` finds the copies, and `receipt` says what was left out and why.
"""
