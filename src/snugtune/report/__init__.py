"""What a run leaves to read: its record, its rows, its model card."""
