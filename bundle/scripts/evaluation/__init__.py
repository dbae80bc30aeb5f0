"""What is measured: spheres in volumes, reconstructions, fidelity to the law, and the figures of all of it."""
