"""Units, and the live panel that a terminal shows."""
