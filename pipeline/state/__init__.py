"""Who owns a run (here), and the folders with its checkpoints, rows, notes and stores."""
