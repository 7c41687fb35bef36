"""The body of every job in jobs/."""
