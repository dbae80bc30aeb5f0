"""What is done with finished weights and data: exports, conversion between packages, timing the data loader."""
