"""Who owns a run (here), its checkpoints (checkpoints/), and where bytes live (stores/)."""
