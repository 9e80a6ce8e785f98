"""Pictures: one result in, one matplotlib figure out."""
