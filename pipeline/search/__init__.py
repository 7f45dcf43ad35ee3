"""What a ladder of small runs says about larger runs."""
