"""The web app of a run: try a text, predict a table, review predictions, read the report."""
