"""The colours and dashes of the networks in a picture: each variant's own, as everywhere."""

from collections.abc import Sequence
from typing import Any

from geexp.report.analyses.stored import Network
from geexp.report.style import SECOND_LOOK, VARIANT_STYLE


def looks_of(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """One for each network. A second network of the same variant gets a look that no variant has."""
    looks: list[dict[str, Any]] = []
    for network in networks:
        look = VARIANT_STYLE[network.variant]
        looks.append(SECOND_LOOK if look in looks else look)
    return looks
