"""From the job's sources to prepared rows, and back to rows while training."""
