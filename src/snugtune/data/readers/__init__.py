"""One module for each format that a table can come in."""
