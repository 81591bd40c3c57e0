"""One look at a model's source: headers, small files, manifest and signature. Blocks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from butterfly.channel import ModelSource
from butterfly.config import ModelSection, name_of_source
from butterfly_cluster.commands import DescribeModel
from butterfly_cluster.state import ModelPlace
from butterfly_engine.supported import check_supported
from butterfly_text.model import TextModel
from butterfly_weights.checkpoint import Checkpoint, read_checkpoint
from butterfly_weights.hub_cache import SnapshotSource
from butterfly_weights.merkle import model_root
from butterfly_weights.signature import load_trusted_keys
from butterfly_weights.signed import Signed, check_signed
from butterfly_weights.source import Pinned, Source, SourceOptions, open_source
from butterfly_weights.spec import model_spec


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found at the source; ``signed`` is None for a model that nobody signed. ``path``
    names the one version that was read, and ``snapshot`` a folder that has it already."""

    checkpoint: Checkpoint
    described: DescribeModel
    text: TextModel
    signed: Signed | None
    path: str
    snapshot: Path | None

    def root_of(self, part_digests: Mapping[str, str]) -> str:
        """The Merkle root that these digests make with this source's small files."""
        layers = self.described.spec.layer_count
        return model_root(self.checkpoint.small_files, part_digests, layers)


def name_of(section: ModelSection) -> str:
    """The model's name in the API."""
    return section.name or name_of_source(section.source_type, section.source_path)


def section_at(section: ModelSection, place: ModelPlace | None) -> ModelSection:
    """The section as it would be if the model lay there; what is kept and trusted stays."""
    if place is None:
        return section
    return section.model_copy(update=asdict(place))


def read_model(section: ModelSection, path: str, embedded_root: Path) -> Reading:
    """Read what the section names, at this path. Raises ButterflyError, OSError."""
    source = open_source(
        section.source_type,
        path,
        endpoint_url=section.endpoint_url,
        region=section.region,
        options=SourceOptions(embedded_root=embedded_root),
    )
    try:
        checkpoint = read_checkpoint(source)
        signed = _check_signature(section, source, checkpoint)
        if isinstance(source, Pinned):
            path = source.pinned_path()
        snapshot = source.folder if isinstance(source, SnapshotSource) else None
    finally:
        source.close()
    check_supported(checkpoint.config)
    spec = model_spec(checkpoint, name_of(section))
    digests = checkpoint.manifest.part_digests() if checkpoint.manifest else {}
    text = TextModel(checkpoint.small_files)
    return Reading(checkpoint, DescribeModel(spec, digests), text, signed, path, snapshot)


def _check_signature(
    section: ModelSection, source: Source, checkpoint: Checkpoint
) -> Signed | None:
    trusted = load_trusted_keys(section.trusted_keys)
    return check_signed(source, checkpoint, trusted, required=section.require_signature)


def engine_source(
    section: ModelSection, path: str, snapshot: Path | None, embedded_root: Path, cache: Path | None
) -> ModelSource:
    """The same source, as the engine process opens it."""
    source_type = section.source_type
    if source_type == "embedded":
        source_type, path = "filesystem", str(embedded_root / path)
    elif snapshot is not None:
        source_type, path = "filesystem", str(snapshot)
    return ModelSource(
        source_type=source_type,
        source_path=path,
        endpoint_url=section.endpoint_url,
        region=section.region,
        cache_directory=str(cache) if cache else None,
        cache_bytes_max=section.cache_bytes_max,
        peers=section.peers,
        peer_upload_bytes_per_second=section.peer_upload_bytes_per_second,
        cache_scrub_bytes_per_second=section.cache_scrub_bytes_per_second,
    )
