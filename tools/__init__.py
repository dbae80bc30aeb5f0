"""What is done with the bundle as a whole, and is no part of it: archive, model card, formatting."""
