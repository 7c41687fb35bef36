"""What a job leaves and shows: its frame (job.py) and its screen (screen.py)."""
