"""What people read of a run: its page, live and frozen as report.html, and the model card."""
