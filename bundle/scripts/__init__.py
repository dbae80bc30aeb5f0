"""The few modules that the configs name; each is one noun, and imports only downward.

On the ground stand ``checks`` and ``distributions``; on them ``spheres``, ``volumes``, ``environment``, ``weights``,
``losses`` and ``autoencoder``; then ``latents``, ``diffusion``, ``generator`` and ``measurement``; then ``fidelity``,
``metrics``, ``figures`` and ``curves``; and ``handlers`` and ``report`` on top. Beside them, for other tools:
``exports`` on ``generator``, ``generative`` and ``conversion`` for the older package, ``tracking``, ``card`` and
``archive``. ``benchmark`` and ``schedule`` stand apart.
"""
