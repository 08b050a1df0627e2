"""What a user sees: tables, plots, progress, tracking."""
