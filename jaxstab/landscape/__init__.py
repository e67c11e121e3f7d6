"""The loss around a point: directions to look along, and what is seen there."""

from jaxstab.landscape.directions import between, directions, random_subset

__all__ = [
    "between",
    "directions",
    "random_subset",
]
