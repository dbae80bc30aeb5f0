"""The modules that the configs name, in rooms; imports go downward only.

- ``report``: a run's folder as one page.
- ``tools``: exports, conversion between packages, timing the data loader.
- ``training``: checkpoints, curves, schedule, care for bad numbers.
- ``evaluation``: measured spheres, fidelity to the law, metrics of reconstructions, figures.
- ``data``: spheres, volumes from files, latents, what volumes are asked for.
- ``model``: distribution over voxels, autoencoder, diffusion model, convolutions on few voxels, generator, losses.
- Below all: ``checks`` (what a user may set), ``config`` (the config that is being run), ``record`` (its settings, kept
  with what it wrote), ``command_line`` (errors and signals), ``environment`` (device and precision), ``distributed``
  (what several processes share), ``weights`` (files of weights), ``atomic`` (files that appear whole).
"""
