"""The few modules that the configs name; each is one noun, and imports only downward.

On the ground stand ``checks`` and ``distributions``; on them ``spheres``, ``environment``, ``weights``, ``losses`` and
``autoencoder``; then ``latents``, ``diffusion``, ``generator`` and ``measurement``; then ``metrics`` and ``figures``;
and ``handlers`` on top. ``benchmark``, ``schedule`` and ``tracking`` stand apart, and so do ``card``, which knows
``fidelity`` alone, and ``archive`` on it.
"""
