"""The lowest versions that pyproject.toml allows, as constraints for pip: what ``make lowest`` tests with."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import requires

from packaging.requirements import Requirement


def find_lowest(requirements: Iterable[str]) -> list[str]:
    """Pin each requirement that has a lowest version to it, as ``name==version``; the others are left out."""
    return sorted(
        {
            f"{requirement.name}=={specifier.version}"
            for requirement in map(Requirement, requirements)
            for specifier in requirement.specifier
            if specifier.operator == ">="
        }
    )


if __name__ == "__main__":
    print("\n".join(find_lowest(requires("spheres-latent-diffusion") or [])))
