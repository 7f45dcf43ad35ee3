"""What people read afterwards: report.html, the model card, plots and tables."""
