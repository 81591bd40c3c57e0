"""The one description of a node that people write: a TOML file, the environment, flags.

``load_config`` reads and judges all three at once; ``describe`` prints what came of it.
"""

from butterfly.config.describing import describe
from butterfly.config.discovery_schema import DiscoverySection
from butterfly.config.loading import load_config
from butterfly.config.model_name import name_of_source
from butterfly.config.reading import FLAGS
from butterfly.config.schema import (
    EMBEDDED_MODELS,
    ClusterSection,
    EngineSection,
    ModelSection,
    NodeConfig,
    NodeSection,
    SecuritySection,
)

__all__ = [
    "EMBEDDED_MODELS",
    "FLAGS",
    "ClusterSection",
    "DiscoverySection",
    "EngineSection",
    "ModelSection",
    "NodeConfig",
    "NodeSection",
    "SecuritySection",
    "describe",
    "load_config",
    "name_of_source",
]
