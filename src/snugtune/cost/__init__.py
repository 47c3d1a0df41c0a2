"""What a run costs: prices with dates and sources."""
