"""What is trained: the distribution over voxels, the autoencoder, the diffusion model, their losses, the generator."""
