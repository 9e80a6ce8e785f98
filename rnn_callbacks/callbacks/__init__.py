"""Lightning callbacks: when to look, and at what."""
