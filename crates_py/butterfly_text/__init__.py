"""butterfly_text."""
