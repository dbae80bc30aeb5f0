"""What the models are trained on: synthetic spheres, volumes from files, and their encoded latents."""
