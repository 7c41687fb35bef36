"""What a run can be told, and whether it can be meant."""
